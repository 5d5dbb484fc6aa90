"""The engine's prefixes below the device, its priorities and its deadlines, on real models."""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import DeadlineExceeded, ModelRestarting, ModelUnsupported, QueueFull
from appliance.infer import llama, pages, scheduler
from appliance.infer.engine import Deliver, Engine, Piece
from appliance.infer.pages import PAGE_TOKENS, Restore, Tokens
from appliance.infer.scheduler import Scheduler
from appliance.infer.tiers import DiskTier, Tiers
from appliance.infer.work import Order
from appliance.types import Finish, Priority, Text
from appliance.vault.envelope import AesGcm
from tests import gguf_models
from tests.gguf_models import Shape
from tests.infer.conftest import Bench, greedy, words

MakeBench = Callable[..., Bench]
CIPHER = AesGcm(bytes(32))
LONG = greedy(words(0, 400), salt=b"one")


def tiers(directory: Path | None = None, host_bytes: int = 1 << 24) -> Tiers:
    return Tiers(host_bytes, DiskTier(directory, CIPHER, b"model", 1 << 24) if directory else None)


def test_an_evicted_prefix_is_restored_from_host_memory_and_gives_the_same_tokens(bench: MakeBench) -> None:
    for architecture in ("llama", "gemma2"):
        assert_restores(bench(architecture, cells=512, tiers=tiers()))


def test_a_quantized_cache_is_kept_and_restored_too(tmp_path: Path, loaded: object) -> None:
    model = llama.Model(str(gguf_models.write_llama(tmp_path / "wide.gguf", Shape(head_size=32))))
    engine = Bench(model, cells=512, tiers=tiers(), kv_type="q8_0")
    assert_restores(engine)
    engine.engine.close()
    model.close()


def test_a_cache_type_that_the_model_cannot_have_is_refused_by_name(bench: MakeBench) -> None:
    with pytest.raises(ModelUnsupported, match="model_kv_type"):
        bench(kv_type="q8_0")  # its heads of 16 are half a block of q8_0


def assert_restores(engine: Bench) -> None:
    cold, first = engine.answer(LONG)
    engine.answer(greedy(words(7, 440), salt=b"one"))
    warm, second = engine.answer(LONG)
    assert warm == cold
    assert (first.usage.cached_input_tokens, second.usage.cached_input_tokens) == (0, 384)
    assert engine.engine.stats.host_pages >= 12


@pytest.mark.parametrize("host_bytes", [0, 1 << 24])
def test_a_warm_prefix_survives_a_restart_for_its_tenant_alone(
    bench: MakeBench, tmp_path: Path, host_bytes: int
) -> None:
    before = bench(tiers=tiers(tmp_path, host_bytes))
    cold, _ = before.answer(LONG)
    before.engine.close()
    before.engine.close = lambda: None  # type: ignore[method-assign]  # the fixture's is one too many
    after = bench(tiers=tiers(tmp_path, host_bytes))
    assert after.engine.stats.disk_pages == 6
    stranger = after.answer(replace(LONG, prefix_salt=b"two"))
    warm = after.answer(LONG)
    assert stranger[1].usage.cached_input_tokens == 0
    assert warm[1].usage.cached_input_tokens == 384
    assert warm[0] == stranger[0] == cold


def test_what_runs_when_the_engine_closes_is_kept_too(bench: MakeBench, tmp_path: Path) -> None:
    before = bench(tiers=tiers(tmp_path))
    before.submit(greedy(words(0, 400), max_tokens=500))
    for _ in range(6):
        before.engine._step()
    before.engine.close()
    before.engine.close = lambda: None  # type: ignore[method-assign]
    assert bench(tiers=tiers(tmp_path)).answer(greedy(words(0, 400)))[1].usage.cached_input_tokens == 384


def test_what_comes_while_the_engine_closes_is_refused_and_leaves_nothing_on_disk(
    bench: MakeBench, tmp_path: Path
) -> None:
    before = bench(tiers=tiers(tmp_path))
    engine, cancel = before.engine, before.engine.cancel
    running, refused = before.submit(greedy("hello", max_tokens=5)), []

    def cancel_and_submit(request: int) -> None:
        cancel(request)
        with pytest.raises(ModelRestarting) as raised:
            before.submit(LONG)
        refused.append(raised.value)

    engine.cancel = cancel_and_submit  # type: ignore[method-assign]  # in the middle of closing
    engine.close()
    engine.close = lambda: None  # type: ignore[method-assign]
    assert (len(refused), before.said[running]) == (1, [])
    after = bench(tiers=tiers(tmp_path))
    assert after.engine.stats.disk_pages == 0
    assert after.answer(LONG)[0] == bench().answer(LONG)[0]


def test_what_was_being_tokenized_when_the_engine_closed_is_refused(bench: MakeBench) -> None:
    engine = bench().engine
    tokens, close = engine.encode(LONG.prompt), engine.close

    def encode(segments: object) -> list[int]:
        close()
        return tokens

    engine.encode = encode  # type: ignore[method-assign]
    with pytest.raises(ModelRestarting):
        engine.submit(LONG, lambda piece: None)
    assert engine.stats.running == engine.stats.waiting == 0
    engine.close = lambda: None  # type: ignore[method-assign]


def test_damaged_pages_on_disk_are_computed_again(bench: MakeBench, tmp_path: Path) -> None:
    before = bench(tiers=tiers(tmp_path, 0))
    cold, _ = before.answer(LONG)
    before.engine.close()
    before.engine.close = lambda: None  # type: ignore[method-assign]
    for file in tmp_path.iterdir():
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    after = bench(tiers=tiers(tmp_path, 0))
    text, finish = after.answer(LONG)
    assert (text, finish.usage.cached_input_tokens) == (cold, 0)


def test_the_second_turn_of_a_conversation_computes_only_what_is_new(bench: MakeBench) -> None:
    engine = bench(tiers=tiers(), cells=1024)
    first = replace(greedy(words(0, 200), max_tokens=60), top_logprobs=0)
    engine.answer(first)
    answer = [choice.chosen.token for piece in engine.said[1] if isinstance(piece, Text) for choice in piece.choices]
    engine.answer(greedy(words(5, 900)))  # another conversation takes the device meanwhile
    turns = engine.engine.encode(first.prompt) + answer + engine.engine.encode(greedy(words(20, 10)).prompt)
    engine.engine.encode = lambda segments: turns  # type: ignore[method-assign]  # as a trained model's text is read
    assert engine.answer(greedy(""))[1].usage.cached_input_tokens == 256


def test_a_model_whose_prefixes_cannot_be_shared_uses_no_tier(bench: MakeBench, tmp_path: Path) -> None:
    engine = bench("gemma2", cells=8192, tiers=tiers(tmp_path))
    for _ in range(2):
        assert engine.answer(LONG)[1].usage.cached_input_tokens == 0
    assert (engine.engine.stats.host_pages, engine.engine.stats.disk_pages) == (0, 0)


@pytest.mark.parametrize("tiered", [False, True])
def test_a_preempted_answer_goes_on_as_if_it_had_not_been(bench: MakeBench, tiered: bool) -> None:
    low = replace(greedy(words(0, 150), max_tokens=150), priority=Priority.LOW)
    alone = bench(cells=512).answer(low)[0]
    engine = bench(cells=512, tiers=tiers() if tiered else None)
    request = engine.submit(low)
    for _ in range(80):
        engine.engine._step()
    high = engine.submit(replace(greedy(words(30, 400), max_tokens=50), priority=Priority.HIGH))
    engine.engine._step()
    assert engine.engine.stats.preempted == 1
    engine.engine.run_until_idle()
    assert engine.result(request)[0] == alone
    assert engine.result(high)[1].usage.output_tokens == 50
    assert engine.engine.stats.preemptions_total == 1


def test_a_request_past_its_deadline_hears_of_it_as_its_last_piece(bench: MakeBench) -> None:
    engine = bench()
    request = engine.submit(replace(greedy(words(0, 100), max_tokens=1800), deadline_seconds=0.05))
    waiting = time.monotonic() + 0.06
    while time.monotonic() < waiting:
        engine.engine._step()
    engine.engine.run_until_idle()
    *pieces, last = engine.said[request]
    assert isinstance(last, DeadlineExceeded)
    assert not any(isinstance(piece, Exception) for piece in pieces)
    assert engine.engine.stats.running == engine.engine.stats.pages_used == 0


def test_ten_thousand_requests_are_refused_at_once_and_those_in_the_queue_are_served(bench: MakeBench) -> None:
    engine = bench(queue=8)
    request = greedy(words(0, 200), max_tokens=2)
    taken, refused = [], 0
    began = time.process_time()
    for _ in range(10_000):
        try:
            taken.append(engine.submit(request))
        except QueueFull as error:
            refused += error.retry_after_seconds > 0
    assert (len(taken), refused) == (8, 9_992)
    assert time.process_time() - began < 5
    engine.engine.run_until_idle()
    assert all(engine.result(name)[1].usage.output_tokens == 2 for name in taken)


def test_what_the_engine_says_of_itself_is_what_it_did(bench: MakeBench) -> None:
    engine = bench(attention="stock: a test")
    for _ in range(2):
        engine.answer(greedy(words(0, 200), max_tokens=10))
    stats = engine.engine.stats
    assert (stats.prompt_tokens_total, stats.cached_tokens_total, stats.generated_tokens_total) == (400, 192, 20)
    assert (stats.requests_total, stats.pages_total, stats.pages_used) == (2, 32, 0)
    assert stats.pages_cached > 0
    assert 0 < stats.compute_seconds_total < stats.step_seconds_total
    assert stats.steps_total >= 12
    assert stats.attention == "stock: a test"
    assert 0 <= stats.accepted_tokens_total <= stats.drafted_tokens_total


def test_drafts_change_no_answer(bench: MakeBench) -> None:
    requests = [greedy(words(start, 60) * 3, max_tokens=80) for start in range(3)]
    plain, drafted = bench(speculate_below_streams=0), bench(speculate_below_streams=4)
    texts = []
    for engine in (plain, drafted):
        names = [engine.submit(request) for request in requests]
        engine.engine.run_until_idle()
        texts.append([engine.result(name)[0] for name in names])
        assert all(engine.result(name)[1].usage.output_tokens == 80 for name in names)
    assert texts[0] == texts[1]
    assert plain.engine.stats.drafted_tokens_total == 0
    assert drafted.engine.stats.drafted_tokens_total > 0


def test_callers_on_many_threads_all_get_their_end(loaded: dict[str, llama.Model], tmp_path: Path) -> None:
    ended: queue.SimpleQueue[Finish | Exception] = queue.SimpleQueue()

    def deliver(piece: Piece) -> None:
        if not isinstance(piece, Text):
            ended.put(piece)

    def post(pieces: list[tuple[Deliver, Piece]]) -> None:
        for to, piece in pieces:
            to(piece)

    engine = Engine(
        loaded["llama"],
        cells=1024,
        sequences=4,
        batch_tokens=64,
        queue=64,
        threads=1,
        post=post,
        tiers=tiers(tmp_path, 1 << 18),
    )
    engine.start()

    def call(caller: int) -> int:
        for turn in range(8):
            request = greedy(words(turn % 3, 100 + 20 * caller), max_tokens=1 + turn, salt=b"%d" % (caller % 2))
            priority = Priority(1 + (turn + caller) % 3)
            engine.submit(replace(request, priority=priority, tenant=f"tenant{caller % 3}"), deliver)
            engine.cancel(engine.submit(request, lambda piece: None))
        return 8

    with ThreadPoolExecutor(6) as callers:
        assert sum(callers.map(call, range(6))) == 48
    finishes = [ended.get(timeout=30) for _ in range(48)]
    assert all(isinstance(finish, Finish) for finish in finishes)
    stats = engine.stats
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    engine.close()


def test_a_step_restores_no_more_bytes_than_its_budget() -> None:
    prompt = np.arange(40 * PAGE_TOKENS, dtype=np.int32)
    for page_bytes, restored in ((1, 39), (8 << 20, 16), (1 << 30, 1)):
        made = Scheduler(pages=64, sequences=2, sequence_ids=16, batch_tokens=64, queue=4, saved=lambda key: True)
        made.page_bytes = page_bytes
        made.submit(Order(1, prompt, 1), 0.0)
        assert sum(isinstance(move, Restore) for move in made.plan(0.0).moves) == restored


def test_the_engine_learns_what_a_page_takes(bench: MakeBench) -> None:
    engine = bench(cells=512, tiers=tiers())
    engine.answer(LONG)
    kept = engine.engine._tiers
    assert kept
    sizes = {len(page) for page in kept._host.values()}
    assert sizes == {engine.engine._scheduler.page_bytes}


def test_who_loses_its_place_in_a_full_queue_hears_so_last(bench: MakeBench) -> None:
    engine = bench(sequences=1, queue=2)
    running = engine.submit(replace(greedy("hello", max_tokens=5), tenant="a"))
    engine.engine._step()
    kept, refused = [engine.submit(replace(greedy("hello", max_tokens=5), tenant="a")) for _ in range(2)]
    newcomer = engine.submit(replace(greedy("hello", max_tokens=5), tenant="b"))
    with pytest.raises(QueueFull):
        engine.submit(replace(greedy("hello", max_tokens=5), tenant="b"))
    engine.engine.run_until_idle()
    (told,) = engine.said[refused]
    assert isinstance(told, QueueFull)
    assert told.retry_after_seconds > 0
    assert all(isinstance(engine.said[request][-1], Finish) for request in (running, kept, newcomer))
    assert not engine.engine._streams


class Recorder:
    """A drafter that guesses nothing and tells when it was asked and closed."""

    def __init__(self, asked: Callable[[], None] = lambda: None) -> None:
        self._asked, self.closed = asked, 0

    def extend(self, tokens: Sequence[int]) -> None:
        pass

    def draft(self, most: int) -> Sequence[int]:
        self._asked()
        return []

    def close(self) -> None:
        self.closed += 1


def test_what_an_answer_holds_is_freed_however_it_ends(bench: MakeBench) -> None:
    engine, drafters = bench(), list[Recorder]()

    def drafter(*_: object) -> Recorder:
        drafters.append(Recorder())
        return drafters[-1]

    engine.engine._drafter = drafter  # type: ignore[method-assign, assignment]
    engine.answer(greedy("hello"))
    engine.engine.cancel(engine.submit(greedy("hello")))
    engine.submit(replace(greedy("hello", max_tokens=1000), deadline_seconds=1e-6))
    engine.engine.run_until_idle()
    engine.answer(greedy("hello"))
    assert [drafter.closed for drafter in drafters[:3]] == [1, 1, 1]


def test_keys_are_made_once_a_request_and_outside_the_lock(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, made = bench(tiers=tiers()), list[int]()
    chain = pages.chain

    def counted(tokens: Tokens, under: bytes, after: Sequence[bytes] = ()) -> list[bytes]:
        keys = chain(tokens, under, after)
        made.append(len(keys) - len(after))
        return keys

    monkeypatch.setattr(pages, "chain", counted)
    monkeypatch.setattr(scheduler, "chain", counted)
    engine.submit(LONG)
    assert made == [6, 0]
