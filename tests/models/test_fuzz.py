"""A slice of `make fuzz`, of a seed of its own."""

from pathlib import Path

import pytest

from tests import fuzz

SEED = 7


def test_a_mutated_header_is_read_or_refused_and_nothing_else() -> None:
    passed, sound, faults = fuzz.feed(SEED, range(3000))
    assert faults == []
    assert passed == 3000
    assert 100 < sound < 2900  # the mutations are neither harmless nor all fatal


def test_a_mutation_is_the_same_each_time(tmp_path: Path) -> None:
    known, again = fuzz.samples(tmp_path), fuzz.samples(tmp_path)
    made = [fuzz.mutate(SEED, number, known) for number in range(50)]
    assert made == [fuzz.mutate(SEED, number, again) for number in range(50)]
    assert len({content for _, content, _ in made}) > 40


@pytest.mark.long
def test_what_passes_as_sound_may_end_a_worker_and_nothing_else() -> None:
    outcomes, faults = fuzz.load_many(SEED, 8)
    assert faults == []
    assert sum(outcomes.values()) == 8
