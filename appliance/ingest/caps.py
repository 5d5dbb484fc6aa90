"""What one file may unpack to: set by the daemon's options, obeyed in the locked children, so light on imports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

NO_BOMB_BYTES = 1 << 20
"""What unpacks to less than this is no bomb, however small it was packed."""

Settings = Mapping[str, int | str]
"""Caps as they travel to the extract zygote: a flat JSON object."""


@dataclass(frozen=True, slots=True)
class Caps:
    """pages: of a document. members: of a container, and of what lies in it. member_bytes: of all members together,
    unpacked. ratio: how many times its packed size a container may unpack to. pixels: of one image. cells: of one
    workbook. languages: which tesseract reads, as "eng+deu"; '' for none. ocr_cpu_seconds: of one document's pictures.
    """

    pages: int = 5000
    members: int = 10_000
    member_bytes: int = 256 << 20
    ratio: int = 200
    pixels: int = 100_000_000
    cells: int = 2_000_000
    languages: str = "eng"
    ocr_cpu_seconds: int = 600

    @classmethod
    def from_settings(cls, settings: Settings) -> "Caps":
        """What `settings` gave."""
        return cls(**settings)  # type: ignore[arg-type]

    def settings(self) -> Settings:
        """For the zygote."""
        return asdict(self)


def is_bomb(packed_bytes: int, unpacked_bytes: int, ratio: int) -> bool:
    """Whether a container unpacks to more than its size accounts for."""
    return unpacked_bytes > max(ratio * packed_bytes, NO_BOMB_BYTES)
