"""Which path of the HTTP port does what, and which gRPC method's right it needs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.routing import Route

from appliance.api import mcp
from appliance.api.chat import Chat
from appliance.api.embedding import Embedding
from appliance.api.http import Answer, Call, Endpoint, Gate, text_answer
from appliance.api.openai.chat import ChatCompletions
from appliance.api.openai.completions import Completions
from appliance.api.openai.embeddings import Embeddings
from appliance.api.openai.errors import shape
from appliance.api.openai.models import Models
from appliance.api.openai.responses import Responses

CHAT, EMBED = "/appliance.v1.InferenceService/Chat", "/appliance.v1.InferenceService/Embed"
LIST_MODELS, GET_MODEL = "/appliance.v1.ModelService/ListModels", "/appliance.v1.ModelService/GetModel"
STATUS = "/appliance.v1.TelemetryService/GetStatus"


@dataclass(frozen=True)
class HttpServices:
    """metrics: their content type and their text, when somebody of a tenant asks."""

    chat: Chat
    embedding: Embedding
    models: Models
    mcp: mcp.McpServer
    metrics: Callable[[str], Awaitable[tuple[str, bytes]]]


def routes(gate: Gate, services: HttpServices) -> list[Route]:
    async def metrics(call: Call) -> Answer:
        media_type, content = await services.metrics(call.principal.tenant)
        return text_answer(content, media_type)

    def post(path: str, method: str, handle: Callable[[Call], Awaitable[Answer]]) -> Route:
        return Route(path, Endpoint(gate, method, handle, shape), methods=["POST"])

    def get(path: str, method: str, handle: Callable[[Call], Awaitable[Answer]]) -> Route:
        return Route(path, Endpoint(gate, method, handle, shape), methods=["GET"])

    return [
        post("/v1/chat/completions", CHAT, ChatCompletions(services.chat)),
        post("/v1/completions", CHAT, Completions(services.chat)),
        post("/v1/responses", CHAT, Responses(services.chat)),
        post("/v1/embeddings", EMBED, Embeddings(services.embedding)),
        get("/v1/models", LIST_MODELS, services.models.list),
        get("/v1/models/{model}", GET_MODEL, services.models.get),
        get("/metrics", STATUS, metrics),
        Route("/mcp", Endpoint(gate, mcp.SEARCH, services.mcp, mcp.shape)),
    ]
