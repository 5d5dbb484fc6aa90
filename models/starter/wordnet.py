"""WordNet for the recipe: words that may stand for a word in a question, and short biographies of named things."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
POINTER_FILE = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
PLAIN_WORD = re.compile(r"[a-z]{3,}")
BORN_IN = re.compile(r"\(born in ([A-Z][\w ]+?)\)\s*")
LIFE = re.compile(r"\((?:born )?(\d{3,4})-(\d{3,4})\)")


@dataclass(frozen=True)
class Synset:
    written: tuple[str, ...]  # as printed, case kept
    words: tuple[str, ...]  # the same in lower case
    gloss: str
    pointers: tuple[tuple[str, str, str, int], ...]  # symbol, target offset, target part, source word (0: all)


@dataclass(frozen=True)
class Instance:
    """A named thing: its longest name, the gloss without brackets, and what the brackets said."""

    name: str
    gloss: str
    born_in: str | None
    years: tuple[str, str] | None


class WordNet:
    """The database files of one folder, parsed once."""

    def __init__(self, folder: Path) -> None:
        self._synsets = {part: dict(_read_data(folder / f"data.{part}")) for part in PARTS}
        self._index = {part: dict(_read_index(folder / f"index.{part}")) for part in PARTS}

    def stand_ins(self) -> dict[str, tuple[str, ...]]:
        """For each common word: synonyms of its two most usual senses, derived words, and its nearest broader words."""
        found: dict[str, set[str]] = defaultdict(set)
        for part in PARTS:
            for word, offsets in self._index[part].items():
                for offset in offsets[:2]:
                    found[word].update(self._near(part, word, offset))
        return {word: tuple(sorted(near - {word})) for word, near in sorted(found.items()) if near - {word}}

    def _near(self, part: str, word: str, offset: str) -> Iterator[str]:
        synset = self._synsets[part][offset]
        yield from filter(PLAIN_WORD.fullmatch, synset.words)
        for symbol, target, target_part, source in synset.pointers:
            own = source == 0 or synset.words[source - 1] == word
            if symbol in ("@", "+") and own:
                words = self._synsets[target_part][target].words
                yield from filter(PLAIN_WORD.fullmatch, words[:1])

    def instances(self) -> tuple[Instance, ...]:
        """Every noun that names one thing (a person, a place, an event) with a gloss worth asking about."""
        found = []
        for _, synset in sorted(self._synsets["noun"].items()):
            if any(symbol == "@i" for symbol, *_ in synset.pointers):
                found.append(_instance(synset))
        return tuple(one for one in found if 20 <= len(one.gloss) <= 220)


def _instance(synset: Synset) -> Instance:
    name = max(synset.written, key=len)
    born, life = BORN_IN.search(synset.gloss), LIFE.search(synset.gloss)
    gloss = re.sub(r"\s*\([^)]*\)", "", synset.gloss.split(';  "')[0].split('; "')[0]).strip()
    return Instance(name, gloss, born.group(1) if born else None, (life.group(1), life.group(2)) if life else None)


def _read_data(path: Path) -> Iterator[tuple[str, Synset]]:
    for line in path.read_text().splitlines():
        if line.startswith("  "):  # the licence stands at the head of every file
            continue
        fields, _, gloss = line.partition(" | ")
        f = fields.split()
        count = int(f[3], 16)
        written = tuple(re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in f[4 : 4 + 2 * count : 2])
        at = 4 + 2 * count
        rows = [f[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(f[at]))]
        pointers = tuple((r[0], r[1], POINTER_FILE[r[2]], int(r[3][:2], 16)) for r in rows)
        yield f[0], Synset(written, tuple(w.lower() for w in written), gloss.strip(), pointers)


def _read_index(path: Path) -> Iterator[tuple[str, list[str]]]:
    for line in path.read_text().splitlines():
        f = line.split()
        if not line.startswith("  ") and PLAIN_WORD.fullmatch(f[0]):
            yield f[0], f[-int(f[2]) :]
