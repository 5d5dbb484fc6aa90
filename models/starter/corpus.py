"""Prose for pseudo-questions: the packages that sources.json pins, as prose.jsonl, one run of sentences a line."""

import gzip
import hashlib
import html.parser
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

APT, DPKG = "/usr/bin/apt-get", "/usr/bin/dpkg-deb"
SOURCES = Path(__file__).with_name("sources.json")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|etc|vs|Mr|Mrs|Dr|St|No|cf|approx|[A-Z])\.$")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
CODE_MARKS = re.compile(r"[{}<>|\\=_@#]|::|//|\(\)|--")


def listed(words: str) -> tuple[str, ...]:
    """Words written one after another."""
    return tuple(words.split())


FUNCTION_WORDS = frozenset(listed("the of and to in a is that for it as was with be by on not are this"))
CURLY = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True)
class Source:
    """One Debian package whose licence allows training on its text."""

    package: str
    version: str
    title: str
    licence: str
    kind: str  # html, dict or wordnet
    files: tuple[str, ...]  # globs inside the package
    deb_bytes: int
    deb_sha256: str
    copyright_sha256: str


def sources() -> tuple[Source, ...]:
    return tuple(Source(**{**row, "files": tuple(row["files"])}) for row in json.loads(SOURCES.read_text()))


def fetch(folder: Path) -> None:
    """Let apt download every package into folder, check it against its pin, and unpack it to folder/PACKAGE."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources():
        if not list(folder.glob(f"{source.package}_*.deb")):
            subprocess.run([APT, "download", f"{source.package}={source.version}"], cwd=folder, check=True)
        (deb,) = folder.glob(f"{source.package}_*.deb")
        check(deb.read_bytes(), source.deb_sha256, deb.name)
        subprocess.run([DPKG, "-x", deb, folder / source.package], check=True)
        licence = folder / source.package / "usr/share/doc" / source.package / "copyright"
        check(licence.read_bytes(), source.copyright_sha256, f"{source.package} copyright")


def check(data: bytes, sha256: str, name: str) -> None:
    """Raises ValueError where the bytes are not the audited ones."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{name} has sha256 {found}; sources.json pins {sha256}.")


def source_files(folder: Path, source: Source) -> Iterator[Path]:
    """The files that a source names, in an order that does not depend on the disk."""
    for pattern in source.files:
        yield from sorted(p for p in (folder / source.package).glob(pattern) if p.is_file())


class Paragraphs(html.parser.HTMLParser):
    """The text of paragraphs, list items and definitions, without code and tables."""

    BLOCKS, SKIPPED = frozenset({"p", "dd", "li"}), frozenset({"pre", "script", "style", "table", "code-block"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._open: list[str] | None = None
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS or ("class", "para") in attrs:  # DocBook writes <div class="para">
            self.flush()
            self._open = []
        self._skipping += tag in self.SKIPPED

    def handle_endtag(self, tag: str) -> None:
        if tag in self.BLOCKS or tag == "div":
            self.flush()
        if tag in self.SKIPPED:
            self._skipping = max(0, self._skipping - 1)

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._skipping:
            self._open.append(data)

    def flush(self) -> None:
        if self._open:
            self.found.append("".join(self._open))
        self._open = None


def paragraphs(path: Path, kind: str) -> list[str]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".dz" else raw).decode("utf-8", "ignore")
    if kind == "dict":
        return re.split(r"\n\s*\n|\n(?=\S)", text)
    parser = Paragraphs()
    parser.feed(text)
    parser.flush()
    return parser.found


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, white space folded."""
    text = re.sub(r"\s+", " ", paragraph.translate(CURLY)).strip()
    found, start = [], 0
    for end in SENTENCE_END.finditer(text):
        piece = text[start : end.end()].strip()
        if not ABBREVIATION.search(piece):
            found.append(piece)
            start = end.end()
    return [*found, text[start:]] if text[start:] else found


def is_prose(sentence: str) -> bool:
    """True for a plain English sentence of usual length, free of code."""
    words = sentence.split()
    if not 30 <= len(sentence) <= 320 or not 5 <= len(words) <= 50 or max(map(len, words)) >= 24:
        return False
    if not sentence[0].isupper() or sentence[-1] not in '.!?")' or CODE_MARKS.search(sentence):
        return False
    letters = sum(c.isalpha() or c == " " for c in sentence) / len(sentence)
    lower = re.findall(r"[a-z]+", sentence.lower())
    return letters > 0.86 and sum(word in FUNCTION_WORDS for word in lower) >= max(2, len(lower) * 0.15)


def build(folder: Path, out: Path) -> dict[str, int]:
    """Write every run of neighbouring good sentences, each sentence once; returns sentences a package."""
    seen: set[str] = set()
    counts: dict[str, int] = {}
    with out.open("w") as lines:
        for source in sources():
            if source.kind == "wordnet":
                continue
            for path in source_files(folder, source):
                for paragraph in paragraphs(path, source.kind):
                    for run in runs(sentences(paragraph), seen):
                        lines.write(json.dumps({"source": source.package, "sentences": run}) + "\n")
                        counts[source.package] = counts.get(source.package, 0) + len(run)
    return counts


def runs(found: Sequence[str], seen: set[str]) -> Iterator[list[str]]:
    """Unbroken runs of good, new sentences; marks them seen."""
    run: list[str] = []
    for sentence in found:
        if is_prose(sentence) and sentence not in seen:
            seen.add(sentence)
            run.append(sentence)
        elif run:
            yield run
            run = []
    if run:
        yield run
