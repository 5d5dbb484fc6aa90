"""`ports.Retriever`: search in pages that stand still, in a reranker's order where one is asked for.

The first page ranks as many candidates as may be paged through, ten pages and at least 200, and keeps their ranking:
identities and scores, 64 bytes each, no text. Later pages read the passages anew, so what was deleted or revoked
meanwhile is left out, and a page is filled from those that follow; nothing moves, nothing comes twice. A page token is
random, good for KEPT_SECONDS after its ranking was last used, and for the same caller and arguments only.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from appliance.errors import InvalidArgument
from appliance.knowledge.search import view
from appliance.knowledge.search.diversity import diverse_order
from appliance.knowledge.search.view import MAX_CANDIDATES, RERANKED
from appliance.ports import Encoders, Libraries, Library
from appliance.types import Floats, Found, Passage, Principal, Ranking, SearchOptions

MAX_LIMIT = 100
PAGES = 10
LEAST_CANDIDATES = 200
KEPT_SECONDS = 600.0
KEPT_RANKINGS = 1000
KEPT_BYTES = 32 << 20

_TOKEN_BYTES = 16
_PAGE = re.compile(r"([0-9a-f]{32})-([0-9]{1,4})")
_NO_VECTORS = np.zeros((0, 0), np.float32)


Owner = tuple[object, ...]
"""Whose a ranking is, and what was asked: equal for the same caller and arguments."""


class Retriever:
    """See `ports.Retriever`. Belongs to one event loop."""

    def __init__(self, libraries: Libraries, encoders: Encoders, clock: Callable[[], float] = time.monotonic) -> None:
        self._libraries, self._encoders = libraries, encoders
        self._kept = Kept(clock)

    async def search(
        self,
        caller: Principal,
        collection: str,
        query: str,
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        page: str = "",
    ) -> Found:
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidArgument.of("limit", f"must be between 1 and {MAX_LIMIT}.")
        asked = _Asked(self._libraries.of(caller.tenant), collection, query, caller.groups, options)
        digest = hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest()
        owner = (caller.tenant, caller.user, caller.role, collection, digest, options)
        token, at = _place(page) if page else ("", 0)
        ranking = self._kept.get(token, owner) if page else await self._rank(asked, limit)
        shown: list[Passage] = []
        while len(shown) < limit and at < len(ranking.candidates):
            part = ranking.candidates[at : at + limit - len(shown)]
            shown += await asked.show(replace(ranking, candidates=part))
            at += len(part)
        if at >= len(ranking.candidates) or not options.paged:
            return Found(tuple(shown), ranking.facets)
        return Found(tuple(shown), ranking.facets, f"{token or self._kept.put(owner, ranking)}-{at}")

    async def _rank(self, asked: "_Asked", limit: int) -> Ranking:
        options = asked.options
        looked_at = LEAST_CANDIDATES if options.reranker or options.diversity else limit
        ranking = await asked.rank(
            min(MAX_CANDIDATES, max(LEAST_CANDIDATES, PAGES * limit)) if options.paged else max(limit, looked_at)
        )
        if not options.reranker or not len(ranking.candidates):
            return ranking
        read = await asked.show(replace(ranking, candidates=ranking.candidates[:RERANKED]))
        texts = [f"{passage.heading}\n{passage.text}" if passage.heading else passage.text for passage in read]
        encoded = await self._encoders.rerank(asked.options.reranker, asked.query, texts)
        return _reranked(ranking, read, encoded.rows[:, 0], asked.options.diversity)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One search of a library, off the event loop."""

    library: Library
    collection: str
    query: str
    groups: frozenset[str]
    options: SearchOptions

    async def rank(self, candidates: int) -> Ranking:
        return await asyncio.to_thread(
            self.library.rank, self.collection, self.query, self.groups, candidates, self.options
        )

    async def show(self, ranking: Ranking) -> tuple[Passage, ...]:
        return await asyncio.to_thread(
            self.library.show, self.collection, self.query, self.groups, ranking, self.options
        )


def _reranked(ranking: Ranking, read: Sequence[Passage], scores: Floats, diversity: float) -> Ranking:
    """The passages that were read by their new scores, made diverse; then the others as they stood.

    Of the first RERANKED those that could not be read any more are left out.
    """
    wanted = {(passage.document.rpartition("/")[2], passage.span) for passage in read}
    first, rest = ranking.candidates[:RERANKED], ranking.candidates[RERANKED:]
    places = [at for at, one in enumerate(first) if (bytes(one["document"]).hex(), view.span(one)) in wanted]
    best = first[places]
    finite = np.isfinite(scores)
    best["reranked"] = np.where(finite, scores, scores[finite].min(initial=0))
    vectors = ranking.vectors[places] if diversity else ranking.vectors
    best = best[diverse_order(best["reranked"], vectors, diversity)]
    return replace(ranking, candidates=np.concatenate([best, rest]))


class Kept:
    """Rankings that later pages are read from, bounded in number, bytes and time; the last used stay longest."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rankings: OrderedDict[str, tuple[Owner, Ranking, float]] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._rankings)

    def put(self, owner: Owner, ranking: Ranking) -> str:
        """The token that the ranking is kept under, without its facets: later they might count what was revoked."""
        token = secrets.token_hex(_TOKEN_BYTES)
        self._rankings[token] = owner, replace(ranking, vectors=_NO_VECTORS, facets={}), self._clock()
        self.used_bytes += ranking.candidates.nbytes
        while len(self) > KEPT_RANKINGS or self.used_bytes > KEPT_BYTES or self._oldest_expired():
            self.used_bytes -= self._rankings.popitem(last=False)[1][1].candidates.nbytes
        return token

    def get(self, token: str, owner: Owner) -> Ranking:
        """Raises InvalidArgument where the token is not known any more, or is another search's."""
        held = self._rankings.get(token)
        if held is None or self._clock() - held[2] > KEPT_SECONDS:
            raise InvalidArgument.of("page_token", "has expired; search again without it.")
        if held[0] != owner:
            raise InvalidArgument.of("page_token", "belongs to another search; give the same arguments as before.")
        self._rankings[token] = *held[:2], self._clock()
        self._rankings.move_to_end(token)
        return held[1]

    def _oldest_expired(self) -> bool:
        oldest = next(iter(self._rankings.values()), None)
        return oldest is not None and self._clock() - oldest[2] > KEPT_SECONDS


def _place(page: str) -> tuple[str, int]:
    """A page token's ranking, and where its page begins. Raises InvalidArgument."""
    match = _PAGE.fullmatch(page)
    if not match:
        raise InvalidArgument.of("page_token", "is not one that a search gave.")
    return match[1], int(match[2])
