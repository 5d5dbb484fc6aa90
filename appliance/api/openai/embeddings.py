"""POST /v1/embeddings."""

import base64
from dataclasses import dataclass
from typing import Any

from appliance.api.embedding import Embedding
from appliance.api.fields import Fields, parse
from appliance.api.http import Answer, Call, json_answer
from appliance.api.openai import options
from appliance.types import Floats


@dataclass(frozen=True)
class Embeddings:
    embedding: Embedding

    async def __call__(self, call: Call) -> Answer:
        fields = parse(call.body)
        fields.ignore(*options.HARMLESS)
        model = call.require_model(fields.text("model", self.embedding.name))
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        dimensions = fields.whole("dimensions", 0)
        texts = _texts(fields)
        fields.finish()
        found = await self.embedding.embed(texts, "input", model)
        if dimensions not in (0, found.rows.shape[1]):
            raise fields.refusal("dimensions", f"must be {found.rows.shape[1]}, as the model has them.")
        data = [
            {"object": "embedding", "index": index, "embedding": _told(vector, form)}
            for index, vector in enumerate(found.rows)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return json_answer({"object": "list", "data": data, "model": model, "usage": usage})


def _texts(fields: Fields) -> list[str]:
    value = fields.any("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise fields.refusal("input", "must be text or a list of texts; token ids are not taken.")
    return texts


def _told(vector: Floats, form: str) -> Any:
    """Numbers, or little-endian float32 in base64: what OpenAI's own client asks for."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
