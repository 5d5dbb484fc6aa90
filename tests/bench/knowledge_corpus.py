"""Chunks with vectors and words: what an embedder makes of real text is clustered, and so are these.

Vectors: topics with Zipf sizes, their centres 64-dimensional Gaussians lifted to 384; each topic spreads along one of
60 bases of 24 directions with a falling spectrum, and a little in all directions; queries are further draws. Words:
of XQuAD's vocabulary, as often as there.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from appliance.knowledge.storage.record import to_stored_precision
from appliance.types import Floats, Ints, NewDocument
from tests.bench import report

DIM = 384
TOPICS = 1500
PAGES = 100  # of a document; a page is one chunk
_WORDS = 40
_BASES, _DIRECTIONS, _LATENT = 60, 24, 64
_BLOCK = 50_000
_MARK = re.compile(r"(row|query)(\d+)$")


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors in the precision that the appliance stores, float32 [rows, DIM] and [queries, DIM]."""

    rows: Floats
    queries: Floats


def vectors(rows: int, queries: int, seed: int = 7) -> Vectors:
    """The same for the same numbers. Queries first, so that more rows leave them as they are."""
    draw = np.random.default_rng(seed)
    lift = draw.standard_normal((_LATENT, DIM), np.float32) / 8
    centres = draw.standard_normal((TOPICS, _LATENT), np.float32) @ lift
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    bases = draw.standard_normal((_BASES, _DIRECTIONS, DIM), np.float32) / np.float32(np.sqrt(DIM))
    sizes = 1 / np.arange(1, TOPICS + 1) ** 0.8
    spectrum = (1 / np.sqrt(np.arange(1, _DIRECTIONS + 1))).astype(np.float32)

    def block(count: int) -> Floats:
        topic = draw.choice(TOPICS, count, p=sizes / sizes.sum())
        found = centres[topic] + draw.standard_normal((count, DIM), np.float32) * np.float32(0.6 / np.sqrt(DIM))
        along = draw.standard_normal((count, _DIRECTIONS), np.float32) * spectrum * np.float32(0.9)
        for basis in range(_BASES):
            of_basis = topic % _BASES == basis
            found[of_basis] += along[of_basis] @ bases[basis]
        return to_stored_precision(found / np.linalg.norm(found, axis=1, keepdims=True))

    asked = block(queries)
    stored = np.empty((rows, DIM), np.float32)
    for start in range(0, rows, _BLOCK):
        stored[start : start + _BLOCK] = block(min(_BLOCK, rows - start))
    return Vectors(stored, asked)


class MarkedEmbedder:
    """`ports.Embedder` at no cost: the last word of a text names its row or query."""

    identity = "b" * 64
    dimension = DIM
    max_tokens = 256

    def __init__(self, known: Vectors) -> None:
        self._known = known

    def embed(self, texts: Sequence[str]) -> Floats:
        found = np.empty((len(texts), DIM), np.float32)
        for at, text in enumerate(texts):
            mark = _MARK.search(text)
            assert mark is not None, "a text without a mark"
            found[at] = (self._known.rows if mark[1] == "row" else self._known.queries)[int(mark[2])]
        return found

    def count_tokens(self, texts: Sequence[str]) -> int:
        return sum(len(text.split()) + 2 for text in texts)

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        return [np.array([word.end() for word in re.finditer(r"\S+", text)], np.int64) for text in texts]


class Texts:
    """Words by number; the same for the same number."""

    @cached_property
    def _words(self) -> list[str]:
        raw = (report.data_folder() / "xquad" / "xquad.en.json").read_text()
        return re.findall(r"[a-z]{2,}", raw.lower())

    def chunk(self, row: int) -> str:
        return f"{self._sentence(row, _WORDS)} row{row}"

    def query(self, number: int) -> str:
        return f"{self._sentence(number + (1 << 40), 6)} query{number}"

    def _sentence(self, seed: int, words: int) -> str:
        chosen = np.random.default_rng(seed).integers(0, len(self._words), words)
        return " ".join(self._words[at] for at in chosen.tolist()).capitalize() + "."


def documents(first_row: int, end_row: int) -> Iterator[NewDocument]:
    """PAGES chunks a document."""
    texts, rows = Texts(), iter(range(first_row, end_row))
    while pages := tuple(texts.chunk(row) for row in islice(rows, PAGES)):
        name = pages[0].rsplit(" ", 1)[1]
        yield NewDocument(name, "text/plain", name, sum(map(len, pages)), "bench", "text/1", "v1", pages)
