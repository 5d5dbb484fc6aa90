"""What a parser in an attacker's hands can do from its locked child: nothing but answer, and that is not believed."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from appliance.errors import DocumentRefused
from appliance.sandbox.extractor import LockedExtractor
from tests.sandbox.locked import LIMITS, extract

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, "tests.sandbox.hostile", {})
    await extractor.start()
    yield extractor
    await extractor.close()


async def reason_of(extractor: LockedExtractor, attack: str) -> str:
    with pytest.raises(DocumentRefused) as refused:
        await extract(extractor, attack.encode())
    return refused.value.file_reason


@pytest.mark.parametrize(
    "attack",
    [
        "read_a_file",
        "read_by_a_relative_path",
        "read_own_environment",
        "read_parent_memory",
        "list_a_folder",
        "write_a_file",
        "write_a_device",
        "map_writable_code",
        "make_memory_code",
        "raise_own_limits",
    ],
)
async def test_what_the_lock_refuses_raises_a_permission_error(hostile: LockedExtractor, attack: str) -> None:
    assert (await extract(hostile, attack.encode())).pages == ("denied: PermissionError",)


@pytest.mark.parametrize(
    "attack",
    [
        "open_a_tcp_socket",
        "open_a_unix_socket",
        "make_a_socket_pair",
        "fork_bomb",
        "start_a_thread",
        "start_a_program",
        "kill_the_parent",
        "kill_everyone",
        "ptrace_the_parent",
        "make_a_link",
        "enter_a_user_namespace",
        "set_up_io_uring",
        "make_an_anonymous_file",
    ],
)
async def test_what_no_parser_needs_kills_the_child_and_is_named(hostile: LockedExtractor, attack: str) -> None:
    assert await reason_of(hostile, attack) == "FORBIDDEN_CALL"


async def test_a_child_inherits_no_descriptor(hostile: LockedExtractor) -> None:
    secret = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(secret, True)
    assert (await extract(hostile, b"read_inherited_descriptors")).pages == ("none",)
    os.close(secret)


@pytest.mark.parametrize("attack", ["allocate_at_once", "allocate_bit_by_bit", "allocate_natively"])
async def test_a_memory_bomb_ends_at_the_limit(hostile: LockedExtractor, attack: str) -> None:
    assert await reason_of(hostile, attack) == "TOO_MUCH_MEMORY"


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("follow_a_null_pointer", "CRASHED"),
        ("abort", "CRASHED"),
        ("die_of_a_signal_without_a_name", "CRASHED"),
        ("leave", "PARSER_FAILED"),
        ("leave_with_an_error", "PARSER_FAILED"),
        ("write_garbage", "PARSER_FAILED"),
        ("write_without_end", "TOO_MUCH_TEXT"),
        ("write_empty_frames_without_end", "PARSER_FAILED"),
        ("send_terminal_escapes", "PARSER_FAILED"),
        ("promise_more_pages", "PARSER_FAILED"),
        ("refuse_deceptively", "PARSER_FAILED"),
        ("import_something_new", "PARSER_FAILED"),
        ("recurse", "PARSER_FAILED"),
        ("refuse", "NOT_TODAY"),
    ],
)
async def test_a_bad_end_has_a_reason_and_the_next_document_is_read(
    hostile: LockedExtractor, attack: str, reason: str
) -> None:
    assert await reason_of(hostile, attack) == reason
    assert (await extract(hostile, b"harmless")).pages == ("harmless",)


async def test_a_parsers_exception_is_told_without_its_words(hostile: LockedExtractor) -> None:
    with pytest.raises(DocumentRefused, match="ValueError") as refused:
        await extract(hostile, b"fail")
    assert "secret" not in str(refused.value)


async def test_spinning_ends_at_the_limit_of_processor_time(hostile: LockedExtractor) -> None:
    assert await reason_of(hostile, "spin") == "SPUN"


async def test_nothing_is_written_outside(hostile: LockedExtractor) -> None:
    await extract(hostile, b"write_a_file")
    assert await reason_of(hostile, "make_a_link") == "FORBIDDEN_CALL"
    assert not [name for name in os.listdir("/tmp") if name.startswith("appliance-escaped")]
