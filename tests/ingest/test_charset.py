"""Texts of many languages in many character sets, and what is no text in any."""

import random

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader

GERMAN = "Grüße aus München: Schlüssel werden persönlich übergeben und im blauen Buch quittiert."
POLISH = "Zażółć gęślą jaźń. Klucze są przekazywane osobiście i podpisywane w księdze przy recepcji."
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy. Klíče se předávají osobně a podepisují se v knize."
RUSSIAN = "Ключи передаются лично и никогда по почте. Охранник звонит перед вызовом лифта."
GREEK = "Τα κλειδιά παραδίδονται αυτοπροσώπως και ποτέ με το ταχυδρομείο."
TURKISH = "Anahtarlar elden teslim edilir ve deftere imzalanır. Şoför gelmeden önce çağrı yapılır."
HEBREW = "המפתחות נמסרים ביד ואף פעם לא בדואר. השוער מתקשר לפני שהמעלית נקראת."
ARABIC = "يتم تسليم المفاتيح باليد وليس بالبريد أبدا. يتصل الحارس قبل استدعاء المصعد."
JAPANESE = "鍵は手渡しで渡され、受付の台帳に署名されます。エレベーターを呼ぶ前に電話します。"
CHINESE = "钥匙亲手交接,并在前台的登记簿上签字。叫电梯之前,门卫会给病房打电话。"
TAIWANESE = "鑰匙親手交接,並在櫃檯的登記簿上簽字。叫電梯之前,門衛會給病房打電話。"
KOREAN = "열쇠는 직접 전달되며 접수처의 장부에 서명합니다. 엘리베이터를 부르기 전에 전화합니다."


def read(data: bytes) -> tuple[str, str]:
    """Text, and the character set that the parser names; '' for UTF-8."""
    _, parser, pages, *_ = Reader(Caps()).parse(data, ".txt")
    return pages[0], parser.partition("; ")[2]


def reason(data: bytes) -> str:
    with pytest.raises(DocumentRefused) as refused:
        Reader(Caps()).parse(data, ".txt")
    return refused.value.file_reason


@pytest.mark.parametrize(
    ("codec", "text", "named"),
    [
        ("cp1252", GERMAN, "windows-1252"),
        ("cp1250", POLISH, "windows-1250"),
        ("iso8859_2", CZECH, "iso-8859-2"),
        ("cp1251", RUSSIAN, "windows-1251"),
        ("koi8_r", RUSSIAN, "koi8-r"),
        ("cp1253", GREEK, "windows-1253"),
        ("cp1254", TURKISH, "windows-1254"),
        ("cp1255", HEBREW, "windows-1255"),
        ("cp1256", ARABIC, "windows-1256"),
        ("cp932", JAPANESE, "shift_jis"),
        ("euc_jp", JAPANESE, "euc-jp"),
        ("gb18030", CHINESE, "gb18030"),
        ("big5", TAIWANESE, "big5"),
        ("cp949", KOREAN, "euc-kr"),
    ],
)
@pytest.mark.parametrize("times", [1, 30])
def test_text_that_says_nothing_of_its_charset_is_read_as_what_it_is(
    codec: str, text: str, named: str, times: int
) -> None:
    whole = "\n".join([text] * times)
    assert read(whole.encode(codec)) == (whole, named)


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_wide_characters_are_read_with_a_mark_and_without(charset: str, mark: str) -> None:
    assert read(f"{mark}{GERMAN}".encode(charset)) == (GERMAN, charset)


def test_utf8_is_the_rule_and_not_named() -> None:
    assert read(RUSSIAN.encode()) == (RUSSIAN, "")


def test_a_guess_that_does_not_hold_to_the_end_is_none() -> None:
    late = (RUSSIAN + "\n").encode("cp1251") * 5000
    assert read(late)[1] == "windows-1251"
    with pytest.raises(
        DocumentRefused, match=f"begins as windows-1251, and byte {len(late)} is no character"
    ) as refused:
        read(late + b"\x98")
    assert refused.value.file_reason == "NOT_TEXT"


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_no_text(seed: int) -> None:
    noise = random.Random(seed).randbytes(4096)
    assert reason(noise) == "NOT_TEXT"
    assert reason(bytes(byte & 0x1F for byte in noise)) == "NOT_TEXT"


def test_a_program_without_its_first_bytes_is_no_text() -> None:
    assert reason(b"\x55\x48\x89\xe5\x48\x83\xec\x10\x00\x00" * 200 + bytes(range(256))) == "NOT_TEXT"
