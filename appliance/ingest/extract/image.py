"""Pictures by Pillow to the words in them: a TIFF's frames are pages, and EXIF's orientation is followed.

Pillow never chooses a decoder itself: the file's first bytes do, of six formats. Nothing is decoded before the header's
size is known to be allowed.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageDraw,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    __version__,
)

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock
from appliance.ingest.extract.layout.arrange import arrange
from appliance.ingest.extract.layout.shapes import Picture
from appliance.ingest.extract.layout.structure import Page, assemble
from appliance.ingest.extract.reading import PAGE_CPU_SECONDS, Read, Row
from appliance.ingest.extract.recognition import Recognition
from appliance.ingest.extract.text import clean_marked

PARSER = f"pillow {__version__}"

_DECODERS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
)
_USUAL_DOTS_PER_INCH = 300
_PLAUSIBLE_DOTS_PER_INCH = (70, 2400)
_SMALL_SIDE = 1000  # a picture of the screen: letters are enlarged until they are as tall as in print
_ENLARGED = 2

Image.MAX_IMAGE_PIXELS = None  # the size is checked here, by the box's own option


def read(data: bytes, caps: Caps) -> Read:
    """Parser, a page a frame, and headings, tables and lists where they show.

    Raises DocumentRefused: TYPE_MISMATCH, IMAGE_BROKEN, IMAGE_TOO_LARGE, TOO_MANY_PAGES, OCR_UNAVAILABLE, OCR_TOO_SLOW.
    """
    recognition = Recognition(caps)
    pages = []
    for number, frame in enumerate(_frames(data, caps), 1):
        pages.append(Page(arrange(recognition.read(number, frame))))
    texts: list[str] = []
    blocks: list[Row] = []
    for number, (raw, marks) in enumerate(assemble(pages), 1):
        text, rows = clean_marked(raw, marks, number)
        texts.append(text)
        blocks += rows
    if not any(texts):
        recognition.refuse_where_missed()
    return Read(recognition.told(PARSER), tuple(texts), tuple(blocks))


def _frames(data: bytes, caps: Caps) -> Iterator[Callable[[], Picture]]:
    """What decodes each frame, before the next is asked for; of a moving picture, the first."""
    decoder = next((decoder for magic, decoder in _DECODERS if data.startswith(magic)), None)
    if decoder is None:
        raise DocumentRefused("TYPE_MISMATCH", "The name says that it is a picture, and the content is none.")
    with _decoding():
        image = decoder(BytesIO(data))
        count = getattr(image, "n_frames", 1) if decoder is TiffImagePlugin.TiffImageFile else 1
    if count > caps.pages:
        raise DocumentRefused("TOO_MANY_PAGES", f"It has {count} pages; {caps.pages} are allowed.")
    for frame in range(count):
        clock.extend(PAGE_CPU_SECONDS)
        with _decoding():
            image.seek(frame)
            _check_size(image, caps)
        yield partial(_grey, image)


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file, and no reason not to read it
            yield
    except (DocumentRefused, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises whatever a broken file leads it to
        raise DocumentRefused("IMAGE_BROKEN", f"It cannot be decoded ({type(error).__name__}).") from None


def _check_size(image: Image.Image, caps: Caps) -> None:
    if image.width * image.height > caps.pixels:
        problem = f"It has {image.width} x {image.height} pixels; {caps.pixels // 1_000_000} million are allowed."
        raise DocumentRefused("IMAGE_TOO_LARGE", problem)


@_decoding()
def _grey(image: Image.Image) -> Picture:
    declared = image.info.get("dpi")
    dots = round(float(declared[0])) if declared else 0
    if not _PLAUSIBLE_DOTS_PER_INCH[0] <= dots <= _PLAUSIBLE_DOTS_PER_INCH[1]:
        dots = _USUAL_DOTS_PER_INCH
    upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:  # what lies behind is paper
        upright = upright.convert("RGBA")
        paper = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(paper, upright)
    grey = upright.convert("L")
    if max(grey.size) < _SMALL_SIDE:
        grey = grey.resize((_ENLARGED * grey.width, _ENLARGED * grey.height), Image.Resampling.BICUBIC)
    return Picture(grey.tobytes(), grey.width, grey.height, grey.width, dots)


def _warm_documents() -> Iterator[bytes]:
    """A picture in each format."""
    image = Image.new("L", (240, 80), 255)
    ImageDraw.Draw(image).text((20, 20), "Warm 1.", fill=0, font_size=32)
    for form, options in (
        ("PNG", {}),
        ("JPEG", {"dpi": (300, 300)}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {"save_all": True, "append_images": [image], "compression": "tiff_lzw"}),
    ):
        out = BytesIO()
        image.save(out, form, **options)
        yield out.getvalue()


WARM_DOCUMENTS = tuple(_warm_documents())
