"""Answers that need not be made again: the same question, put by one who sees the same, while nothing has changed.

A key stands for everything that an answer follows from. It is an HMAC under a secret of this process, so that memory
holds no question that could be guessed from its key. An answer is kept where it would come out the same: quoted, or
written at temperature 0. Nothing reaches the disk.
"""

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from sys import getsizeof
from threading import RLock

from appliance.knowledge.answer.inquiry import Inquiry
from appliance.types import AskFinish, AskPiece, Citation, Passage, Passages, Text

MAX_ENTRIES = 10_000
PIECE_BYTES = 500  # a piece's own objects, its texts aside


@dataclass(frozen=True, slots=True)
class _Answer:
    pieces: tuple[AskPiece, ...]
    version: str
    size_bytes: int


Place = tuple[str, str]
"""A tenant and its collection."""


class AnswerCache:
    """The answers used last, within bytes and entries. Safe to use from many threads."""

    def __init__(self, max_bytes: int, max_entries: int = MAX_ENTRIES) -> None:
        """max_bytes 0: it keeps nothing."""
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self._lock = RLock()
        self._secret = secrets.token_bytes(32)
        self._answers: OrderedDict[tuple[Place, bytes], _Answer] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, inquiry: Inquiry, version: str) -> tuple[AskPiece, ...]:
        """The pieces of the answer to the same inquiry, or none; answers of another version are forgotten."""
        key = self._key(inquiry)
        with self._lock:
            found = self._answers.get(key)
            if found is None:
                return ()
            if found.version != version:
                self._forget_older(key[0], version)
                return ()
            self._answers.move_to_end(key)
            return found.pieces

    def put(self, inquiry: Inquiry, version: str, pieces: Sequence[AskPiece]) -> None:
        """Keep an answer, from Passages to AskFinish, unless it was drawn or is larger than all the room."""
        key, kept = self._key(inquiry), _in_one_text(pieces)
        answer = _Answer(kept, version, sum(PIECE_BYTES + sum(map(getsizeof, _texts(piece))) for piece in kept))
        if not deterministic(inquiry) or answer.size_bytes > self._max_bytes:
            return
        with self._lock:
            self._drop(key)
            self._answers[key] = answer
            self.size_bytes += answer.size_bytes
            while self.size_bytes > self._max_bytes or len(self._answers) > self._max_entries:
                self._drop(next(iter(self._answers)))

    def discard(self, inquiry: Inquiry) -> None:
        """Forget the answer to an inquiry."""
        with self._lock:
            self._drop(self._key(inquiry))

    def forget(self, tenant: str, collection: str) -> None:
        """Forget every answer from a collection: what was destroyed must not be in memory either."""
        with self._lock:
            for key in [key for key in self._answers if key[0] == (tenant, collection)]:
                self._drop(key)

    def _forget_older(self, place: Place, version: str) -> None:
        for key in [key for key, answer in self._answers.items() if key[0] == place and answer.version != version]:
            self._drop(key)

    def _drop(self, key: tuple[Place, bytes]) -> None:
        if answer := self._answers.pop(key, None):
            self.size_bytes -= answer.size_bytes

    def _key(self, inquiry: Inquiry) -> tuple[Place, bytes]:
        caller, file = inquiry.caller, inquiry.file
        told = [
            sorted(caller.groups),
            inquiry.question,
            [(turn.question, turn.answer) for turn in inquiry.history],
            [file.name, file.sha256, file.base] if file else None,
            asdict(inquiry.sampling) if file else None,
            inquiry.options.filter,
            inquiry.options.reranker,
        ]
        place = caller.tenant, inquiry.collection
        return place, hmac.digest(self._secret, json.dumps([place, told]).encode(), hashlib.sha256)


def deterministic(inquiry: Inquiry) -> bool:
    """Whether the same inquiry of the same documents has the same answer."""
    return inquiry.file is None or inquiry.sampling.temperature == 0.0


def _in_one_text(pieces: Sequence[AskPiece]) -> tuple[AskPiece, ...]:
    """The same answer, its text in one piece."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    first, *rest = [piece for piece in pieces if not isinstance(piece, Text)]
    return (first, Text(text), *rest) if text else (first, *rest)


def _texts(piece: AskPiece) -> list[str]:
    match piece:
        case Passages():
            return [text for passage in piece.passages for text in _texts_of(passage)]
        case Text():
            return [piece.text]
        case Citation():
            return [piece.document, piece.title, piece.quote]
        case AskFinish():
            return list(piece.queries)
    return []


def _texts_of(passage: Passage) -> list[str]:
    return [passage.document, passage.title, passage.text, passage.snippet.text, passage.context, passage.heading]
