"""The options that chat completions, completions and responses share: sampling, tools, the form of the answer."""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from appliance.api.chat import ANY_JSON_OBJECT
from appliance.api.fields import Fields
from appliance.types import (
    Constraint,
    ConstraintKind,
    Finish,
    Sampling,
    TokenChoice,
    TokenLogprob,
    Tool,
    ToolChoice,
    ToolMode,
)

HARMLESS = (  # bookkeeping of OpenAI's service: leaving it out changes no answer
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
)
STATELESS = "is not taken: this box keeps no answers."
TOOL_MODES = {"auto": ToolMode.AUTO, "none": ToolMode.NONE, "required": ToolMode.REQUIRED}


def sampling(fields: Fields, *length: str) -> Sampling:
    """OpenAI's fields and vLLM's top_k, min_p and repetition_penalty; the box's own defaults where they are absent.

    length: the fields that may say how many tokens the answer may have. Without a seed each answer has its own.
    """
    default = Sampling()
    given = [fields.whole(name) for name in length if name in fields]
    stop = fields.any("stop")
    texts = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.refusal("stop", "must be text or a list of texts.")
    return Sampling(
        temperature=fields.number("temperature", default.temperature),
        top_p=fields.number("top_p", default.top_p),
        top_k=fields.whole("top_k", default.top_k),
        min_p=fields.number("min_p", default.min_p),
        repeat_penalty=fields.number("repetition_penalty", default.repeat_penalty),
        presence_penalty=fields.number("presence_penalty", default.presence_penalty),
        frequency_penalty=fields.number("frequency_penalty", default.frequency_penalty),
        seed=fields.whole("seed", secrets.randbits(32)),
        max_tokens=min(given, default=default.max_tokens),
        stop=tuple(texts),
    )


def constraint(fields: Fields, name: str) -> Constraint | None:
    """`response_format` of chat (its schema one level deeper), `format` of responses."""
    form = fields.object(name)
    if form is None:
        return None
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_schema":
        inner = form.object("json_schema") or form
        schema = inner.any("schema")
        inner.ignore("name", "description", "strict")  # the schema always binds
        inner.finish()
        if not isinstance(schema, dict):
            raise inner.refusal("schema", "must be a JSON schema.")
        form.finish()
        return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema))
    form.finish()
    return ANY_JSON_OBJECT if kind == "json_object" else None


def form(fields: Fields) -> Constraint | None:
    """`response_format`, or `grammar`, llama.cpp's extension: GBNF."""
    asked = constraint(fields, "response_format")
    if "grammar" not in fields:
        return asked
    if asked:
        raise fields.refusal("grammar", "cannot go with a response_format.")
    return Constraint(ConstraintKind.GBNF, fields.text("grammar"))


def named(form: Constraint | None) -> dict[str, str]:
    """What the caller called a response_format that is a grammar."""
    return {"response_format": "grammar"} if form and form.kind is ConstraintKind.GBNF else {}


def usage_wanted(fields: Fields) -> bool:
    """What `stream_options` says of the usage at a stream's end."""
    given = fields.object("stream_options") or Fields({})
    wanted = given.flag("include_usage")
    given.ignore("include_obfuscation")
    given.finish()
    return wanted


def binds(choice: ToolChoice, form: Constraint | None) -> bool:
    """Whether the arguments of a call must fit their schema: not where the model may say whatever it wants."""
    return choice.mode is ToolMode.REQUIRED or form is not None


def function(fields: Fields, bound: bool) -> Tool:
    """One function that the model may call. bound: `strict` can be kept."""
    parameters = fields.any("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise fields.refusal("parameters", "must be a JSON schema.")
    if fields.flag("strict") and not bound:
        raise fields.refusal("strict", "is kept only with tool_choice 'required' or a named function.")
    tool = Tool(fields.text("name"), fields.text("description", ""), json.dumps(parameters or {}))
    fields.finish()
    return tool


def tool_choice(fields: Fields) -> ToolChoice:
    """ "auto", "none", "required", or one function by its name, nested (chat) or not (responses)."""
    value = fields.any("tool_choice")
    if value is None:
        return ToolChoice()
    if isinstance(value, str):
        if value not in TOOL_MODES:
            raise fields.refusal("tool_choice", "must be auto, none, required or a function.")
        return ToolChoice(TOOL_MODES[value])
    named = Fields(value, f"{fields.where}tool_choice.")
    named.choice("type", ("function",))
    inner = named.object("function") or named
    choice = ToolChoice(ToolMode.REQUIRED, inner.text("name"))
    inner.finish()
    named.finish()
    return choice


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an answer is called, and when it was begun."""

    id: str
    created: int
    model: str


def stamp(prefix: str, model: str) -> Stamp:
    return Stamp(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), model)


def usage(finishes: Iterable[Finish]) -> dict[str, Any]:
    """The tokens of one or more answers, as chat and completions say them."""
    all_usage = [finish.usage for finish in finishes]
    given, made = sum(one.input_tokens for one in all_usage), sum(one.output_tokens for one in all_usage)
    return {
        "prompt_tokens": given,
        "completion_tokens": made,
        "total_tokens": given + made,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_input_tokens for one in all_usage)},
    }


def token(value: TokenLogprob) -> dict[str, Any]:
    text = value.piece.decode("utf-8", "replace")
    return {"token": text, "logprob": value.logprob, "bytes": list(value.piece)}


def logprobs(choices: Iterable[TokenChoice]) -> list[dict[str, Any]]:
    """Each token with its alternatives, as chat and responses say them."""
    return [token(choice.chosen) | {"top_logprobs": [token(one) for one in choice.top]} for choice in choices]
