"""Office files as packages of XML parts: OOXML (ECMA-376 part 2, open packaging) and ODF. ZIP archives underneath, so
what guards archives guards them too. No DTD, so no entities; no relationship that leads out of the package.
"""

import posixpath
import pyexpat
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import NamedTuple, Protocol
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import zipped

XML_PARSER = f"{pyexpat.EXPAT_VERSION.replace('_', ' ')}"

_OLE = b"\xd0\xcf\x11\xe0"
_ENCRYPTED_STREAM = "EncryptedPackage".encode("utf-16-le")
_PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_CONTENT_TYPES = "{http://schemas.openxmlformats.org/package/2006/content-types}"
_COMPATIBILITY = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
ALTERNATIVES, CHOICE, FALLBACK = (f"{_COMPATIBILITY}{name}" for name in ("AlternateContent", "Choice", "Fallback"))
# "Strict" files (ISO/IEC 29500 part 1) differ in their namespaces alone.
_STRICT = (
    (b"http://purl.oclc.org/ooxml/officeDocument/", b"http://schemas.openxmlformats.org/officeDocument/2006/"),
    (b"http://purl.oclc.org/ooxml/wordprocessingml/", b"http://schemas.openxmlformats.org/wordprocessingml/2006/"),
    (b"http://purl.oclc.org/ooxml/presentationml/", b"http://schemas.openxmlformats.org/presentationml/2006/"),
    (b"http://purl.oclc.org/ooxml/spreadsheetml/", b"http://schemas.openxmlformats.org/spreadsheetml/2006/"),
    (b"http://purl.oclc.org/ooxml/drawingml/", b"http://schemas.openxmlformats.org/drawingml/2006/"),
)
RELATION = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
"""Of the attributes that name a relationship."""


class Relation(NamedTuple):
    """From one part to another. kind: the last word of its type, such as `slide`."""

    kind: str
    part: str


class Target(Protocol):
    """Hears an XML part as it is read."""

    def start(self, tag: str, attributes: dict[str, str], /) -> object: ...

    def end(self, tag: str, /) -> object: ...

    def data(self, text: str, /) -> object: ...


class Package:
    """The parts of an Office file.

    Raises DocumentRefused: TYPE_MISMATCH, DOCUMENT_ENCRYPTED, DOCUMENT_BROKEN, TOO_MANY_MEMBERS, ZIP_BOMB,
    ARCHIVE_TOO_LARGE; of a part's XML: DOCUMENT_BROKEN, XML_DTD.
    """

    def __init__(self, data: bytes, caps: Caps) -> None:
        if data.startswith(_OLE):
            if _ENCRYPTED_STREAM in data:
                raise encrypted()
            raise mismatch()
        if not data.startswith(b"PK\x03\x04"):
            raise mismatch()
        self._data = data
        try:
            found = zipped.entries(data, caps)
        except zipped.Damaged as error:
            raise broken(str(error)) from None
        if any(entry.encrypted for entry in found):
            raise encrypted()
        self._entries = {entry.name.casefold(): entry for entry in found}
        if len(self._entries) < len(found):
            raise broken("Two of its parts have the same name.")

    def has(self, part: str) -> bool:
        return part.casefold() in self._entries

    def part(self, part: str) -> bytes:
        """The bytes of a part."""
        if not self.has(part):
            raise broken("A part of it is missing.")
        try:
            content = zipped.content(self._data, self._entries[part.casefold()])
        except zipped.Damaged as error:
            raise broken(str(error)) from None
        for strict, usual in _STRICT:
            content = content.replace(strict, usual)
        return content

    def tree(self, part: str) -> Element:
        """The XML of a part."""
        builder = _Tree()
        self._feed(part, builder)
        return builder.close()

    def stream(self, part: str, target: Target) -> None:
        """Tell `target` the XML of a part that may be too large for a tree."""
        self._feed(part, _Refusing(target))

    def relations(self, part: str) -> dict[str, Relation]:
        """By their ids, those of a part ('' for the package itself) that stay inside the package."""
        folder, name = posixpath.split(part)
        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        if not self.has(relations):
            return {}
        found = {}
        for one in self.tree(relations).iter(f"{_PACKAGE}Relationship"):
            target = one.get("Target", "")
            if one.get("TargetMode", "Internal") == "Internal":
                inside = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
                found[one.get("Id", "")] = Relation(one.get("Type", "").rpartition("/")[2], inside)
        return found

    def related(self, part: str, kind: str) -> Iterator[str]:
        """The parts that a part has by that kind of relationship, those that are there."""
        return (one.part for one in self.relations(part).values() if one.kind == kind and self.has(one.part))

    def main_part(self, *applications: str) -> str:
        """The part that the package is about; its content type must name one of them, such as `wordprocessingml`."""
        if not self.has("[Content_Types].xml"):
            raise mismatch()
        part = next(self.related("", "officeDocument"), "")
        content_type = self._content_type(part)
        if not any(application in content_type for application in applications):
            raise mismatch()
        return part

    def _content_type(self, part: str) -> str:
        types = self.tree("[Content_Types].xml")
        for one in types.iter(f"{_CONTENT_TYPES}Override"):
            if one.get("PartName", "").lstrip("/").casefold() == part.casefold():
                return one.get("ContentType", "")
        extension = part.rpartition(".")[2].casefold()
        for one in types.iter(f"{_CONTENT_TYPES}Default"):
            if one.get("Extension", "").casefold() == extension:
                return one.get("ContentType", "")
        return ""

    def _feed(self, part: str, target: "_Tree | _Refusing") -> None:
        parser = ElementTree.XMLParser(target=target)  # noqa: S314 - the target refuses what is dangerous: DTDs
        try:
            parser.feed(self.part(part))
            parser.close()
        except (ElementTree.ParseError, LookupError, ValueError):
            raise broken("A part of it is not well-formed XML.") from None


class _Tree(ElementTree.TreeBuilder):
    def doctype(self, name: str, public: str, system: str) -> None:
        _refuse_dtd()


class _Refusing:
    def __init__(self, target: Target) -> None:
        self.start, self.end, self.data = target.start, target.end, target.data

    def doctype(self, name: str, public: str, system: str) -> None:
        _refuse_dtd()

    def close(self) -> None:
        """All was said."""


def chosen(alternatives: Element) -> Element | None:
    """Of content that is there in several forms, the first one that is not for old readers only."""
    found = alternatives.find(CHOICE)
    return found if found is not None else alternatives.find(FALLBACK)


def warm_package(content_type: str, part: str, xml: str, others: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """The smallest OOXML file around a main part, and other parts."""
    types = f'<Override PartName="/{part}" ContentType="application/vnd.openxmlformats-officedocument.{content_type}"/>'
    relation = f'<Relationship Id="r1" Type="{RELATION[1:-1]}/officeDocument" Target="{part}"/>'
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{_CONTENT_TYPES[1:-1]}">{types}</Types>')
        archive.writestr("_rels/.rels", f'<Relationships xmlns="{_PACKAGE[1:-1]}">{relation}</Relationships>')
        for name, content in {part: xml, **others}.items():
            archive.writestr(name, content)
    return out.getvalue()


def broken(why: str) -> DocumentRefused:
    return DocumentRefused("DOCUMENT_BROKEN", f"{why} Open it in its program, and store it again.")


def encrypted() -> DocumentRefused:
    return DocumentRefused("DOCUMENT_ENCRYPTED", "It is protected by a password; store a copy without one.")


def mismatch() -> DocumentRefused:
    return DocumentRefused("TYPE_MISMATCH", "It is not the kind of file that its name says.")


def _refuse_dtd() -> None:
    raise DocumentRefused("XML_DTD", "It declares a document type of its own, as attacks do and Office files do not.")
