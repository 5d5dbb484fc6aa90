"""Ingest: a locked parse beside a cold unlocked one, beside markitdown, and a whole pipeline beside its embedder.

`make bench-ingest`. locked_vs_cold: a PDF through the zygote, against a new Python that imports that parser alone, by
the clock; locked_vs_bare: against one that takes its text from pypdfium2, without columns, tables or headings.
vs_markitdown: documents a processor second over those of markitdown on the same files (PDFs of many makers, and a Word
document, a workbook, a page and a message made here), of those that both read; `overlap` is the share of its words that
we have as well. Install it with `pip install --target FOLDER 'markitdown[docx,xlsx,pdf]'` and name the folder in
APPLIANCE_MARKITDOWN; it is no dependency. embed_share: processor time of the embedder alone, given all passages at
once, over that of ingesting their documents: copies, quarantine, parses, cutting, embedding, storing.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import docx
import openpyxl
import psutil

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.service import Ingest
from appliance.ingest.sources.folder import Folder, OpenFolder
from appliance.ingest.sources.found import OpenSource
from appliance.ingest.sources.stalls import Calls
from appliance.jobs import JobRunner
from appliance.knowledge.embedders import built_in
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.ports import Embedder
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import EVERYONE, FileState, Floats, Ints, Principal, Provenance, Role, SourceKind
from appliance.vault import FileKeyring, FileTenantKeys
from tests.bench import ingest_peers, report
from tests.bench.ingest_peers import Reading
from tests.bench.retrieval import read as paragraphs_of

PARSERS = "appliance.ingest.extract"
TENANT = "bench"
CALLER = Principal(TENANT, "bench", Role.ADMIN, frozenset({EVERYONE}))
COLLECTION = "bench"
_PARAGRAPHS_A_DOCUMENT = 12
_PATIENCE_SECONDS = 60.0


class NotedEmbedder:
    """`ports.Embedder`: another, and every text that it was given."""

    def __init__(self, embedder: Embedder) -> None:
        self.texts: list[str] = []
        self._embedder = embedder
        self.identity, self.dimension, self.max_tokens = embedder.identity, embedder.dimension, embedder.max_tokens

    def embed(self, texts: Sequence[str]) -> Floats:
        self.texts += texts
        return self._embedder.embed(texts)

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._embedder.count_tokens(texts)

    def token_ends(self, texts: Sequence[str]) -> Sequence[Ints]:
        return self._embedder.token_ends(texts)


class FolderSource:
    """`ingest.runs.Sources` of folders by their paths."""

    def __init__(self, own: Path) -> None:
        self._own = own

    async def open(self, tenant: str, name: str) -> OpenSource:
        folder = Folder(os.open(name, os.O_PATH | os.O_DIRECTORY), Path(name), self._own)
        return OpenFolder(folder, Provenance(SourceKind.FOLDER, path=folder.top), Calls(name, _PATIENCE_SECONDS))


def processor_seconds() -> float:
    """Of this process and all that it started, dead or alive."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


def write_samples(folder: Path, texts: Sequence[str]) -> None:
    """The same text as a Word document, a workbook, a page and a message."""
    word, book, message = docx.Document(), openpyxl.Workbook(), EmailMessage()
    for number, text in enumerate(texts):
        word.add_heading(f"Part {number}", 2)
        word.add_paragraph(text)
        book.worksheets[0].append([number, *text.split(". ")])
    word.save(str(folder / "sample.docx"))
    book.save(folder / "sample.xlsx")
    page = "".join(f"<h2>Part {number}</h2><p>{text}</p>" for number, text in enumerate(texts))
    (folder / "sample.html").write_text(f"<!doctype html><meta charset=utf-8><title>Sample</title>{page}")
    message["From"], message["To"], message["Subject"] = "a@box.example", "b@box.example", "Sample"
    message.set_content("\n\n".join(texts))
    (folder / "sample.eml").write_bytes(message.as_bytes())


async def extract(extractor: LockedExtractor, data: bytes, name: str) -> tuple[str, ...]:
    """Pages; none where it is refused."""
    fd = os.memfd_create("document")
    try:
        os.write(fd, data)
        return (await extractor.extract(fd, name)).pages
    except DocumentRefused:
        return ()
    finally:
        os.close(fd)


async def locked_beside_cold(extractor: LockedExtractor, pdf: bytes, rounds: int) -> dict[str, float]:
    """Medians by the clock, in turns."""
    locked, cold, bare = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        started = time.perf_counter()
        await extract(extractor, pdf, "document.pdf")
        locked.append(time.perf_counter() - started)
        cold.append(await asyncio.to_thread(ingest_peers.cold_seconds, ingest_peers.COLD, pdf))
        bare.append(await asyncio.to_thread(ingest_peers.cold_seconds, ingest_peers.BARE, pdf))
    medians = [statistics.median(times) for times in (locked, cold, bare)]
    shown = ", ".join(
        f"{name} {1000 * one:.0f} ms" for name, one in zip(("locked", "cold", "bare"), medians, strict=True)
    )
    print(f"A PDF of 4 pages: {shown}")
    return {"locked_vs_cold": round(medians[0] / medians[1], 3), "locked_vs_bare": round(medians[0] / medians[2], 3)}


async def by_us(extractor: LockedExtractor, paths: Sequence[Path]) -> dict[Path, Reading]:
    """Each file through the lock."""
    found = {}
    for path in paths:
        data = await asyncio.to_thread(path.read_bytes)
        started = processor_seconds()
        pages = await extract(extractor, data, path.name)
        found[path] = Reading("\n".join(pages), processor_seconds() - started)
    return found


def compare(ours: dict[Path, Reading], theirs: dict[Path, Reading]) -> dict[str, float]:
    """A line a file that both read, and the figures over all of them."""
    both = [path for path in ours if ours[path].text.strip() and theirs[path].text.strip()]
    print(f"\n{'':36}{'our ms':>8}{'their ms':>9}{'we have of theirs':>19}{'they of ours':>14}")
    shares = []
    for path in both:
        our, their = ours[path], theirs[path]
        shares.append(ingest_peers.overlap(our.text, their.text))
        back = ingest_peers.overlap(their.text, our.text)
        print(f"{path.name:36}{1000 * our.seconds:8.0f}{1000 * their.seconds:9.0f}{shares[-1]:19.3f}{back:14.3f}")
    only = [path.name for path in ours if ours[path].text.strip() and path not in both]
    print(f"Only we read: {', '.join(only) or 'none'}. Only ours has pages, offsets and blocks.")
    rates = [len(both) / sum(read[path].seconds for path in both) for read in (ours, theirs)]
    return {
        "documents_per_cpu_s": round(rates[0], 1),
        "vs_markitdown": round(rates[0] / rates[1], 2),
        "overlap": round(statistics.mean(shares), 3),
    }


async def embed_share(folder: Path, extractor: LockedExtractor, config: Config) -> float:
    """The folder through the whole pipeline, then its passages through the embedder alone."""
    embedder = NotedEmbedder(report.embedder())
    keyring = FileKeyring.open(config.data_dir / "keys", protects=config.data_dir / "knowledge")
    tenants = FileTenantKeys(config.data_dir / "keys" / "tenants", keyring)
    bounds = Bounds(hot_bytes=1 << 30, cache_bytes=256 << 20, seal_passages=20_000, seal_seconds=3600)
    libraries = Libraries(
        config.data_dir / "knowledge", config.data_dir / "keys", keyring, tenants, built_in(embedder), bounds
    )
    jobs = JobRunner()
    ingest = Ingest(config, libraries, extractor, jobs, FolderSource(config.data_dir), keyring, tenants)
    await ingest.open()
    report.embedder().embed(["Warm."])
    before = processor_seconds()
    ingestion = await ingest.start(CALLER, str(folder), COLLECTION, frozenset({EVERYONE}), approve=True)
    async for _ in jobs.watch(ingestion.job.removeprefix("jobs/")):
        pass
    whole = processor_seconds() - before
    states = [one.state for one in ingest.files(TENANT, ingestion.name)]
    ingest.stop()
    await jobs.stop()
    await asyncio.to_thread(libraries.close)
    if set(states) != {FileState.COMMITTED}:
        raise SystemExit(f"Not all was committed: {[state.value for state in states]}")
    before = processor_seconds()
    report.embedder().embed(embedder.texts)
    alone = processor_seconds() - before
    print(f"\n{len(states)} documents, {len(embedder.texts)} passages: {whole:.1f} s, the embedder alone {alone:.1f} s")
    return alone / whole


async def measure(rounds: int) -> dict[str, float]:
    data = report.data_folder()
    pdfs = sorted((data / "pdf").glob("*.pdf"))
    of_each = [paragraphs_of(data / "xquad" / f"xquad.{language}.json")[0] for language in ("en", "de", "ru")]
    paragraphs = [paragraph for found in of_each for paragraph in found]
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(data_dir=Path(scratch) / "data")
        extractor = LockedExtractor(config, PARSERS, Caps().settings())
        await extractor.start()
        try:
            pdf = next(path for path in pdfs if path.name == "pdflatex-4-pages.pdf").read_bytes()
            figures = await locked_beside_cold(extractor, pdf, rounds)
            samples = Path(scratch) / "samples"
            samples.mkdir()
            write_samples(samples, paragraphs[:40])
            if ingest_peers.markitdown_is_there():
                paths = [*pdfs, *sorted(samples.iterdir())]
                figures |= compare(await by_us(extractor, paths), ingest_peers.by_markitdown(paths))
            else:
                print(f"markitdown is not installed, so not compared; see {__file__}.")
            folder = Path(scratch) / "documents"
            folder.mkdir()
            for number in range(0, len(paragraphs), _PARAGRAPHS_A_DOCUMENT):
                text = "\n\n".join(paragraphs[number : number + _PARAGRAPHS_A_DOCUMENT])
                (folder / f"{number:04}.txt").write_text(text)
            figures["embed_share"] = round(await embed_share(folder, extractor, config), 3)
        finally:
            await extractor.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of the locked and the cold parse")
    figures = asyncio.run(measure(parser.parse_args().rounds))
    report.finish("ingest", figures, ("pypdfium2", "pypdf", "onnxruntime", "pillow"))


if __name__ == "__main__":
    main()
