"""Whether pictures can be read is asked of the locked extractor itself."""

from pathlib import Path

import pytest

from appliance.config import Config
from appliance.ingest.caps import Caps
from appliance.ingest.ocr_probe import ocr_fault
from appliance.sandbox.extractor import LockedExtractor


@pytest.mark.parametrize(("languages", "fault"), [("eng", ""), ("eng+xyz", "Tesseract lacks xyz")])
async def test_the_probe_says_what_is_missing(languages: str, fault: str) -> None:
    config = Config(data_dir=Path("/nowhere"))
    extractor = LockedExtractor(config, "appliance.ingest.extract", Caps(languages=languages).settings())
    await extractor.start()
    found = await ocr_fault(extractor)
    await extractor.close()
    assert fault in found
    assert bool(found) == bool(fault)
