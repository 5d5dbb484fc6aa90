"""The engine on real models, stepped on the test's thread."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from appliance.errors import InvalidArgument, PromptTooLong, QueueFull
from appliance.types import FinishReason, Generation, Origin, Sampling, Segment
from tests.infer.conftest import Bench, greedy, words

MakeBench = Callable[..., Bench]


def state(engine: Bench) -> tuple[int, int, int]:
    stats = engine.engine.stats
    return stats.running, stats.waiting, stats.pages_used


def test_batch_mates_do_not_change_a_greedy_stream(bench: MakeBench) -> None:
    requests = [greedy(words(start, 40 + 30 * start), max_tokens=24) for start in range(8)]
    alone = [bench().answer(request)[0] for request in requests]
    together = bench(sequences=8)
    names = [together.submit(request) for request in requests]
    together.engine.run_until_idle()
    assert [together.result(name)[0] for name in names] == alone


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_a_reused_prefix_gives_the_same_tokens(bench: MakeBench, architecture: str) -> None:
    engine = bench(architecture)
    request = greedy(words(0, 200))
    cold, first = engine.answer(request)
    warm, second = engine.answer(request)
    assert warm == cold
    assert first.usage.cached_input_tokens == 0
    assert second.usage.cached_input_tokens >= 192
    assert second.usage.input_tokens == first.usage.input_tokens


def test_two_salts_share_no_prefix(bench: MakeBench) -> None:
    engine = bench()
    engine.answer(greedy(words(0, 200), salt=b"one"))
    assert engine.answer(greedy(words(0, 200), salt=b"two"))[1].usage.cached_input_tokens == 0
    assert engine.answer(greedy(words(0, 200), salt=b"one"))[1].usage.cached_input_tokens == 192


def test_requests_that_start_alike_at_once_compute_it_once(bench: MakeBench) -> None:
    engine = bench()
    names = [engine.submit(greedy(words(0, 300) + words(tail, 20))) for tail in range(3)]
    engine.engine.run_until_idle()
    assert [engine.result(name)[1].usage.cached_input_tokens for name in names] == [0, 256, 256]


def test_usage_and_timings_are_exact(bench: MakeBench) -> None:
    _, finish = bench().answer(greedy(words(0, 50), max_tokens=7))
    assert (finish.usage.input_tokens, finish.usage.output_tokens) == (50, 7)
    assert finish.reason is FinishReason.LENGTH
    timings = finish.timings
    parts = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds
    assert min(timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds) >= 0
    assert parts == pytest.approx(timings.total_seconds)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(bench: MakeBench) -> None:
    engine = bench()
    request = greedy(words(0, 30), max_tokens=20)
    sampled = [
        engine.answer(replace(request, sampling=Sampling(temperature=1.5, seed=seed, max_tokens=20)))[0]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_repeat_penalty_breaks_a_loop(bench: MakeBench) -> None:
    engine = bench("gemma2")
    looping = greedy(words(0, 30), max_tokens=20)
    penalized = greedy(words(0, 30), max_tokens=20, repeat_penalty=2.0)
    assert engine.answer(penalized)[0] != engine.answer(looping)[0]


def test_an_answer_ends_before_its_stop_string_and_no_part_of_it_is_shown(bench: MakeBench) -> None:
    engine = bench()
    whole, _ = engine.answer(greedy(words(0, 30), max_tokens=24))
    stop = whole[len(whole) // 2 :][:5]
    assert len(stop) == 5
    request = engine.submit(greedy(words(0, 30), max_tokens=24, stop=(stop,)))
    engine.engine.run_until_idle()
    text, finish = engine.result(request)
    assert text == whole[: whole.index(stop)]
    assert finish.reason is FinishReason.STOP
    assert finish.usage.output_tokens < 24


def test_with_labels_the_answer_is_one_of_them_with_the_logprobs_of_all(bench: MakeBench) -> None:
    labels = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    prompt = (Segment(Origin.USER, "the badge expires"),)
    text, finish = bench("qwen2").answer(Generation(prompt, Sampling(temperature=0.0), labels))
    assert sum(map(math.exp, finish.label_logprobs)) == pytest.approx(1.0)
    assert text == labels[finish.label_logprobs.index(max(finish.label_logprobs))]
    assert (finish.usage.output_tokens, finish.reason) == (1, FinishReason.STOP)


def test_a_label_that_is_not_one_token_is_refused(bench: MakeBench) -> None:
    with pytest.raises(InvalidArgument, match=r"^labels: "):
        bench("qwen2").submit(Generation((Segment(Origin.USER, "the"),), Sampling(), ("two words",)))


def test_an_end_token_ends_the_answer(bench: MakeBench) -> None:
    engine = bench("qwen2")
    hot = Sampling(temperature=5.0, top_p=1.0, min_p=0.0, top_k=0, max_tokens=1500, seed=3)
    _, finish = engine.answer(Generation((Segment(Origin.USER, "hello"),), hot))
    assert finish.reason is FinishReason.STOP
    assert finish.usage.output_tokens < 1500


def test_a_prompt_longer_than_the_context_is_refused_before_it_is_computed(bench: MakeBench) -> None:
    engine = bench(cells=512)
    with pytest.raises(PromptTooLong, match="600 tokens"):
        engine.submit(greedy(words(0, 600)))
    with pytest.raises(PromptTooLong, match="characters"):
        engine.submit(greedy("x" * 1_000_000))
    with pytest.raises(PromptTooLong, match="characters"):
        engine.engine.encode([Segment(Origin.USER, "x" * 1_000_000)])
    assert engine.engine.stats.pages_used == 0


def test_an_empty_prompt_and_a_bad_parameter_are_refused_by_name(bench: MakeBench) -> None:
    engine = bench()
    with pytest.raises(InvalidArgument, match=r"^prompt: "):
        engine.submit(greedy(""))
    with pytest.raises(InvalidArgument, match=r"^temperature: "):
        engine.submit(replace(greedy("hello"), sampling=Sampling(temperature=-1.0)))


def test_a_full_queue_refuses_and_names_a_delay(bench: MakeBench) -> None:
    engine = bench(queue=2)
    for _ in range(2):
        engine.submit(greedy("hello"))
    with pytest.raises(QueueFull) as refused:
        engine.submit(greedy("hello"))
    assert refused.value.retry_after_seconds > 0
    engine.engine.run_until_idle()
    assert engine.answer(greedy("hello"))[1].usage.output_tokens == 12


def test_cancelling_frees_the_cells_and_nothing_more_is_delivered(bench: MakeBench) -> None:
    engine = bench(cells=512)
    first = engine.submit(greedy(words(0, 300), max_tokens=100))
    engine.engine._step()
    assert state(engine) == (1, 0, 7)
    second = engine.submit(greedy(words(1, 300), max_tokens=100))
    engine.engine.cancel(first)
    assert state(engine) == (0, 1, 0)
    engine.engine.run_until_idle()
    assert not engine.said[first]
    assert engine.result(second)[1].usage.output_tokens == 100
    engine.engine.cancel(second)


def test_more_sequences_than_a_step_has_rows_take_turns(bench: MakeBench) -> None:
    engine = bench(cells=4096, sequences=64, batch_tokens=32)
    names = [engine.submit(greedy(words(index, 20), max_tokens=6, salt=b"%d" % index)) for index in range(64)]
    engine.engine.run_until_idle()
    assert {engine.result(name)[1].usage.output_tokens for name in names} == {6}


def test_many_requests_of_all_kinds_end_and_leave_no_cell_behind(bench: MakeBench) -> None:
    engine = bench(cells=1024, sequences=4)
    names = [
        engine.submit(greedy(words(index % 3, 20 + 7 * index), max_tokens=1 + index % 9, salt=b"%d" % (index % 2)))
        for index in range(40)
    ]
    engine.engine.cancel(names[7])
    engine.engine.run_until_idle()
    finished = [engine.result(name)[1] for name in names if name != names[7]]
    assert [finish.usage.output_tokens for finish in finished] == [1 + i % 9 for i in range(40) if i != 7]
    assert engine.engine.stats.pages_used == 0
