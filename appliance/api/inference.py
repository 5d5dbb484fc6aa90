"""InferenceService: text in, text out."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.chat import ANY_JSON_OBJECT, MAX_CHARACTERS, Chat
from appliance.api.embedding import MAX_TEXT_CHARACTERS, Embedding, require_texts
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import inference_pb2 as pb
from appliance.gen.v1 import inference_pb2_grpc
from appliance.ports import Encoders, Generator
from appliance.types import (
    ChatCall,
    Constraint,
    ConstraintKind,
    Message,
    Origin,
    Priority,
    Segment,
    Speaker,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
    Usage,
)

SPEAKERS = {
    pb.Message.ROLE_SYSTEM: Speaker.SYSTEM,
    pb.Message.ROLE_USER: Speaker.USER,
    pb.Message.ROLE_ASSISTANT: Speaker.ASSISTANT,
    pb.Message.ROLE_TOOL: Speaker.TOOL,
}
TOOL_MODES = {
    pb.ToolChoice.MODE_UNSPECIFIED: ToolMode.AUTO,
    pb.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    pb.ToolChoice.MODE_NONE: ToolMode.NONE,
    pb.ToolChoice.MODE_REQUIRED: ToolMode.REQUIRED,
}
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
}


@dataclass(frozen=True)
class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    callers: Callers
    chat: Chat
    generator: Generator
    embedding: Embedding
    encoders: Encoders

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:
        call = chat_call(request, context.time_remaining())
        caller = self.callers.by_certificate(context.auth_context())
        async with aclosing(self.chat.stream(caller, call)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield messages.chat_piece(piece)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        found = await self.embedding.embed(request.texts, "texts", requests.model_or_default(request.model))
        usage = messages.usage(Usage(input_tokens=found.tokens))
        return pb.EmbedResponse(vectors=[pb.Vector(values=row) for row in found.rows.tolist()], usage=usage)

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        query = requests.text(request.query, "query", MAX_TEXT_CHARACTERS)
        require_texts(request.documents, "documents")
        found = await self.encoders.rerank(requests.model(request.model, "model"), query, request.documents)
        usage = messages.usage(Usage(input_tokens=found.tokens))
        return pb.RerankResponse(scores=found.rows[:, 0].tolist(), usage=usage)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        model = requests.model_or_default(request.model)
        segment = Segment(Origin.USER, requests.text(request.text, "text", MAX_CHARACTERS))
        return pb.TokenizeResponse(ids=await self.generator.tokenize(model, [segment]))


def chat_call(request: pb.ChatRequest, seconds: float | None) -> ChatCall:
    """The request as our value; seconds: what is left of the call's deadline. Raises InvalidArgument."""
    if request.tool_choice.mode not in TOOL_MODES:
        raise InvalidArgument.of("tool_choice.mode", "must be auto, none or required.")
    if request.priority not in PRIORITIES:
        raise InvalidArgument.of("priority", "must be low, normal or high.")
    return ChatCall(
        requests.model_or_default(request.model),
        tuple(_message(index, message) for index, message in enumerate(request.messages)),
        messages.sampling(request.sampling),
        tuple(Tool(tool.name, tool.description, tool.parameters or "{}") for tool in request.tools),
        ToolChoice(TOOL_MODES[request.tool_choice.mode], request.tool_choice.name),
        _constraint(request.response_format),
        request.top_logprobs if request.HasField("top_logprobs") else None,
        PRIORITIES[request.priority],
        requests.deadline_seconds(seconds),
    )


def _message(index: int, message: pb.Message) -> Message:
    if message.role not in SPEAKERS:
        raise InvalidArgument.of(f"messages[{index}].role", "must be system, user, assistant or tool.")
    calls = (ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)
    return Message(SPEAKERS[message.role], message.text, tuple(calls), message.tool_call_id)


def _constraint(form: pb.ResponseFormat) -> Constraint | None:
    match form.WhichOneof("format"):
        case "json_schema":
            return Constraint(ConstraintKind.JSON_SCHEMA, form.json_schema)
        case "gbnf":
            return Constraint(ConstraintKind.GBNF, form.gbnf)
        case "json_object":
            return ANY_JSON_OBJECT
        case _:
            return None
