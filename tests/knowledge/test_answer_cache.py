"""Answers that are given again: to whom, for how long, and within what memory."""

from dataclasses import replace

import pytest

from appliance.errors import WorkerDied
from appliance.knowledge.answer.ask import NOT_ANSWERED
from appliance.knowledge.answer.cache import AnswerCache
from appliance.knowledge.answer.inquiry import Inquiry
from appliance.types import (
    AnswerMode,
    AskFinish,
    AskPiece,
    Citation,
    Finish,
    FinishReason,
    ModelFile,
    Passages,
    Principal,
    Role,
    Sampling,
    SearchOptions,
    Span,
    Text,
    Turn,
    Usage,
)
from tests.fakes import MemoryLibrary, ScriptedGenerator
from tests.knowledge.desk import CALLER, EVERYBODY, Desk, citations_of, finish_of, furnished, text_of

EXPIRY = "After how many days does a visitor badge expire?"
GREEDY = Sampling(temperature=0.0)
BOSS = Principal("acme", "boss", Role.APP)


@pytest.fixture
def desk() -> Desk:
    return furnished(Desk(cache=AnswerCache(1 << 20)))


async def is_cached(
    desk: Desk, question: str = EXPIRY, mode: AnswerMode | None = AnswerMode.QUOTE, **given: object
) -> bool:
    return finish_of(await desk.ask(question, mode, **given)).cached  # type: ignore[arg-type]


async def test_the_same_question_is_answered_again_with_nothing_computed(desk: Desk) -> None:
    first = await desk.ask(EXPIRY, AnswerMode.QUOTE)
    again = await desk.ask(f"  {EXPIRY}\n", AnswerMode.QUOTE)
    assert len(desk.queries) == 1
    assert (text_of(again), citations_of(again), again[0]) == (text_of(first), citations_of(first), first[0])
    before, finish = finish_of(first), finish_of(again)
    assert (before.cached, finish.cached) == (False, True)
    assert finish.finish.usage == Usage()
    assert (finish.answered, finish.groundedness, finish.queries) == (True, 1.0, ())
    assert finish.finish.timings.total_seconds >= finish.finish.timings.search_seconds >= 0


async def test_that_nothing_answers_is_known_again(desk: Desk) -> None:
    question = "Who composed the opera about Figaro?"
    assert not await is_cached(desk, question)
    pieces = await desk.ask(question, AnswerMode.QUOTE)
    assert (text_of(pieces), finish_of(pieces).cached, finish_of(pieces).answered) == (NOT_ANSWERED, True, False)
    assert desk.tallies.tallies()[0].empty_answers == 2


@pytest.mark.parametrize(
    "other",
    [
        {"question": EXPIRY.lower()},
        {"question": EXPIRY.replace(" ", "  ", 1)},
        {"history": [Turn("What is a badge?", "A badge.")]},
        {"caller": BOSS},
        {"caller": Principal("acme", "eve", Role.ADMIN)},
        {"caller": Principal("other", "eve", Role.APP)},
        {"condition": "year >= 2020"},
        {"reranker": "judge"},
        {"mode": AnswerMode.GENERATE, "sampling": GREEDY},
    ],
)
async def test_whatever_an_answer_follows_from_makes_another_question(desk: Desk, other: dict[str, object]) -> None:
    desk.generator.script = [["A visitor badge expires after 90 days."]] * 2
    await desk.ask(EXPIRY, AnswerMode.QUOTE)
    assert not await is_cached(desk, **other)  # type: ignore[arg-type]
    assert await is_cached(desk)


async def test_an_answer_from_what_only_one_may_read_is_never_given_to_another(desk: Desk) -> None:
    desk.add("vault.txt", "The vault opens at 7 with the code 4711.", readers=frozenset({"user:boss"}))
    question = "With which code does the vault open?"
    assert "4711" in text_of(await desk.ask(question, AnswerMode.QUOTE, caller=BOSS))
    refused = await desk.ask(question, AnswerMode.QUOTE)
    assert not finish_of(refused).cached
    assert "4711" not in text_of(refused) + repr(refused[0])


async def test_every_write_to_the_collection_asks_anew(desk: Desk) -> None:
    await desk.ask(EXPIRY, AnswerMode.QUOTE)
    added = desk.add("new.txt", "A visitor badge expires after 10 days.")
    assert not await is_cached(desk)
    assert await is_cached(desk)
    desk.library.delete("handbook", added, EVERYBODY)
    assert not await is_cached(desk)
    assert len(desk.cache) == 1  # older answers are not kept


async def test_a_revoked_right_takes_the_answer_away(desk: Desk) -> None:
    badges = next(name for name, (one, _) in desk.library.stored["handbook"].items() if one.title == "badges.txt")
    assert "90 days" in text_of(await desk.ask(EXPIRY, AnswerMode.QUOTE))
    desk.library.set_readers("handbook", badges, frozenset({"user:boss"}), EVERYBODY)
    pieces = await desk.ask(EXPIRY, AnswerMode.QUOTE)
    assert not finish_of(pieces).cached
    assert "90 days" not in text_of(pieces) + repr(pieces[0])


class Forgetful(MemoryLibrary):
    """A library whose version stays what it was, whatever is written."""

    def version(self, collection: str) -> str:
        self._documents(collection)
        return "1"


async def test_passages_and_citations_are_read_again_before_they_are_given_again() -> None:
    desk = furnished(Desk(Forgetful(), cache=AnswerCache(1 << 20)))
    await desk.ask(EXPIRY, AnswerMode.QUOTE)
    assert await is_cached(desk)
    for name in list(desk.library.stored["handbook"]):
        desk.library.delete("handbook", name, EVERYBODY)
    pieces = await desk.ask(EXPIRY, AnswerMode.QUOTE)
    assert (pieces[0], text_of(pieces)) == (Passages(AnswerMode.QUOTE, ()), NOT_ANSWERED)
    assert not finish_of(pieces).cached


async def test_what_is_written_while_an_answer_is_made_keeps_it_out(desk: Desk) -> None:
    pieces = desk.pieces(EXPIRY, AnswerMode.QUOTE)
    await anext(pieces)
    desk.add("new.txt", "A visitor badge expires after 10 days.")
    async for _ in pieces:
        pass
    assert len(desk.cache) == 0


async def test_a_greedy_answer_is_kept_and_a_drawn_one_is_not(desk: Desk) -> None:
    desk.generator.script = [["A visitor badge expires after 90 days."]] * 3
    for sampling, kept in ((Sampling(temperature=0.5), False), (GREEDY, True)):
        assert not await is_cached(desk, mode=AnswerMode.GENERATE, sampling=sampling)
        if kept:
            assert await is_cached(desk, mode=AnswerMode.GENERATE, sampling=sampling)
    assert await is_cached(desk, mode=AnswerMode.GENERATE, sampling=GREEDY)
    assert not await is_cached(desk, mode=AnswerMode.GENERATE, sampling=replace(GREEDY, max_tokens=7))
    assert desk.generator.script == []


async def test_the_whole_text_is_given_again_with_what_backs_it(desk: Desk) -> None:
    desk.generator.script = [["A visitor badge expires ", "after 90 days [1]. ", "Cows fly."]]
    first = await desk.ask(EXPIRY, AnswerMode.GENERATE, sampling=GREEDY)
    again = await desk.ask(EXPIRY, AnswerMode.GENERATE, sampling=GREEDY)
    assert finish_of(again).cached
    assert text_of(again) == text_of(first)
    assert [one for one in again if not isinstance(one, Text | AskFinish)] == [
        one for one in first if not isinstance(one, Text | AskFinish)
    ]
    assert finish_of(again).groundedness == finish_of(first).groundedness


async def test_an_answer_after_a_failed_rewriting_is_not_kept(desk: Desk) -> None:
    history = [Turn(EXPIRY, "90 days.")]
    desk.generator.script = [WorkerDied("It died."), ["5 euros."], ["What does a lost badge cost?"], ["5 euros."]]
    assert not await is_cached(desk, "And a lost one?", AnswerMode.GENERATE, history=history, sampling=GREEDY)
    assert not await is_cached(desk, "And a lost one?", AnswerMode.GENERATE, history=history, sampling=GREEDY)
    assert await is_cached(desk, "And a lost one?", AnswerMode.GENERATE, history=history, sampling=GREEDY)


async def test_a_failed_or_abandoned_answer_is_not_kept(desk: Desk) -> None:
    desk.generator.script = [["A visitor badge "] * 9, WorkerDied("It died.")]
    pieces = desk.pieces(EXPIRY, AnswerMode.GENERATE, sampling=GREEDY)
    await anext(pieces)
    await anext(pieces)
    await pieces.aclose()
    with pytest.raises(WorkerDied):
        await desk.ask(EXPIRY, AnswerMode.GENERATE, sampling=GREEDY)
    assert len(desk.cache) == 0


async def test_another_file_under_the_model_s_name_answers_anew(desk: Desk) -> None:
    class Renewed(ScriptedGenerator):
        digest = "0" * 64

        def chat_model(self, name: str) -> ModelFile:
            return replace(super().chat_model(name), sha256=self.digest)

    generator = Renewed([["5 euros."]] * 2)
    desk = furnished(Desk(generator=generator, cache=AnswerCache(1 << 20)))
    assert not await is_cached(desk, mode=AnswerMode.GENERATE, sampling=GREEDY)
    generator.digest = "1" * 64
    assert not await is_cached(desk, mode=AnswerMode.GENERATE, sampling=GREEDY)


async def test_a_tenant_that_must_quote_is_not_given_what_was_written(desk: Desk) -> None:
    desk.generator.script = [["Badges are eternal."]]
    await desk.ask(EXPIRY, None, sampling=GREEDY)
    desk.quoting.add("acme")
    pieces = await desk.ask(EXPIRY, None, sampling=GREEDY)
    assert text_of(pieces) == "A visitor badge expires after 90 days."


# --- memory ----------------------------------------------------------------------------------------------------------


def inquiry(question: str, collection: str = "handbook") -> Inquiry:
    return Inquiry(CALLER, collection, question, (), None, "", Sampling(), SearchOptions())


def answer(text: str) -> list[AskPiece]:
    citation = Citation("collections/handbook/documents/1", "a.txt", Span(1, 0, 3), text, 0, len(text))
    finish = AskFinish(True, Finish(FinishReason.STOP))
    return [Passages(AnswerMode.QUOTE, ()), Text(text), citation, finish]


def test_memory_is_bounded_in_bytes_and_the_oldest_go_first() -> None:
    cache = AnswerCache(100_000)
    for number in range(100):
        cache.put(inquiry(f"q{number}"), "1", answer("x" * 5_000))
        assert cache.size_bytes <= 100_000
    assert 5 <= len(cache) <= 10
    assert cache.get(inquiry("q99"), "1")
    assert not cache.get(inquiry("q50"), "1")


def test_what_was_used_last_stays() -> None:
    cache = AnswerCache(1 << 20, max_entries=2)
    for question in ("a", "b"):
        cache.put(inquiry(question), "1", answer(question))
    assert cache.get(inquiry("a"), "1")
    cache.put(inquiry("c"), "1", answer("c"))
    assert [bool(cache.get(inquiry(question), "1")) for question in "abc"] == [True, False, True]


def test_an_answer_larger_than_all_the_room_and_every_answer_without_room_is_not_kept() -> None:
    for cache in (AnswerCache(10_000), AnswerCache(0)):
        cache.put(inquiry("q"), "1", answer("x" * 10_000))
        assert (len(cache), cache.size_bytes) == (0, 0)


def test_putting_the_same_twice_counts_once_and_forgetting_a_collection_frees_its_bytes() -> None:
    cache = AnswerCache(1 << 20)
    for _ in range(2):
        cache.put(inquiry("q"), "1", answer("x"))
        cache.put(inquiry("q", "other"), "1", answer("x"))
    assert len(cache) == 2
    cache.forget("acme", "handbook")
    assert cache.get(inquiry("q", "other"), "1")
    cache.forget("acme", "other")
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_two_histories_that_run_together_are_two() -> None:
    cache = AnswerCache(1 << 20)
    first = replace(inquiry("q"), history=(Turn("a", "b"), Turn("c", "d")))
    cache.put(first, "1", answer("x"))
    assert cache.get(first, "1")
    for history in ((Turn("a", "bc"), Turn("", "d")), (Turn("ab", ""), Turn("c", "d")), (Turn("a", "b"),)):
        assert not cache.get(replace(first, history=history), "1")


def test_half_a_surrogate_pair_is_a_question_like_any() -> None:
    cache = AnswerCache(1 << 20)
    cache.put(inquiry("\ud800"), "1", answer("x"))
    assert cache.get(inquiry("\ud800"), "1")
    assert not cache.get(inquiry("\\ud800"), "1")
