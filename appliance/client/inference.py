"""Models that answer, embed and rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from appliance import types
from appliance.client import messages as convert
from appliance.client.calls import WORK_SECONDS, Calls, Stream
from appliance.client.messages import named
from appliance.gen.v1 import inference_pb2
from appliance.gen.v1.inference_pb2_grpc import InferenceServiceStub


class InferenceCalls(Calls):
    """Chat, embed, rerank, tokenize."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._inference = InferenceServiceStub(self._channel)

    def chat(
        self,
        messages: Sequence[types.Message],
        model: str = "",
        sampling: types.Sampling | None = None,
        timeout_seconds: float = WORK_SECONDS,
        *,
        tools: Sequence[types.Tool] = (),
        tool_choice: types.ToolChoice | None = None,
        constraint: types.Constraint | None = None,
        top_logprobs: int | None = None,
        priority: types.Priority = types.Priority.NORMAL,
    ) -> Stream[types.ChatPiece]:
        """Zero or more Text and ToolCall, then one Finish.

        '' names the default chat model; without `sampling` the box chooses. A ToolCall is only asked for: run it if
        you will, and send its result as a Message of Speaker.TOOL after one of the assistant that holds the call.
        """
        request = inference_pb2.ChatRequest(
            model=named("models", model),
            messages=map(convert.message, messages),
            sampling=convert.sampling(sampling),
            tools=map(convert.tool, tools),
            tool_choice=convert.tool_choice(tool_choice) if tool_choice else None,
            response_format=convert.response_format(constraint),
            top_logprobs=top_logprobs,
            priority=inference_pb2.Priority.Value(f"PRIORITY_{priority.name}"),
        )
        return self._stream(self._inference.Chat, request, convert.chat_piece, timeout_seconds)

    def embed(self, texts: Sequence[str], model: str = "") -> types.Floats:
        """float32 [len(texts), dimension], unit norm."""
        request = inference_pb2.EmbedRequest(model=named("models", model), texts=texts)
        answer = self._call(self._inference.Embed, request, WORK_SECONDS)
        return np.array([vector.values for vector in answer.vectors], dtype=np.float32)

    def rerank(self, query: str, documents: Sequence[str], model: str) -> types.Floats:
        """float32 [len(documents)], higher is better, comparable for one query only."""
        request = inference_pb2.RerankRequest(model=named("models", model), query=query, documents=documents)
        return np.array(self._call(self._inference.Rerank, request, WORK_SECONDS).scores, dtype=np.float32)

    def tokenize(self, text: str, model: str = "") -> tuple[int, ...]:
        request = inference_pb2.TokenizeRequest(model=named("models", model), text=text)
        return tuple(self._call(self._inference.Tokenize, request).ids)
