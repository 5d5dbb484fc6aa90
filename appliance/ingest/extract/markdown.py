"""Markdown (CommonMark and tables) to the text a reader sees: headings, list items and rows as lines of their own."""

from importlib.metadata import version

from markdown_it import MarkdownIt
from markdown_it.token import Token

from appliance.ingest.extract import html
from appliance.ingest.extract.text import clean, decode

MEDIA_TYPE = "text/markdown"
PARSER = f"markdown-it-py {version('markdown-it-py')}"
WARM_DOCUMENTS = (
    b"# Warm\n\nA *b* `c` [d](e) ![f](g) <b>h</b> &amp; i  \nj\n\n1. k\n   - l\n\n> m\n\n```n\no\n```\n\n"
    b"| p | q |\n|---|---|\n| r | s |\n\n<div>t</div>\n\n---\n\n[u]: v\n\nw\n===\n\n<https://x> [y][u]\n",
)


def read(data: bytes, max_pages: int) -> tuple[str, tuple[str, ...]]:
    """Parser and one page. Raises DocumentRefused: NOT_UTF8."""
    parser = MarkdownIt("commonmark", {"maxNesting": 100}).enable(
        "table"
    )  # what is deeper is dropped, and never recursed
    return PARSER, (clean(_render(parser.parse(decode(data)))),)


def _render(tokens: list[Token]) -> str:
    """Blocks apart by an empty line, items and rows of one list or table by a newline."""
    out: list[str] = []
    lists: list[int | None] = []  # the next number of each open list, None where it has bullets
    in_cell = False
    for token in tokens:
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open"):
            lists.append(int(token.attrs.get("start", 1)) if kind == "ordered_list_open" else None)
        elif kind in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
            out.append("" if lists else "\n")
        elif kind == "list_item_open":
            out.append("  " * (len(lists) - 1) + _label(lists))
        elif kind in ("th_open", "td_open"):
            out.append("\t" if in_cell else "")
            in_cell = True
        elif kind == "tr_close":
            out.append("\n")
            in_cell = False
        elif kind == "table_close":
            out.append("\n")
        elif kind == "inline":
            out.append(_inline(token.children or []))
        elif kind in ("paragraph_close", "heading_close"):
            out.append("\n" if lists else "\n\n")
        elif kind in ("fence", "code_block"):
            out.append(token.content.rstrip("\n") + "\n\n")
        elif kind == "html_block":
            out.append(html.visible_text(token.content) + "\n\n")
    return "".join(out)


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
