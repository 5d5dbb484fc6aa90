"""A place that hangs holds its threads and no others; what it holds is let go by the last of them."""

import asyncio
import threading

import pytest

from appliance.errors import SourceGone
from appliance.ingest.sources.stalls import AT_ONCE, Beat, Calls


async def idle(calls: Calls) -> None:
    """Return when no call runs."""
    event = threading.Event()
    calls.close(event.set)
    assert await asyncio.to_thread(event.wait, 5)


async def test_a_call_gives_what_it_returns_or_raises() -> None:
    calls = Calls("/srv/drop", 5)
    assert await calls.run(lambda beat: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda beat: 1 // 0)
    assert not calls.stuck
    assert not calls.busy


async def test_a_call_that_hangs_is_given_up_and_no_other_is_begun_until_it_returns() -> None:
    calls, answer, begun = Calls("/srv/drop", 0.05), threading.Event(), 0

    def hangs(beat: Beat) -> None:
        nonlocal begun
        begun += 1
        answer.wait()

    with pytest.raises(SourceGone, match=r"/srv/drop gave no answer for 0.05 seconds"):
        await calls.run(hangs)
    for _ in range(10):
        with pytest.raises(SourceGone):
            await calls.run(hangs)
    assert (begun, calls.stuck) == (1, True)
    answer.set()
    await idle(calls)
    assert await calls.run(lambda beat: "back") == "back"


async def test_work_that_goes_on_is_not_given_up_however_long_it_takes() -> None:
    calls, steps = Calls("a", 0.2), threading.Event()

    def slow(beat: Beat) -> int:
        for _ in range(10):
            steps.wait(0.05)
            beat()
        return 10

    assert await calls.run(slow) == 10


async def test_work_that_nobody_waits_for_ends_at_its_next_sign() -> None:
    calls, begun, go, ended = Calls("a", 5), threading.Event(), threading.Event(), threading.Event()

    def long(beat: Beat) -> None:
        begun.set()
        go.wait()
        try:
            beat()
        finally:
            ended.set()

    task = asyncio.create_task(calls.run(long))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert await asyncio.to_thread(ended.wait, 5)


async def test_what_is_closed_while_a_call_hangs_is_let_go_when_it_returns() -> None:
    calls, answer, let_go = Calls("a", 0.02), threading.Event(), threading.Event()
    with pytest.raises(SourceGone):
        await calls.run(lambda beat: answer.wait())
    other = threading.Event()
    calls.close(let_go.set)
    calls.close(other.set)
    assert not let_go.is_set()
    answer.set()
    assert await asyncio.to_thread(let_go.wait, 5)
    assert await asyncio.to_thread(other.wait, 5)
    at_once = threading.Event()
    Calls("b", 1).close(at_once.set)
    assert at_once.is_set()


async def test_a_call_lets_go_of_its_own_once_whether_it_began_or_not() -> None:
    calls, answer, released = Calls("a", 0.02), threading.Event(), 0

    def release() -> None:
        nonlocal released
        released += 1

    await calls.run(lambda beat: None, release)
    assert released == 1
    with pytest.raises(SourceGone):
        await calls.run(lambda beat: answer.wait(), release)
    assert released == 1
    with pytest.raises(SourceGone):
        await calls.run(lambda beat: None, release)
    assert released == 2
    answer.set()
    await idle(calls)
    assert released == 3


async def test_only_some_calls_run_at_once() -> None:
    calls, go, began, running = Calls("a", 5), threading.Event(), threading.Semaphore(0), list[int]()

    def work(beat: Beat) -> None:
        running.append(1)
        began.release()
        go.wait()

    tasks = [asyncio.create_task(calls.run(work)) for _ in range(3 * AT_ONCE)]
    for _ in range(AT_ONCE):
        assert await asyncio.to_thread(began.acquire, timeout=5)
    assert len(running) == AT_ONCE
    go.set()
    await asyncio.gather(*tasks)
    assert len(running) == 3 * AT_ONCE


async def test_a_call_for_which_no_thread_is_left_is_refused_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, released = Calls("/srv/drop", 5), list[int]()

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(SourceGone, match="too many threads"):
            await calls.run(lambda beat: 7, lambda: released.append(1))
    assert (released, calls.busy) == ([1], False)
    assert await calls.run(lambda beat: 7) == 7
