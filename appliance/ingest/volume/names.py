"""Names and times as FAT and exFAT write them.

8.3 names are in CODE_PAGE, which no FAT volume names itself: 437 is what its own tools and Linux take by default. It
matters only for files without a long name.
"""

from appliance.ingest.volume.model import Refused

CODE_PAGE = "cp437"
_CHARACTERS = bytes(range(256)).decode(CODE_PAGE)  # now: a locked child can load no codec
_FORBIDDEN = frozenset('"*/:<>?\\|') | frozenset(map(chr, range(0x20))) | {"\x7f"}
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
b"\0\0".decode("utf-16-le", "surrogatepass")  # the same for this codec and its error handler
MAX_NAME_UNITS = 255


def short_text(raw: bytes) -> str:
    """Bytes of an 8.3 name or a label in CODE_PAGE, without the spaces behind."""
    return "".join(_CHARACTERS[byte] for byte in raw).rstrip(" ")


def long_text(raw: bytes) -> str:
    """UTF-16LE up to the first NUL; a surrogate without its other half stays as it is."""
    text = raw.decode("utf-16-le", "surrogatepass")
    return text.partition("\0")[0]


def shown(name: str) -> str:
    """Printable and without slashes: what must not be shown is escaped, with a backslash, which no sound name holds."""
    return "".join(char if char.isprintable() and char not in "\\/" else _escaped(char) for char in name)


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def require_name(name: str) -> None:
    """Raises Refused: BAD_NAME, for what no system writes and somebody put there."""
    if name in ("", ".", ".."):
        raise Refused("BAD_NAME", "Its name is empty, or one that means a folder above.")
    if any(char in _FORBIDDEN for char in name):
        raise Refused("BAD_NAME", "Its name holds a slash, a control character or another that no file system allows.")
    if any(char in _DIRECTIONS for char in name):
        raise Refused("BAD_NAME", "Its name turns the direction of its own letters, so that it reads as another.")
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise Refused("BAD_NAME", "Its name holds half a character (an unpaired surrogate).")


def time_ns(date: int, time: int, hundredths: int = 0, zone_minutes: int = 0) -> int:
    """A DOS date and time, in nanoseconds since 1970; 0 for one that is no time.

    Source: Microsoft FAT specification, "Date and Time Formats"; days from a date as Howard Hinnant's days_from_civil.
    """
    year, month, day = 1980 + (date >> 9), date >> 5 & 15, date & 31
    hour, minute, second = time >> 11, time >> 5 & 63, 2 * (time & 31)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60 and hundredths < 200):
        return 0
    year -= month <= 2
    era_year = year % 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = era_year * 365 + era_year // 4 - era_year // 100 + day_of_year
    days = year // 400 * 146097 + day_of_era - 719468
    seconds = ((days * 24 + hour) * 60 + minute - zone_minutes) * 60 + second
    return seconds * 10**9 + hundredths * 10**7


def number_text(serial: int) -> str:
    """A volume's id as systems show it: "1A2B-3C4D"."""
    return f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
