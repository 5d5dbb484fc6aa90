"""Pictures of text, made on the spot."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pypdfium2
from PIL import Image, ImageDraw

Placed = tuple[int, int, str]
"""x, y and a line of text, in pixels."""


def drawn(lines: Sequence[str | Placed], size: tuple[int, int] = (1100, 600), height: int = 36) -> Image.Image:
    """Lines one below the other, or each at its place, black on white."""
    image = Image.new("L", size, 255)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x, y, text = line if isinstance(line, tuple) else (80, 60 + row * height * 5 // 3, line)
        draw.text((x, y), text, fill=0, font_size=height)
    return image


def photographed(pdf: bytes) -> Image.Image:
    """A PDF's first page at 200 dots an inch, grey."""
    document = pypdfium2.PdfDocument(pdf)
    try:
        image: Image.Image = document[0].render(scale=200 / 72, grayscale=True).to_pil().copy()
        return image
    finally:
        document.close()


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """form: as Pillow calls it."""
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def empty_png(width: int, height: int, bits: int) -> bytes:
    """A header that promises so many grey pixels, and hardly any of them (PNG, ISO/IEC 15948)."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def resized(data: bytes, form: str, width: int, height: int) -> bytes:
    """A picture whose header says another size than it has. form: GIF, BMP, TIFF, JPEG or WEBP (lossless)."""
    if form == "GIF":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    if form == "BMP":
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    if form == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    if form == "WEBP":
        at = data.index(b"VP8L") + 9
        return data[:at] + struct.pack("<I", (width - 1) | (height - 1) << 14) + data[at + 4 :]
    out = data
    for tag, value in ((256, width), (257, height)):
        at = out.index(struct.pack("<HHI", tag, 4, 1)) if struct.pack("<HHI", tag, 4, 1) in out else -1
        at = out.index(struct.pack("<HHI", tag, 3, 1)) if at < 0 else at
        out = out[:at] + struct.pack("<HHII", tag, 4, 1, value) + out[at + 12 :]
    return out


def looping_tiff() -> bytes:
    """Two frames, of which the second says that the first follows."""
    data = bytearray(
        encoded(Image.new("L", (64, 64), 255), "TIFF", save_all=True, append_images=[Image.new("L", (64, 64))])
    )
    [first] = struct.unpack_from("<I", data, 4)
    [entries] = struct.unpack_from("<H", data, first)
    [second] = struct.unpack_from("<I", data, first + 2 + 12 * entries)
    [entries] = struct.unpack_from("<H", data, second)
    struct.pack_into("<I", data, second + 2 + 12 * entries, first)
    return bytes(data)


def long_comment_png(mebibytes: int) -> bytes:
    """A blank picture with a compressed comment of so many mebibytes."""
    comment = b"Comment\0\0" + zlib.compress(bytes(mebibytes << 20), 9)
    chunk = struct.pack(">I", len(comment)) + b"zTXt" + comment + struct.pack(">I", zlib.crc32(b"zTXt" + comment))
    plain = encoded(Image.new("L", (64, 64), 255), "PNG")
    return plain[:33] + chunk + plain[33:]
