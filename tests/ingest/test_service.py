"""What the API asks of an ingest's readers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from appliance.access import roles
from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.api.ingest import IngestService
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.ingest.sources import Sources
from appliance.types import EVERYONE, Document, Principal, Role
from tests.fakes import OneLibrary
from tests.ingest.bench import Bench


@dataclass(frozen=True)
class CallOf:
    """What gRPC tells of a call by the holder of a certificate."""

    caller: Principal

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {
            "transport_security_type": [b"ssl"],
            "x509_pem_cert": [b"pem"],
            "x509_subject_alternative_name": [roles.identity_uri(self.caller).encode()],
        }


OPERATOR = Principal("clinic", "olga", Role.OPERATOR)


def book_of(bench: Bench) -> GroupBook:
    return GroupBook(bench.config.data_dir / "access" / "groups.json", bench.keyring)


def service_of(bench: Bench) -> IngestService:
    """Of its own sources it needs none."""
    return IngestService(Callers(book_of(bench)), bench.ingest, cast(Sources, bench.sources), OneLibrary(bench.library))


async def ingest(bench: Bench, *readers: str) -> None:
    request = pb.StartIngestionRequest(
        source="sources/usb", collection="collections/handbook", readers=readers, approve=True
    )
    answer = await service_of(bench).StartIngestion(request, cast(Context, CallOf(OPERATOR)))
    async for _ in bench.jobs.watch(answer.ingestion.job.removeprefix("jobs/")):
        pass


def stored(bench: Bench, groups: frozenset[str]) -> tuple[Document, ...]:
    return bench.library.documents("handbook", groups)


@pytest.mark.parametrize("role", Role)
async def test_a_document_for_a_role_and_a_user_is_found_by_both(tmp_path: Path, role: Role) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.")
    ann, ben, eve = (
        Principal("clinic", "Ann.B-c_d", Role.APP),
        Principal("clinic", "ben", role),
        Principal("clinic", "eve", Role.APP),
    )
    await ingest(bench, "user:Ann.B-c_d", f"role:{role.value}")
    assert len(stored(bench, ann.groups)) == len(stored(bench, ben.groups)) == 1
    assert len(stored(bench, eve.groups)) == (role is Role.APP)


async def test_a_document_for_a_group_is_found_by_its_users_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.")
    book_of(bench).set("clinic", "hr", ["ann"])
    await ingest(bench, "group:hr")
    callers = Callers(book_of(bench))

    def seen_by(caller: Principal) -> int:
        return len(stored(bench, callers.by_certificate(CallOf(caller).auth_context()).groups))

    assert seen_by(Principal("clinic", "ann", Role.APP)) == 1
    assert seen_by(OPERATOR) == seen_by(Principal("rival", "ann", Role.APP)) == 0


async def test_a_group_of_another_tenant_is_no_reader(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    book_of(bench).set("rival", "hr", ["ann"])
    with pytest.raises(InvalidArgument, match="readers: 'group:hr' names no group"):
        await ingest(bench, "group:hr")
    assert bench.jobs.list() == ()


async def test_a_document_for_nobody_in_particular_is_for_everyone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.")
    await ingest(bench)
    [document] = stored(bench, frozenset({EVERYONE}))
    assert document.readers == {EVERYONE}


@pytest.mark.parametrize(
    "reader",
    ["", "Everyone", "admin", "role:", "role:root", "role:admin ", "user:", "user:.a", "user:\u00e4", "user:a/b",
     "user:" + "a" * 65, "group:hr", "everyone\n", "role:admin,role:app"],
)  # fmt: skip
async def test_a_reader_that_no_caller_can_be_is_named_and_nothing_starts(tmp_path: Path, reader: str) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(InvalidArgument, match="readers: ") as refused:
        await ingest(bench, "role:admin", reader)
    assert repr(reader[:80]) in str(refused.value)
    assert bench.jobs.list() == ()
