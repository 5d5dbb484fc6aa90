"""HTML to the text a browser would show, by lexbor: title first, blocks as lines, scripts and styles dropped."""

import codecs
import re
from importlib.metadata import version

from selectolax.lexbor import LexborHTMLParser, LexborNode

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import charset
from appliance.ingest.extract.charset import Decoded, as_unicode
from appliance.ingest.extract.reading import Mark, Read
from appliance.ingest.extract.text import clean_marked, parser_with

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
_TAG = re.compile(r"<[a-zA-Z!/]")
_ELEMENT = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_MAX_DEPTH = 10_000  # lexbor takes time that grows with its square
_NEED_NO_END = frozenset(  # nothing nests in them, or the next of their kind ends them
    {
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track"),
        *("wbr", "a", "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "colgroup", "option"),
    }
)

_DROPPED = frozenset({"head", "script", "style", "noscript", "template", "svg", "math", "iframe", "object", "canvas"})
_PARAGRAPHS = frozenset(
    {
        *("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "dl", "table", "figure", "hr"),
        *("section", "article", "aside", "header", "footer", "nav", "main", "form", "fieldset", "details", "address"),
    }
)
_LINES = frozenset({"div", "li", "dt", "dd", "tr", "caption", "figcaption", "summary", "option", "legend", "body"})
_BLOCKS = {
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "heading"),
    **dict.fromkeys(("ul", "ol"), "list"),
    "table": "table",
    "pre": "code",
}
_LAYOUT = ("list", "table")  # what may be there to place other blocks
_SPACE = re.compile(r"[ \t\n\r\f]+")
_BLANK_LINES = re.compile(r"\n{3,}")


def read(data: bytes, caps: Caps) -> Read:
    """Parser with the character set, one page, its blocks.

    Raises DocumentRefused: TYPE_MISMATCH where there is no tag in it, HTML_TOO_DEEP, NOT_UTF8, NOT_TEXT.
    """
    source, encoding = _decode(data)
    if not _TAG.search(source):
        raise DocumentRefused("TYPE_MISMATCH", "The name says HTML, and there is no tag in it.")
    page, blocks = clean_marked(*_visible(source), 1)
    return Read(parser_with(PARSER, encoding), (page,), tuple(blocks))


def visible_text(source: str) -> str:
    """Title and body of a page, or the text of a fragment."""
    return _visible(source)[0]


def _visible(source: str) -> tuple[str, list[Mark]]:
    """Title and body with the blocks in them. Raises DocumentRefused: HTML_TOO_DEEP."""
    _check_depth(source)
    tree = LexborHTMLParser(source)
    found = tree.css_first("head > title")
    title = _SPACE.sub(" ", found.text()).strip() if found else ""
    out = _Lines()
    if tree.body:
        _walk(tree.body, out)
    body = str(out)
    if body.startswith(title):
        return body, out.marks
    before = len(title) + 2
    marks = [(kind, level, start + before, end + before) for kind, level, start, end in out.marks]
    return f"{title}\n\n{body}", [("heading", 1, 0, before), *marks]


def _decode(data: bytes) -> Decoded:
    """UTF-8 or by byte order mark; where it is neither, what the page declares; and where that is nothing, a guess."""
    declared = _DECLARED.search(data[:4096])
    name = declared[1].decode().lower() if declared else ""
    name = _ALIASES.get(name, name)
    try:
        found = as_unicode(data)
    except DocumentRefused:
        if name not in _CODECS:
            raise
        found = None
    if found is None and name in _CODECS:
        return Decoded(_CODECS[name].decode(data, "replace")[0], name)
    return found or charset.decode(data)


def _check_depth(source: str) -> None:
    """Raises DocumentRefused: HTML_TOO_DEEP."""
    depth = 0
    for match in _ELEMENT.finditer(source):
        if match[2].lower() in _NEED_NO_END:
            continue
        depth = max(0, depth - 1) if match[1] else depth + 1
        if depth > _MAX_DEPTH:
            raise DocumentRefused("HTML_TOO_DEEP", f"More than {_MAX_DEPTH} of its elements lie in one another.")


def _walk(root: LexborNode, out: "_Lines") -> None:
    """The text under `root` in document order. By a loop, because hostile pages nest deeper than any stack."""
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
                return
            if node.next is not None:
                node = node.next
                break
            node = node.parent


class _Lines:
    """Collects text with white space as HTML has it, runs are one space outside <pre>, and marks the blocks in it."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._length = 0
        self._newlines = 2  # at the end so far; the start counts as a paragraph's end
        self._space = False
        self._pre = 0
        self._cell = False
        self._blocks = _Blocks()

    def __str__(self) -> str:
        return "".join(self._out).strip("\n")

    @property
    def marks(self) -> list[Mark]:
        """Headings, lists, tables and code, in order, each from a line's start to a line's start."""
        return self._blocks.found

    def text(self, text: str) -> None:
        if self._pre:
            self._put_lines(text)
            return
        words = _SPACE.sub(" ", text)
        if words.startswith(" "):
            self._space = True
        if words.strip(" "):
            self._put(words.strip(" "))
            self._space = words.endswith(" ")

    def open(self, tag: str) -> None:
        self._break(tag)
        if tag in _BLOCKS:
            self._blocks.open(tag, self._length)
        if tag == "li":
            self._put("- ")
        elif tag in ("td", "th"):
            if self._cell:
                self._put("\t")
            self._cell = True
        elif tag == "br":
            self._newline(min(self._newlines + 1, 2))
        elif tag == "pre":
            self._pre += 1

    def close(self, tag: str) -> None:
        if tag == "pre":
            self._pre -= 1
        elif tag == "tr":
            self._cell = False
        self._break(tag)
        if tag in _BLOCKS:
            self._blocks.close(self._length)

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._newline(2)
        elif tag in _LINES:
            self._newline(1)

    def _newline(self, count: int) -> None:
        if count > self._newlines:
            self._append("\n" * (count - self._newlines))
            self._newlines = count
        self._space = False

    def _put(self, text: str) -> None:
        if self._space and not self._newlines:
            self._append(" ")
        self._space = False
        self._append(text)
        self._newlines = 0

    def _put_lines(self, text: str) -> None:
        """Text of <pre>; together with what stands there, never more than one empty line."""
        before = "\n" * self._newlines
        after = _BLANK_LINES.sub("\n\n", before + text)
        self._append(after[len(before) :])
        self._newlines = len(after) - len(after.rstrip("\n"))
        self._space = False

    def _append(self, text: str) -> None:
        self._out.append(text)
        self._length += len(text)


class _Blocks:
    """The outermost blocks; but a list or table with a heading, a table or code in it is there for the layout."""

    def __init__(self) -> None:
        self.found: list[Mark] = []
        self._depth = 0
        self._outer: tuple[str, int, int] | None = None  # tag, depth, start

    def open(self, tag: str, start: int) -> None:
        self._depth += 1
        in_layout = self._outer is not None and _BLOCKS[self._outer[0]] in _LAYOUT and _BLOCKS[tag] != "list"
        if self._outer is None or in_layout:
            self._outer = tag, self._depth, start

    def close(self, end: int) -> None:
        if self._outer is not None and self._outer[1] == self._depth:
            tag, _, start = self._outer
            kind = _BLOCKS[tag]
            if start < end:
                self.found.append((kind, int(tag[1]) if kind == "heading" else 0, start, end))
            self._outer = None
        self._depth -= 1
