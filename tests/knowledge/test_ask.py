"""Ask, both ways, over a library in memory and a model that says what it is told to."""

import asyncio

import pytest

from appliance.errors import InvalidArgument, NoChatModel, NotFound, PromptTooLong, QuoteOnly
from appliance.knowledge.answer.ask import NOT_ANSWERED
from appliance.types import AnswerMode, AskFinish, Citation, Origin, Passages, Span, Text, Turn, Unsupported
from tests.fakes import MemoryLibrary, ScriptedGenerator
from tests.knowledge.desk import (
    BADGES,
    EVERYBODY,
    FILLER,
    Desk,
    citations_of,
    finish_of,
    furnished,
    text_of,
)


@pytest.fixture
def desk() -> Desk:
    return furnished(Desk())


# --- quote -----------------------------------------------------------------------------------------------------------


async def test_quote_answers_with_the_stored_sentence_and_cites_the_very_place(desk: Desk) -> None:
    pieces = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    answer, (first, *_) = text_of(pieces), citations_of(pieces)
    assert answer.splitlines()[0] == first.quote == desk.stored(first) == "A visitor badge expires after 90 days."
    assert (first.title, first.span.page) == ("badges.txt", 5)
    assert answer[first.answer_start : first.answer_end] == first.quote
    assert finish_of(pieces).answered


async def test_every_sentence_of_a_quoted_answer_has_its_citation(desk: Desk) -> None:
    desk.add("keys.txt", "Ask the porter. A spare key costs 7 euros. A spare fob costs 7 euros.")
    pieces = await desk.ask("Which spare costs 7 euros?", AnswerMode.QUOTE)
    answer = text_of(pieces)
    ranges = [(one.answer_start, one.answer_end) for one in citations_of(pieces)]
    assert len(ranges) == len(answer.splitlines()) >= 2
    assert [answer[start:end] for start, end in ranges] == answer.splitlines()
    assert all(desk.stored(one) == one.quote for one in citations_of(pieces))


async def test_a_sentence_that_stands_in_two_documents_is_quoted_once(desk: Desk) -> None:
    desk.add("copy.txt", BADGES)
    pieces = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    assert text_of(pieces).count("A visitor badge expires after 90 days.") == 1
    assert finish_of(pieces).answered


async def test_each_page_that_a_passage_was_found_on_is_read_once_and_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_of, read = desk.library.page, []

    def page(collection: str, document: str, page: int, groups: frozenset[str]) -> str:
        read.append((document, page))
        return page_of(collection, document, page, groups)

    long = desk.add("long.txt", *FILLER, "A visitor badge expires after 90 days. " * 60)
    monkeypatch.setattr(desk.library, "page", page)
    found, *_ = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    assert isinstance(found, Passages)
    pages = [(one.document.rpartition("/")[2], one.span.page) for one in found.passages]
    assert pages.count((long, 5)) > 1
    assert sorted(read) == sorted(set(pages))


async def test_passages_come_first_then_text_then_citations_then_the_finish(desk: Desk) -> None:
    desk.generator.script = [["Its battery lasts ", "14 hours. ", "It is blue."]]
    for mode in AnswerMode:
        kinds = [type(piece) for piece in await desk.ask("How long does its battery last?", mode)]
        order = [Passages, Text, Citation, Unsupported, AskFinish]
        ranks = [min(order.index(kind), 2) if kind is not AskFinish else 3 for kind in kinds]
        assert ranks == sorted(ranks)
        assert kinds[0] is Passages
        assert kinds.count(Passages) == kinds.count(AskFinish) == 1


async def test_a_question_that_nothing_answers_says_so(desk: Desk) -> None:
    pieces = await desk.ask("Who composed the opera about Figaro?", AnswerMode.QUOTE)
    assert text_of(pieces) == NOT_ANSWERED
    assert citations_of(pieces) == []
    assert not finish_of(pieces).answered


async def test_an_empty_collection_answers_nothing_in_either_mode() -> None:
    desk = Desk()
    for mode in AnswerMode:
        passages, text, finish = await desk.ask("What expires?", mode)
        assert isinstance(passages, Passages)
        assert (passages.mode, passages.passages) == (mode, ())
        assert text == Text(NOT_ANSWERED)
        assert isinstance(finish, AskFinish)
        assert not finish.answered
    assert desk.generator.asked == []


async def test_an_empty_question_is_refused(desk: Desk) -> None:
    with pytest.raises(InvalidArgument, match="question"):
        await desk.ask(" \n ")


async def test_a_missing_collection_is_not_found(desk: Desk) -> None:
    with pytest.raises(NotFound):
        await anext(desk.pieces("What?", collection="absent"))


async def test_what_a_caller_may_not_read_answers_nothing() -> None:
    desk = Desk()
    desk.add("secret.txt", "The vault opens at 7.", readers=frozenset({"user:boss"}))
    pieces = await desk.ask("When does the vault open?", AnswerMode.QUOTE)
    assert pieces[0] == Passages(AnswerMode.QUOTE, ())
    assert not finish_of(pieces).answered


async def test_german_and_russian_sentences_are_quoted_where_they_stand() -> None:
    desk = Desk()
    desk.add("de.txt", "Der Ausweis läuft am 3. Mai ab. Die Straße ist gesperrt. Ein neuer Ausweis kostet 5 Euro.")
    desk.add("ru.txt", "Пропуск действует 90 дней. А. С. Пушкин родился в 1799 г. Москве. Столовая открыта в полдень.")
    for question, expected in {
        "Was kostet ein neuer Ausweis?": "Ein neuer Ausweis kostet 5 Euro.",
        "Пропуск действует сколько дней?": "Пропуск действует 90 дней.",
    }.items():
        pieces = await desk.ask(question, AnswerMode.QUOTE)
        first = citations_of(pieces)[0]
        assert first.quote == desk.stored(first) == expected


async def test_a_document_deleted_after_the_search_is_not_quoted(desk: Desk) -> None:
    pieces = desk.pieces("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    await anext(pieces)
    for one in desk.library.documents("handbook", EVERYBODY):
        desk.library.delete("handbook", one.id, EVERYBODY)
    rest = [piece async for piece in pieces]
    assert text_of(rest) == NOT_ANSWERED
    assert citations_of(rest) == []


class ChangingLibrary(MemoryLibrary):
    """Gives back other text, or none, when a citation is read again."""

    gone = False

    def text(self, collection: str, document: str, span: Span, groups: frozenset[str]) -> str:
        if self.gone:
            raise NotFound("It was deleted.")
        return super().text(collection, document, span, groups) + "!"


@pytest.mark.parametrize("gone", [False, True])
async def test_a_citation_whose_text_changed_or_went_away_is_not_sent(gone: bool) -> None:
    library = ChangingLibrary()
    library.gone = gone
    desk = Desk(library, ScriptedGenerator([["A visitor badge expires after 90 days."]]))
    desk.add("badges.txt", BADGES)
    quoted = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    assert (text_of(quoted), citations_of(quoted)) == (NOT_ANSWERED, [])
    written = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.GENERATE)
    assert citations_of(written) == []
    assert any(isinstance(piece, Unsupported) for piece in written)
    assert not finish_of(written).answered


# --- generate --------------------------------------------------------------------------------------------------------


async def test_generate_cites_what_is_stored_and_marks_what_is_not(desk: Desk) -> None:
    said = [
        "A visitor badge expires ",
        "after 90 days [1]. ",
        "After 14 hours its battery is flat, it lasts so. ",
        "Cows fly.",
    ]
    desk.generator.script = [said]
    pieces = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.GENERATE)
    answer = text_of(pieces)
    assert answer == "".join(said)
    first = citations_of(pieces)[0]
    assert first.quote == desk.stored(first) == "A visitor badge expires after 90 days."
    assert answer[first.answer_start : first.answer_end] == "A visitor badge expires after 90 days [1]."
    marked = [answer[one.answer_start : one.answer_end] for one in pieces if isinstance(one, Unsupported)]
    assert "Cows fly." in marked
    assert finish_of(pieces).answered


async def test_a_number_that_no_document_holds_is_marked(desk: Desk) -> None:
    desk.generator.script = [["A visitor badge expires after 30 days [1]."]]
    pieces = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.GENERATE)
    assert citations_of(pieces) == []
    assert [type(piece) for piece in pieces[-2:]] == [Unsupported, AskFinish]
    assert not finish_of(pieces).answered


async def test_an_answer_without_words_is_no_answer(desk: Desk) -> None:
    desk.generator.script = [[]]
    pieces = await desk.ask("Does a badge expire?", AnswerMode.GENERATE)
    assert [type(piece) for piece in pieces] == [Passages, AskFinish]
    assert not finish_of(pieces).answered


async def test_the_prompt_holds_the_passages_as_retrieved_and_counts_for_the_caller_s_tenant(desk: Desk) -> None:
    desk.generator.script = [["Yes."]]
    (shown, *_) = await desk.ask("Does a badge expire?", AnswerMode.GENERATE)
    (generation,) = desk.generator.asked
    assert isinstance(shown, Passages)
    retrieved = [segment.text for segment in generation.prompt if segment.origin is Origin.RETRIEVED]
    assert retrieved == [passage.text for passage in shown.passages]
    assert (generation.tenant, generation.prefix_salt, generation.deadline_seconds) == ("acme", b"acme", 0.0)


async def test_the_model_has_what_the_search_left_of_the_deadline(desk: Desk) -> None:
    desk.generator.script = [["Yes."]] * 2
    for seconds in (60.0, 1e-9):
        async for _ in desk.pieces("Does a badge expire?", AnswerMode.GENERATE, deadline_seconds=seconds):
            pass
    first, late = (generation.deadline_seconds for generation in desk.generator.asked)
    assert 0.0 < first < 60.0
    assert 0.0 < late < 1.0  # never none


async def test_fewer_passages_are_given_to_a_model_with_a_short_context(desk: Desk) -> None:
    desk.generator.script = [PromptTooLong("too long"), PromptTooLong("too long"), ["A lost badge costs 5 euros."]]
    pieces = await desk.ask("What does a lost badge cost?", AnswerMode.GENERATE)
    assert [len(generation.prompt) - 1 for generation in desk.generator.asked] == [6, 3, 1]
    assert text_of(pieces) == "A lost badge costs 5 euros."


async def test_a_question_too_long_for_the_model_is_an_error(desk: Desk) -> None:
    desk.generator.script = [PromptTooLong("too long") for _ in range(3)]
    with pytest.raises(PromptTooLong):
        await desk.ask("What does a lost badge cost?", AnswerMode.GENERATE)


async def test_without_a_wish_a_model_writes_where_there_is_one_and_else_the_box_quotes(desk: Desk) -> None:
    desk.generator.script = [["Yes."]]
    written = await desk.ask("Does a badge expire?")
    desk.generator.models = ()
    quoted = await desk.ask("Does a badge expire?")
    assert isinstance(written[0], Passages)
    assert isinstance(quoted[0], Passages)
    assert (written[0].mode, quoted[0].mode) == (AnswerMode.GENERATE, AnswerMode.QUOTE)


async def test_generate_without_a_chat_model_or_with_an_unknown_one_is_refused_before_anything_is_sent(
    desk: Desk,
) -> None:
    with pytest.raises(NotFound):
        await anext(desk.pieces("Does a badge expire?", AnswerMode.GENERATE, "absent"))
    desk.generator.models = ()
    with pytest.raises(NoChatModel):
        await anext(desk.pieces("Does a badge expire?", AnswerMode.GENERATE))


async def test_closing_the_answer_closes_the_generation(desk: Desk) -> None:
    desk.generator.script = [["Badges "] * 100]
    pieces = desk.pieces("Does a badge expire?", AnswerMode.GENERATE)
    await anext(pieces)
    await anext(pieces)
    await pieces.aclose()
    assert desk.generator.closed == 1


async def test_cancelling_the_call_closes_the_generation(desk: Desk) -> None:
    desk.generator.script = [["Badges "] * 100]
    began = asyncio.Event()

    async def read() -> None:
        async for piece in desk.pieces("Does a badge expire?", AnswerMode.GENERATE):
            if isinstance(piece, Text):
                began.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.get_running_loop().shutdown_asyncgens()
    assert desk.generator.closed == 1


async def test_the_finish_tells_usage_and_times(desk: Desk) -> None:
    desk.generator.script = [["Yes."]]
    for mode in AnswerMode:
        finish = finish_of(await desk.ask("Does a badge expire?", mode)).finish
        assert finish.usage.input_tokens > 0
        assert 0 <= finish.timings.search_seconds <= finish.timings.total_seconds


# --- policy ----------------------------------------------------------------------------------------------------------


async def test_a_tenant_that_must_quote_gets_quotes_and_no_model_sees_its_documents(desk: Desk) -> None:
    desk.quoting.add("acme")
    pieces = await desk.ask("After how many days does a visitor badge expire?", None, "writer")
    assert isinstance(pieces[0], Passages)
    assert pieces[0].mode is AnswerMode.QUOTE
    assert text_of(pieces) == "A visitor badge expires after 90 days."
    with pytest.raises(QuoteOnly, match="sentences of the documents"):
        await anext(desk.pieces("Does a badge expire?", AnswerMode.GENERATE))
    assert desk.generator.asked == []


async def test_another_tenant_may_generate(desk: Desk) -> None:
    desk.quoting.add("other")
    desk.generator.script = [["Yes."]]
    assert text_of(await desk.ask("Does a badge expire?", AnswerMode.GENERATE)) == "Yes."


# --- groundedness ----------------------------------------------------------------------------------------------------


async def test_a_quoted_answer_is_wholly_grounded_and_no_answer_is_not(desk: Desk) -> None:
    desk.add("keys.txt", "Ask the porter. A spare key costs 7 euros. A spare fob costs 7 euros.")
    several = await desk.ask("Which spare costs 7 euros?", AnswerMode.QUOTE)
    assert len(citations_of(several)) >= 2
    assert finish_of(several).groundedness == 1.0
    assert finish_of(await desk.ask("Who composed the opera about Figaro?", AnswerMode.QUOTE)).groundedness == 0.0


async def test_groundedness_is_the_share_of_characters_that_citations_back(desk: Desk) -> None:
    backed, made_up = "A visitor badge expires after 90 days.", "Cows fly high."
    desk.generator.script = [[f"{backed} {made_up}"]]
    pieces = await desk.ask("After how many days does a visitor badge expire?", AnswerMode.GENERATE)
    solid = len(backed.replace(" ", ""))
    assert finish_of(pieces).groundedness == pytest.approx(solid / (solid + len(made_up.replace(" ", ""))))


async def test_what_is_not_backed_at_all_is_not_grounded(desk: Desk) -> None:
    desk.generator.script = [["A visitor badge expires after 30 days [1]."]]
    finish = finish_of(await desk.ask("After how many days does a visitor badge expire?", AnswerMode.GENERATE))
    assert (finish.answered, finish.groundedness) == (False, 0.0)


# --- search ----------------------------------------------------------------------------------------------------------


async def test_filter_and_reranker_reach_the_search(desk: Desk) -> None:
    await desk.ask("Does a badge expire?", AnswerMode.QUOTE, condition="year >= 2020", reranker="judge")
    ((query, options),) = desk.retriever.asked
    assert (query, options.filter, options.reranker) == ("Does a badge expire?", "year >= 2020", "judge")


async def test_a_wrong_filter_is_told_before_a_model_has_run(desk: Desk) -> None:
    desk.generator.script = [["Badges?"], ["Yes."]]
    with pytest.raises(InvalidArgument, match="filter: at character 6"):
        await desk.ask("And do they expire?", condition="year ~ 2026", history=[Turn("Badges?", "Badges.")])
    assert (desk.generator.asked, desk.queries) == ([], [])


async def test_a_question_of_100k_characters_is_answered_or_not_but_never_hangs(desk: Desk) -> None:
    desk.generator.script = [["Yes."]]
    for mode, long in ((AnswerMode.QUOTE, "Does a badge expire?" + " unending" * 11_000), (None, "x" * 100_000)):
        finish = finish_of(await desk.ask(long, mode, history=[Turn("it", "it")]))
        assert finish.queries == ()


async def test_every_answer_is_counted_and_whether_it_was_one(desk: Desk) -> None:
    await desk.ask("After how many days does a visitor badge expire?", AnswerMode.QUOTE)
    await desk.ask("Who composed the opera about Figaro?", AnswerMode.QUOTE)
    (tally,) = desk.tallies.tallies()
    assert (tally.tenant, tally.collection, tally.answers, tally.empty_answers) == ("acme", "handbook", 2, 1)
