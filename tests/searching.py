"""A search as a call makes it, of a library that a test holds."""

import asyncio
from dataclasses import dataclass, replace

from appliance.knowledge.search.retrieve import Retriever
from appliance.ports import Library
from appliance.types import Found, Principal, Role, SearchOptions
from tests.fakes import OneLibrary, WordEncoders


@dataclass(frozen=True, slots=True)
class Caller(Principal):
    """One who is in the named groups and in no other."""

    only: frozenset[str] = frozenset()

    @property
    def groups(self) -> frozenset[str]:
        return self.only


def search(
    library: Library,
    collection: str,
    query: str,
    groups: frozenset[str],
    limit: int,
    options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
) -> Found:
    """The first page through the Retriever. Not for a test that runs on an event loop already."""
    caller = Caller("default", "ann", Role.APP, only=groups)
    retriever = Retriever(OneLibrary(library), WordEncoders())
    return asyncio.run(retriever.search(caller, collection, query, limit, replace(options, paged=False)))
