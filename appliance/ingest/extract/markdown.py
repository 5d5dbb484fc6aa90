"""Markdown (CommonMark and tables) to the text a reader sees: headings, list items and rows as lines of their own."""

import re
from importlib.metadata import version

from markdown_it import MarkdownIt
from markdown_it.token import Token

from appliance.ingest.caps import Caps
from appliance.ingest.extract import charset, html
from appliance.ingest.extract.reading import Mark, Read
from appliance.ingest.extract.text import clean_marked, parser_with

PARSER = f"markdown-it-py {version('markdown-it-py')}"
WARM_DOCUMENTS = (
    b"# Warm\n\nA *b* `c` [d](e) ![f](g) <b>h</b> &amp; i  \nj\n\n1. k\n   - l\n\n> m\n\n```n\no\n```\n\n"
    b"| p | q |\n|---|---|\n| r | s |\n\n<div>t</div>\n\n---\n\n[u]: v\n\nw\n===\n\n<https://x> [y][u]\n",
)

# What programs that publish Markdown put before it: lines of YAML.
_FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n(\w[^:\n]{0,99}:[^\n]*\n(?:[^\n]*\n){0,200}?)(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)"
)
_STRUCTURE = {
    "heading": "heading",
    "bullet_list": "list",
    "ordered_list": "list",
    "table": "table",
}


def read(data: bytes, caps: Caps) -> Read:
    """Parser with the character set, one page, its blocks.

    Raises DocumentRefused: NOT_UTF8, NOT_TEXT, HTML_TOO_DEEP.
    """
    source, encoding = charset.decode(data)
    parser = MarkdownIt("commonmark", {"maxNesting": 100}).enable("table")  # deeper is dropped, never recursed
    rendered = _Rendered()
    if front := _FRONT_MATTER.match(source):
        rendered.text(front[1].rstrip())
        source = source[front.end() :]
    for token in parser.parse(source):
        rendered.add(token)
    page, blocks = clean_marked(str(rendered), rendered.marks, 1)
    return Read(parser_with(PARSER, encoding), (page,), tuple(blocks))


class _Rendered:
    """Blocks apart by an empty line, items and rows of one list or table by a newline."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []  # of the outermost blocks
        self._out: list[str] = []
        self._length = 0
        self._lists: list[int | None] = []  # the next number of each open list, None where it has bullets
        self._cells: list[str] = []  # of the open row
        self._open = 0  # blocks that are open
        self._start = 0  # of the outermost of them

    def __str__(self) -> str:
        return "".join(self._out)

    def text(self, text: str) -> None:
        """A paragraph as it stands."""
        self._put(f"{text}\n\n")

    def add(self, token: Token) -> None:
        """The next token of the document."""
        name, _, side = token.type.rpartition("_")
        if side == "open" and name in _STRUCTURE:
            self._start = self._start if self._open else self._length
            self._open += 1
        self._put(self._text(token))
        if side == "close" and name in _STRUCTURE:
            self._open -= 1
            self._mark(_STRUCTURE[name], int(token.tag[1:]) if name == "heading" else 0)
        elif token.type in ("fence", "code_block"):
            self._start = self._start if self._open else self._length - len(token.content.rstrip("\n")) - 2
            self._mark("code", 0)

    def _put(self, text: str) -> None:
        self._out.append(text)
        self._length += len(text)

    def _mark(self, kind: str, level: int) -> None:
        if not self._open:
            self.marks.append((kind, level, self._start, self._length))

    def _text(self, token: Token) -> str:
        lists, kind = self._lists, token.type
        if kind in ("bullet_list_open", "ordered_list_open"):
            lists.append(int(token.attrs.get("start", 1)) if kind == "ordered_list_open" else None)
        elif kind in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
            return "" if lists else "\n"
        elif kind == "list_item_open":
            return "  " * (len(lists) - 1) + _label(lists)
        elif kind in ("th_open", "td_open"):
            self._cells.append("")
        elif kind == "tr_close":
            row, self._cells = "\t".join(self._cells).rstrip(), []
            return f"{row}\n" if row else ""
        elif kind == "table_close":
            return "\n"
        elif kind == "inline" and self._cells:
            self._cells[-1] = " ".join(_inline(token.children or []).split())
        elif kind == "inline":
            return _inline(token.children or [])
        elif kind in ("paragraph_close", "heading_close"):
            return "\n" if lists else "\n\n"
        elif kind in ("fence", "code_block"):
            return token.content.rstrip("\n") + "\n\n"
        elif kind == "html_block":
            return html.visible(token.content)[0] + "\n\n"
        return ""


def _label(lists: list[int | None]) -> str:
    number = lists[-1]
    if number is None:
        return "- "
    lists[-1] = number + 1
    return f"{number}. "


def _inline(tokens: list[Token]) -> str:
    """Text and code as they read, breaks as spaces or newlines, images by their description; tags are dropped."""
    out: list[str] = []
    for token in tokens:
        if token.type in ("text", "code_inline", "image", "text_special"):
            out.append(token.content)
        elif token.type == "softbreak":
            out.append(" ")
        elif token.type == "hardbreak":
            out.append("\n")
    return "".join(out)
