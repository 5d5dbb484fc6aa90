"""A locked extractor for tests, and documents to give it."""

import os
from pathlib import Path

from appliance.config import Config
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import Extracted

LIMITS = Config(
    data_dir=Path("/nowhere"), parse_memory_mib=128, parse_cpu_seconds=1, parse_wall_seconds=30, document_max_mib=1
)


async def extract(extractor: LockedExtractor, content: bytes, name: str = "document.txt") -> Extracted:
    """Give the extractor a document."""
    fd = os.memfd_create("document")
    try:
        os.write(fd, content)
        return await extractor.extract(fd, name)
    finally:
        os.close(fd)
