"""The processor time of a child: extended by what takes long with good reason, and by nothing else."""

import signal
import time
from collections.abc import Iterator

import pytest

from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock, ocr
from appliance.ingest.extract.layout.shapes import Picture, Word
from appliance.ingest.extract.recognition import Recognition

PAGE = Picture(bytes(100 * 100), 100, 100, 100, 300)


class Engine:
    """Takes twenty processor seconds for a page by the clock that it is given, and finds these words."""

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


def left() -> float:
    return signal.getitimer(signal.ITIMER_PROF)[0]


@pytest.fixture
def running() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, 1000)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def recognise(monkeypatch: pytest.MonkeyPatch, engine: Engine, caps: Caps) -> str:
    """Ten pages; what is told of them."""
    monkeypatch.setattr(ocr, "engine", lambda languages: engine)
    monkeypatch.setattr(time, "process_time", lambda: engine.now_seconds)
    recognition = Recognition(caps)
    for page in range(1, 11):
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
def test_pages_with_words_earn_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Word("key", 0, 0, 9, 9, 9, 0))
    assert recognise(monkeypatch, engine, Caps()) == "x + engine 1; not recognised: pages 5-10"
    assert engine.limits_seconds == [4 * 35, 4 * 30, 4 * 25, 4 * 20]
    assert engine.left_seconds == pytest.approx([70, 60, 50, 40], abs=3)
    assert left() == pytest.approx(1000, abs=10)


def test_pictures_without_words_have_no_more_time_the_more_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recognise(monkeypatch, Engine(), Caps()) == "x; not recognised: pages 2-10"


def test_what_all_pages_take_stays_within_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    told = recognise(monkeypatch, Engine(Word("key", 0, 0, 9, 9, 9, 0)), Caps(ocr_cpu_seconds=40))
    assert told.endswith("pages 3-10")
