"""HTML to the text a browser would show, by lexbor: title first, blocks as lines, scripts and styles dropped."""

import codecs
import re
from importlib.metadata import version

from selectolax.lexbor import LexborHTMLParser, LexborNode

from appliance.errors import DocumentRefused
from appliance.ingest.extract.text import clean, decode

MEDIA_TYPE = "text/html"
PARSER = f"selectolax {version('selectolax')}"
WARM_DOCUMENTS = (
    b"<!doctype html><title>Warm</title><meta charset=utf-8><style>a{}</style><p>A&amp;<b>b</b><br>c<ul><li>d</ul>"
    b"<table><tr><th>e<td>f</table><pre>g\n h</pre><script>i()</script><!-- j --><template>k</template>",
    b"<meta charset=windows-1252><p>\xe4",
)

# What pages declare in practice; each is loaded now, for a locked child can load nothing.
_ENCODINGS = (
    *("windows-1250", "windows-1251", "windows-1252", "windows-1253", "windows-1254", "iso-8859-2", "iso-8859-15"),
    *("koi8-r", "shift_jis", "euc-jp", "gb18030", "big5", "euc-kr"),
)
_CODECS = {name: codecs.lookup(name) for name in _ENCODINGS}
_ALIASES = {
    "iso-8859-1": "windows-1252",
    "latin1": "windows-1252",
    "us-ascii": "windows-1252",
    "gbk": "gb18030",
    "gb2312": "gb18030",
}
_DECLARED = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_-]{2,20})", re.IGNORECASE)
_TAG = re.compile(rb"<[a-zA-Z!/]")

_DROPPED = frozenset({"head", "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas"})
_PARAGRAPHS = frozenset(
    {
        *("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "dl", "table", "figure", "hr"),
        *("section", "article", "aside", "header", "footer", "nav", "main", "form", "fieldset", "details", "address"),
    }
)
_LINES = frozenset({"div", "li", "dt", "dd", "tr", "caption", "figcaption", "summary", "option", "legend", "body"})
_SPACE = re.compile(r"[ \t\n\r\f]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def read(data: bytes, max_pages: int) -> tuple[str, tuple[str, ...]]:
    """Parser and one page. Raises DocumentRefused: TYPE_MISMATCH where there is no tag in it, NOT_UTF8."""
    if not _TAG.search(data) and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DocumentRefused("TYPE_MISMATCH", "The name says HTML, and there is no tag in it.")
    return PARSER, (clean(visible_text(_decode(data))),)


def visible_text(source: str) -> str:
    """Title and body of a page, or the text of a fragment."""
    tree = LexborHTMLParser(source)
    found = tree.css_first("head > title")
    title = _SPACE.sub(" ", found.text()).strip() if found else ""
    body = _BLANK_LINES.sub("\n\n", _walk(tree.body)).strip("\n") if tree.body else ""
    return body if body.startswith(title) else f"{title}\n\n{body}"


def _decode(data: bytes) -> str:
    """UTF-8 or by byte order mark; where it is neither, what the page declares."""
    try:
        return decode(data)
    except DocumentRefused:
        declared = _DECLARED.search(data[:4096])
        if declared is None:
            raise
        name = declared[1].decode().lower()
        codec = _CODECS.get(_ALIASES.get(name, name))
        if codec is None:
            raise
        return codec.decode(data, "replace")[0]


def _walk(root: LexborNode) -> str:
    """The text under `root` in document order. By a loop, because hostile pages nest deeper than any stack."""
    out = _Lines()
    node: LexborNode | None = root
    while node is not None:
        entered = node.is_element_node and node.tag not in _DROPPED
        if node.is_text_node:
            out.text(node.text_content or "")
        elif entered:
            out.open(node.tag or "")
            if node.child is not None:
                node = node.child
                continue
        while node is not None:
            if node.is_element_node and node.tag not in _DROPPED:
                out.close(node.tag or "")
            if node.mem_id == root.mem_id:
                return str(out)
            if node.next is not None:
                node = node.next
                break
            node = node.parent
    return str(out)


class _Lines:
    """Collects text with white space as HTML has it: runs are one space, outside <pre>."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._newlines = 2  # at the end so far; the start counts as a paragraph's end
        self._space = False
        self._pre = 0
        self._cell = False

    def __str__(self) -> str:
        return "".join(self._out)

    def text(self, text: str) -> None:
        if self._pre:
            self._put(text)
            return
        words = _SPACE.sub(" ", text)
        if words.startswith(" "):
            self._space = True
        if words.strip(" "):
            self._put(words.strip(" "))
            self._space = words.endswith(" ")

    def open(self, tag: str) -> None:
        self._break(tag)
        if tag == "li":
            self._put("- ")
        elif tag in ("td", "th"):
            if self._cell:
                self._put("\t")
            self._cell = True
        elif tag == "br":
            self._newline(self._newlines + 1)
        elif tag == "pre":
            self._pre += 1

    def close(self, tag: str) -> None:
        if tag == "pre":
            self._pre -= 1
        elif tag == "tr":
            self._cell = False
        self._break(tag)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._newline(2)
        elif tag in _LINES:
            self._newline(1)

    def _newline(self, count: int) -> None:
        if count > self._newlines:
            self._out.append("\n" * (count - self._newlines))
            self._newlines = count
        self._space = False

    def _put(self, text: str) -> None:
        if self._space and not self._newlines:
            self._out.append(" ")
        self._space = False
        self._out.append(text)
        self._newlines = 0
