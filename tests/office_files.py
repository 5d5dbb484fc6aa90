"""Office files made by hand: the XML that a test is about, in the smallest package around it."""

import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO

OPEN_XML = "application/vnd.openxmlformats-officedocument"
RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
P = "http://schemas.openxmlformats.org/presentationml/2006/main"
A = "http://schemas.openxmlformats.org/drawingml/2006/main"
COMPATIBILITY = "http://schemas.openxmlformats.org/markup-compatibility/2006"
DOCX, XLSX, PPTX = (
    "wordprocessingml.document.main+xml",
    "spreadsheetml.sheet.main+xml",
    "presentationml.presentation.main+xml",
)

BILLION_LAUGHS = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 10)) + "]>"
)


def zipped(parts: Mapping[str, str | bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def stored(data: bytes) -> bytes:
    """An Office file anew, with nothing compressed."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return out.getvalue()


def package(kind: str, main: str, xml: str | bytes, others: Mapping[str, str | bytes] | None = None) -> bytes:
    """A main part of a content type, and parts that it has under the folder's relations."""
    folder, _, name = main.rpartition("/")
    types = f'<Override PartName="/{main}" ContentType="{OPEN_XML}.{kind}"/>'
    parts: dict[str, str | bytes] = {
        "[Content_Types].xml": f'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">{types}</Types>',
        "_rels/.rels": relations({"officeDocument": main}),
        main: xml,
    }
    own = {name.removesuffix(".xml"): name for name in others or {} if "/" not in name}
    if own:
        parts[f"{folder}/_rels/{name}.rels"] = relations(own)
    parts |= {f"{folder}/{name}": content for name, content in (others or {}).items()}
    return zipped(parts)


def relations(targets: Mapping[str, str]) -> str:
    """By their kinds, which digits may follow."""
    found = "".join(
        f'<Relationship Id="{kind}" Type="{RELATIONS}/{kind.rstrip("0123456789")}" Target="{target}"/>'
        for kind, target in targets.items()
    )
    return (
        f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{found}</Relationships>'
    )


def word(body: str, **parts: str) -> bytes:
    """A DOCX; parts by the names of their relationships, such as styles, each its root's inside."""
    roots = {"numbering": "numbering", "styles": "styles", "footnotes": "footnotes", "endnotes": "endnotes"}
    roots |= {"comments": "comments", "header1": "hdr", "header2": "hdr", "footer1": "ftr"}
    others = {f"{name}.xml": word_xml(roots[name], inside) for name, inside in parts.items()}
    return package(DOCX, "word/document.xml", word_xml("document", f"<w:body>{body}</w:body>"), others)


def word_xml(root: str, inside: str) -> str:
    return (
        f'<w:{root} xmlns:w="{W}" xmlns:mc="{COMPATIBILITY}" xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
        f' xmlns:v="urn:schemas-microsoft-com:vml" xmlns:wps="http://schemas.microsoft.com/office/word/2010/'
        f'wordprocessingShape">{inside}</w:{root}>'
    )


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


def workbook(*sheets: str, styles: str = "", shared: Sequence[str] = (), properties: str = "") -> bytes:
    """An XLSX of sheets A, B and on; each the inside of its `sheetData`."""
    names = [chr(ord("A") + number) for number in range(len(sheets))]
    listed = "".join(f'<sheet name="{name}" r:id="worksheet{at}"/>' for at, name in enumerate(names))
    others = {
        f"worksheet{at}.xml": f'<worksheet xmlns="{S}"><sheetData>{rows}</sheetData></worksheet>'
        for at, rows in enumerate(sheets)
    }
    others["styles.xml"] = f'<styleSheet xmlns="{S}">{styles}</styleSheet>'
    others["sharedStrings.xml"] = f'<sst xmlns="{S}">{"".join(f"<si>{text}</si>" for text in shared)}</sst>'
    main = f'<workbook xmlns="{S}" xmlns:r="{RELATIONS}">{properties}<sheets>{listed}</sheets></workbook>'
    return package(XLSX, "xl/workbook.xml", main, others)


def text_cell(reference: str, text: str) -> str:
    return f'<c r="{reference}" t="inlineStr"><is><t>{text}</t></is></c>'


def slides(*trees: str) -> bytes:
    """A PPTX; each slide the inside of its shape tree."""
    listed = "".join(f'<p:sldId r:id="slide{at}"/>' for at in range(len(trees)))
    main = f'<p:presentation xmlns:p="{P}" xmlns:r="{RELATIONS}"><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>'
    others = {
        f"slide{at}.xml": f'<p:sld xmlns:p="{P}" xmlns:a="{A}"><p:cSld><p:spTree>{tree}</p:spTree></p:cSld></p:sld>'
        for at, tree in enumerate(trees)
    }
    return package(PPTX, "ppt/presentation.xml", main, others)


def ods(tables: str, manifest: str = "", mimetype: str = "application/vnd.oasis.opendocument.spreadsheet") -> bytes:
    """An ODS of `table:table` elements."""
    space = "urn:oasis:names:tc:opendocument:xmlns"
    names = "".join(f' xmlns:{name}="{space}:{name}:1.0"' for name in ("office", "table", "text"))
    content = (
        f"<office:document-content{names}><office:body><office:spreadsheet>{tables}</office:spreadsheet></office:body>"
    )
    parts: dict[str, str | bytes] = {"mimetype": mimetype, "content.xml": f"{content}</office:document-content>"}
    if manifest:
        parts["META-INF/manifest.xml"] = f'<m:manifest xmlns:m="{space}:manifest:1.0">{manifest}</m:manifest>'
    return zipped(parts)


def encrypted_package() -> bytes:
    """How an Office file with a password begins: an OLE container with its streams' names in the directory."""
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000) + "EncryptedPackage".encode("utf-16-le") + bytes(1000)
