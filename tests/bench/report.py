"""What every bench shares: where its data lies, where it may keep what is slow to make, and its last line."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

from appliance.infer.onnx import OnnxEmbedder
from appliance.models import minilm

ROOT = Path(__file__).parents[2]


def data_folder() -> Path:
    """The folder that holds xquad/: APPLIANCE_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("APPLIANCE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "xquad" / "xquad.en.json").is_file():
        raise SystemExit(f"There is no xquad/xquad.en.json in {folder}; set APPLIANCE_DATA to a folder that has it.")
    return folder


def cache_dir() -> Path:
    """Below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance"


@cache
def embedder() -> OnnxEmbedder:
    files = minilm.prepare(cache_dir() / "embedder")
    return OnnxEmbedder(files.onnx, files.tokenizer)


def finish(bench: str, figures: Mapping[str, float], packages: Sequence[str], **made_by_us: str) -> None:
    """Print the one line of JSON that ends a bench."""
    versions = {name: version(name) for name in packages} | made_by_us
    print(json.dumps({"bench": bench, "figures": dict(figures), "machine": machine(), "versions": versions}))


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = round(os.getloadavg()[0], 1)
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "load": load}
