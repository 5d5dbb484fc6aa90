"""What the parts ask of one another. Each protocol states a contract; `app/` chooses who fulfils it.

Embedder     texts to unit vectors                 infer/onnx.py
Generator    prompts to streams, by model name     infer/router.py
Composer     messages and passages to a prompt     tenancy/compose.py
ModelFiles   verified model files on disk          models/store.py
Aliases      names that lead to models by weight   models/aliases.py
Encoders     imported embedders and rerankers      infer/encoders.py
Quantizer    a model in fewer bits                 infer/quantizer.py
Cipher       authenticated encryption              vault/envelope.py
Keyring      wraps keys, signs manifests           vault/keyring.py
TenantKeys   each tenant's key, by epoch           vault/tenants.py
Libraries    each tenant's knowledge base          knowledge/libraries.py
Library      one of them                           knowledge/library.py
Retriever    search in pages, reranked             knowledge/search/retrieve.py
Extractor    one untrusted file to text            sandbox/extractor.py
Volumes      file systems of sticks, unmounted     sandbox/volumes.py
Scanner      what a virus scanner says of a file   ingest/clamav.py
SignedJson   a small file that only this box wrote access/signed.py
Jobs         the one runner of long work           jobs.py
Progress     what a job tells of itself            jobs.py
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.errors import DocumentRefused, StoreDamaged
from appliance.types import (
    Collection,
    Document,
    Encoded,
    Entry,
    Extracted,
    Finish,
    Floats,
    Found,
    Generation,
    Ints,
    Job,
    Message,
    ModelFile,
    NewDocument,
    Passage,
    PassphraseCost,
    Principal,
    Ranking,
    SearchOptions,
    Segment,
    ShredProof,
    Span,
    Tally,
    Text,
    Tool,
    Turn,
)

Buffer = bytes | bytearray | memoryview
Count = Callable[[str, Tally], None]


class Embedder(Protocol):
    """Texts to unit vectors. Safe to call from many threads; a text's vector never depends on its batch mates."""

    @property
    def identity(self) -> str:
        """sha256 over model and tokenizer: vectors of another identity must not be compared with these."""

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text `embed` sees, those that frame it not counted."""

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32 [len(texts), dimension], unit norm. Text past `max_tokens` is not seen."""

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that `embed` would read, for usage."""

    def token_ends(self, texts: Sequence[str]) -> Sequence[Ints]:
        """Where each token ends, in code points of its text, ascending: int64 [tokens] a text, however long it is.

        Tokens that frame a text are not among them. Linear in time, in memory 8 bytes a token.
        """


class Generator(Protocol):
    """Streams from models by name; loads on demand. '' names the default chat model."""

    def chat_model(self, name: str) -> ModelFile:
        """The chat model of that name, '' for the default. Raises NotFound, NoChatModel."""

    def generate(self, model: str, generation: Generation, alias: str = "") -> AsyncIterator[Text | Finish]:
        """Zero or more Text, then one Finish. Closing the iterator frees the sequence.

        alias: the name that was asked for, where `chat_model` resolved it: outcomes are counted for it, too.
        Raises NotFound, NoChatModel, PromptTooLong, QueueFull, ModelRestarting, ModelTooLarge, WorkerDied.
        """

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        """Token ids as the model reads them. Raises as `generate`."""


class Composer(Protocol):
    """Prompts as segments tagged by origin, in the scaffold of a model's family. Pure."""

    def chat(self, scaffold: str, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Segment, ...]:
        """A conversation that the assistant is to go on with. Raises InvalidArgument naming the message."""

    def ask(self, scaffold: str, question: str, passages: Sequence[Passage]) -> tuple[Segment, ...]:
        """Numbered passages, marked as retrieved, then the question."""

    def rewrite(self, scaffold: str, question: str, history: Sequence[Turn], others: int) -> tuple[Segment, ...]:
        """What asks for the question as it reads without the conversation before it, in a line; then for up to `others`
        questions that search for the same in other words, or for a part of it, a line each."""


class ModelFiles(Protocol):
    """Verified model files, content-addressed."""

    def list(self) -> tuple[ModelFile, ...]: ...

    def get(self, name: str) -> ModelFile:
        """Raises NotFound."""

    def verify(self, file: ModelFile) -> None:
        """Hash the file again. Raises ModelMissing, ModelDamaged."""

    def pinned(self, name: str) -> bool:
        """Whether a model must stay loaded once it is, whatever else needs the memory."""


class Aliases(Protocol):
    """Names that lead to models by weight, and what became of their requests. Belongs to one event loop."""

    def choose(self, name: str) -> str:
        """The model to ask this time, '' where there is no such alias."""

    def shadows(self, name: str) -> tuple[str, ...]:
        """Models that are asked too, for their tallies alone."""

    def counter(self, name: str) -> Count:
        """Where the outcomes of a request that begins now are counted, by model; it may take weight from a target that
        fails too often. It counts nothing once the targets were set anew, nor where there is no such alias."""


class Encoders(Protocol):
    """Imported embedders and rerankers by name; loads on demand. Belongs to one event loop.

    What is too long for a model is cut. The first two raise NotFound, QueueFull, ModelRestarting, ModelTooLarge,
    ModelMissing, ModelDamaged, ModelUnsupported, SandboxUnavailable, DeadlineExceeded, WorkerDied.
    """

    async def embed(self, model: str, texts: Sequence[str]) -> Encoded:
        """Unit vectors [len(texts), dimension]."""

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> Encoded:
        """Scores [len(texts), 1]: how well each text answers the query, higher is better, for this query only."""

    def check_reranker(self, model: str) -> None:
        """Raises NotFound where `rerank` knows none of that name."""


class Quantizer(Protocol):
    """Rewrites a model's weights in fewer bits, in a process of its own."""

    async def quantize(self, source: Path, target: Path, storage: str, report: Callable[[int, int], None]) -> None:
        """Write `target` anew. storage: such as Q8_0. report: tensors done and in all. Cancelling ends the process.

        Raises ModelDamaged, DiskFull, WorkerDied.
        """


class Cipher(Protocol):
    """Authenticated encryption under one key; 12-byte nonces, never used twice, and a 16-byte tag at the end."""

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes: ...

    def open(self, nonce: bytes, ciphertext: Buffer, aad: bytes) -> bytes:
        """Raises StoreDamaged where ciphertext, nonce or aad is not what was sealed."""


class Keyring(Protocol):
    """Keys that never leave the process unwrapped."""

    def new_key(self) -> bytes:
        """32 random bytes."""

    def wrap(self, key: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """Wrap a key under another, by default the root key; `context` is bound and needed again to unwrap."""

    def unwrap(self, wrapped: bytes, context: bytes, under: bytes | None = None) -> bytes:
        """Raises StoreDamaged where it is not what was wrapped, for that context, under that key."""

    def cipher(self, key: bytes) -> Cipher: ...

    def stretch(self, passphrase: str, salt: bytes, cost: PassphraseCost) -> bytes:
        """64 bytes that follow from a passphrase, slowly. Raises InvalidArgument for a cost past all sense, Busy."""

    def sign(self, message: bytes) -> bytes:
        """Ed25519, 64 bytes."""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises StoreDamaged where this box's key did not sign that message."""


class TenantKeys(Protocol):
    """Each tenant's keys by epoch, a number that rises with each rotation. What they wrap says under which epoch.

    Safe to use from many threads, but for two that change one tenant's.
    """

    def epochs(self, tenant: str) -> tuple[int, ...]:
        """Those whose keys are there, ascending: one, or two while a rotation is under way; none before the first."""

    def get(self, tenant: str, epoch: int) -> bytes:
        """32 bytes. Raises KeyUnavailable, naming the file."""

    def add(self, tenant: str) -> int:
        """A new key, durable on return; its epoch is the highest. Raises DiskFull, KeyUnavailable."""

    def destroy(self, tenant: str, epoch: int) -> None:
        """Overwritten and unlinked on return; may be called again. Raises DiskFull, KeyUnavailable."""


class Libraries(Protocol):
    """The knowledge bases of all tenants: apart on disk, apart by key. Safe to use from many threads."""

    def of(self, tenant: str) -> "Library":
        """That tenant's, which may hold nothing yet. Collections of another tenant do not exist in it."""


class Library(Protocol):
    """One tenant's knowledge base. Safe to call from many threads; every call may block on the disk.

    `groups` are the caller's principals and groups: documents whose readers share none with them do not exist for the
    call, in no leg, count, facet, snippet or citation. None, where it may be: of one who administers the tenant, to
    whom every document exists, though its text stays unread.
    """

    def create(self, collection: str) -> Collection:
        """Raises AlreadyExists, InvalidArgument."""

    def collections(self, groups: frozenset[str]) -> tuple[Collection, ...]: ...

    def describe(self, collection: str, groups: frozenset[str]) -> Collection:
        """Raises NotFound."""

    def drop(self, collection: str) -> ShredProof:
        """Destroys the keys first, then the files: no copy of the files opens afterwards. Raises NotFound."""

    def find(self, collection: str, sha256: str, pipeline: str) -> Document | None:
        """The document made from those bytes by that pipeline: ingest is idempotent on the pair. Raises NotFound."""

    def find_file(self, collection: str, source: str, title: str) -> Document | None:
        """The newest document of that source and title: what a changed file takes the place of. Raises NotFound."""

    def add(self, collection: str, document: NewDocument) -> Document:
        """Chunk, embed, write. When it returns the document survives power loss; when it raises nothing of it stays.

        Raises NotFound (also of what it replaces), DocumentRefused (no text), DiskFull, StoreDamaged.
        """

    def add_all(
        self, collection: str, documents: Sequence[NewDocument], stop: Callable[[], bool] = ...
    ) -> tuple[Document | DocumentRefused, ...]:
        """As `add` for each in order, but embedded together, below queries, and written at once: many small documents
        cost what one large one does. One that is refused has its refusal in its place, and the others are added.

        In place of a document of which one of the same bytes and pipeline was there before stands that one; two such
        in `documents` are both added. When it returns all survive power loss; when it raises none stays, nor after a
        crash some of them. stop: asked before each batch that is embedded, and before they are written; once it says so
        none is added.

        Raises as `add`, but DocumentRefused; RequestTooLarge for more than 4 GiB; Cancelled.
        """

    def set_readers(
        self, collection: str, document: str, readers: frozenset[str], groups: frozenset[str] | None
    ) -> Document:
        """Who may read it from the next call on; durable on return. Raises NotFound, InvalidArgument, DiskFull."""

    def documents(
        self, collection: str, groups: frozenset[str] | None, condition: str = "", after: str = "", limit: int = 0
    ) -> tuple[tuple[Document, ...], str]:
        """By title, and where the next ones begin, '' at the end. condition: a filter; after: that place; limit 0: all.

        Documents that come or go between two calls shift nothing. Raises NotFound, InvalidArgument.
        """

    def get(self, collection: str, document: str, groups: frozenset[str]) -> Document:
        """Raises NotFound."""

    def pages(self, collection: str, document: str, groups: frozenset[str]) -> tuple[str, ...]:
        """The stored text by page. Raises NotFound, StoreDamaged."""

    def page(self, collection: str, document: str, page: int, groups: frozenset[str]) -> str:
        """The stored text of one page, from 1. Raises NotFound, StoreDamaged."""

    def text(self, collection: str, document: str, span: Span, groups: frozenset[str]) -> str:
        """The stored text of a span. Raises NotFound, StoreDamaged."""

    def delete(self, collection: str, document: str, groups: frozenset[str] | None) -> None:
        """Gone from every search when it returns. Raises NotFound."""

    def compact(self, collection: str) -> Collection:
        """Seal the memtable; rewrite segments without deleted rows. Raises NotFound, DiskFull, StoreDamaged; Busy where
        it is being rewritten already.
        """

    def rank(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> Ranking:
        """The best passages by fused lexical and vector score, best first; ACL and tombstones apply before top-k.

        They are shown by `show`, now or later. options.reranker is not for this call. Raises NotFound, InvalidArgument,
        also for a filter or facets that take too long, StoreDamaged.
        """

    def show(
        self,
        collection: str,
        query: str,
        groups: frozenset[str],
        ranking: Ranking,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
    ) -> tuple[Passage, ...]:
        """The passages of a ranking in its order, less those that are gone or may not be read now.

        Raises NotFound, StoreDamaged.
        """

    def version(self, collection: str) -> str:
        """Changes with everything that may change an answer. Raises NotFound."""


class Retriever(Protocol):
    """Search as callers ask for it: ranked and shown by a library, with a reranker's order, and in pages."""

    async def search(
        self,
        caller: Principal,
        collection: str,
        query: str,
        limit: int,
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        page: str = "",
    ) -> Found:
        """page: `Found.next_page` of the call before, made by the same caller with the same arguments; facets come with
        the first page alone, and there are ten pages, or as many as hold 200 passages.

        Raises NotFound, InvalidArgument, StoreDamaged, and as `Encoders.rerank`.
        """


class Extractor(Protocol):
    """Untrusted bytes to text in a locked child. Fails closed."""

    async def extract(self, fd: int, name: str) -> Extracted:
        """Read the open file `fd` (stays the caller's to close). Cancelling kills the child.

        Raises DocumentRefused with the file's reason, SandboxUnavailable.
        """


class Volumes(Protocol):
    """The FAT and exFAT file systems of a stick or an image, read in locked children and never mounted. Fails closed.

    `fd` is a block device or a regular file, open for reading; it stays the caller's to close. Cancelling kills the
    child. Both raise SandboxUnavailable, and DocumentRefused with UNREADABLE where the device gives an error.
    """

    async def list(self, fd: int) -> tuple[Entry, ...]:
        """Every file of every volume, in the order of the folders; what cannot be read says why."""

    async def read(self, fd: int, entry: Entry, target: int, max_bytes: int) -> tuple[str, int]:
        """Write the file's bytes into the empty memfd `target` and seal it; their sha256 in hex and their number.

        Raises DocumentRefused too: TOO_LARGE, CHANGED where it is no more as it was listed, or the volume's own reason.
        """


class Scanner(Protocol):
    """Looks for malware. Fails closed."""

    async def scan(self, fd: int) -> str:
        """The name of what was found in the whole file, '' for nothing. `fd`'s offset neither matters nor moves.

        Raises ScannerUnavailable; DocumentRefused, NOT_SCANNED, for a file that the scanner does not take.
        """


class SignedJson(Protocol):
    """One JSON object in a file that only this box writes, replaced in one step. Not to be written from two threads."""

    def read(self) -> dict[str, Any] | None:
        """The content, None where there is no file. Raises StoreDamaged where it is not what this box wrote."""

    def damaged(self) -> StoreDamaged:
        """The error for a content of another form."""

    def write(self, content: Mapping[str, Any]) -> None:
        """Survives power loss once it returns. Raises DiskFull, and then the old content stands."""


class Progress(Protocol):
    """How a job tells what it does. Cheap: call it for each unit."""

    def update(self, done: int, total: int = 0, note: str = "") -> None: ...


Work = Callable[[Progress], Awaitable[None]]


class Jobs(Protocol):
    """Long work with one shape. Cancelling a job cancels its task at the next await."""

    def start(self, kind: str, subject: str, unit: str, work: Work, tenant: str = "") -> Job:
        """tenant: whose the job is, '' of the box."""

    def start_in_thread(
        self, kind: str, subject: str, unit: str, work: Callable[[Progress], None], tenant: str = ""
    ) -> Job:
        """As `start`, for work that blocks, of which a few run at once: others are queued, and no other thread waits.

        Once it is cancelled, its next `update` raises Cancelled.
        """

    def get(self, job: str) -> Job:
        """Raises NotFound."""

    def list(self) -> tuple[Job, ...]: ...

    def watch(self, job: str) -> AsyncIterator[Job]:
        """The present state at once, then each change, until the job has ended. Raises NotFound."""

    def cancel(self, job: str) -> Job:
        """Raises NotFound."""
