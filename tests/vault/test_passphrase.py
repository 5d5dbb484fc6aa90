"""A passphrase to key bytes."""

import pytest
from argon2.exceptions import HashingError

from appliance.errors import Busy, InvalidArgument
from appliance.types import PassphraseCost
from appliance.vault.passphrase import stretch

SALT = bytes(range(16))
CHEAP = PassphraseCost(memory_kib=32, passes=3, lanes=4)


def test_the_same_words_salt_and_cost_give_the_same_64_bytes() -> None:
    given = stretch("password", SALT, CHEAP)
    assert len(given) == 64
    assert given == stretch("password", SALT, CHEAP)


def test_another_word_salt_or_cost_gives_other_bytes() -> None:
    others = {
        stretch("password", SALT, CHEAP),
        stretch("Password", SALT, CHEAP),
        stretch("password", bytes(16), CHEAP),
        stretch("password", SALT, PassphraseCost(32, 2, 4)),
        stretch("password", SALT, PassphraseCost(32, 3, 2)),
        stretch("password", SALT, PassphraseCost(40, 3, 4)),
    }
    assert len(others) == 6


def test_composed_and_decomposed_letters_are_the_same_passphrase() -> None:
    assert stretch("Schlüssel", SALT, CHEAP) == stretch("Schlu\u0308ssel", SALT, CHEAP)


@pytest.mark.parametrize(
    "cost",
    [
        PassphraseCost(1 << 21, 1, 1),
        PassphraseCost(1 << 31, 3, 4),
        PassphraseCost(31, 3, 4),
        PassphraseCost(32, 0, 1),
        PassphraseCost(32, 17, 1),
        PassphraseCost(1024, 1, 17),
        PassphraseCost(32, 1, 0),
    ],
)
def test_a_cost_past_all_sense_is_refused_before_it_is_spent(cost: PassphraseCost) -> None:
    with pytest.raises(InvalidArgument) as refused:
        stretch("password", SALT, cost)
    assert refused.value.field == "cost"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="passphrase"):
        stretch("\ud800", SALT, CHEAP)


def test_memory_that_is_not_there_is_told_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_free(*_: object) -> bytes:
        raise HashingError("Memory allocation error")

    monkeypatch.setattr("appliance.vault.passphrase.hash_secret_raw", none_free)
    with pytest.raises(Busy, match="256 MiB"):
        stretch("password", SALT, PassphraseCost())
