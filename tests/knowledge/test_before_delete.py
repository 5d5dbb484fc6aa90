"""Whoever made a document is told before it is deleted, and may object."""

from pathlib import Path

import pytest

from appliance.errors import DiskFull, NotFound
from appliance.types import Document
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import ALL, new_document, open_libraries


def test_a_deletion_is_told_first_and_does_not_happen_where_that_fails(tmp_path: Path) -> None:
    libraries, told = open_libraries(tmp_path, WordEmbedder()), list[tuple[str, str]]()
    library = libraries.of("acme")
    library.create("handbook")
    document = library.add("handbook", new_document("Badges expire.", title="a.txt"))

    def note(tenant: str, going: Document) -> None:
        told.append((tenant, going.title))
        if len(told) == 1:
            raise DiskFull("No space is left.")

    libraries.before_delete(note)
    with pytest.raises(NotFound):
        library.delete("handbook", document.id, frozenset({"user:stranger"}))
    assert told == [], "of what he may not read a stranger says nothing"
    with pytest.raises(DiskFull):
        library.delete("handbook", document.id, ALL)
    assert library.get("handbook", document.id, ALL).title == "a.txt"
    assert libraries.damaged() == {}
    library.delete("handbook", document.id, None)
    with pytest.raises(NotFound):
        library.get("handbook", document.id, ALL)
    assert told == [("acme", "a.txt")] * 2
    libraries.close()
