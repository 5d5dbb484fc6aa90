"""The audit: every source as pinned, and how much of the evaluation text the training text repeats.

XQuAD is for evaluation only and is never read by the other steps. Overlap is counted in runs of eight and thirteen
words: a paragraph or question is touched when one of its runs also stands in the prose or in a WordNet gloss.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.starter.corpus import check, sources
from models.starter.wordnet import WordNet

WORD = re.compile(r"\w+")
RUNS = (8, 13)


def report(packages: Path, prose: Path, xquad: Path) -> None:
    """Check the packages against sources.json, and print one line a source and one a length of run.

    xquad: a file of XQuAD's JSON. Raises ValueError where a package is not the audited one.
    """
    for source in sources():
        (deb,) = packages.glob(f"{source.package}_*.deb")
        check(deb.read_bytes(), source.deb_sha256, deb.name)
        print(f"as pinned: {source.package} {source.version}, {source.licence}, {source.deb_bytes} bytes")
    texts = list(training_texts(packages, prose))
    evaluated = list(evaluation_texts(xquad))
    for length in RUNS:
        trained = {run for text in texts for run in word_runs(text, length)}
        touched = [text for text in evaluated if any(run in trained for run in word_runs(text, length))]
        print(f"runs of {length} words: {len(touched)} of {len(evaluated)} XQuAD paragraphs and questions share one")


def training_texts(packages: Path, prose: Path) -> Iterator[str]:
    for line in prose.open():
        yield " ".join(json.loads(line)["sentences"])
    for instance in WordNet(packages / "wordnet-base/usr/share/wordnet").instances():
        yield instance.gloss


def evaluation_texts(xquad: Path) -> Iterator[str]:
    for article in json.loads(xquad.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (qa["question"] for qa in paragraph["qas"])


def word_runs(text: str, length: int) -> Iterator[int]:
    """Hashes of every run of that many words, case and punctuation apart."""
    words: Sequence[str] = WORD.findall(text.lower())
    for start in range(len(words) - length + 1):
        yield hash(" ".join(words[start : start + length]))
