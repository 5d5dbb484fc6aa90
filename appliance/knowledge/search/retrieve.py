"""`ports.Retriever`: search in pages that stand still, in a reranker's order where one is asked for.

The first page ranks as many candidates as may be paged through, ten pages and at least 200, and keeps their ranking:
identities and scores, 64 bytes each, no text. Later pages read the passages anew, so what was deleted or revoked
meanwhile is left out, and a page is filled from those that follow; nothing moves, nothing comes twice. The first page
is ranked again where it misses something: what was replaced meanwhile is gone, and what replaced it was not ranked yet.
A page token is random, good for KEPT_SECONDS after its ranking was last used, and for the same caller and arguments.
"""

import asyncio
import hashlib
import re
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from appliance.errors import InvalidArgument
from appliance.knowledge.search import view
from appliance.knowledge.search.diversity import diverse_order
from appliance.knowledge.search.view import MAX_CANDIDATES, RERANKED
from appliance.ports import Encoders, Libraries, Library
from appliance.types import Expand, Floats, Found, Passage, Principal, Ranking, SearchOptions

MAX_LIMIT = 100
PAGES = 10
LEAST_CANDIDATES = 200
KEPT_SECONDS = 600.0
KEPT_BYTES = 32 << 20

_TRIES = 20
_RERANKED_TRIES = 3  # each costs the reranker's time
_RANKING_BYTES = 1024  # a ranking's own objects, its candidates aside
_TOKEN_BYTES = 16
_PAGE = re.compile(r"([0-9a-f]{32})-([0-9]{1,4})")
_NO_VECTORS = np.zeros((0, 0), np.float32)


Owner = tuple[object, ...]
"""Whose a ranking is, the tenant first, and what was asked: equal for the same caller and arguments."""


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
        if options.reranker and not page:  # what cannot end well need not begin
            self._encoders.check_reranker(options.reranker)
        asked = _Asked(self._libraries.of(caller.tenant), collection, query, caller.groups, options)
        digest = hashlib.sha256(query.encode("utf-8", "surrogatepass")).digest()
        owner = (caller.tenant, caller.user, caller.role, collection, digest, options)
        if page:
            token, at = _place(page)
            ranking = self._kept.get(token, owner)
            shown, at = await asked.page(ranking, at, limit)
        else:
            token, (ranking, shown, at) = "", await self._first_page(asked, limit)
        if at >= len(ranking.candidates) or not options.paged:
            return Found(tuple(shown), ranking.facets)
        return Found(tuple(shown), ranking.facets, f"{token or self._kept.put(owner, ranking)}-{at}")

    async def _first_page(self, asked: "_Asked", limit: int) -> tuple[Ranking, list[Passage], int]:
        """The ranking, its first page, and where the next one begins."""
        for _ in range(_RERANKED_TRIES if asked.options.reranker else _TRIES):
            ranking, misses = await self._rank(asked, limit)
            shown, at = await asked.page(ranking, 0, limit)
            if not misses and len(shown) == at:
                break
        return ranking, shown, at

    async def _rank(self, asked: "_Asked", limit: int) -> tuple[Ranking, bool]:
        """The ranking, and whether something that was found could not be read any more."""
        options = asked.options
        looked_at = LEAST_CANDIDATES if options.reranker or options.diversity else limit
        ranking = await asked.rank(
            min(MAX_CANDIDATES, max(LEAST_CANDIDATES, PAGES * limit)) if options.paged else max(limit, looked_at)
        )
        if not options.reranker or not len(ranking.candidates):
            return ranking, False
        plain = replace(asked, options=replace(options, expand=Expand.NONE, explain=False))
        read = await plain.show(replace(ranking, candidates=ranking.candidates[:RERANKED]))
        if not read:
            return ranking, True
        texts = [f"{passage.heading}\n{passage.text}" if passage.heading else passage.text for passage in read]
        encoded = await self._encoders.rerank(options.reranker, asked.query, texts)
        reranked = _reranked(ranking, read, encoded.rows[:, 0], options.diversity)
        return reranked, len(reranked.candidates) < len(ranking.candidates)


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

    async def page(self, ranking: Ranking, at: int, limit: int) -> tuple[list[Passage], int]:
        """Up to `limit` passages from a place of the ranking on, and the place behind them."""
        shown: list[Passage] = []
        while len(shown) < limit and at < len(ranking.candidates):
            part = ranking.candidates[at : at + limit - len(shown)]
            shown += await self.show(replace(ranking, candidates=part))
            at += len(part)
        return shown, at


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
    """Rankings that later pages are read from, bounded in bytes and time; the last used stay longest.

    Where they are too many, the tenant that holds most loses its oldest: none pushes out those of one who holds less.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rankings: OrderedDict[str, tuple[Owner, Ranking, float]] = OrderedDict()
        self._used_bytes: Counter[object] = Counter()

    def __len__(self) -> int:
        return len(self._rankings)

    @property
    def used_bytes(self) -> int:
        return self._used_bytes.total()

    def put(self, owner: Owner, ranking: Ranking) -> str:
        """The token that the ranking is kept under, without its facets: later they might count what was revoked."""
        token = secrets.token_hex(_TOKEN_BYTES)
        self._rankings[token] = owner, replace(ranking, vectors=_NO_VECTORS, facets={}), self._clock()
        self._used_bytes[owner[0]] += _size_bytes(ranking)
        while self._oldest_expired():
            self._drop(next(iter(self._rankings)))
        while self.used_bytes > KEPT_BYTES:
            ((greediest, _),) = self._used_bytes.most_common(1)
            self._drop(next(token for token, (whose, *_) in self._rankings.items() if whose[0] == greediest))
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

    def _drop(self, token: str) -> None:
        owner, ranking, _ = self._rankings.pop(token)
        self._used_bytes[owner[0]] -= _size_bytes(ranking)
        if not self._used_bytes[owner[0]]:
            del self._used_bytes[owner[0]]


def _size_bytes(ranking: Ranking) -> int:
    return ranking.candidates.nbytes + _RANKING_BYTES


def _place(page: str) -> tuple[str, int]:
    """A page token's ranking, and where its page begins. Raises InvalidArgument."""
    match = _PAGE.fullmatch(page)
    if not match:
        raise InvalidArgument.of("page_token", "is not one that a search gave.")
    return match[1], int(match[2])
