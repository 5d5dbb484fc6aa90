"""Whom ingest is measured against: a cold process with the same parser, one with pypdfium2 alone, and markitdown."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARKITDOWN_PLACE = "APPLIANCE_MARKITDOWN"
"""A folder that markitdown was installed into by `pip install --target`, where it is not in the environment."""

COLD = """
import importlib.util, sys, types
package = types.ModuleType("appliance.ingest.extract")
package.__path__ = [importlib.util.find_spec("appliance.ingest").submodule_search_locations[0] + "/extract"]
sys.modules[package.__name__] = package
from appliance.ingest.caps import Caps
from appliance.ingest.extract.pdf import read
read(sys.stdin.buffer.read(), Caps())
"""
"""The same parser, started for one document: without the package, whose import is that of every other format too."""

BARE = """
import sys, pypdfium2
document = pypdfium2.PdfDocument(sys.stdin.buffer.read())
print([page.get_textpage().get_text_bounded() for page in document])
"""
"""The text in the order of the file, no more."""

_CONVERT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from markitdown import MarkItDown
converter = MarkItDown()
for path in [sys.argv[1], *sys.argv[1:]]:  # the first one twice: imports are not what is measured
    started = time.process_time()
    try:
        text = converter.convert(path).text_content
    except Exception as error:
        text = ""
    print(json.dumps({"path": path, "seconds": time.process_time() - started, "text": text}))
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader made of one file. seconds: of the processor, its children's too."""

    text: str
    seconds: float


def cold_seconds(program: str, pdf: bytes) -> float:
    """By the clock: a new Python, unlocked, that runs the program on the PDF."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-s", "-c", program], input=pdf, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def markitdown_is_there() -> bool:
    return MARKITDOWN_PLACE in os.environ or importlib.util.find_spec("markitdown") is not None


def by_markitdown(paths: Sequence[Path]) -> dict[Path, Reading]:
    """One process for all files, as its users have it."""
    place = os.environ.get(MARKITDOWN_PLACE, "")
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, *map(str, paths)],
        env=os.environ | ({"PYTHONPATH": place} if place else {}) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    return {Path(row["path"]): Reading(row["text"], row["seconds"]) for row in rows}


def overlap(text: str, other: str) -> float:
    """The share of the other's words that are in the text too, each as often, 0 to 1."""
    words, others = (Counter(one.lower().split()) for one in (text, other))
    return (words & others).total() / max(others.total(), 1)
