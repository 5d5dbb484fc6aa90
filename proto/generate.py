"""Write the stubs of every .proto under proto/ into appliance/gen (`make proto`); `--check` compares instead.

The files keep their proto paths below appliance/gen, so that `appliance.v1` becomes the Python package
`appliance.gen.v1` and `appliance.engine.v1` becomes `appliance.gen.engine.v1`; protoc has no option for that, so the
import lines are rewritten.
"""

import filecmp
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
GEN = ROOT.parent / "appliance" / "gen"
BIN = Path(sys.executable).parent  # the environment's programs, which need not be on PATH
OWN_IMPORT = re.compile(r"\b(from|import) appliance\.(?=(engine\.)?v1\b)", re.MULTILINE)
OWN_NAME = re.compile(r"(?<![\w.'\"])appliance\.(?=(engine\.)?v1\.\w+_pb2)")


def generate(target: Path) -> None:
    """Fill the empty folder `target` with stubs. Raises SystemExit where protoc refuses a file."""
    with tempfile.TemporaryDirectory() as scratch:
        protos = sorted(str(path) for path in ROOT.rglob("*.proto"))
        outs = [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        plugins = [f"--plugin={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
        code = protoc.main(["protoc", f"-I{ROOT}", f"-I{files('grpc_tools') / '_proto'}", *plugins, *outs, *protos])
        if code != 0:
            raise SystemExit(code)
        for source in sorted((Path(scratch) / "appliance").rglob("*.py*")):
            text = OWN_IMPORT.sub(r"\1 appliance.gen.", source.read_text())
            text = OWN_NAME.sub("appliance.gen.", text)
            path = target / source.relative_to(Path(scratch) / "appliance")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text("")


def differences(left: filecmp.dircmp[str]) -> list[str]:
    """Names that differ between two folders, at any depth."""
    here = [*left.left_only, *left.right_only, *left.diff_files]
    below = [name for folder in left.subdirs.values() for name in differences(folder)]
    return [name for name in here if name != "__pycache__"] + below


def main() -> None:
    """Rewrite appliance/gen, or with --check exit 1 where it is not what the .proto files give."""
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        if "--check" in sys.argv[1:]:
            if changed := differences(filecmp.dircmp(fresh, GEN)):
                raise SystemExit(f"appliance/gen is not what proto/ gives; run make proto. {sorted(changed)}")
        else:
            shutil.rmtree(GEN, ignore_errors=True)
            shutil.copytree(fresh, GEN)


if __name__ == "__main__":
    main()
