"""What is searched for: the question as it reads without its conversation, and other questions that find the same.

A model sees the question and the conversation, never a document that was found. What it writes is bounded by tokens, by
time and by a grammar of lines, and is taken only where it is plainly the question: most of its words, and every number,
come from the conversation. Else the rule of `followup` holds. Whatever is written, it is only searched for, with the
caller's rights and filter.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from appliance.errors import ApplianceError
from appliance.knowledge.answer import followup
from appliance.knowledge.answer.inquiry import Inquiry
from appliance.knowledge.index.analysis import folded
from appliance.ports import Composer, Generator
from appliance.types import Constraint, ConstraintKind, Finish, Generation, ModelFile, Sampling, Text, Turn, Usage

OTHERS = 3
REWRITE_TOKENS = 64
OTHER_TOKENS = 32  # each
REWRITE_SECONDS = 10.0
MAX_CHARACTERS = 2_000  # of a question that is rewritten; a longer one says enough
SEVERAL_FROM_WORDS = 12  # shorter questions are searched for as they are
LINE_CHARACTERS = 400
FROM_CONVERSATION = 0.5  # of the words of a rewritten question

_EXACT = re.compile(r"[\"“”„«»`]|\w[_/@\\]\w|\w\d|\d\w")
_NUMBER = re.compile(r"\d+")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan:
    """question: as it stands alone. others: searched for besides. usage: what the model read and wrote for it.
    failed: a model was asked and did not answer, which it may the next time."""

    question: str
    others: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    failed: bool = False

    @property
    def queries(self) -> tuple[str, ...]:
        return (self.question, *self.others)


class Rewriter:
    """Safe to use for many calls at once."""

    def __init__(self, generator: Generator, composer: Composer, prefix_salt: Callable[[str], bytes]) -> None:
        self._generator, self._composer, self._prefix_salt = generator, composer, prefix_salt

    async def plan(self, inquiry: Inquiry) -> Plan:
        """By the model, or by the rule where there is none, it fails, or writes nonsense."""
        question = inquiry.question
        ruled = Plan(followup.standalone(question, inquiry.history))
        others = OTHERS if several(question) and not inquiry.options.reranker else 0  # its order is of one question
        if inquiry.file is None or len(question) > MAX_CHARACTERS or not (inquiry.history or others):
            return ruled
        left = inquiry.seconds_left()
        seconds = min(left / 2, REWRITE_SECONDS) if left else REWRITE_SECONDS  # the answer needs time, too
        try:
            async with asyncio.timeout(seconds):
                written, usage = await self._write(inquiry, inquiry.file, others, seconds)
        except (ApplianceError, TimeoutError) as error:
            log.warning("ask.not_rewritten", model=inquiry.file.name, reason=getattr(error, "reason", "TIMEOUT"))
            return Plan(ruled.question, failed=True)
        first, *rest = [" ".join(line.split()) for line in written.splitlines() if line.strip()] or [""]
        if not restates(first, question, inquiry.history):
            log.info("ask.not_rewritten", model=inquiry.file.name, reason="NONSENSE")
            return Plan(ruled.question, usage=usage)
        found = {line.casefold(): line for line in rest if related(line, first)}
        found.pop(first.casefold(), None)
        return Plan(first if inquiry.history else question, tuple(found.values())[:others], usage)

    async def _write(self, inquiry: Inquiry, file: ModelFile, others: int, seconds: float) -> tuple[str, Usage]:
        """What the model wrote, and its usage."""
        tenant = inquiry.caller.tenant
        generation = Generation(
            self._composer.rewrite(file.scaffold, inquiry.question, inquiry.history, others),
            Sampling(temperature=0.0, max_tokens=REWRITE_TOKENS + OTHER_TOKENS * others),
            prefix_salt=self._prefix_salt(tenant),
            tenant=tenant,
            deadline_seconds=seconds,
            constraint=_lines(1 + others),
        )
        written, usage = "", Usage()
        async with aclosing(self._generator.generate(file.name, generation)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                match piece:
                    case Text():
                        written += piece.text
                    case Finish():
                        usage = piece.usage
        return written, usage


def several(question: str) -> bool:
    """Whether other questions may find what this one does not: it is long, and names no exact word or phrase."""
    return len(question.split()) >= SEVERAL_FROM_WORDS and not _EXACT.search(question)


def restates(written: str, question: str, history: Sequence[Turn]) -> bool:
    """Whether what was written is the question, in words of the conversation."""
    told = " ".join([question, *(text for turn in history for text in (turn.question, turn.answer))])
    words, known = folded(written), set(folded(told))
    asked, numbers = set(_NUMBER.findall(question)), set(_NUMBER.findall(written))
    return (
        bool(words)
        and len(written) <= len(question) + LINE_CHARACTERS
        and sum(word in known for word in words) >= FROM_CONVERSATION * len(words)
        and asked <= numbers <= set(_NUMBER.findall(told))
    )


def related(line: str, question: str) -> bool:
    """Whether another question shares a word with the one that it is to help."""
    return len(line) <= LINE_CHARACTERS and bool(set(folded(line)) & set(folded(question)))


def _lines(count: int) -> Constraint:
    """One to `count` lines of text, without tags: a model that thinks aloud must write the question at once."""
    more = f' ("\\n" line){{0,{count - 1}}}' if count > 1 else ""
    return Constraint(ConstraintKind.GBNF, f"root ::= line{more}\nline ::= [^<\\n\\r]{{1,{LINE_CHARACTERS}}}\n")
