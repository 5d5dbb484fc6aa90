"""POST /v1/embeddings."""

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

from appliance.api import requests
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, json_answer
from appliance.api.inference import MAX_EMBED_CHARACTERS, MAX_EMBED_TEXTS
from appliance.api.openai import options
from appliance.errors import NotFound
from appliance.ports import Embedder
from appliance.types import Floats


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors of the box's embedder, which is called `name`."""

    embedder: Embedder
    name: str

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        fields.ignore(*options.HARMLESS)
        model = call.require_model(fields.text("model", self.name))
        if model != self.name:
            raise NotFound(f"There is no embedding model {model}; {self.name} is the one.")
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        if fields.whole("dimensions", self.embedder.dimension) != self.embedder.dimension:
            raise fields.refusal("dimensions", f"must be {self.embedder.dimension}, as the model has them.")
        texts = _texts(fields)
        fields.finish()
        vectors = await asyncio.to_thread(self.embedder.embed, texts)
        tokens = await asyncio.to_thread(self.embedder.count_tokens, texts)
        data = [
            {"object": "embedding", "index": index, "embedding": _told(vector, form)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_answer({"object": "list", "data": data, "model": model, "usage": usage})


def _texts(fields: Fields) -> list[str]:
    value = fields.any("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.refusal("input", "must be text or a list of texts; token ids are not taken.")
    if not 0 < len(texts) <= MAX_EMBED_TEXTS:
        raise fields.refusal("input", f"takes 1 to {MAX_EMBED_TEXTS} texts, not {len(texts)}.")
    for index, text in enumerate(texts):
        requests.text(text, f"input[{index}]", MAX_EMBED_CHARACTERS)
        requests.require_unicode(text, f"input[{index}]")
    return texts


def _told(vector: Floats, form: str) -> Any:
    """Numbers, or little-endian float32 in base64: what OpenAI's own client asks for."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
