import re

from appliance import errors


def test_the_docstring_draws_the_whole_tree_and_nothing_else() -> None:
    drawn = set(re.findall(r"^(?:[│ ]*[├└]── )?([A-Z][A-Za-z]+)", str(errors.__doc__), re.MULTILINE))
    assert {cls.__name__ for cls in errors.by_reason().values()} == drawn - {"What", "A", "CLI"}


def test_reasons_are_stable_upper_case_and_one_to_a_class() -> None:
    named = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.ApplianceError)]
    assert all(re.fullmatch("[A-Z_]+", cls.reason) for cls in named)
    assert len(errors.by_reason()) == len(named)


def test_every_error_says_what_to_do() -> None:
    for cls in errors.by_reason().values():
        assert cls.remedy.endswith("."), cls.__name__
        assert 1 <= cls.exit_code <= 130
