"""Documents, read in locked children (ports.Extractor)."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.sandbox.children import ZYGOTE, Children
from appliance.sandbox.lockdown import Limits
from appliance.sandbox.result import Bounds, Decoder, Malformed
from appliance.types import Block, BlockKind, Extracted, Member, Walls

MIB = 1 << 20
SUFFIX_CHARACTERS = 16
WALL_A_CPU_SECOND = 2


class LockedExtractor:
    """Reads untrusted documents in locked children (ports.Extractor), `parallel` of them at once.

    parser: the dotted name of a module as `services.documents.Parser` has it. settings: for its `reader`; of these the
    numbers `members` and `member_bytes` bind the child's answer too, and without them a document has no members.
    more_cpu_seconds: by suffix, for what may take longer than `parse_cpu_seconds`; the wall time grows by twice that.
    The sums are the worst case, also of a parser in an attacker's hands: with the defaults 620 processor seconds and 21
    minutes for what may hold pictures, 20 seconds and one minute for all else.
    zygote: the command that starts one.
    """

    def __init__(
        self,
        config: Config,
        parser: str,
        settings: Mapping[str, int | str],
        parallel: int = 2,
        zygote: Sequence[str] = ZYGOTE,
        more_cpu_seconds: Mapping[str, int] | None = None,
    ) -> None:
        self._wall_seconds = config.parse_wall_seconds
        self._more_cpu_seconds = more_cpu_seconds or {}
        self._bounds = Bounds(
            # UTF-16 grows by half as UTF-8, the other plain formats not at all: larger text was compressed to hide it
            text_bytes=2 * config.document_max_mib * MIB,
            pages=config.document_max_pages,
            members=int(settings.get("members", 0)),
            member_bytes=int(settings.get("member_bytes", 0)),
        )
        self._children = Children(
            "appliance.sandbox.services.documents",
            {**settings, "parser": parser},
            Limits(config.parse_memory_mib * MIB, config.parse_cpu_seconds),
            parallel,
            zygote,
        )

    @property
    def fault(self) -> str:
        """Why nothing can be parsed; empty while all is well."""
        return self._children.fault

    @property
    def walls(self) -> Walls | None:
        """What the running zygote's lock is made of, as last proven."""
        return self._children.walls

    async def start(self) -> None:
        """Have a proven zygote. Raises SandboxUnavailable, at once where the last start failed a moment ago."""
        await self._children.start()

    async def prove(self) -> None:
        """Try the walls anew. Raises SandboxUnavailable where one fell, and nothing is parsed until they are proven."""
        await self._children.prove()

    async def close(self) -> None:
        """Kill the zygote and its children."""
        await self._children.close()

    async def extract(self, fd: int, name: str) -> Extracted:
        """As ports.Extractor. A document that takes the zygote down twice is refused."""
        suffix = PurePath(name).suffix.lower()[:SUFFIX_CHARACTERS]
        more = self._more_cpu_seconds.get(suffix, 0)
        wall_seconds = self._wall_seconds + WALL_A_CPU_SECOND * more
        for _ in range(2):
            decoder = Decoder(self._bounds)

            async def take(piece: bytes, decoder: Decoder = decoder) -> None:
                with _believed():
                    decoder.feed(piece)

            end = await self._children.run(fd, suffix, take, wall_seconds, more)
            if end:
                self._children.judge(end, more)
                return await asyncio.to_thread(_extracted, decoder)
        raise DocumentRefused("CRASHED", "Reading it took the whole extractor down.")


def _extracted(decoder: Decoder) -> Extracted:
    with _believed():
        media_type, parser, pages, rows, members = decoder.parsed()
    blocks = tuple(Block(BlockKind(kind), page, start, end, level) for kind, level, page, start, end in rows)
    return Extracted(media_type, parser, tuple(pages), blocks, tuple(Member(*member) for member in members))


@contextmanager
def _believed() -> Iterator[None]:
    """What breaks the form of an answer refuses the document."""
    try:
        yield
    except Malformed as error:
        raise DocumentRefused("PARSER_FAILED", f"The parser's result was {error}.") from None
