"""What a user deleted between its commit and what is written of it stays deleted, whatever happens then."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from appliance.app import build
from appliance.config import Config
from appliance.errors import DiskFull
from appliance.ingest.ledger import Item, Ledger
from appliance.ingest.service import Ingest
from appliance.types import FileState, Ingestion, IngestionState, NewDocument
from tests.ingest.bench import EVERYBODY, OPERATOR, Bench, GatedExtractor, ends, until


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def stopped_after_the_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Ingestion:
    """One whose documents are in the library, and whose ledger does not say so."""
    real = Ledger.write

    def full(self: Ledger, items: Iterable[Item] = (), **changes: object) -> Ingestion:
        items = tuple(items)
        if any(item.outcome.state is FileState.COMMITTED for item in items):
            raise DiskFull("No space is left to write the ledger.")
        return real(self, items, **changes)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", full)
        stopped, _ = await bench.run()
    assert stopped.state is IngestionState.FAILED
    return stopped


def delete(bench: Bench, title: str) -> None:
    [document] = [one for one in bench.library.documents("handbook", EVERYBODY) if one.title == title]
    bench.library.delete("handbook", document.id, EVERYBODY)


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_document_that_was_deleted_before_its_ledger_knew_of_it_does_not_come_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    stopped = await stopped_after_the_commit(bench, monkeypatch)
    delete(bench, "a.txt")
    if restarts:
        await bench.restart_daemon()
    done = await bench.wait(await bench.ingest.resume(OPERATOR, stopped.name))
    assert ends(bench.files(done)) == {"a.txt": "committed", "b.txt": "committed"}
    assert (bench.titles(), bench.held()) == (["b.txt"], [])


async def test_the_attachments_of_a_mail_that_was_deleted_so_are_taken_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__eml="Hello.\nx.txt=One.")
    stopped = await stopped_after_the_commit(bench, monkeypatch)
    delete(bench, "a.eml")
    await bench.restart_daemon()
    done = await bench.wait(await bench.ingest.resume(OPERATOR, stopped.name))
    assert ends(bench.files(done)) == {"a.eml": "committed", "a.eml/x.txt": "committed"}
    assert bench.titles() == ["a.eml/x.txt"]


async def test_what_is_deleted_while_its_file_is_being_read_again_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = GatedExtractor()
    extractor.may_read.set()
    bench = Bench(tmp_path, extractor)
    bench.write(a__eml="Hello.\nx.txt=One.")
    stopped = await stopped_after_the_commit(bench, monkeypatch)
    extractor.may_read.clear()
    resumed = await bench.ingest.resume(OPERATOR, stopped.name)
    await until(lambda: extractor.waiting == 2)
    delete(bench, "a.eml")
    extractor.may_read.set()
    await bench.wait(resumed)
    assert bench.titles() == ["a.eml/x.txt"]
    assert ends(bench.files(resumed)) == {"a.eml": "committed", "a.eml/x.txt": "committed"}


async def test_what_cannot_be_written_of_a_document_is_a_reason_not_to_delete_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="One.")
    stopped = await stopped_after_the_commit(bench, monkeypatch)

    def full(*given: object, **changes: object) -> None:
        raise DiskFull("No space is left to write the ledger.")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "write", full)
        with pytest.raises(DiskFull):
            delete(bench, "a.txt")
    assert bench.titles() == ["a.txt"]
    await bench.wait(await bench.ingest.resume(OPERATOR, stopped.name))
    assert bench.titles() == ["a.txt"]


async def test_deleting_what_an_ingestion_made_that_has_ended_or_is_forgotten_writes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    done, _ = await bench.run()
    [log] = bench.config.data_dir.glob(f"ingest/clinic/{done.id}/log")
    before = log.read_bytes()
    delete(bench, "a.txt")
    assert log.read_bytes() == before
    bench.ingest._ledgers._ledgers["clinic"].clear()
    delete(bench, "b.txt")
    assert bench.titles() == []


@pytest.mark.long
async def test_in_a_box_ingest_is_told_of_every_deletion_before_it_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(Ingest, "before_delete", lambda self, tenant, going: told.append((tenant, going.title)))
    box = build(Config(data_dir=tmp_path / "data"))
    library = box.libraries.of("acme")
    library.create("handbook")
    document = library.add("handbook", NewDocument("a.txt", "text/plain", "0" * 64, 3, "s", "p", "v", ("One.",)))
    library.delete("handbook", document.id, EVERYBODY)
    assert told == [("acme", "a.txt")]
    box.libraries.close()
    box.sockets.cleanup()
