from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.errors import QueueFull
from appliance.health.host import Host
from appliance.health.metrics import MeasuredGenerator, Metrics
from appliance.types import (
    EngineStats,
    FileOutcome,
    FileState,
    Finish,
    FinishReason,
    Generation,
    SearchTally,
    Text,
    Timings,
    Usage,
)
from tests.fakes import ScriptedGenerator

FINISH = Finish(
    FinishReason.STOP,
    Usage(input_tokens=100, cached_input_tokens=64, output_tokens=5),
    Timings(queue_seconds=0.5, prefill_seconds=0.25, decode_seconds=2.0),
)


@dataclass
class Ticking(ScriptedGenerator):
    """A generator whose clock moves on before each piece, by the seconds given with it."""

    now: float = 0.0
    pieces: Sequence[tuple[float, Text | Finish | Exception]] = field(default=())

    def clock(self) -> float:
        return self.now

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        try:
            for seconds, piece in self.pieces:
                self.now += seconds
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def samples(
    metrics: Metrics, engines: dict[str, EngineStats] | None = None, host: Host | None = None
) -> dict[str, float]:
    """Every sample by its name and labels, as a scraper reads them."""
    text = metrics.render(engines or {}, host).decode()
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def run(generator: Ticking, metrics: Metrics) -> list[Text | Finish]:
    measured = MeasuredGenerator(generator, metrics, generator.clock)
    return [piece async for piece in measured.generate("writer", Generation(()))]


async def test_a_request_is_measured_from_call_to_last_piece() -> None:
    metrics = Metrics()
    generator = Ticking(pieces=[(0.75, Text("a")), (0.25, Text("b")), (1.0, FINISH)])
    assert await run(generator, metrics) == [Text("a"), Text("b"), FINISH]
    found = samples(metrics)
    writer = " model_name=writer"
    assert found[f"appliance_prompt_tokens_total{writer}"] == 100
    assert found[f"appliance_generation_tokens_total{writer}"] == 5
    assert found[f"appliance_request_success_total finished_reason=stop{writer}"] == 1
    assert found[f"appliance_time_to_first_token_seconds_sum{writer}"] == 0.75
    assert found[f"appliance_inter_token_latency_seconds_sum{writer}"] == 0.25
    assert found[f"appliance_e2e_request_latency_seconds_sum{writer}"] == 2.0
    assert found[f"appliance_request_time_per_output_token_seconds_sum{writer}"] == (2.0 - 0.75) / 4
    assert found[f"appliance_request_queue_time_seconds_sum{writer}"] == 0.5
    assert found[f"appliance_request_prefill_time_seconds_sum{writer}"] == 0.25
    assert found[f"appliance_request_decode_time_seconds_sum{writer}"] == 2.0
    assert found[f"appliance_request_prompt_tokens_bucket le=100.0{writer}"] == 1


async def test_an_answer_that_nobody_waits_for_counts_as_aborted_and_is_closed() -> None:
    metrics, generator = Metrics(), Ticking(pieces=[(0.1, Text("a")), (0.1, Text("b")), (0.1, FINISH)])
    stream = MeasuredGenerator(generator, metrics, generator.clock).generate("writer", Generation(()))
    assert await anext(stream) == Text("a")
    await stream.aclose()  # type: ignore[attr-defined]
    assert samples(metrics)["appliance_request_success_total finished_reason=abort model_name=writer"] == 1
    assert generator.closed == 1


async def test_a_failed_request_counts_under_its_reason() -> None:
    metrics = Metrics()
    with pytest.raises(QueueFull):
        await run(Ticking(pieces=[(0.1, QueueFull("64 wait."))]), metrics)
    found = samples(metrics)
    assert found["appliance_request_failure_total model_name=writer reason=QUEUE_FULL"] == 1
    assert not any("request_success" in name for name in found)


def test_the_engines_are_shown_as_they_are_at_the_scrape() -> None:
    stats = EngineStats(
        running=3,
        waiting=2,
        preempted=1,
        pages_total=128,
        pages_used=32,
        prompt_tokens_total=1000,
        cached_tokens_total=640,
        preemptions_total=7,
        drafted_tokens_total=50,
        accepted_tokens_total=40,
    )
    found = samples(Metrics(), {"writer": stats, "idle": EngineStats()})
    shown = {
        name: found[f"appliance_{name} model_name=writer"]
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "prefix_cache_queries_total",
            "prefix_cache_hits_total",
            "num_preemptions_total",
            "spec_decode_num_draft_tokens_total",
            "spec_decode_num_accepted_tokens_total",
        )
    }
    assert list(shown.values()) == [3, 2, 0.25, 1000, 640, 7, 50, 40]
    assert found["appliance_kv_cache_usage_perc model_name=idle"] == 0


def test_the_machine_is_shown_where_it_was_sampled() -> None:
    found = samples(Metrics(), host=Host(8, 4, 2, 100, 50))
    assert found["appliance_host_memory_available_bytes"] == 4
    assert found["appliance_host_disk_free_bytes"] == 50
    assert not any(name.startswith("appliance_host") for name in samples(Metrics()))


def test_searches_and_answers_are_shown_by_collection() -> None:
    tallies = [
        SearchTally("acme", "handbook", searches=7, answers=4, empty_answers=1, best_score_drift=-0.25),
        SearchTally("acme", "rules", searches=1, answers=0, empty_answers=0),
    ]
    text = Metrics().render({}, None, tallies).decode()
    found = {
        (one.name, one.labels["collection"]): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if family.name.startswith("appliance_knowledge")
    }
    assert found == {
        ("appliance_knowledge_searches_total", "handbook"): 7,
        ("appliance_knowledge_searches_total", "rules"): 1,
        ("appliance_knowledge_answers_total", "handbook"): 4,
        ("appliance_knowledge_answers_total", "rules"): 0,
        ("appliance_knowledge_empty_answers_total", "handbook"): 1,
        ("appliance_knowledge_empty_answers_total", "rules"): 0,
        ("appliance_knowledge_best_score_drift", "handbook"): -0.25,
    }


def test_no_label_names_a_tenant_a_user_or_content() -> None:
    metrics = Metrics()
    metrics.finished("writer", FINISH, 0.1, 0.2)
    text = metrics.render({"writer": EngineStats()}, None, [SearchTally("acme", "handbook", 1, 1, 1, 0.5)]).decode()
    labels = {key for family in text_string_to_metric_families(text) for s in family.samples for key in s.labels}
    assert labels == {"model_name", "finished_reason", "le", "collection"}
    assert "acme" not in text


def test_files_are_counted_by_how_they_ended_and_those_that_were_read_by_their_seconds() -> None:
    metrics = Metrics()
    for state, seconds in ((FileState.COMMITTED, 0.5), (FileState.COMMITTED, 1.5), (FileState.DUPLICATE, 0.0)):
        metrics.ingested(FileOutcome("secret.txt", state, size_bytes=10), seconds)
    text = metrics.render({}).decode()
    found = {
        (one.name, one.labels.get("state", "")): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if family.name.startswith("appliance_ingest") and not one.name.endswith(("_created", "_bucket"))
    }
    assert found == {
        ("appliance_ingest_files_total", "committed"): 2,
        ("appliance_ingest_files_total", "duplicate"): 1,
        ("appliance_ingest_bytes_total", "committed"): 20,
        ("appliance_ingest_bytes_total", "duplicate"): 10,
        ("appliance_ingest_read_seconds_count", ""): 2,
        ("appliance_ingest_read_seconds_sum", ""): 2.0,
    }
    assert "secret" not in text
