"""Print the path of a llama-cpp-python wheel for this machine, building it where the cache has none.

The build takes minutes, so its wheel is kept in the user's cache directory, keyed by version, build flags and, because
the default build is for the processor it runs on, by the processor's features.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.3.36"
CMAKE_ARGS = os.environ.get("CMAKE_ARGS", "-DGGML_NATIVE=ON")


def processor_features() -> str:
    """The feature flags that -march=native reads."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return " ".join(sorted(flags.split()))


def cache_folder() -> Path:
    """Where the wheel of this version, these flags and this processor lies."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance" / "wheels"
    text = "\n".join([VERSION, CMAKE_ARGS, platform.machine(), processor_features()])
    return root / f"llama-cpp-python-{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def build(folder: Path) -> None:
    """Build the wheel from its source distribution, then move it into `folder` in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"Building llama-cpp-python {VERSION}: about 8 minutes on two cores, once.", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch) / "wheel"
        environment = os.environ | {"CMAKE_ARGS": CMAKE_ARGS, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        options = ["--quiet", "--no-deps", "--no-binary=llama-cpp-python", f"--wheel-dir={out}"]
        command = [sys.executable, "-m", "pip", "wheel", *options, f"llama-cpp-python=={VERSION}"]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)


def main() -> None:
    folder = cache_folder()
    if not list(folder.glob("*.whl")):
        build(folder)
    print(next(folder.glob("*.whl")))


if __name__ == "__main__":
    main()
