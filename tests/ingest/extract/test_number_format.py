"""What cells show for numbers; the expected texts are what Excel shows, dates apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ingest.extract.number_format import NumberFormat


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        ("General", 42.0, "42"),
        ("General", 0.1 + 0.2, "0.3"),
        ("General", -1e20, "-1e+20"),
        ("0", 2.5, "3"),
        ("0.0", 0.25, "0.3"),
        ("0." + 40 * "0", 1 / 3, "0.333333333333"),
        ("0.00%", 999999999999999.0, "99999999999999900.00%"),
        ("0.00", 2.5, "2.50"),
        ("000", 7, "007"),
        ("0.##", 2.5, "2.5"),
        ("0.##", 2, "2"),
        ("#,##0.00", 1234567.891, "1,234,567.89"),
        ("0.0,,", 1234567, "1.2"),
        ("0%", 0.25, "25%"),
        ("0.00%", 0.1234, "12.34%"),
        ("0.00E+00", 12345, "1.23E+04"),
        ("# ?/?", 1.5, "1.5"),
        ('"€" #,##0.00', 12.5, "€ 12.50"),
        ("#,##0.00 [$€-407]", 12.5, "12.50 €"),
        ("[Red]0.0", 12.5, "12.5"),
        ("0;(0)", -5, "(5)"),
        ('0;-0;"none"', 0, "none"),
        (";;;", 5, ""),
        ("@", 5, "5"),
        ('0" kg"', 5, "5 kg"),
        (r"0\x", 5, "5x"),
        ("", 5, "5"),
        ("0.00", -2.5, "-2.50"),
        ("0", float("nan"), ""),
        ("0", float("-inf"), ""),
    ],
)
def test_a_number_is_shown(code: str, value: float, shown: str) -> None:
    assert NumberFormat(code).show(value) == shown


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        ("dd/mm/yyyy", 46000, "2025-12-09"),
        ("mmm-yy", 46000, "2025-12-09"),
        ("d. mmmm yyyy", 1, "1900-01-01"),
        ("yyyy", 61, "1900-03-01"),
        ("yyyy-mm-dd hh:mm", 46000.5, "2025-12-09 12:00"),
        ("yyyy-mm-dd hh:mm:ss", 46000.999999, "2025-12-10 00:00:00"),
        ("h:mm AM/PM", 0.75, "18:00"),
        ("mm:ss", 0.001, "00:01:26"),
        ("[h]:mm:ss", 1.5, "36:00:00"),
        ("[h]:mm", -1.5, "-36:00:00"),
        ("yyyy", -3, "-3"),
        ("yyyy", 1e300, "1e+300"),
        ("yyyy", 2_958_466, "2958466"),
    ],
)
def test_a_moment_is_shown_in_iso_8601(code: str, value: float, shown: str) -> None:
    assert NumberFormat(code).show(value) == shown


@given(st.text(st.sampled_from('ymdhs0#?.,%E+-/;"\\[]$€_*@ AMPGeneral'), max_size=40), st.floats())
def test_no_format_and_no_number_does_harm(code: str, value: float) -> None:
    assert len(NumberFormat(code).show(value)) < 400
