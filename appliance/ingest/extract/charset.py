"""Which characters bytes stand for: by byte order mark, as UTF-8, by the zeros of UTF-16 and UTF-32, else by a guess.

The detector (charset-normalizer) sees a sample; the whole is then decoded strictly, so a guess that does not hold for
all of the text is none. Every codec is loaded now, for a locked child can load nothing.
"""

import codecs
import re
from collections.abc import Iterator
from typing import NamedTuple

from charset_normalizer import from_bytes

from appliance.errors import DocumentRefused


class Decoded(NamedTuple):
    """charset: as the field calls it, such as "utf-8" or "windows-1251"."""

    text: str
    charset: str


_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMES = {
    **{f"cp{number}": f"windows-{number}" for number in range(1250, 1259)},
    **{f"iso8859_{part}": f"iso-8859-{part}" for part in (2, 5, 7, 15)},
    "koi8_r": "koi8-r",
    "cp866": "ibm866",
    "cp932": "shift_jis",
    "cp949": "euc-kr",
    **{name: name.replace("_", "-") for name in ("gb18030", "big5", "euc_jp")},
}
_CODECS = {name: codecs.lookup(name) for name in _NAMES}
_SAMPLE_BYTES = 1 << 18
_ZEROS = (("utf-32-le", 4, (1, 2, 3)), ("utf-32-be", 4, (0, 1, 2)), ("utf-16-le", 2, (1,)), ("utf-16-be", 2, (0,)))
_MIN_ZEROS = 0.5  # of the places where characters of the first 256 have them
_MAX_CONTROLS = 0.3  # of a text's characters
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH = re.compile(rb"[\x80-\xff]+")
_C1 = re.compile(rb"[\x80-\x9f]")
_KANA, _MIN_KANA = re.compile("[\u3041-\u30fa]"), 0.2
_NOT_HEBREW = re.compile(rb"[\xc0-\xdf\xfb-\xff]")


def decode(data: bytes) -> Decoded:
    """The text of a file that says nothing of its characters, or says it by a byte order mark.

    Raises DocumentRefused: NOT_UTF8, naming the byte, where it is clearly meant to be Unicode; NOT_TEXT.
    """
    decoded = as_unicode(data) or _without_mark(data) or _detected(data)
    if decoded is None:
        raise DocumentRefused("NOT_TEXT", "Its bytes are text in no character set that is known.")
    if len(_CONTROL.findall(decoded.text)) > _MAX_CONTROLS * len(decoded.text):
        raise DocumentRefused("NOT_TEXT", "It has more control characters than any text.")
    return decoded


def as_unicode(data: bytes) -> Decoded | None:
    """UTF-8, or what a byte order mark says; None where it is neither. Raises DocumentRefused: NOT_UTF8."""
    mark, charset = next((pair for pair in _MARKS if data.startswith(pair[0])), (b"", "utf-8"))
    try:
        if mark or not _has_zeros(data):
            return Decoded(data[len(mark) :].decode(charset), charset)
    except UnicodeDecodeError as error:
        if mark or _mostly_utf8(data):
            at = error.start + len(mark)
            raise DocumentRefused("NOT_UTF8", f"Byte {at} is not {charset.upper()}: {error.reason}.") from None
    return None


def _mostly_utf8(data: bytes) -> bool:
    """Whether what is not ASCII is UTF-8 but for a few bytes."""
    sample = data[:_SAMPLE_BYTES]
    whole = sum(len(match[0]) for match in _MULTIBYTE.finditer(sample))
    return whole > 0.75 * sum(len(match[0]) for match in _HIGH.finditer(sample))


def _has_zeros(data: bytes) -> bool:
    sample = data[:_SAMPLE_BYTES]
    return sample.count(0) > 0.2 * len(sample)


def _without_mark(data: bytes) -> Decoded | None:
    """UTF-16 or UTF-32 by where the zeros are."""
    if not _has_zeros(data):
        return None
    sample = data[: _SAMPLE_BYTES & ~3]
    for charset, width, places in _ZEROS:
        counts = [sample[place::width].count(0) for place in places]
        if len(data) % width == 0 and min(counts) > _MIN_ZEROS * len(sample) / width:
            try:
                return Decoded(data.decode(charset), charset)
            except UnicodeDecodeError:
                continue
    return None


def _detected(data: bytes) -> Decoded | None:
    """Raises DocumentRefused: NOT_TEXT, naming the byte that is no character where all before it were."""
    problem = ""
    for name in () if _has_zeros(data) else _candidates(data):
        try:
            return Decoded(_CODECS[name].decode(data, "strict")[0], _NAMES[name])
        except UnicodeDecodeError as error:
            problem = problem or f"It begins as {_NAMES[name]}, and byte {error.start} is no character of it."
    if problem:
        raise DocumentRefused("NOT_TEXT", problem)
    return None


def _candidates(data: bytes) -> Iterator[str]:
    """Codecs, the likeliest first."""
    if _is_japanese(data[:_SAMPLE_BYTES]):
        yield "cp932"
    found = [match.encoding for match in from_bytes(data[:_SAMPLE_BYTES], cp_isolation=list(_CODECS))]
    if found[:1] == ["cp1250"] and "iso8859_2" in found and not _C1.search(data):
        yield "iso8859_2"  # windows-1250 has š, ž and ś where ISO 8859-2 has controls
    if found[:1] in (["cp1251"], ["koi8_r"]) and "cp1255" in found and not _NOT_HEBREW.search(data):
        yield "cp1255"  # no Russian is without ы, ь, ю and я, and Hebrew has no letters there
    if found[:1] == ["cp1250"] and "cp1252" not in found and not _differs(data, "cp1250", "cp1252"):
        yield "cp1252"
    yield from found


def _is_japanese(sample: bytes) -> bool:
    """Whether it is rich in kana as Shift-JIS: short texts look to the detector like rare hangul."""
    text = _CODECS["cp932"].decode(sample, "ignore")[0]
    return len(_KANA.findall(text)) > _MIN_KANA * sum(not one.isascii() for one in text) > 0


def _differs(data: bytes, one: str, other: str) -> bool:
    sample = data[:_SAMPLE_BYTES]
    return _CODECS[one].decode(sample, "replace")[0] != _CODECS[other].decode(sample, "replace")[0]
