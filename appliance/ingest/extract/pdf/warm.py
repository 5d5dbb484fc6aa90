"""PDFs that lead down every road that imports anything of its own, or has pdfium load something."""


def _page(stream: str, extras: str = "", objects: str = "", catalog: str = "") -> bytes:
    """The smallest PDF with one page of text; pdfium rebuilds the missing cross-reference table."""
    return (
        f"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R{catalog}>>endobj\n"
        "2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        f"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R{extras}"
        "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>>>"
        "/XObject<</I 5 0 R>>>>>>endobj\n"
        f"4 0 obj<</Length {len(stream)}>>stream\n{stream}\nendstream endobj\n"
        "5 0 obj<</Type/XObject/Subtype/Image/Width 2/Height 2/ColorSpace/DeviceGray/BitsPerComponent 8/Length 4>>"
        "stream\n0000\nendstream endobj\n"
        f"{objects}"
        "trailer<</Root 1 0 R/Size 9>>\n%%EOF\n"
    ).encode()


_FORM = _page(
    "BT /F1 12 Tf 20 100 Td (Warm.) Tj ET 0 0 100 1 re f",
    "/Annots[<</Type/Annot/Subtype/Text/Rect[0 0 9 9]/Contents(Note)>> 6 0 R"
    "<</Type/Annot/Subtype/Link/Rect[0 0 9 9]/A<</S/URI/URI(https://x.example)>>>>]",
    "6 0 obj<</Type/Annot/Subtype/Widget/FT/Tx/T(Name)/V(Value)/Rect[0 0 50 9]>>endobj\n"
    "7 0 obj<</Title(Warm.)/Parent 8 0 R/Dest[3 0 R/Fit]>>endobj\n"
    "8 0 obj<</First 7 0 R/Last 7 0 R/Count 1>>endobj\n",
    "/AcroForm<</Fields[6 0 R]>>/Outlines 8 0 R",
)
WARM_DOCUMENTS = (
    _page("BT /F1 12 Tf 20 100 Td (Warm.) Tj ET"),
    _FORM,
    _page("q 180 0 0 180 10 10 cm /I Do Q"),
    _page("BT /F1 12 Tf 20 100 Td (\003\003\003) Tj ET"),
    b"%PDF-1.4\nno PDF at all",
)
