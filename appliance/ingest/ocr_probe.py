"""Whether pictures can be read: a blank one is given to the locked extractor, as any document is."""

import os
import struct
import zlib

from appliance.errors import DocumentRefused
from appliance.ports import Extractor

_SIDE_PIXELS = 64


async def ocr_fault(extractor: Extractor) -> str:
    """Why no picture can be read; '' where they can. Raises SandboxUnavailable."""
    memfd = os.memfd_create("blank")
    try:
        os.write(memfd, _blank_png())
        await extractor.extract(memfd, "blank.png")
    except DocumentRefused as refusal:
        return str(refusal) if refusal.file_reason == "OCR_UNAVAILABLE" else ""
    finally:
        os.close(memfd)
    return ""


def _blank_png() -> bytes:
    """A white square, grey of 8 bits (PNG, ISO/IEC 15948)."""
    header = struct.pack(">IIBBBBB", _SIDE_PIXELS, _SIDE_PIXELS, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * _SIDE_PIXELS) * _SIDE_PIXELS)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
