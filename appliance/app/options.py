"""What each part is told of the box's options."""

import os
from pathlib import Path

from appliance.config import Config
from appliance.health import host
from appliance.infer.encoders import EncoderOptions
from appliance.infer.launch import EngineOptions
from appliance.infer.protocol import SelfTest
from appliance.infer.router import Admit
from appliance.infer.scheduler import output_rows
from appliance.ingest.caps import Caps
from appliance.ingest.formats import FORMATS
from appliance.knowledge.libraries import Bounds
from appliance.models import plan, starter
from appliance.types import MemoryPlan, ModelFile, Origin, Segment
from appliance.vault import cache_key


def caps(config: Config) -> Caps:
    return Caps(
        pages=config.document_max_pages,
        members=config.archive_max_members,
        member_bytes=config.archive_max_mib << 20,
        ratio=config.archive_max_ratio,
        pixels=config.image_max_megapixels * 1_000_000,
        cells=config.sheet_max_cells,
        languages=config.ocr_languages,
        ocr_cpu_seconds=config.ocr_cpu_seconds,
    )


def ocr_seconds(config: Config) -> dict[str, int]:
    """What files that may be recognised have beyond `parse_cpu_seconds`, by suffix."""
    return {suffix: config.ocr_cpu_seconds for suffix, form in FORMATS.items() if form.module in ("pdf", "image")}


def knowledge_bounds(config: Config) -> Bounds:
    return Bounds(
        hot_bytes=config.knowledge_memory_mib << 20,
        cache_bytes=config.search_cache_mib << 20,
        seal_passages=config.seal_passages,
        seal_seconds=config.seal_seconds,
        background_bytes_per_second=config.compact_mib_per_second << 20,
        overlap_tokens=config.chunk_overlap_tokens,
    )


def engine_options(config: Config, sockets: Path, caches: bytes) -> EngineOptions:
    test = starter.SELF_TEST
    prompt = tuple(Segment(Origin.SCAFFOLD if control else Origin.RETRIEVED, text) for text, control in test.prompt)
    return EngineOptions(
        socket_directory=sockets,
        context_tokens=config.model_context_tokens,
        sequences=config.model_sequences,
        batch_tokens=config.model_batch_tokens,
        queue=config.model_queue,
        threads=config.inference_threads,
        log_level=config.log_level,
        idle_seconds=config.model_idle_seconds,
        self_test=SelfTest(str(starter.path()), prompt, test.labels, test.expected),
        kv_type=config.model_kv_type,
        host_cache_bytes=config.kv_host_cache_mib << 20,
        disk_cache_bytes=config.kv_disk_cache_mib << 20,
        disk_cache_directory=config.data_dir / "cache" / "kv",
        disk_cache_key=cache_key.derive(caches, "prefixes on disk"),
        attention=config.model_attention,
        speculate_below_streams=config.model_speculate_below,
        draft_model=config.model_draft,
        prefill_beside_streams=config.model_prefill_beside_streams,
    )


def encoder_options(config: Config) -> EncoderOptions:
    return EncoderOptions(threads=threads(config), queue=config.model_queue, idle_seconds=config.model_idle_seconds)


def admission(config: Config) -> Admit:
    """The memory plan against what is available now and what loaded models were promised, whichever leaves less.

    A model that still loads has not taken its memory yet, and mapped weights count as available.
    """

    engine = plan.Engine(
        batch_tokens=config.model_batch_tokens,
        output_rows=output_rows(config.model_sequences, config.model_batch_tokens),
        kv_type=config.model_kv_type,
        host_cache_bytes=config.kv_host_cache_mib << 20,
    )

    def admit(
        file: ModelFile, context_tokens: int, loaded_bytes: int, freed_bytes: int = 0, draft: ModelFile | None = None
    ) -> MemoryPlan:
        now = host.sample(config.data_dir)
        return plan.admit(
            file,
            context_tokens,
            available_bytes=min(now.memory_available_bytes + freed_bytes, now.memory_total_bytes - loaded_bytes),
            total_bytes=now.memory_total_bytes,
            reserve_bytes=config.memory_reserve_mib << 20,
            engine=engine,
            draft=draft,
        )

    return admit


def free_bytes(config: Config) -> int:
    return host.sample(config.data_dir).memory_available_bytes - (config.memory_reserve_mib << 20)


def threads(config: Config) -> int:
    return config.inference_threads or max(1, len(os.sched_getaffinity(0)) - 1)
