"""E-mail messages (RFC 5322, MIME: RFC 2045 to 2047, 2231): headers and text as one page, attachments as members.

A message inside a message is a member of its own. Parts are split here and not by the standard library, which builds
all of them, however many and however deep, before anyone can count.
"""

import binascii
import codecs
import re
from collections.abc import Iterator, Sequence
from email.message import Message
from typing import NamedTuple

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import charset, html, members
from appliance.ingest.extract.package import encrypted
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Mark, Read

PARSER = "mail 1"

_SHOWN = ("From", "To", "Cc", "Date")
_KNOWN = frozenset(
    {"from", "to", "subject", "date", "received", "message-id", "mime-version", "return-path", "content-type", "sender"}
)
_MAX_HEADERS_BYTES = 1 << 20
_MAX_VALUE = 10_000  # characters of a header
_MAX_DEPTH = 20
_MAX_BOUNDARY = 200

_HEADERS_END = re.compile(rb"\r?\n\r?\n|\A\r?\n")
_HEADER = re.compile(rb"^([!-9;-~]{1,100})[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.MULTILINE)
_FOLD = re.compile(r"\r?\n[ \t]+")
_WORD = re.compile(r"=\?([^?*\s]{1,40})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([^?\s]{0,1000})\?=(?:\s+(?==\?))?")
_HEX = re.compile(rb"=([0-9A-Fa-f]{2})")
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")

# What mails declare in practice; each is loaded now, for a locked child can load nothing.
_CODECS = {
    codecs.lookup(name).name: codecs.lookup(name)
    for name in (
        *("utf-8", "utf-7", "us-ascii", "koi8-r", "koi8-u", "shift_jis", "iso-2022-jp", "euc-jp", "gb18030", "gbk"),
        *("gb2312", "big5", "euc-kr", "cp949", *(f"windows-{number}" for number in range(1250, 1259))),
        *(f"iso-8859-{part}" for part in (1, 2, 4, 5, 7, 8, 9, 13, 15)),
    )
}
_WIDER = {"iso8859-1": "cp1252", "ascii": "utf-8", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949"}

_SUFFIXES = {
    "text/plain": ".txt",
    "text/html": ".html",
    "text/csv": ".csv",
    "text/markdown": ".md",
    "text/calendar": ".ics",
    "application/pdf": ".pdf",
    "application/zip": ".zip",
    "message/rfc822": ".eml",
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/tiff": ".tif",
}
_SIGNATURES = ("application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature")
_SMIME = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_AS_TEXT = ("text/plain", "text/html", "message/delivery-status", "text/rfc822-headers")


class _Part(NamedTuple):
    """A part of a message, not yet decoded. headers: of these only what MIME needs, shortened."""

    headers: Message
    body: bytes


class _Text(NamedTuple):
    """Text that is shown, of a known charset or of ''."""

    data: bytes
    charset: str
    is_html: bool


def read(data: bytes, caps: Caps) -> Read:
    """One page: the subject as its heading, who wrote when to whom, the text. Attachments are members.

    Raises DocumentRefused: TYPE_MISMATCH, DOCUMENT_ENCRYPTED, MAIL_HEADERS, TOO_MANY_MEMBERS, TOO_DEEP.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith(b"From "):  # an mbox of one
        data = data.partition(b"\n")[2]
    head, body = _divided(data)
    headers = _headers(head)
    if not headers.keys() & _KNOWN:
        raise DocumentRefused("TYPE_MISMATCH", "The name says e-mail, and it does not begin with the headers of one.")
    message = _Message(caps)
    texts = message.walk(_Part(_mime(headers), body), 0)
    pages = Pages(caps)
    pages.heading(1, _decoded(headers.get("subject", b"")))
    lines = ((name, _decoded(headers.get(name.lower(), b""))) for name in _SHOWN)
    pages.text("\n".join(f"{name}: {value}" for name, value in lines if value))
    for text in texts:
        pages.marked(*message.shown(text))
    return pages.read(PARSER, message.members.found)


class _Message:
    """Walks through the parts of one message."""

    def __init__(self, caps: Caps) -> None:
        self.members = members.Members()
        self._caps = caps
        self._parts = 0
        self._names: set[str] = set()
        self._numbers: dict[str, int] = {}  # the last one that a name was given

    def walk(self, part: _Part, depth: int) -> list[_Text]:
        """What is shown of a part, in order; what is attached goes to the members."""
        self._parts += 1
        members.check_count(self._parts, self._caps)
        if depth > _MAX_DEPTH:
            raise DocumentRefused("TOO_DEEP", f"Its parts are nested more than {_MAX_DEPTH} deep.")
        kind = part.headers.get_content_type()
        if kind == "multipart/encrypted" or (
            kind in _SMIME and _parameter(part.headers, "smime-type") != "signed-data"
        ):
            raise encrypted()
        boundary = _parameter(part.headers, "boundary")
        if kind.startswith("multipart/") and 0 < len(boundary) <= _MAX_BOUNDARY:
            found = [self.walk(one, depth + 1) for one in _split(part.body, boundary)]
            return _best(found) if kind == "multipart/alternative" else [text for texts in found for text in texts]
        if kind in _SIGNATURES:
            return []
        data = _transferred(part)
        attached = part.headers.get_content_disposition() == "attachment" or self._name(part.headers)
        if (kind in _AS_TEXT or kind.startswith("multipart/")) and not attached:
            return [_Text(data, _parameter(part.headers, "charset"), kind == "text/html")]
        self._attach(self._name(part.headers), kind, data)
        return []

    def shown(self, text: _Text) -> tuple[str, list[Mark]]:
        """As a reader sees it, with its blocks; what is no text at all is a member that is left out."""
        try:
            found = _unicode(text.data, text.charset)
            return html.visible(found) if text.is_html else (found, [])
        except DocumentRefused:
            self.members.leave_out(self._unique("text", ".html" if text.is_html else ".txt"), members.BROKEN)
            return "", []

    def _attach(self, name: str, kind: str, data: bytes) -> None:
        stem, dot, suffix = name.rpartition(".")
        if not stem:
            stem, dot, suffix = name or f"part-{self._parts}", "", _SUFFIXES.get(kind, "")
        elif kind == "message/rfc822" and suffix.lower() != "eml":
            stem, dot, suffix = name, "", ".eml"
        path = self._unique(stem, dot + suffix)
        if problem := self.members.problem(path):
            self.members.leave_out(path, problem)
        else:
            self.members.add(path, data)

    def _unique(self, stem: str, suffix: str) -> str:
        """The name, with a number where an attachment before it has the same one."""
        path = name = stem + suffix
        while path in self._names:
            self._numbers[name] = self._numbers.get(name, 1) + 1
            path = f"{stem}-{self._numbers[name]}{suffix}"
        self._names.add(path)
        return path

    def _name(self, headers: Message) -> str:
        """What an attachment is called, without folders."""
        name = _parameter(headers, "filename", "content-disposition") or _parameter(headers, "name")
        return re.split(r"[/\\]", _decoded(name.encode("utf-8", "surrogateescape")))[-1].strip()


def _divided(data: bytes) -> tuple[bytes, bytes]:
    """Headers and body. Raises DocumentRefused: MAIL_HEADERS."""
    end = _HEADERS_END.search(data)
    head, body = (data[: end.start()], data[end.end() :]) if end else (data, b"")
    if len(head) > _MAX_HEADERS_BYTES:
        raise DocumentRefused("MAIL_HEADERS", f"Its headers take more than {_MAX_HEADERS_BYTES >> 20} MiB.")
    return head, body


def _headers(head: bytes) -> dict[str, bytes]:
    """The first header of each name, in lower case, shortened."""
    found: dict[str, bytes] = {}
    for match in _HEADER.finditer(head):
        found.setdefault(match[1].decode("ascii").lower(), match[2][:_MAX_VALUE])
    return found


def _mime(headers: dict[str, bytes]) -> Message:
    message = Message()
    for name in ("content-type", "content-disposition", "content-transfer-encoding"):
        if name in headers:
            message[name] = _FOLD.sub(" ", _short(headers[name])).replace("\n", " ").strip()
    return message


def _split(body: bytes, boundary: str) -> Iterator[_Part]:
    """The parts between lines of the boundary; what is cut off has its last part to the end."""
    line = re.compile(
        rb"(?:\A|(?<=\n))--" + re.escape(boundary.encode("utf-8", "surrogateescape")) + rb"(--)?[ \t]*(?:\r?\n|\Z)"
    )
    start = None
    for match in line.finditer(body):
        if start is not None:
            yield _part(body[start : match.start()])
        start = match.end()
        if match[1]:
            return
    if start is not None:
        yield _part(body[start:])


def _part(data: bytes) -> _Part:
    head, body = _divided(data)
    return _Part(_mime(_headers(head)), body.removesuffix(b"\n").removesuffix(b"\r"))


def _best(alternatives: Sequence[list[_Text]]) -> list[_Text]:
    """Plain text where there is some, else the first that has any."""
    filled = [texts for texts in alternatives if any(text.data.strip() for text in texts)]
    plain = [texts for texts in filled if not any(text.is_html for text in texts)]
    return next(iter((*plain, *filled)), [])


def _parameter(headers: Message, name: str, header: str = "content-type") -> str:
    """Of a header, decoded (RFC 2231), '' where it is not there."""
    try:
        value = headers.get_param(name, "", header)
    except (ValueError, LookupError):  # of a damaged RFC 2231 value
        return ""
    if isinstance(value, tuple):
        declared, _, text = value
        return _short(text.encode("latin-1", "replace"), declared or "utf-8")
    return value or ""


def _transferred(part: _Part) -> bytes:
    encoding = str(part.headers.get("content-transfer-encoding", "")).strip().lower()
    if encoding == "base64":
        return _base64(part.body)
    return binascii.a2b_qp(part.body) if encoding == "quoted-printable" else part.body


def _base64(data: bytes) -> bytes:
    """What can be made of it, as mail programs do."""
    letters = _NOT_BASE64.sub(b"", data)
    return binascii.a2b_base64(letters[: len(letters) - (len(letters) % 4 == 1)] + b"==")


def _decoded(value: bytes) -> str:
    """A header's value with its encoded words (RFC 2047), in one line."""

    def word(match: re.Match[str]) -> str:
        data = match[3].encode("utf-8", "surrogateescape")
        if match[2] in "bB":
            return _short(_base64(data), match[1])
        return _short(_HEX.sub(lambda byte: bytes([int(byte[1], 16)]), data.replace(b"_", b" ")), match[1])

    return " ".join(_WORD.sub(word, _short(value)).split())


def _unicode(data: bytes, declared: str = "") -> str:
    """As the charset says that was declared, where that holds. Raises DocumentRefused: NOT_UTF8, NOT_TEXT."""
    found = _as_declared(data, declared)
    return charset.decode(data).text if found is None else found


def _short(data: bytes, declared: str = "utf-8") -> str:
    """As `_unicode`, of what is too short for a guess."""
    found = _as_declared(data, declared)
    return _CODECS["cp1252"].decode(data, "replace")[0] if found is None else found


def _as_declared(data: bytes, declared: str) -> str | None:
    try:
        name = codecs.lookup(declared).name if declared else ""
        codec = _CODECS.get(_WIDER.get(name, name))
        return codec.decode(data, "strict")[0] if codec else None
    except (LookupError, UnicodeError, ValueError):
        return None


_WARM_MESSAGE = """From: =?koi8-r?B?98HTyczJyg==?= <a@b.example>
To: c@d.example
Subject: =?utf-8?Q?W=C3=A4rm?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="x"

--x
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

<p>W=E4rm.
--x
Content-Type: text/plain; charset=no-such
Content-Disposition: attachment; filename*=utf-8''w%C3%A4rm.txt
Content-Transfer-Encoding: base64

V2FybS4=
--x--
"""
WARM_DOCUMENTS = (_WARM_MESSAGE.encode(), b"Subject: w\xe4rm\n\nW\xe4rm.\n")
