"""POST /v1/completions: raw texts that the model goes on with; no scaffold, no control tokens."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from appliance.api.chat import Chat
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, EventStream, event, json_answer
from appliance.api.openai import options
from appliance.api.openai.chat import DONE
from appliance.api.openai.options import Stamp
from appliance.types import Finish, Text, TokenChoice

MAX_PROMPTS = 64
MAX_LOGPROBS = 5

Pieces = AsyncIterator[Text | Finish]


@dataclass(frozen=True)
class Completions:
    chat: Chat

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        streamed, with_usage = fields.flag("stream"), options.usage_wanted(fields)
        prompts, model = _prompts(fields), call.require_model(fields.text("model", ""))
        _refuse(fields)
        form = options.form(fields)
        sampling = options.sampling(fields, "max_tokens")
        top = fields.whole("logprobs") if "logprobs" in fields else None
        if top is not None and not 0 <= top <= MAX_LOGPROBS:
            raise fields.refusal("logprobs", f"must be between 0 and {MAX_LOGPROBS}.")
        fields.finish()
        call.names = {"repeat_penalty": "repetition_penalty"} | options.named(form)
        answers = [
            self.chat.complete(
                call.principal,
                model,
                prompt,
                sampling,
                constraint=form,
                top_logprobs=top,
                deadline_seconds=call.deadline_seconds,
            )
            for prompt in prompts
        ]
        stamp = options.stamp("cmpl", model)
        if streamed:
            return EventStream(_chunks(stamp, answers, with_usage))
        return json_answer(await _whole(stamp, answers))


def _prompts(fields: Fields) -> Sequence[str]:
    value = fields.any("prompt")
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise fields.refusal("prompt", "must be text or a list of texts; token ids are not taken.")
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise fields.refusal("prompt", f"takes 1 to {MAX_PROMPTS} texts, not {len(prompts)}.")
    return prompts


def _refuse(fields: Fields) -> None:
    fields.ignore(*options.HARMLESS)
    fields.refuse("echo", "suffix", "logit_bias", why="is not offered by this box.")
    for name in ("n", "best_of"):
        if fields.whole(name, 1) != 1:
            raise fields.refusal(name, "must be 1: call again for another answer.")


@dataclass(slots=True)
class _Logprobs:
    """The old form: four lists in step. The next token begins at `offset`, in characters of the answer."""

    offset: int = 0

    def take(self, choices: Sequence[TokenChoice]) -> dict[str, list[Any]]:
        tokens = [choice.chosen.piece.decode("utf-8", "replace") for choice in choices]
        offsets = []
        for text in tokens:
            offsets.append(self.offset)
            self.offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [choice.chosen.logprob for choice in choices],
            "top_logprobs": [
                {one.piece.decode("utf-8", "replace"): one.logprob for one in choice.top} for choice in choices
            ],
            "text_offset": offsets,
        }


async def _whole(stamp: Stamp, answers: Sequence[Pieces]) -> dict[str, Any]:
    """All at once: the engine runs the prompts in one batch."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_read(index, pieces)) for index, pieces in enumerate(answers)]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    ended = [task.result() for task in tasks]
    usage = options.usage(finish for _, finish in ended)
    return _head(stamp) | {"choices": [choice for choice, _ in ended], "usage": usage}


async def _read(index: int, pieces: Pieces) -> tuple[dict[str, Any], Finish]:
    texts: list[str] = []
    choices: list[TokenChoice] = []
    finish = None
    async with aclosing(pieces) as answer:  # type: ignore[type-var]
        async for piece in answer:
            if isinstance(piece, Text):
                texts.append(piece.text)
                choices += piece.choices
            else:
                finish = piece
    assert finish is not None  # a stream ends with one or raises
    return _choice(index, "".join(texts), finish.reason.value, _Logprobs(), choices), finish


async def _chunks(stamp: Stamp, answers: Sequence[Pieces], with_usage: bool) -> AsyncIterator[bytes]:
    """One prompt after the other."""
    head = _head(stamp) | ({"usage": None} if with_usage else {})
    finishes: list[Finish] = []
    for index, pieces in enumerate(answers):
        logprobs = _Logprobs()
        async with aclosing(pieces) as answer:  # type: ignore[type-var]
            async for piece in answer:
                if isinstance(piece, Text):
                    choice = _choice(index, piece.text, None, logprobs, piece.choices)
                else:
                    finishes.append(piece)
                    choice = _choice(index, "", piece.reason.value, logprobs, ())
                yield event(head | {"choices": [choice]})
    if with_usage:
        yield event(head | {"choices": [], "usage": options.usage(finishes)})
    yield DONE


def _choice(
    index: int, text: str, reason: str | None, logprobs: _Logprobs, choices: Sequence[TokenChoice]
) -> dict[str, Any]:
    told = logprobs.take(choices) if choices else None
    return {"index": index, "text": text, "finish_reason": reason, "logprobs": told}


def _head(stamp: Stamp) -> dict[str, Any]:
    return {"id": stamp.id, "object": "text_completion", "created": stamp.created, "model": stamp.model}
