"""The one catalogue of what an administrator may have to know.

The console, the CLI, the metrics and the runbooks read these lines. A code is stable for ever. `{subject}` in a title
is what it is about, such as models/qwen3-14b-q4; the evidence of the moment is the finding's detail.
"""

from dataclasses import dataclass

from appliance.types import Severity


@dataclass(frozen=True, slots=True)
class Declared:
    """One kind of finding. It is shown once it has lasted `visible_after_seconds`: what mends itself is no news.

    of_others: what stands for a subject of one tenant where another is told.
    """

    code: str
    severity: Severity
    title: str
    remedy: str
    impacts_serving: bool = False
    visible_after_seconds: float = 0.0
    of_others: str = "Something of another tenant"


SANDBOX_UNAVAILABLE = Declared(
    code="SANDBOX_UNAVAILABLE",
    severity=Severity.CRITICAL,
    title="Documents cannot be parsed safely, so none are",
    remedy="Run a kernel with Landlock and seccomp enabled (lsm=landlock,…), then restart the daemon.",
)
SANDBOX_WEAKENED = Declared(
    code="SANDBOX_WEAKENED",
    severity=Severity.WARNING,
    title="Documents are parsed with a wall less around them",
    remedy="Let the daemon's user make namespaces (`sysctl user.max_user_namespaces`; AppArmor may forbid it, too).",
)
MODEL_RESTARTING = Declared(
    code="MODEL_RESTARTING",
    severity=Severity.WARNING,
    title="{subject} is being started again",
    remedy="Nothing to do if it comes back; if it happens again and again, look at the daemon's log.",
    impacts_serving=True,
    visible_after_seconds=5.0,
)
MODEL_FAILED = Declared(
    code="MODEL_FAILED",
    severity=Severity.CRITICAL,
    title="{subject} does not run and is not tried again",
    remedy="Look at the daemon's log, then load the model again; if it fails again, import it again.",
    impacts_serving=True,
)
SELF_TEST_FAILED = Declared(
    code="SELF_TEST_FAILED",
    severity=Severity.CRITICAL,
    title="The engine's power-on self-test gave a wrong answer",
    remedy="Reinstall the engine; if it stays, this machine computes wrongly and must not serve.",
    impacts_serving=True,
)
STORE_DAMAGED = Declared(
    code="STORE_DAMAGED",
    severity=Severity.CRITICAL,
    title="{subject} is damaged on disk and is not opened",
    remedy="Restore the named file from a peer or a backup, then start again.",
    impacts_serving=True,
    of_others="A collection of another tenant",
)
DISK_ALMOST_FULL = Declared(
    code="DISK_ALMOST_FULL",
    severity=Severity.WARNING,
    title="The disk of {subject} is almost full",
    remedy="Free space, or move the data directory to a larger disk; ingest stops when it is full.",
    visible_after_seconds=10.0,
)
MEMORY_LOW = Declared(
    code="MEMORY_LOW",
    severity=Severity.WARNING,
    title="Little memory is left",
    remedy="Unload a model, or shorten `model_context_tokens`; the kernel may end a model's worker.",
    impacts_serving=True,
    visible_after_seconds=10.0,
)
MODEL_REFUSED = Declared(
    code="MODEL_REFUSED",
    severity=Severity.WARNING,
    title="{subject} was not taken in",
    remedy="Read why; drop a sound file of the same name into the import folder, or remove the refused one.",
)
CANARY_DEMOTED = Declared(
    code="CANARY_DEMOTED",
    severity=Severity.WARNING,
    title="{subject} sends nothing more to a model that failed too often",
    remedy="Promote the stable model (`appliance models alias promote NAME MODEL`), or set the targets anew.",
)
ATTENTION_STOCK = Declared(
    code="ATTENTION_STOCK",
    severity=Severity.WARNING,
    title="{subject} runs without paged attention, and so more slowly",
    remedy='Reinstall this release; if these kernels are wanted, set `model_attention = "stock"`.',
    visible_after_seconds=5.0,
)
KV_DISK_FAILING = Declared(
    code="KV_DISK_FAILING",
    severity=Severity.WARNING,
    title="{subject} keeps no idle prefixes on disk",
    remedy="Free space or mend the disk of the data directory, or set `kv_disk_cache_mib = 0`; answers are as before.",
    visible_after_seconds=10.0,
)
OCR_UNAVAILABLE = Declared(
    code="OCR_UNAVAILABLE",
    severity=Severity.WARNING,
    title="Pictures and scanned pages are not read",
    remedy="Install tesseract and its languages and restart the daemon, or set `ocr_languages` to what is installed.",
)
INGEST_WAITING = Declared(
    code="INGEST_WAITING",
    severity=Severity.WARNING,
    title="{subject} waits for somebody to approve it",
    remedy=(
        "Look at it (`appliance ingest show ID`), then approve it (`appliance ingest start ID`) or drop it"
        " (`appliance ingest cancel ID`); a preview that nobody approves is dropped after 7 days."
    ),
    visible_after_seconds=600.0,
    of_others="An ingestion of another tenant",
)
INGEST_INTERRUPTED = Declared(
    code="INGEST_INTERRUPTED",
    severity=Severity.WARNING,
    title="{subject} stopped before its end",
    remedy=(
        "Plug its source in again, or mend what the detail names and resume it (`appliance ingest resume ID`); what was"
        " taken is kept."
    ),
    of_others="An ingestion of another tenant",
)
SOURCE_NOT_WATCHED = Declared(
    code="SOURCE_NOT_WATCHED",
    severity=Severity.WARNING,
    title="Nothing is taken from {subject}, though it is watched",
    remedy="Do what the detail says, or watch it no more (`appliance ingest sources unwatch`).",
    visible_after_seconds=10.0,
    of_others="A watched place of another tenant",
)
SCANNER_UNAVAILABLE = Declared(
    code="SCANNER_UNAVAILABLE",
    severity=Severity.WARNING,
    title="The virus scanner does not answer, so no document is taken in",
    remedy="Start clamd, or correct the option `clamav_socket`; then resume what stopped.",
)

CATALOGUE = {
    declared.code: declared
    for declared in (
        SANDBOX_UNAVAILABLE,
        SANDBOX_WEAKENED,
        MODEL_RESTARTING,
        MODEL_FAILED,
        SELF_TEST_FAILED,
        STORE_DAMAGED,
        DISK_ALMOST_FULL,
        MEMORY_LOW,
        MODEL_REFUSED,
        CANARY_DEMOTED,
        ATTENTION_STOCK,
        KV_DISK_FAILING,
        INGEST_WAITING,
        INGEST_INTERRUPTED,
        SOURCE_NOT_WATCHED,
        SCANNER_UNAVAILABLE,
        OCR_UNAVAILABLE,
    )
}
