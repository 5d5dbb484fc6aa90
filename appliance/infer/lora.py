"""The adapters of one model that are loaded, each once, by their content; the one unused longest makes room."""

import threading
from collections import OrderedDict

from appliance.infer.llama import Context, LoadedAdapter, Model
from appliance.types import Adapter

MOST_LOADED = 16


class _Entry:
    __slots__ = ("loaded", "users")

    def __init__(self, loaded: LoadedAdapter) -> None:
        self.loaded, self.users = loaded, 0


class Adapters:
    """Safe to use from many threads; a load holds up only those who need an adapter too."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._applied = ""

    def acquire(self, adapter: Adapter | None) -> str:
        """Load it where it is not; its key, '' for none, to be released again.

        Raises ModelMissing, AdapterMismatch, ModelDamaged.
        """
        if adapter is None:
            return ""
        key = f"{adapter.sha256}*{adapter.scale!r}"
        with self._lock:
            if key not in self._entries:
                self._make_room()
                self._entries[key] = _Entry(LoadedAdapter(self._model, adapter))
            self._entries[key].users += 1
            self._entries.move_to_end(key)
        return key

    def release(self, key: str) -> None:
        with self._lock:
            if key:
                self._entries[key].users -= 1

    def apply(self, context: Context, key: str) -> None:
        """What the context computes with from now on; an adapter that everyone has released may be gone: then none."""
        if key == self._applied:
            return
        with self._lock:
            entry = self._entries.get(key)
            context.set_adapter(entry.loaded if entry else None)
            self._applied = key if entry else ""

    def _make_room(self) -> None:
        """Never the one that is applied: llama.cpp's graph points into it."""
        unused = [key for key, entry in self._entries.items() if not entry.users and key != self._applied]
        if len(self._entries) >= MOST_LOADED and unused:
            self._entries.pop(unused[0]).loaded.close()
