"""Words in a picture, by tesseract: the one module that knows it.

Its C interface (tesseract/capi.h, version 4 and 5) through ctypes, for a locked child cannot start a program. The
engine is made in the zygote, with its languages in memory; OMP_THREAD_LIMIT, set before it is loaded, keeps it to one
thread.
"""

import atexit
import ctypes
import os
from collections.abc import Iterator
from functools import cache

from appliance.ingest.extract.layout.shapes import Picture, Word

_LIBRARIES = ("libtesseract.so.5", "libtesseract.so.4")
_LSTM_ONLY = 1
_PAGE_AUTO = 3
_LINE, _WORD = 2, 3
_MIN_CONFIDENCE = 50.0  # of 100; noise and drawings read as letters have less
_HYPHENS = "-\u2010\u00ad"
_USUAL_SIZE_SHARE = 1.5  # lines less tall than this are text of the usual size: boxes of letters differ so much


class Unavailable(Exception):
    """There is no tesseract, or it lacks a language. The message says which."""


class Engine:
    """A tesseract with its languages loaded. Belongs to one process; reads one picture after the other."""

    def __init__(self, languages: str) -> None:
        """Raises Unavailable."""
        if not languages:
            raise Unavailable("No languages are set to be recognised.")
        os.environ["OMP_THREAD_LIMIT"] = "1"
        self._library = _library()
        version = ctypes.cast(self._library.TessVersion, ctypes.CFUNCTYPE(ctypes.c_char_p))
        self.parser = f"tesseract {(version() or b'').decode()} {languages}"
        self._api = ctypes.c_void_p(self._library.TessBaseAPICreate())
        failed = self._library.TessBaseAPIInit2(self._api, None, languages.encode(), _LSTM_ONLY)
        if missing := set(languages.split("+")) - (set() if failed else self._loaded()):
            self._library.TessBaseAPIDelete(self._api)
            raise Unavailable(f"Tesseract lacks {', '.join(sorted(missing))}.")
        atexit.register(self._library.TessBaseAPIDelete, self._api)  # else it complains on the daemon's stderr
        self._library.TessBaseAPISetPageSegMode(self._api, _PAGE_AUTO)

    def _loaded(self) -> set[str]:
        """Languages; of several it may have found but some."""
        names = ctypes.cast(
            self._library.TessBaseAPIGetLoadedLanguagesAsVector(self._api), ctypes.POINTER(ctypes.c_char_p)
        )
        found: set[str] = set()
        while names and (name := names[len(found)]):
            found.add(name.decode())
        self._library.TessDeleteTextArray(names)
        return found

    def read(self, picture: Picture, limit_seconds: float) -> list[Word] | None:
        """The words of a picture in lines, in pixels; None where it took longer than the limit (of wall time)."""
        library, api = self._library, self._api
        library.TessBaseAPISetImage(api, picture.pixels, picture.width, picture.height, 1, picture.stride)
        library.TessBaseAPISetSourceResolution(api, picture.dots_per_inch)
        monitor = ctypes.c_void_p(library.TessMonitorCreate())
        try:
            library.TessMonitorSetDeadlineMSecs(monitor, max(1, round(1000 * limit_seconds)))
            if library.TessBaseAPIRecognize(api, monitor):
                return None
            return _levelled(list(self._words()))
        finally:
            library.TessMonitorDelete(monitor)
            library.TessBaseAPIClear(api)

    def _words(self) -> Iterator[Word]:
        library = self._library
        words = ctypes.c_void_p(library.TessBaseAPIGetIterator(self._api))
        if not words:
            return
        places = ctypes.c_void_p(library.TessResultIteratorGetPageIterator(words))
        line, ends = 0, False
        try:
            while True:
                if library.TessPageIteratorIsAtBeginningOf(places, _LINE):
                    line += 1
                text = self._text(words)
                ends = bool(library.TessPageIteratorIsAtFinalElement(places, _LINE, _WORD))
                if text and library.TessResultIteratorConfidence(words, _WORD) >= _MIN_CONFIDENCE:
                    left, _, right, _ = self._box(places, _WORD)
                    _, line_top, _, line_bottom = self._box(places, _LINE)
                    cut = ends and len(text) > 2 and text[-1] in _HYPHENS and text[-2].isalpha()
                    text = text[:-1] if cut else text
                    yield Word(text, left, line_top, right, line_bottom, line_bottom - line_top, line, cut)
                if not library.TessResultIteratorNext(words, _WORD):
                    return
        finally:
            library.TessResultIteratorDelete(words)

    def _text(self, words: ctypes.c_void_p) -> str:
        found = self._library.TessResultIteratorGetUTF8Text(words, _WORD)
        if not found:
            return ""
        text = ctypes.string_at(found).decode("utf-8", "replace").strip()
        self._library.TessDeleteText(ctypes.c_void_p(found))
        return text

    def _box(self, places: ctypes.c_void_p, level: int) -> tuple[float, float, float, float]:
        left, top, right, bottom = (ctypes.c_int() for _ in range(4))
        self._library.TessPageIteratorBoundingBox(
            places, level, *(ctypes.byref(side) for side in (left, top, right, bottom))
        )
        return left.value, top.value, right.value, bottom.value


def engine(languages: str) -> Engine:
    """The process's engine for "eng" or "eng+deu", made once, or once not. Raises Unavailable."""
    found = _made(languages)
    if isinstance(found, str):
        raise Unavailable(found)
    return found


@cache
def _made(languages: str) -> Engine | str:
    try:
        return Engine(languages)
    except Unavailable as why:
        return str(why)


def _levelled(words: list[Word]) -> list[Word]:
    """Lines of about the usual height have it exactly: how tall a line's box is depends on its letters."""
    if not words:
        return []
    usual = sorted(word.size for word in words)[len(words) // 2]
    return [word._replace(size=usual) if word.size < _USUAL_SIZE_SHARE * usual else word for word in words]


def _library() -> ctypes.CDLL:
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for function in (
            "BaseAPICreate",
            "BaseAPIGetIterator",
            "ResultIteratorGetPageIterator",
            "MonitorCreate",
            "BaseAPIGetLoadedLanguagesAsVector",
        ):
            getattr(library, f"Tess{function}").restype = ctypes.c_void_p
        library.TessResultIteratorGetUTF8Text.restype = ctypes.c_void_p
        library.TessResultIteratorConfidence.restype = ctypes.c_float
        return library
    raise Unavailable("libtesseract is not installed.")
