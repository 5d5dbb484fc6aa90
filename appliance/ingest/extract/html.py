"""HTML to the text a browser would show, by lexbor: title first, blocks as lines, nothing that is hidden.

A table's rows are lines with tabs between cells, whatever stands in a cell. A table of one column, and one that holds a
table, a heading or code, is there for the layout: its cells are read one after the other.
"""

import codecs
import re
from collections.abc import Iterator
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
_LINES = frozenset(
    {
        *("div", "li", "dt", "dd", "tr", "td", "th", "caption", "figcaption", "summary", "option", "legend", "body"),
    }
)
_BLOCKS = {
    **dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "heading"),
    **dict.fromkeys(("ul", "ol"), "list"),
    "table": "table",
    "pre": "code",
}
_BESIDE = ", ".join(f"{one} + {other}" for one in ("td", "th") for other in ("td", "th"))
_TABLES = f"table:not(:has(table, h1, h2, h3, h4, h5, h6, pre)):has({_BESIDE})"
_MAX_SPAN = 100  # columns
_LISTS = ("ul", "ol")
_MAX_INDENT = 20
_SPACE = re.compile(r"[ \t\n\r\f]+")
_HIDING = re.compile(r"display\s{0,9}:\s{0,9}none|visibility\s{0,9}:\s{0,9}hidden", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n{3,}")


def read(data: bytes, caps: Caps) -> Read:
    """Parser with the character set, one page, its blocks.

    Raises DocumentRefused: TYPE_MISMATCH where there is no tag in it, HTML_TOO_DEEP, NOT_UTF8, NOT_TEXT.
    """
    source, encoding = _decode(data)
    if not _TAG.search(source):
        raise DocumentRefused("TYPE_MISMATCH", "The name says HTML, and there is no tag in it.")
    page, blocks = clean_marked(*visible(source), 1)
    return Read(parser_with(PARSER, encoding), (page,), tuple(blocks))


def visible(source: str) -> tuple[str, list[Mark]]:
    """Title and body of a page, or the text of a fragment, with its blocks. Raises DocumentRefused: HTML_TOO_DEEP."""
    _check_depth(source)
    tree = LexborHTMLParser(source)
    found = tree.css_first("head > title")
    title = _SPACE.sub(" ", found.text()).strip() if found else ""
    out = _Lines()
    if tree.body:
        _walk(tree.body, out, frozenset(table.mem_id for table in tree.css(_TABLES)))
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


def _walk(root: LexborNode, out: "_Lines", tables: frozenset[int] = frozenset()) -> None:
    """The text under `root` in document order. By a loop, because hostile pages nest deeper than any stack.

    tables: by their ids, those that are read by rows.
    """
    node: LexborNode | None = root
    while node is not None:
        entered = False
        if node.is_text_node:
            out.text(node.text_content or "")
        elif node.is_element_node and _is_seen(node):
            if node.mem_id in tables:
                out.table(node)
            else:
                out.open(node)
                entered = True
                if node.child is not None:
                    node = node.child
                    continue
        while node is not None:
            if entered:
                out.close(node.tag or "")
            if node.mem_id == root.mem_id:
                return
            if node.next is not None:
                node = node.next
                break
            node, entered = node.parent, True


def _is_seen(element: LexborNode) -> bool:
    """By its kind, the attribute `hidden` and its own style: what nobody sees may be there to mislead who answers."""
    if element.tag in _DROPPED:
        return False
    attributes = element.attributes
    return "hidden" not in attributes and not _HIDING.search(attributes.get("style") or "")


def _rows(table: LexborNode) -> Iterator[str]:
    """A line a row. A cell stands in the first of the columns and rows that it spans, the others are empty."""
    reaching: dict[int, int] = {}  # by column: into how many more rows a cell above reaches
    for row in filter(_is_seen, table.css("tr")):
        cells: list[str] = []
        for cell in row.iter():
            if cell.tag not in ("td", "th"):
                continue
            while reaching.get(len(cells), 0):
                cells.append("")
            rows, columns = _span(cell, "rowspan"), min(_span(cell, "colspan"), _MAX_SPAN)
            reaching |= dict.fromkeys(range(len(cells), len(cells) + columns), rows)
            cells += [_cell(cell), *[""] * (columns - 1)]
        reaching = {column: rows - 1 for column, rows in reaching.items() if rows > 1}
        if line := "\t".join(cells).rstrip():
            yield line


def _cell(cell: LexborNode) -> str:
    out = _Lines()
    _walk(cell, out)
    return " ".join(str(out).split())


def _span(cell: LexborNode, name: str) -> int:
    value = cell.attributes.get(name) or ""
    return max(int(value), 1) if value.isascii() and value.isdigit() and len(value) < 6 else 1


class _Lines:
    """Collects text with white space as HTML has it, runs are one space outside <pre>, and marks the blocks in it."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._length = 0
        self._newlines = 2  # at the end so far; the start counts as a paragraph's end
        self._space = False
        self._pre = 0
        self._lists: list[int | None] = []  # the next number of each open list, None where it has bullets
        self._labelled = False  # an item's label is the last thing that was written
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

    def table(self, table: LexborNode) -> None:
        """One that is read by rows, below its caption."""
        self._newline(2)
        for caption in table.css("caption"):
            _walk(caption, self)
            self._newline(2)
        self._blocks.open("table", self._length)
        for line in _rows(table):
            self._put(line)
            self._newline(1)
        self._newline(2)
        self._blocks.close(self._length)

    def open(self, element: LexborNode) -> None:
        tag = element.tag or ""
        if not self._labelled or tag in _BLOCKS or tag == "li":
            self._break(tag)
        if tag in _BLOCKS and tag != "table":
            self._blocks.open(tag, self._length)
        if tag in _LISTS:
            self._lists.append(_start(element) if tag == "ol" else None)
        elif tag == "li":
            self._put(f"{'  ' * min(len(self._lists) - 1, _MAX_INDENT)}{self._label()} ")
            self._labelled = True
        elif tag == "br":
            self._newline(min(self._newlines + 1, 2))
        elif tag == "pre":
            self._pre += 1

    def close(self, tag: str) -> None:
        if tag == "pre":
            self._pre -= 1
        elif tag in _LISTS:
            self._lists.pop()
        self._break(tag)
        if tag in _BLOCKS and tag != "table":
            self._blocks.close(self._length)

    def _label(self) -> str:
        number = self._lists[-1] if self._lists else None
        if number is None:
            return "-"
        self._lists[-1] = number + 1
        return f"{number}."

    def _break(self, tag: str) -> None:
        if tag in _LISTS and self._lists:
            self._newline(1)
        elif tag in _PARAGRAPHS:
            self._newline(2)
        elif tag in _LINES:
            self._newline(1)

    def _newline(self, count: int) -> None:
        if count > self._newlines:
            self._append("\n" * (count - self._newlines))
            self._newlines = count
        self._space = self._labelled = False

    def _put(self, text: str) -> None:
        if self._space and not self._newlines:
            self._append(" ")
        self._space = False
        self._append(text)
        self._newlines = 0
        self._labelled = False

    def _put_lines(self, text: str) -> None:
        """Text of <pre>; together with what stands there, never more than one empty line."""
        before = "\n" * self._newlines
        after = _BLANK_LINES.sub("\n\n", before + text)
        self._append(after[len(before) :])
        self._newlines = len(after) - len(after.rstrip("\n"))
        self._space = self._labelled = False

    def _append(self, text: str) -> None:
        self._out.append(text)
        self._length += len(text)


def _start(ordered: LexborNode) -> int:
    value = ordered.attributes.get("start") or ""
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 1


class _Blocks:
    """The outermost blocks; but a list with a heading, a table or code in it is there for the layout."""

    def __init__(self) -> None:
        self.found: list[Mark] = []
        self._depth = 0
        self._outer: tuple[str, int, int] | None = None  # tag, depth, start

    def open(self, tag: str, start: int) -> None:
        self._depth += 1
        in_layout = self._outer is not None and self._outer[0] in _LISTS and tag not in _LISTS
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
