"""What a worker is started with: the box's options and a model become one LaunchSpec."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from appliance.infer.protocol import LaunchSpec, SelfTest
from appliance.infer.supervisor import Backoff
from appliance.types import ModelFile


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every worker is started with; see config.py. idle_seconds: when one is ended, 0 for never.

    draft_model: the name of the model that drafts for the others, '' for none.
    """

    socket_directory: Path
    context_tokens: int = 8192
    sequences: int = 8
    batch_tokens: int = 512
    queue: int = 64
    threads: int = 0
    log_level: str = "info"
    idle_seconds: float = 0.0
    self_test: SelfTest | None = None
    kv_type: str = "f16"
    host_cache_bytes: int = 0
    disk_cache_bytes: int = 0
    disk_cache_directory: Path | None = None
    disk_cache_key: bytes = field(default=b"", repr=False)
    attention: str = "auto"
    speculate_below_streams: int = 4
    draft_model: str = ""
    prefill_beside_streams: int = 0
    backoff: Backoff = field(default_factory=Backoff)


def launch_spec(file: ModelFile, context_tokens: int, options: EngineOptions) -> LaunchSpec:
    """Of one worker's one start: its socket has a new name each time, so that no worker meets another's."""
    # short, as a socket's path holds 107 bytes
    socket = options.socket_directory / f"{secrets.token_hex(8)}.sock"
    pages = options.disk_cache_directory
    return LaunchSpec(
        model_path=file.path,
        socket_path=str(socket),
        context_tokens=context_tokens,
        sequences=options.sequences,
        batch_tokens=options.batch_tokens,
        queue=options.queue,
        threads=options.threads,
        log_level=options.log_level,
        self_test=options.self_test,
        model_sha256=file.sha256,
        kv_type=options.kv_type,
        host_cache_bytes=options.host_cache_bytes,
        disk_cache_bytes=options.disk_cache_bytes,
        disk_cache_directory=str(pages / file.sha256) if pages else "",
        disk_cache_key=options.disk_cache_key.hex(),
        attention=options.attention,
        speculate_below_streams=options.speculate_below_streams,
        prefill_beside_streams=options.prefill_beside_streams,
    )
