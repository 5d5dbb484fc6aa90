"""What can go wrong, and what to do about it.

ApplianceError
├── Refused                  the request is wrong; trying again will not help
│   ├── InvalidArgument      a field of the request, named
│   ├── NotFound
│   ├── AlreadyExists
│   ├── RequestTooLarge      more bytes than a call may have
│   │   └── UploadTooLarge    a file of more bytes than a document may have
│   ├── Unauthenticated      no certificate, or one of another authority
│   │   └── KeyRefused       no app key, or one that is unknown, expired or revoked
│   ├── Forbidden
│   │   ├── QuoteOnly        generate, and the tenant's answers may only quote
│   │   └── SecondPerson      who started an ingestion may not approve it too
│   ├── DeadlineRequired
│   ├── PromptTooLong
│   ├── NoChatModel          chat or generate, and no chat model is imported
│   ├── ModelMissing         a model file that is not where it should be
│   ├── ModelDamaged         truncated, hostile, or not what its hash says
│   ├── ModelUnsupported     sound, but not for this engine
│   ├── ModelTooLarge        larger than the memory of this box
│   ├── ModelInUse           adapters or aliases need it
│   ├── AdapterMismatch      made for another base model
│   ├── DocumentRefused      one file; its reason is its own (`PDF_ENCRYPTED`)
│   ├── SomeRefused          an ingestion that is done, but for some of its files
│   │   └── LeftOut           what lies in a folder that is sent, and cannot be sent
│   ├── NotKept              a refused file whose bytes the box has no more
│   ├── WrongState           an ingestion that waits, works or has ended, where it must not
│   ├── SourceRefused        a stick that is not allowed or may not be mounted, a path outside `ingest_roots`
│   ├── SigningRefused       a folder that holds what no manifest can list
│   ├── PassphraseWrong      it does not open the file
│   ├── ArchiveRefused       an exported file that is damaged, cut short or none
│   ├── BackupRefused        a backup's folder that is not what this box wrote
│   ├── EmbedderChanged      a collection's vectors are of another embedder
│   ├── ConfigInvalid
│   ├── PortInUse
│   └── DataDirectoryInUse   a second daemon
├── Busy                     trying again will help; carries retry_after_seconds
│   ├── QueueFull
│   ├── Draining
│   ├── ModelRestarting
│   └── MemoryInUse          running answers hold what the model needs
├── Cancelled
│   └── NotApproved          nobody said yes to a preview: it waits
└── Broken                   we are wrong, or the hardware is
    ├── Unreachable          no daemon answers
    ├── DeadlineExceeded
    ├── WorkerDied
    ├── SelfTestFailed
    ├── SandboxUnavailable   nothing is parsed until it is mended
    ├── ScannerUnavailable   the virus scanner that is configured does not answer
    ├── SourceGone           a stick was pulled, a share does not answer
    ├── DiskFull
    ├── KeyUnavailable       the key slot is missing or wrong
    └── StoreDamaged         a file of the knowledge base is not what was written

A class carries what every surface needs: `reason` (stable for ever), the gRPC `code`, a `remedy`, `retryable`, and the
CLI's `exit_code`. 1 broken, 2 usage, 3 refused, 4 not found, 5 not allowed, 6 busy, 7 damaged, 8 done but for some
files, 130 cancelled.
"""

from typing import ClassVar

from grpc import StatusCode

MAX_MESSAGE_CHARACTERS = 1000  # gRPC drops an error whose metadata passes 8 KiB


class ApplianceError(Exception):
    """An error that a caller is told about. `str(error)` is one or two plain sentences without secrets or content."""

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    remedy: ClassVar[str] = "Look at the daemon's log; if it happens again, report it with the log."
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1
    names_files: ClassVar[bool] = False  # of the box: the words are for those who run it

    def told(self, runs_the_box: bool) -> tuple[str, str]:
        """Message and remedy for a caller; one who does not run the box learns nothing of its files."""
        if self.names_files and not runs_the_box:
            return f"The box cannot do this now: {self.reason}.", "Ask who runs the box."
        return str(self)[:MAX_MESSAGE_CHARACTERS], self.remedy


class Refused(ApplianceError):
    reason = "REFUSED"
    code = StatusCode.INVALID_ARGUMENT
    remedy = "Correct the request."
    exit_code = 3


class InvalidArgument(Refused):
    reason = "INVALID_ARGUMENT"
    remedy = "Correct the named field."
    field = ""

    @classmethod
    def of(cls, field: str, problem: str) -> "InvalidArgument":
        """The error for one field of a request: 'limit: must be between 1 and 100.'"""
        error = cls(f"{field}: {problem}")
        error.field = field
        return error


class RequestTooLarge(Refused):
    reason = "REQUEST_TOO_LARGE"
    remedy = "Send less in one call."


class UploadTooLarge(RequestTooLarge):
    reason = "UPLOAD_TOO_LARGE"
    remedy = "Split the file, or have who runs the box raise the option `document_max_mib`."

    @classmethod
    def of(cls, max_bytes: int) -> "UploadTooLarge":
        return cls(f"A file may have at most {max_bytes >> 20} MiB here (option `document_max_mib`).")


class NotFound(Refused):
    reason = "NOT_FOUND"
    code = StatusCode.NOT_FOUND
    remedy = "List what there is, and check the name."
    exit_code = 4


class AlreadyExists(Refused):
    reason = "ALREADY_EXISTS"
    code = StatusCode.ALREADY_EXISTS
    remedy = "Choose another name, or delete the present one first."


class Unauthenticated(Refused):
    reason = "UNAUTHENTICATED"
    code = StatusCode.UNAUTHENTICATED
    remedy = "Connect with a client certificate of this box's authority."
    exit_code = 5


class KeyRefused(Unauthenticated):
    reason = "KEY_REFUSED"
    remedy = "Send `Authorization: Bearer KEY`; an administrator makes a key with `appliance apps create`."


class Forbidden(Refused):
    reason = "FORBIDDEN"
    code = StatusCode.PERMISSION_DENIED
    remedy = "Ask an administrator for a certificate with the role that this needs."
    exit_code = 5


class QuoteOnly(Forbidden):
    reason = "QUOTE_ONLY"
    remedy = "Ask in quote mode, or have the tenant taken out of the option `quote_only_tenants`."


class SecondPerson(Forbidden):
    reason = "SECOND_PERSON"
    remedy = "Have another operator approve it: `appliance ingest start INGESTION` (option `ingest_approval`)."


class DeadlineRequired(Refused):
    reason = "DEADLINE_REQUIRED"
    remedy = "Set a deadline on the call (`timeout=` in Python)."


class PromptTooLong(Refused):
    reason = "PROMPT_TOO_LONG"
    remedy = "Shorten the prompt, ask for fewer tokens, or load the model with a longer context."


class NoChatModel(Refused):
    reason = "NO_CHAT_MODEL"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Drop a GGUF chat model into the import folder, or ask in quote mode."


class ModelMissing(Refused):
    reason = "MODEL_MISSING"
    names_files = True
    code = StatusCode.NOT_FOUND
    remedy = "Check the path; import the model again."
    exit_code = 4


class ModelDamaged(Refused):
    reason = "MODEL_DAMAGED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Copy the file again from its publisher and compare its sha256."


class ModelUnsupported(Refused):
    reason = "MODEL_UNSUPPORTED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Import a GGUF of an architecture that this engine's llama.cpp knows."


class ModelTooLarge(Refused):
    reason = "MODEL_TOO_LARGE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Unload another model, choose a smaller quantization, or shorten `model_context_tokens`."


class ModelInUse(Refused):
    reason = "MODEL_IN_USE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Delete or change what uses it first."


class AdapterMismatch(Refused):
    reason = "ADAPTER_MISMATCH"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Import the model that the adapter was trained on, and name it as the base (`--base MODEL`)."


class DocumentRefused(Refused):
    """One document that was not taken. `file_reason` is stable, such as PDF_ENCRYPTED or NOT_UTF8."""

    reason = "DOCUMENT_REFUSED"
    remedy = "See the file's reason and remedy: `appliance ingest show INGESTION`."

    def __init__(self, file_reason: str, message: str) -> None:
        super().__init__(message)
        self.file_reason = file_reason


class SomeRefused(Refused):
    reason = "SOME_REFUSED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "See each file's reason and remedy: `appliance ingest show INGESTION`."
    exit_code = 8


class LeftOut(SomeRefused):
    reason = "LEFT_OUT"
    remedy = "Each is named above: send what a link stands for by a path of its own."


class NotKept(Refused):
    reason = "NOT_KEPT"
    code = StatusCode.FAILED_PRECONDITION
    remedy = (
        "Release its newest refusal (`appliance ingest quarantine list`) if that has them; else bring the file again."
    )


class WrongState(Refused):
    reason = "WRONG_STATE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "See how it stands: `appliance ingest list`."


class SourceRefused(Refused):
    reason = "SOURCE_REFUSED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Do as it says, or have an administrator allow it: `appliance ingest sources list` says what it lacks."


class SigningRefused(Refused):
    reason = "SIGNING_REFUSED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Put a file that can be read in its place, or remove it, and sign the folder again."


class PassphraseWrong(Refused):
    reason = "PASSPHRASE_WRONG"
    remedy = "Type the passphrase that the file was exported with; there is no other way into it."


class ArchiveRefused(Refused):
    reason = "ARCHIVE_REFUSED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Copy the file again from where it was exported, or export the collection again."


class BackupRefused(Refused):
    reason = "BACKUP_REFUSED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "A backup opens whole, on the box that made it, while its keys live, in place of what is gone or damaged."


class EmbedderChanged(Refused):
    reason = "EMBEDDER_CHANGED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Put the collection's embedder back, or make its vectors anew: `appliance knowledge reembed`."


class ConfigInvalid(Refused):
    reason = "CONFIG_INVALID"
    remedy = "Correct the named option; `appliance serve --help` lists them."


class PortInUse(Refused):
    reason = "PORT_IN_USE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Stop what listens there, or choose another address with --listen."


class DataDirectoryInUse(Refused):
    reason = "DATA_DIRECTORY_IN_USE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Use the running daemon, stop it, or choose another --data-dir."


class Busy(ApplianceError):
    """Trying again will help, after `retry_after_seconds`."""

    reason = "BUSY"
    code = StatusCode.UNAVAILABLE
    remedy = "Try again shortly."
    retryable = True
    exit_code = 6

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Busy):
    reason = "QUEUE_FULL"
    code = StatusCode.RESOURCE_EXHAUSTED


class Draining(Busy):
    reason = "DRAINING"
    remedy = "The daemon is stopping; call again when it is back, or call another box."


class ModelRestarting(Busy):
    reason = "MODEL_RESTARTING"


class MemoryInUse(Busy):
    reason = "MEMORY_IN_USE"
    code = StatusCode.RESOURCE_EXHAUSTED
    remedy = "Try again when running answers have ended, or unload another model."


class Cancelled(ApplianceError):
    reason = "CANCELLED"
    code = StatusCode.CANCELLED
    remedy = "Nothing to do: it was cancelled."
    exit_code = 130


class NotApproved(Cancelled):
    reason = "NOT_APPROVED"
    remedy = (
        "Take it in or drop it, with the commands above; a preview that nobody approves goes by itself after 7 days."
    )


class Broken(ApplianceError):
    reason = "BROKEN"


class Unreachable(Broken):
    reason = "UNREACHABLE"
    code = StatusCode.UNAVAILABLE
    remedy = "Start the daemon with `appliance serve`, or check --address and --data-dir."
    retryable = True
    exit_code = 6


class DeadlineExceeded(Broken):
    reason = "DEADLINE_EXCEEDED"
    code = StatusCode.DEADLINE_EXCEEDED
    remedy = "Allow more time, or ask for less."
    retryable = True
    exit_code = 6


class WorkerDied(Broken):
    reason = "WORKER_DIED"
    code = StatusCode.UNAVAILABLE
    remedy = "Call again: the model is restarted by itself."
    retryable = True
    exit_code = 6


class SelfTestFailed(Broken):
    reason = "SELF_TEST_FAILED"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Reinstall the engine; if it stays, this machine computes wrongly and must not serve."


class SandboxUnavailable(Broken):
    reason = "SANDBOX_UNAVAILABLE"
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Run a kernel with Landlock and seccomp enabled (lsm=landlock,…); nothing is parsed without them."


class ScannerUnavailable(Broken):
    reason = "SCANNER_UNAVAILABLE"
    code = StatusCode.UNAVAILABLE
    remedy = "Start clamd, or correct the option `clamav_socket`; nothing is taken in unscanned."
    retryable = True
    exit_code = 6


class SourceGone(Broken):
    reason = "SOURCE_GONE"
    names_files = True
    code = StatusCode.UNAVAILABLE
    remedy = "Plug it in again, or have the share answer again, then resume: what was taken is kept."
    retryable = True
    exit_code = 6


class DiskFull(Broken):
    reason = "DISK_FULL"
    names_files = True
    code = StatusCode.RESOURCE_EXHAUSTED
    remedy = "Free space on the disk of the named file, then try again: what was acknowledged is kept."


class KeyUnavailable(Broken):
    reason = "KEY_UNAVAILABLE"
    names_files = True
    code = StatusCode.FAILED_PRECONDITION
    remedy = "Restore the key slot from its backup; without it the data cannot be read."
    exit_code = 7


class StoreDamaged(Broken):
    reason = "STORE_DAMAGED"
    names_files = True
    code = StatusCode.DATA_LOSS
    remedy = "Restore the named file from a peer or a backup, then start again."
    exit_code = 7


def by_reason() -> dict[str, type[ApplianceError]]:
    """Every class of the tree by its reason: how a client turns ErrorInfo back into an error."""
    found: dict[str, type[ApplianceError]] = {}
    todo: list[type[ApplianceError]] = [ApplianceError]
    while todo:
        cls = todo.pop()
        found[cls.reason] = cls
        todo += cls.__subclasses__()
    return found
