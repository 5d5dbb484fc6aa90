"""PPTX (ECMA-376 part 1, PresentationML): a page a slide, its title first, the rest in the order of the file, which is
the order that screen readers take. Hidden slides are there too; a speaker's notes stand at the end of their slide.
"""

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract.package import ALTERNATIVES, RELATION, XML_PARSER, Package, chosen, warm_package
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read

P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"

PARSER = f"pptx 1/{XML_PARSER}"

_TITLES = ("title", "ctrTitle")
_BULLETED = ("body", "obj")
_UNSHOWN = ("sldNum",)
_MAX_DEPTH = 8
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"


def read(data: bytes, caps: Caps) -> Read:
    """A page a slide.

    Raises DocumentRefused: TOO_DEEP, TOO_MANY_PAGES, and as `package.Package`.
    """
    try:
        return _Presentation(Package(data, caps), caps).read()
    except RecursionError:
        raise DocumentRefused("TOO_DEEP", "Its parts are nested deeper than any presentation's are.") from None


class _Presentation:
    def __init__(self, package: Package, caps: Caps) -> None:
        self._package = package
        self._main = package.main_part("presentationml", "ms-powerpoint")
        self._pages = Pages(caps)
        self._layouts: dict[str, dict[tuple[str, str], Element]] = {}  # placeholders' bodies, by part

    def read(self) -> Read:
        relations = self._package.relations(self._main)
        ids = [one.get(f"{RELATION}id", "") for one in self._package.tree(self._main).iter(f"{P}sldId")]
        slides = [relations[one].part for one in ids if one in relations and self._package.has(relations[one].part)]
        for number, part in enumerate(slides):
            if number:
                self._pages.turn()
            self._add_slide(part)
        return self._pages.read(PARSER)

    def _add_slide(self, part: str) -> None:
        shapes = list(_shapes(self._package.tree(part)))
        titles = [shape for shape in shapes if _placeholder(shape)[0] in _TITLES]
        for title in titles:
            self._pages.heading(1, " ".join(text for _, text in _paragraphs(title)))
        layout = self._layout(part)
        for shape in shapes:
            if shape.tag == f"{P}graphicFrame":
                self._add_frame(shape, part)
            elif shape not in titles and _placeholder(shape)[0] not in _UNSHOWN:
                self._add_text(shape, layout)
        for notes in self._package.related(part, "notesSlide"):
            self._add_notes(notes)

    def _add_text(self, shape: Element, layout: dict[tuple[str, str], Element]) -> None:
        """Paragraphs, those with bullets or numbers as a list."""
        kind, index = _placeholder(shape)
        inherited = [shape.find(f"{P}txBody/{A}lstStyle")]
        if kind in _BULLETED:
            parent = layout.get((kind, index), layout.get(("", index)))
            inherited.append(parent.find(f"{P}txBody/{A}lstStyle") if parent is not None else None)
        counts: dict[int, int] = {}
        for properties, text in _paragraphs(shape):
            depth = _depth(properties)
            styles = [properties, *(_level(style, depth) for style in inherited)]
            bullet = next((found for style in styles if (found := _bullet(style))), "-" if kind in _BULLETED else "")
            if bullet == "1." and text.strip():
                counts = {above: count for above, count in counts.items() if above <= depth}
                counts[depth] = counts.get(depth, 0) + 1
                bullet = f"{counts[depth]}."
            if bullet in ("", "none"):
                self._pages.text(text)
            elif text.strip():
                self._pages.item(depth, bullet, text)

    def _add_frame(self, frame: Element, part: str) -> None:
        """A table; or a diagram, whose texts are a list."""
        for table in frame.iter(f"{A}tbl"):
            self._pages.table([_cell(cell) for cell in row.iter(f"{A}tc")] for row in table.iter(f"{A}tr"))
        for diagram in frame.iter(f"{_DIAGRAM}relIds"):
            data = self._package.relations(part).get(diagram.get(f"{RELATION}dm", ""))
            if data and self._package.has(data.part):
                for point in self._package.tree(data.part).iter(f"{_DIAGRAM}pt"):
                    text = " ".join(text for _, text in _paragraphs(point))
                    if text.strip():
                        self._pages.item(0, "-", text)

    def _add_notes(self, part: str) -> None:
        for shape in _shapes(self._package.tree(part)):
            text = "\n".join(text for _, text in _paragraphs(shape))
            if _placeholder(shape)[0] == "body" and text.strip():
                self._pages.text(f"Notes: {text}")

    def _layout(self, part: str) -> dict[tuple[str, str], Element]:
        """The placeholders of the slide's layout, by kind and index, and by index alone."""
        layout = next(self._package.related(part, "slideLayout"), "")
        if layout and layout not in self._layouts:
            places = {_placeholder(shape): shape for shape in _shapes(self._package.tree(layout))}
            self._layouts[layout] = places | {("", index): shape for (_, index), shape in places.items()}
        return self._layouts.get(layout, {})


def _shapes(parent: Element) -> Iterator[Element]:
    """What holds text, out of groups, in order."""
    for node in parent:
        if node.tag in (f"{P}sp", f"{P}graphicFrame"):
            yield node
        elif node.tag == ALTERNATIVES:
            if (choice := chosen(node)) is not None:
                yield from _shapes(choice)
        elif node.tag in (f"{P}cSld", f"{P}spTree", f"{P}grpSp"):
            yield from _shapes(node)


def _placeholder(shape: Element) -> tuple[str, str]:
    """Kind and index of a placeholder; kind '' for other shapes."""
    found = shape.find(f"{P}nvSpPr/{P}nvPr/{P}ph")
    return ("", "") if found is None else (found.get("type", "obj"), found.get("idx", "0"))


def _paragraphs(shape: Element) -> Iterator[tuple[Element | None, str]]:
    """Properties and text of each."""
    for paragraph in shape.iter(f"{A}p"):
        yield paragraph.find(f"{A}pPr"), "".join(_runs(paragraph))


def _runs(paragraph: Element) -> Iterator[str]:
    for node in paragraph.iter():
        if node.tag in (f"{A}t", _MATH_TEXT):
            yield node.text or ""
        elif node.tag == f"{A}br":
            yield "\n"


def _depth(properties: Element | None) -> int:
    level = properties.get("lvl", "0") if properties is not None else "0"
    return min(int(level), _MAX_DEPTH) if level.isascii() and level.isdigit() and len(level) < 3 else 0


def _level(style: Element | None, depth: int) -> Element | None:
    return style.find(f"{A}lvl{depth + 1}pPr") if style is not None else None


def _bullet(properties: Element | None) -> str:
    """'-', '1.', 'none', or '' where these properties say nothing."""
    if properties is None:
        return ""
    kinds = {f"{A}buNone": "none", f"{A}buAutoNum": "1.", f"{A}buChar": "-", f"{A}buBlip": "-"}
    return next((kinds[node.tag] for node in properties if node.tag in kinds), "")


def _cell(cell: Element) -> str:
    """What it shows: nothing where another one reaches over it."""
    if cell.get("hMerge") in ("1", "true") or cell.get("vMerge") in ("1", "true"):
        return ""
    return " ".join(text for _, text in _paragraphs(cell))


WARM_DOCUMENTS = (
    warm_package(
        "presentationml.presentation.main+xml",
        "ppt/presentation.xml",
        f'<p:presentation xmlns:p="{P[1:-1]}" xmlns:r="{RELATION[1:-1]}"><p:sldIdLst><p:sldId r:id="r1"/></p:sldIdLst>'
        "</p:presentation>",
        {
            "ppt/_rels/presentation.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
            f'relationships"><Relationship Id="r1" Type="{RELATION[1:-1]}/slide" Target="s.xml"/></Relationships>',
            "ppt/s.xml": f'<p:sld xmlns:p="{P[1:-1]}" xmlns:a="{A[1:-1]}"><p:cSld><p:spTree><p:sp><p:txBody><a:p><a:r>'
            "<a:t>Warm.</a:t></a:r></a:p></p:txBody></p:sp></p:spTree></p:cSld></p:sld>",
        },
    ),
)
