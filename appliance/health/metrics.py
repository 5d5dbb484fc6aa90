"""Prometheus metrics in vLLM's vocabulary, under `appliance_`. Alone to import prometheus_client.

Requests are measured where they pass: MeasuredGenerator stands before any Generator and looks at its pieces. The
engines' own state is read when somebody scrapes. Labels name models and collections, never tenants, users or content.
Names and buckets: vLLM's metrics design, vllm/v1/metrics.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric

from appliance.errors import ApplianceError
from appliance.health.host import Host
from appliance.ports import Generator
from appliance.types import EngineStats, FileOutcome, Finish, Generation, ModelFile, SearchTally, Segment, Text

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_SECONDS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
ABORTED = "abort"

GAUGES: Mapping[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Requests in the running batch.", lambda s: s.running),
    "num_requests_waiting": ("Requests that wait to be run, preempted ones among them.", lambda s: s.waiting),
    "kv_cache_usage_perc": ("Share of the KV pages that running requests hold; 1 is all.", lambda s: _share(s)),
}
COUNTERS: Mapping[str, tuple[str, Callable[[EngineStats], float]]] = {
    "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda s: s.prompt_tokens_total),
    "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda s: s.cached_tokens_total),
    "num_preemptions": ("Requests put aside for others, to be resumed.", lambda s: s.preemptions_total),
    "spec_decode_num_draft_tokens": ("Tokens proposed ahead of the model.", lambda s: s.drafted_tokens_total),
    "spec_decode_num_accepted_tokens": ("Proposed tokens that the model confirmed.", lambda s: s.accepted_tokens_total),
}
SEARCH_COUNTERS: Mapping[str, tuple[str, Callable[[SearchTally], float]]] = {
    "knowledge_searches": ("Searches, those of questions among them.", lambda t: t.searches),
    "knowledge_answers": ("Questions, answered or not.", lambda t: t.answers),
    "knowledge_empty_answers": ("Questions that the documents do not answer.", lambda t: t.empty_answers),
}
HOST_GAUGES: Mapping[str, tuple[str, Callable[[Host], float]]] = {
    "host_memory_total_bytes": ("Memory of the machine.", lambda h: h.memory_total_bytes),
    "host_memory_available_bytes": ("Memory that is available.", lambda h: h.memory_available_bytes),
    "host_memory_used_bytes": ("Resident memory of the daemon and its workers.", lambda h: h.memory_used_bytes),
    "host_disk_free_bytes": ("Free bytes where the data directory lies.", lambda h: h.disk_free_bytes),
}


class Metrics:
    """What has been measured since the start. Safe to use from many threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self.successes = self._counter("request_success", "Requests that ended, by how.", "finished_reason")
        self.failures = self._counter("request_failure", "Requests that failed, by the error's reason.", "reason")
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From call to first piece.", FIRST_TOKEN_SECONDS
        )
        self.between = self._histogram("inter_token_latency_seconds", "Between two pieces of an answer.", TOKEN_SECONDS)
        self.per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean of a request, after its first token.", TOKEN_SECONDS
        )
        self.whole = self._histogram("e2e_request_latency_seconds", "From call to last piece.", REQUEST_SECONDS)
        self.queue = self._histogram("request_queue_time_seconds", "Waiting for the engine.", REQUEST_SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", "Reading the prompt.", REQUEST_SECONDS)
        self.decode = self._histogram("request_decode_time_seconds", "Writing the answer.", REQUEST_SECONDS)
        self.prompt_sizes = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.files = Counter(
            "appliance_ingest_files", "Files that came to their end, by how.", ("state",), registry=self._registry
        )
        self.file_bytes = Counter(
            "appliance_ingest_bytes", "Bytes of files that came to their end.", ("state",), registry=self._registry
        )
        self.file_seconds = Histogram(
            "appliance_ingest_read_seconds",
            "From the quarantine through the scanner and the parser, a file.",
            registry=self._registry,
            buckets=TOKEN_SECONDS,
        )
        self.answer_sizes = self._histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)

    def render(
        self, engines: Mapping[str, EngineStats], host: Host | None = None, searches: Sequence[SearchTally] = ()
    ) -> bytes:
        """All of it in Prometheus' text format. engines: by the name of their model. searches: of one tenant."""
        return bytes(generate_latest(_Scrape(self._registry, engines, host, searches)))

    def ingested(self, file: FileOutcome, read_seconds: float) -> None:
        """A file of an ingestion has come to its end; 0 seconds where it was not read."""
        self.files.labels(file.state.value).inc()
        self.file_bytes.labels(file.state.value).inc(file.size_bytes)
        if read_seconds:
            self.file_seconds.observe(read_seconds)

    def finished(self, model: str, finish: Finish, first_seconds: float, whole_seconds: float) -> None:
        """An answer has come to its end, so long after the call."""
        used, timings = finish.usage, finish.timings
        self.prompt_tokens.labels(model).inc(used.input_tokens)
        self.generation_tokens.labels(model).inc(used.output_tokens)
        self.successes.labels(model, finish.reason.value).inc()
        self.whole.labels(model).observe(whole_seconds)
        self.queue.labels(model).observe(timings.queue_seconds)
        self.prefill.labels(model).observe(timings.prefill_seconds)
        self.decode.labels(model).observe(timings.decode_seconds)
        self.prompt_sizes.labels(model).observe(used.input_tokens)
        self.answer_sizes.labels(model).observe(used.output_tokens)
        if used.output_tokens > 1:
            self.per_token.labels(model).observe((whole_seconds - first_seconds) / (used.output_tokens - 1))

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"appliance_{name}", doc, ("model_name", *labels), registry=self._registry)

    def _histogram(self, name: str, doc: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"appliance_{name}", doc, ("model_name",), registry=self._registry, buckets=buckets)


class MeasuredGenerator:
    """A Generator that measures what passes through another."""

    def __init__(self, generator: Generator, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._generator, self._metrics, self._clock = generator, metrics, clock

    def chat_model(self, name: str) -> ModelFile:
        return self._generator.chat_model(name)

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        return await self._generator.tokenize(model, segments)

    async def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        """As the Generator behind it."""
        metrics, began = self._metrics, self._clock()
        first = last = 0.0
        outcome = ABORTED  # unless it comes to an end, or fails
        try:
            async with aclosing(self._generator.generate(model, generation, alias)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    now = self._clock()
                    if not last:
                        first = now
                        metrics.first_token.labels(model).observe(now - began)
                    elif isinstance(piece, Text):
                        metrics.between.labels(model).observe(now - last)
                    last = now
                    if isinstance(piece, Finish):
                        outcome = ""
                        metrics.finished(model, piece, first - began, now - began)
                    yield piece
        except ApplianceError as error:
            outcome = ""
            metrics.failures.labels(model, error.reason).inc()
            raise
        finally:
            if outcome:
                metrics.successes.labels(model, outcome).inc()


class _Scrape(CollectorRegistry):
    """What was measured, and the engines and the machine as they are now."""

    def __init__(
        self,
        measured: CollectorRegistry,
        engines: Mapping[str, EngineStats],
        host: Host | None,
        searches: Sequence[SearchTally],
    ) -> None:
        super().__init__(auto_describe=False)
        self._measured, self._engines, self._host, self._searches = measured, engines, host, searches

    def collect(self) -> Iterator[Metric]:
        yield from self._measured.collect()
        for name, (doc, read) in GAUGES.items():
            yield self._family(GaugeMetricFamily(f"appliance_{name}", doc, labels=["model_name"]), read)
        for name, (doc, read) in COUNTERS.items():
            yield self._family(CounterMetricFamily(f"appliance_{name}", doc, labels=["model_name"]), read)
        yield from self._of_searches()
        if self._host is not None:
            for name, (doc, of_host) in HOST_GAUGES.items():
                yield GaugeMetricFamily(f"appliance_{name}", doc, value=of_host(self._host))

    def _of_searches(self) -> Iterator[Metric]:
        for name, (doc, read) in SEARCH_COUNTERS.items():
            counter = CounterMetricFamily(f"appliance_{name}", doc, labels=["collection"])
            for tally in self._searches:
                counter.add_metric([tally.collection], read(tally))
            yield counter
        doc = "Mean score of the best passage of late, less what it was at first; below 0: worse."
        gauge = GaugeMetricFamily("appliance_knowledge_best_score_drift", doc, labels=["collection"])
        for tally in self._searches:
            if tally.best_score_drift is not None:
                gauge.add_metric([tally.collection], tally.best_score_drift)
        yield gauge

    def _family(
        self, family: GaugeMetricFamily | CounterMetricFamily, read: Callable[[EngineStats], float]
    ) -> GaugeMetricFamily | CounterMetricFamily:
        for model, stats in self._engines.items():
            family.add_metric([model], read(stats))
        return family


def _share(stats: EngineStats) -> float:
    return stats.pages_used / stats.pages_total if stats.pages_total else 0.0
