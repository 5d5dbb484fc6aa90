"""GET /v1/models and /v1/models/{id}: what a caller may name as `model`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from appliance.api.http import Answer, Call, json_answer
from appliance.errors import NotFound
from appliance.types import ModelKind, ModelState, ModelStatus

ANSWERING = (ModelKind.CHAT, ModelKind.ADAPTER, ModelKind.EMBEDDING)


@dataclass(frozen=True)
class Models:
    """statuses: every model of the box. aliases: names that lead to models."""

    statuses: Callable[[], Iterable[ModelStatus]]
    aliases: Callable[[], Iterable[str]]

    async def list(self, call: Call) -> Answer:
        return json_answer({"object": "list", "data": [*self._told(call).values()]})

    async def get(self, call: Call) -> Answer:
        name = (call.path or {})["model"]
        found = self._told(call).get(name)
        if found is None:
            raise NotFound(f"There is no model {name[:80]!r}.")
        return json_answer(found)

    def _told(self, call: Call) -> dict[str, dict[str, Any]]:
        """The models and aliases that the key opens, by name."""
        created = {
            status.name: int(status.create_time.timestamp()) if status.create_time else 0
            for status in self.statuses()
            if status.kind in ANSWERING and status.state is not ModelState.REFUSED
        }
        names = created | dict.fromkeys(self.aliases(), 0)
        opened = call.key.models if call.key and call.key.models else names.keys()
        return {
            name: {"id": name, "object": "model", "created": names[name], "owned_by": "appliance"}
            for name in sorted(names.keys() & opened)
        }
