import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import AlreadyExists, InvalidArgument, NotFound, StoreDamaged
from appliance.models.aliases import AliasBook, Rule, Seen, draw, failing, without
from appliance.types import ModelFile, ModelKind, Tally, Target
from appliance.vault.keyring import FileKeyring

STABLE, CANARY, SHADOW = Target("stable", 9), Target("canary", 1), Target("other", 0, shadow=True)
OK, ERROR = Tally(1, 0, 10, 0.5), Tally(1, 1)
RULE = Rule(least_requests=10, window_requests=50, margin_ratio=0.1)


class Files:
    """ports.ModelFiles over a dict."""

    def __init__(self) -> None:
        chat = ModelFile("", ModelKind.CHAT, "", "llama", "0" * 64, 1, "test", scaffold="chatml")
        self.files = {name: replace(chat, name=name) for name in ("stable", "canary", "other")}
        self.files["pointer"] = replace(chat, name="pointer", kind=ModelKind.POINTER)
        self.files["plain"] = replace(chat, name="plain", scaffold="plain")
        self.files["style"] = replace(chat, name="style", kind=ModelKind.ADAPTER, base="stable", scaffold="plain")

    def list(self) -> tuple[ModelFile, ...]:
        return tuple(self.files.values())

    def get(self, name: str) -> ModelFile:
        if name not in self.files:
            raise NotFound(f"There is no model models/{name}.")
        return self.files[name]

    def verify(self, file: ModelFile) -> None:
        raise NotImplementedError

    def pinned(self, name: str) -> bool:
        return False


Open = Callable[[], AliasBook]


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "aliases.json"


@pytest.fixture
def reopen(path: Path, tmp_path: Path, files: Files) -> Open:
    keyring = FileKeyring.open(tmp_path / "keys", tmp_path / "data")
    return lambda: AliasBook(path, keyring, files, RULE, random=lambda: 0.95)


@pytest.fixture
def book(reopen: Open) -> AliasBook:
    return reopen()


# --- pure -------------------------------------------------------------------------------------------------------------


def test_models_are_drawn_by_their_weights() -> None:
    drawn = Counter(draw((STABLE, CANARY, SHADOW), place / 1000) for place in range(1000))
    assert drawn == {"stable": 900, "canary": 100}


@pytest.mark.parametrize(
    ("stable", "canary", "fails"),
    [
        ((100, 0), (9, 9), False),  # too few to judge
        ((100, 0), (10, 1), False),  # not more than the margin
        ((100, 0), (10, 2), True),
        ((100, 15), (10, 2), False),  # the stable one is no better
        ((0, 0), (10, 2), True),
    ],
)
def test_a_canary_fails_where_it_errs_more_than_the_stable_one_by_the_margin(
    stable: tuple[int, int], canary: tuple[int, int], fails: bool
) -> None:
    seen = [Seen(STABLE, *stable), Seen(CANARY, *canary)]
    assert failing(seen, RULE) is (seen[1] if fails else None)


def test_the_worst_canary_goes_first_and_a_shadow_never() -> None:
    worse, worst = Seen(CANARY, 10, 5), Seen(Target("worst", 1), 10, 6)
    assert failing([Seen(STABLE, 10, 0), worse, worst, Seen(SHADOW, 10, 10)], RULE) is worst
    assert failing([Seen(STABLE, 10, 0), Seen(Target("gone", 0), 10, 10)], RULE) is None


def test_the_stable_target_takes_all_where_the_last_canary_loses_its_weight() -> None:
    assert without((STABLE, CANARY), "canary") == (STABLE, Target("canary", 0))
    assert without((Target("stable", 0), CANARY), "canary") == (Target("stable", 1), Target("canary", 0))


# --- kept -------------------------------------------------------------------------------------------------------------


def test_an_alias_leads_to_its_targets_and_survives_a_restart(book: AliasBook, reopen: Open) -> None:
    alias = book.set("assistant", [STABLE, CANARY, SHADOW])
    assert (alias.targets, alias.previous) == ((STABLE, CANARY, SHADOW), 0)
    again = reopen()
    assert again.list() == (alias,)
    assert again.choose("assistant") == "canary"
    assert again.shadows("assistant") == ("other",)
    assert (again.choose("none"), again.shadows("none")) == ("", ())
    assert again.using("canary") == ("assistant",)
    assert again.using("style") == ()


def test_outcomes_are_tallied_by_target(book: AliasBook) -> None:
    book.set("assistant", [STABLE, CANARY])
    for outcome in (OK, OK, ERROR):
        book.counter("assistant")("stable", outcome)
    book.counter("assistant")("gone", OK)
    book.counter("none")("stable", OK)
    assert book.get("assistant").tallies == (Tally(3, 1, 20, 1.0), Tally())


def test_a_canary_that_fails_too_often_loses_its_weight_by_itself_and_rolling_back_does_not_return_it(
    book: AliasBook, reopen: Open
) -> None:
    book.set("assistant", [Target("stable")])
    book.set("assistant", [STABLE, CANARY])
    for _ in range(20):
        book.counter("assistant")("stable", OK)
    for outcome in [OK] * 8 + [ERROR] * 2:
        assert book.choose("assistant") == "canary"
        book.counter("assistant")("canary", outcome)
    assert book.choose("assistant") == "stable"
    why = "canary failed 2 of its last 10 requests, stable 0 of 20: it gets no more."
    assert book.demoted() == reopen().demoted() == {"assistant": why}
    assert book.get("assistant").tallies == (Tally(20, 0, 200, 10.0), Tally(10, 2, 80, 4.0))
    assert book.rollback("assistant").targets == (Target("stable"),)
    assert book.demoted() == {}
    with pytest.raises(InvalidArgument, match="nothing to roll back to"):
        book.rollback("assistant")


def test_the_stable_model_of_a_demoted_canary_can_be_promoted(book: AliasBook) -> None:
    book.set("assistant", [STABLE, CANARY])
    for _ in range(10):
        book.counter("assistant")("canary", ERROR)
    assert book.promote("assistant", "stable").targets == (Target("stable"),)
    assert book.demoted() == {}
    assert book.rollback("assistant").targets == (STABLE, Target("canary", 0))


def test_what_began_under_earlier_targets_counts_for_nothing(book: AliasBook) -> None:
    book.set("assistant", [STABLE, CANARY])
    late = book.counter("assistant")
    book.set("assistant", [STABLE, CANARY])
    for _ in range(20):
        late("canary", ERROR)
    assert book.get("assistant").tallies == (Tally(), Tally())
    assert book.choose("assistant") == "canary"
    book.delete("assistant")
    late("canary", ERROR)
    assert book.list() == ()


def test_what_began_before_a_demotion_still_counts(book: AliasBook) -> None:
    book.set("assistant", [STABLE, CANARY])
    begun = book.counter("assistant")
    for _ in range(10):
        begun("canary", ERROR)
    begun("stable", OK)
    assert [tally.requests for tally in book.get("assistant").tallies] == [1, 10]


def test_a_disk_that_fails_at_the_demotion_does_not_keep_the_canary(
    book: AliasBook, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    book.set("assistant", [Target("stable")])
    book.set("assistant", [STABLE, CANARY])
    monkeypatch.setattr("appliance.models.signed.os.fsync", full)
    for _ in range(10):
        book.counter("assistant")("canary", ERROR)
    assert book.choose("assistant") == "stable"
    with pytest.raises(OSError, match="No space"):
        book.promote("assistant", "canary")
    assert book.choose("assistant") == "stable"
    monkeypatch.undo()
    assert book.rollback("assistant").targets == (Target("stable"),)


def test_promotion_leaves_one_and_rolling_back_twice_goes_two_changes_back(book: AliasBook, reopen: Open) -> None:
    book.set("assistant", [Target("stable")])
    book.set("assistant", [STABLE, CANARY])
    assert book.promote("assistant", "canary").targets == (Target("canary"),)
    book = reopen()
    assert book.rollback("assistant").targets == (STABLE, CANARY)
    assert book.rollback("assistant").targets == (Target("stable"),)
    with pytest.raises(InvalidArgument, match="nothing to roll back"):
        book.rollback("assistant")


def test_rolling_back_passes_over_models_that_are_gone(book: AliasBook, files: Files) -> None:
    for targets in ([CANARY], [Target("other")], [STABLE]):
        book.set("assistant", targets)
    del files.files["other"]
    assert book.rollback("assistant").targets == (CANARY,)
    book.set("assistant", [STABLE])
    del files.files["canary"]
    with pytest.raises(InvalidArgument, match="nothing to roll back to"):
        book.rollback("assistant")
    assert book.get("assistant").targets == (STABLE,)


def test_a_deleted_alias_leads_nowhere(book: AliasBook, reopen: Open) -> None:
    book.set("assistant", [STABLE])
    book.delete("assistant")
    assert reopen().list() == ()
    for call in (book.get, book.delete, book.rollback):
        with pytest.raises(NotFound):
            call("assistant")


@pytest.mark.parametrize(
    ("targets", "field"),
    [
        ([], "takes 1 to 16"),
        ([STABLE, STABLE], "each once"),
        ([Target("stable", -1)], "weights must be"),
        ([Target("stable", 1001)], "weights must be"),
        ([Target("stable", 0)], "one must have a weight"),
        ([SHADOW, STABLE], "no shadow"),
        ([STABLE, Target("plain", 0, shadow=True)], "share one scaffold"),
        ([Target("pointer")], "cannot chat"),
    ],
)
def test_targets_that_make_no_sense_are_refused(book: AliasBook, targets: list[Target], field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"targets: .*{field}"):
        book.set("assistant", targets)


def test_names_and_models_must_be_what_they_say(book: AliasBook) -> None:
    with pytest.raises(InvalidArgument, match=r"^name"):
        book.set("Assistant!", [STABLE])
    with pytest.raises(AlreadyExists, match="models/stable"):
        book.set("stable", [CANARY])
    with pytest.raises(NotFound, match="models/none"):
        book.set("assistant", [Target("none")])
    book.set("assistant", [STABLE])
    with pytest.raises(InvalidArgument, match="no target"):
        book.promote("assistant", "canary")
    adapter = book.set("assistant", [STABLE, Target("style", 0, shadow=True)])  # an adapter has its base's scaffold
    assert adapter.previous == 1


@pytest.mark.parametrize("change", ["edit", "cut"])
def test_a_file_that_this_box_did_not_write_is_refused(book: AliasBook, path: Path, reopen: Open, change: str) -> None:
    book.set("assistant", [STABLE, CANARY])
    document = json.loads(path.read_text())
    document["aliases"]["assistant"]["now"]["targets"][1]["weight"] = 1000
    path.write_text(json.dumps(document) if change == "edit" else path.read_text()[:-10])
    with pytest.raises(StoreDamaged, match=r"aliases\.json"):
        reopen()
