"""InferenceService: text in, text out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from appliance.access import roles
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument, NotFound
from appliance.gen.v1 import inference_pb2 as pb
from appliance.gen.v1 import inference_pb2_grpc
from appliance.ports import Composer, Embedder, Generator
from appliance.types import Generation, Message, Origin, Segment, Speaker, Text, Usage

MAX_CHARACTERS = 4_000_000
MAX_EMBED_TEXTS, MAX_EMBED_CHARACTERS = 256, 100_000
SPEAKERS = {
    pb.Message.ROLE_SYSTEM: Speaker.SYSTEM,
    pb.Message.ROLE_USER: Speaker.USER,
    pb.Message.ROLE_ASSISTANT: Speaker.ASSISTANT,
}


@dataclass(frozen=True)
class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    generator: Generator
    composer: Composer
    embedder: Embedder
    embedder_name: str
    prefix_salt: Callable[[str], bytes]

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.ChatResponse]:
        sampling = requests.sampling(request.sampling)
        turns = _messages(request)
        model = self.generator.chat_model(requests.model_or_default(request.model))
        prompt = self.composer.chat(model.scaffold, turns)
        salt = self.prefix_salt(roles.principal(context.auth_context()).tenant)
        generation = Generation(prompt, sampling, prefix_salt=salt)
        async with aclosing(self.generator.generate(model.name, generation)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Text):
                    yield pb.ChatResponse(text=piece.text)
                else:
                    yield pb.ChatResponse(finish=messages.finish(piece))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        if (model := requests.model_or_default(request.model)) not in ("", self.embedder_name):
            raise NotFound(f"There is no embedding model models/{model}; models/{self.embedder_name} is the one.")
        if not 0 < len(request.texts) <= MAX_EMBED_TEXTS:
            raise InvalidArgument.of("texts", f"takes 1 to {MAX_EMBED_TEXTS} texts, not {len(request.texts)}.")
        texts = [requests.text(item, f"texts[{i}]", MAX_EMBED_CHARACTERS) for i, item in enumerate(request.texts)]
        vectors = await asyncio.to_thread(self.embedder.embed, texts)
        tokens = await asyncio.to_thread(self.embedder.count_tokens, texts)
        usage = messages.usage(Usage(input_tokens=tokens))
        return pb.EmbedResponse(vectors=[pb.Vector(values=row) for row in vectors.tolist()], usage=usage)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        model = requests.model_or_default(request.model)
        segment = Segment(Origin.USER, requests.text(request.text, "text", MAX_CHARACTERS))
        return pb.TokenizeResponse(ids=await self.generator.tokenize(model, [segment]))


def _messages(request: pb.ChatRequest) -> list[Message]:
    if not request.messages:
        raise InvalidArgument.of("messages", "must not be empty.")
    found = []
    for index, message in enumerate(request.messages):
        if message.role not in SPEAKERS:
            raise InvalidArgument.of(f"messages[{index}].role", "must be system, user or assistant.")
        found.append(
            Message(SPEAKERS[message.role], requests.text(message.text, f"messages[{index}].text", MAX_CHARACTERS))
        )
    return found
