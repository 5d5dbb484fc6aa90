"""Every option of the daemon, declared once: its key, type, default, what it does, whether a change needs a restart.

Read from `<data-dir>/appliance.toml`, then from APPLIANCE_<KEY> in the environment, then from the command line; the
last that names an option wins. The console's Settings screen and `appliance serve --help` are made from these
declarations too.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from appliance.errors import ConfigInvalid


def option(default: Any, doc: str, *, restart: bool = True, minimum: int | None = None) -> Any:
    """Declare one option. Its type is its annotation."""
    return field(default=default, metadata={"doc": doc, "restart": restart, "minimum": minimum})


def default_data_dir() -> Path:
    """/var/lib/appliance for root, else the user's data directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/appliance")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "appliance"


@dataclass(frozen=True)
class Config:
    data_dir: Path = field(default_factory=default_data_dir, metadata={"doc": "Where everything the box keeps lies."})
    listen: str = option("127.0.0.1:7431", "Address and port of the gRPC API.")
    http_listen: str = option("127.0.0.1:7432", "Address and port of OpenAI's protocol, MCP and metrics; empty: off.")
    http_call_seconds: int = option(600, "How long one HTTP call may take.", minimum=1)
    drain_seconds: int = option(10, "How long running calls may finish after SIGTERM.", minimum=0)
    inference_threads: int = option(0, "Threads of a model's worker; 0: one a core, less one reserved.", minimum=0)
    model_context_tokens: int = option(8192, "KV cells of a chat model, shared by its running sequences.", minimum=256)
    model_sequences: int = option(8, "Sequences that a model decodes at once.", minimum=1)
    model_batch_tokens: int = option(512, "Token budget of one engine step: decodes first, then prefill.", minimum=32)
    model_kv_type: str = option("f16", "How keys and values are kept: f16, or q8_0 in half the memory.")
    kv_host_cache_mib: int = option(256, "Memory for a model's idle prompt prefixes; 0: none.", minimum=0)
    kv_disk_cache_mib: int = option(2048, "Disk for a model's idle prompt prefixes, encrypted; 0: none.", minimum=0)
    model_attention: str = option(
        "auto", "auto, or stock: slower kernels, by which a token's numbers are the same whatever shares its batch."
    )
    model_speculate_below: int = option(4, "Draft tokens while no more requests than this run; 0: never.", minimum=0)
    model_draft: str = option(
        "", "Imported model that drafts for those with its very vocabulary; empty: drafts come from the prompt alone."
    )
    model_prefill_beside_streams: int = option(
        256, "Rows of prompts in a step for which running answers wait; 0: the whole token budget.", minimum=0
    )
    model_queue: int = option(64, "Requests that may wait for a model before QUEUE_FULL.", minimum=1)
    memory_reserve_mib: int = option(1024, "Memory that a model's plan leaves to the rest of the box.", minimum=0)
    model_idle_seconds: int = option(0, "Unload a model that nobody asked for so long; 0: never.", minimum=0)
    import_poll_seconds: int = option(1, "How often the import folder is looked at.", minimum=1)
    seal_passages: int = option(20_000, "Passages in the memtable before it is sealed into a segment.", minimum=16)
    seal_seconds: int = option(3600, "How long a document may lie in a log before it is sealed.", minimum=1)
    knowledge_memory_mib: int = option(
        4096, "Memory for what searches need of all collections: int8 vectors, graphs, postings.", minimum=1
    )
    search_cache_mib: int = option(256, "Decrypted text and vectors kept in memory, of all collections.", minimum=1)
    chunk_overlap_tokens: int = option(
        0, "Running text that a passage repeats of the one before it; for documents taken in from then on.", minimum=0
    )
    compact_mib_per_second: int = option(32, "What compaction writes at most in a second; 0: no limit.", minimum=0)
    parse_memory_mib: int = option(512, "Address space of a parser child.", minimum=128)
    parse_cpu_seconds: int = option(20, "Processor time of a parser child.", minimum=1)
    parse_wall_seconds: int = option(60, "Wall time of a parser child.", minimum=1)
    document_max_mib: int = option(64, "Largest file that ingest takes.", minimum=1)
    document_max_pages: int = option(5000, "Most pages of one document.", minimum=1)
    ocr_languages: str = option(
        "eng", "Languages that tesseract reads in pictures and scanned pages, as eng+deu; empty: none are read."
    )
    ocr_cpu_seconds: int = option(
        600,
        "Processor time for a document's pictures beyond parse_cpu_seconds, half of it before any text is found;"
        " pages after that are left out. No file holds its place for longer than twice that and parse_wall_seconds.",
        minimum=1,
    )
    image_max_megapixels: int = option(100, "Largest picture that is decoded.", minimum=1)
    sheet_max_cells: int = option(2_000_000, "Most cells of one workbook.", minimum=1)
    archive_max_members: int = option(10_000, "Most files in one container.", minimum=1)
    archive_max_mib: int = option(256, "What the files in one container unpack to at most.", minimum=1)
    archive_max_ratio: int = option(200, "How many times its size a container unpacks to, over all levels.", minimum=2)
    ingest_approval: str = option(
        "operator", "Whose word lets previewed files in: operator, or second: of another person than who started."
    )
    quarantine_max_mib: int = option(
        1024, "Refused files of a tenant that are kept, encrypted, to be released; the oldest go first.", minimum=0
    )
    ingestions_kept: int = option(500, "Ended ingestions of a tenant whose story is kept.", minimum=1)
    ingestions_kept_days: int = option(365, "How long the story of an ended ingestion is kept.", minimum=1)
    ingest_roots: str = option(
        "/media, /mnt, /run/media, /srv",
        "Folders that operators may take files from, with commas between; acme:/srv/acme is that tenant's alone.",
    )
    sticks_allowed: str = option(
        "listed", "Which USB sticks are let in: listed (by serial number), all, or none; images of sticks always are."
    )
    sticks_must_be_signed: str = option("no", "yes: of sticks and images only what a trusted key signed is taken.")
    stick_mount: str = option(
        "never", "File systems that the kernel may mount, read-only, to read a stick, as ext4,xfs; never: none."
    )
    source_poll_seconds: int = option(5, "How often watched folders and shares are looked at.", minimum=1)
    clamav_socket: str = option("", "Unix socket of clamd, which then scans every file before it is read; empty: none.")
    quote_only_tenants: str = option(
        "", "Tenants whose answers only quote their documents, with commas between; *: all of them."
    )
    answer_cache_mib: int = option(32, "Memory for answers given again while nothing changed; 0: off.", minimum=0)
    log_level: str = option("info", "debug, info, warning or error.", restart=False)

    def __post_init__(self) -> None:
        for item in fields(self):
            minimum = item.metadata.get("minimum")
            if minimum is not None and getattr(self, item.name) < minimum:
                raise ConfigInvalid(f"{item.name}: must be at least {minimum}.")
        for name, address in (("listen", self.listen), ("http_listen", self.http_listen)):
            host, _, port = address.rpartition(":")
            off = name == "http_listen" and not address
            if not off and (not host or not port.isdigit() or int(port) > 65535):
                raise ConfigInvalid(f"{name}: must be host:port, such as 127.0.0.1:7431.")
        if self.model_batch_tokens < self.model_sequences:
            raise ConfigInvalid(
                f"model_batch_tokens: must be at least model_sequences, {self.model_sequences}:"
                " a step gives each a token."
            )
        if self.model_kv_type not in ("f16", "q8_0"):
            raise ConfigInvalid("model_kv_type: must be f16 or q8_0.")
        if self.model_attention not in ("auto", "stock"):
            raise ConfigInvalid("model_attention: must be auto or stock.")
        if self.model_draft.startswith("models/"):
            raise ConfigInvalid("model_draft: must be a model's name without models/ before it.")
        if not re.fullmatch(r"(?:[A-Za-z_]{3,20}(?:\+[A-Za-z_]{3,20})*)?", self.ocr_languages):
            raise ConfigInvalid(
                "ocr_languages: must be names of tesseract's languages with + between, such as eng+deu."
            )
        if self.ingest_approval not in ("operator", "second"):
            raise ConfigInvalid("ingest_approval: must be operator or second.")
        self.roots()  # refuses what is none
        if self.sticks_allowed not in ("listed", "all", "none"):
            raise ConfigInvalid("sticks_allowed: must be listed, all or none.")
        if self.sticks_must_be_signed not in ("yes", "no"):
            raise ConfigInvalid("sticks_must_be_signed: must be yes or no.")
        if not re.fullmatch(r"never|[a-z0-9]+(?:, *[a-z0-9]+)*", self.stick_mount):
            raise ConfigInvalid("stick_mount: must be never, or file systems with commas between, such as ext4,xfs.")
        if self.clamav_socket and not self.clamav_socket.startswith("/"):
            raise ConfigInvalid("clamav_socket: must be an absolute path.")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigInvalid("log_level: must be debug, info, warning or error.")

    def roots(self) -> tuple[tuple[str, Path], ...]:
        """Folders that files may be taken from, each after the tenant whose alone it is, '' for everyone's.

        Raises ConfigInvalid.
        """
        entries = (entry.strip() for entry in self.ingest_roots.split(","))
        return tuple(_root(entry) for entry in entries if entry)

    def mountable(self) -> tuple[str, ...]:
        """File systems that the kernel may mount to read a stick."""
        return () if self.stick_mount == "never" else tuple(re.split(", *", self.stick_mount))

    def quotes_only(self, tenant: str) -> bool:
        """Whether answers to this tenant must be sentences of its documents."""
        named = {name.strip() for name in self.quote_only_tenants.split(",")} - {""}
        return tenant in named or "*" in named


def _root(entry: str) -> tuple[str, Path]:
    match = re.fullmatch(r"(?:([a-z0-9][a-z0-9-]{0,62}):)?/+(.*)", entry, re.ASCII | re.DOTALL)
    folder = os.path.normpath(f"/{match[2]}") if match else "/"
    if match is None or re.match(r"/(?:proc|sys)?(?:/|$)", folder):
        raise ConfigInvalid(
            f"ingest_roots: {entry} must be an absolute folder, such as /srv, or acme:/srv/acme;"
            " not / itself, and none in /proc or /sys."
        )
    return match[1] or "", Path(folder)


def load(given: Mapping[str, str], environ: Mapping[str, str]) -> Config:
    """The configuration from the file in the data directory, the environment and `given` (the command line).

    Raises ConfigInvalid, naming the file or the option.
    """
    names = {item.name for item in fields(Config)}
    named = {name: environ[f"APPLIANCE_{name.upper()}"] for name in names if f"APPLIANCE_{name.upper()}" in environ}
    values: dict[str, Any] = named | dict(given)
    data_dir = Path(values.get("data_dir", default_data_dir())).expanduser().absolute()
    values = _read_file(data_dir / "appliance.toml") | values | {"data_dir": data_dir}
    if unknown := sorted(values.keys() - names):
        raise ConfigInvalid(f"{unknown[0]}: there is no such option.")
    return Config(**{name: _convert(name, value) for name, value in values.items()})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: {error}.") from None


def _convert(name: str, value: Any) -> Any:
    kind = next(item.type for item in fields(Config) if item.name == name)
    if kind is int:
        try:
            return int(str(value))  # by way of text: TOML's true and 1.5 are no whole numbers
        except ValueError:
            raise ConfigInvalid(f"{name}: must be a whole number, not {value!r}.") from None
    if not isinstance(value, kind):  # type: ignore[arg-type]
        raise ConfigInvalid(f"{name}: must be text, not {value!r}.")
    return value
