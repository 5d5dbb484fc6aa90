"""One module knows each outside library; the contracts on our own layers are in pyproject.toml (`make lint`)."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "appliance"
MAY_IMPORT = {
    "Stemmer": {"knowledge/index/analysis.py"},
    "llama_cpp": {"infer/llama.py"},
    "mcp": {"api/mcp.py"},
    "prometheus_client": {"health/metrics.py"},
    "starlette": {"api/http.py", "api/http_routes.py", "api/http_server.py"},
    "uvicorn": {"api/http_server.py"},
    "llguidance": {"infer/grammar.py"},
    "onnxruntime": {"infer/onnx.py"},
    "onnx": {"models/minilm.py"},
    "tokenizers": {"infer/onnx.py"},
    "duckdb": {"knowledge/catalog.py"},
    "hnswlib": {"knowledge/index/hnsw.py"},
    "psutil": {"health/host.py"},
    "pyudev": {"ingest/sources/devices.py"},
    "PIL": {"ingest/extract/image.py"},
    "charset_normalizer": {"ingest/extract/charset.py"},
    "pypdfium2": {"ingest/extract/pdf/pdfium.py"},
    "pypdf": {"ingest/extract/pdf/pypdf_text.py"},
    "selectolax": {"ingest/extract/html.py"},
    "markdown_it": {"ingest/extract/markdown.py"},
    "argon2": {"vault/passphrase.py"},
    "cryptography": {"access/ca.py", "ingest/signing.py", "vault/envelope.py", "vault/keyring.py"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_one_place_knows_each_outside_library() -> None:
    users: dict[str, set[str]] = {library: set() for library in MAY_IMPORT}
    for path in PACKAGE.rglob("*.py"):
        for library in imported(path) & MAY_IMPORT.keys():
            users[library].add(path.relative_to(PACKAGE).as_posix())
    assert users == MAY_IMPORT
