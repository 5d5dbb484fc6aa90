"""The processor time of a child: extended by what takes long with good reason, and by nothing else."""

import signal
import time
from collections.abc import Iterator

import pytest

from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock, ocr
from appliance.ingest.extract.layout.shapes import Picture, Word
from appliance.ingest.extract.pdf.pdfium import Broken
from appliance.ingest.extract.recognition import Recognition

PAGE = Picture(bytes(100 * 100), 100, 100, 100, 300)


class Engine:
    """Takes twenty processor seconds for a page by its own clock, and finds these words."""

    parser = "engine 1"

    def __init__(self, *words: Word) -> None:
        self.words = list(words)
        self.now_seconds = 0.0
        self.limits_seconds: list[float] = []
        self.left_seconds: list[float] = []

    def read(self, picture: Picture, limit_seconds: float) -> list[Word]:
        self.now_seconds += 20
        self.limits_seconds.append(limit_seconds)
        self.left_seconds.append(left())
        return self.words


def word(characters: int) -> Word:
    return Word("x" * characters, 0, 0, 9, 9, 9, 0)


def left() -> float:
    return signal.getitimer(signal.ITIMER_PROF)[0]


@pytest.fixture
def running() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, 1000)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


class Book(Engine):
    """Its first twelve pages are plates."""

    def read(self, picture: Picture, limit_seconds: float) -> list[Word]:
        words = super().read(picture, limit_seconds)
        return words if len(self.limits_seconds) > 12 else []


def begun(monkeypatch: pytest.MonkeyPatch, engine: Engine, caps: Caps, wall_a_cpu_second: int = 1) -> Recognition:
    """The engine has its own clock."""
    monkeypatch.setattr(ocr, "engine", lambda languages: engine)
    monkeypatch.setattr(time, "process_time", lambda: engine.now_seconds)
    monkeypatch.setattr(time, "monotonic", lambda: wall_a_cpu_second * engine.now_seconds)
    return Recognition(caps)


def recognise(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, caps: Caps, wall_a_cpu_second: int = 1, pages: int = 10
) -> str:
    """What is told of the pages."""
    recognition = begun(monkeypatch, engine, caps, wall_a_cpu_second)
    for page in range(1, pages + 1):
        recognition.read(page, lambda: PAGE)
    return recognition.told("x")


def test_where_no_clock_runs_none_is_started() -> None:
    clock.extend(10)
    with clock.instead(10):
        assert left() == 0
    assert left() == 0


@pytest.mark.usefixtures("running")
def test_a_clock_that_runs_is_extended_or_stands_still_meanwhile() -> None:
    clock.extend(500)
    assert left() == pytest.approx(1500, abs=10)
    with clock.instead(30):
        assert left() == pytest.approx(30, abs=5)
    assert left() == pytest.approx(1500, abs=10)


@pytest.mark.usefixtures("running")
def test_text_earns_time_for_the_pages_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(word(300), word(200))
    assert recognise(monkeypatch, engine, Caps(ocr_cpu_seconds=120)) == "x + engine 1; not read: pages 5-10"
    assert engine.limits_seconds == [60] * 4
    assert engine.left_seconds == pytest.approx([75] * 4, abs=3)
    assert left() == pytest.approx(1000, abs=10)


def test_a_book_of_full_pages_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognise(monkeypatch, Engine(word(2000)), Caps(), pages=30) == "x + engine 1"


def test_a_book_that_begins_with_a_dozen_plates_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognise(monkeypatch, Book(word(2000)), Caps(), pages=30) == "x + engine 1"


@pytest.mark.parametrize("words", [[], ["key"], ["two", "words"]])
def test_noise_has_no_more_time_the_more_pages_it_fills(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    engine = Engine(*(Word(text, 0, 0, 9, 9, 9, 0) for text in words))
    assert recognise(monkeypatch, engine, Caps(ocr_cpu_seconds=60)).endswith("; not read: pages 3-10")


def test_a_page_that_cannot_be_drawn_pays_for_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    recognition = begun(monkeypatch, engine, Caps(ocr_cpu_seconds=60))

    def undrawable() -> Picture:
        engine.now_seconds += 20
        raise Broken

    for page in (1, 2):
        with pytest.raises(Broken):
            recognition.read(page, undrawable)
    recognition.read(3, undrawable)
    assert recognition.told("x") == "x; not read: pages 3"


def test_what_all_pages_take_stays_within_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(word(5000))
    assert recognise(monkeypatch, engine, Caps(ocr_cpu_seconds=50)).endswith("pages 4-10")
    assert engine.limits_seconds == [60, 60, 20]


def test_on_a_box_that_is_busy_no_page_is_begun_after_twice_the_cap_of_wall_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(word(5000))
    assert recognise(monkeypatch, engine, Caps(ocr_cpu_seconds=200), wall_a_cpu_second=6).endswith("pages 5-10")
    assert engine.limits_seconds == [60, 60, 60, 40]
