"""The adapters of one model that are loaded, each once, by their content; the one unused longest makes room."""

import contextlib
import threading
from collections import OrderedDict

from appliance.infer.llama import Context, LoadedAdapter, Model
from appliance.types import Adapter

MOST_LOADED = 16
READ_BYTES = 1 << 20


class _Entry:
    __slots__ = ("loaded", "users")

    def __init__(self, loaded: LoadedAdapter) -> None:
        self.loaded, self.users = loaded, 0


class Adapters:
    """Safe to use from many threads. `native` is to be held while the model computes: llama.cpp lists adapters
    in the model, so a load goes between two steps."""

    def __init__(self, model: Model) -> None:
        self.native = threading.Lock()
        self._model = model
        self._loading = threading.Lock()
        self._lock = threading.Lock()  # of what follows; held for moments, taken last
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.applied = ""  # the key of the one that is computed with

    def acquire(self, adapter: Adapter | None) -> str:
        """Load it where it is not; its key, '' for none, to be released again.

        Raises ModelMissing, AdapterMismatch, ModelDamaged.
        """
        if adapter is None:
            return ""
        key = f"{adapter.sha256}*{adapter.scale!r}"
        with self._loading:
            if key not in self._entries:
                self._load(key, adapter)
            with self._lock:
                self._entries[key].users += 1
                self._entries.move_to_end(key)
        return key

    def use(self, key: str) -> None:
        """One user more of an adapter that is in use, to be released again."""
        if key:
            with self._lock:
                self._entries[key].users += 1

    def release(self, key: str) -> None:
        if key:
            with self._lock:
                self._entries[key].users -= 1

    def apply(self, context: Context, key: str) -> None:
        """What the context computes with from now on: an adapter in use, or '' for none.

        On the thread that computes, which holds `native`.
        """
        if key == self.applied:
            return
        with self._lock:
            loaded = self._entries[key].loaded if key else None
        context.set_adapter(loaded)
        self.applied = key

    def _load(self, key: str, adapter: Adapter) -> None:
        _read_through(adapter.path)  # every stream waits for `native`: not for the disk too
        with self.native:
            entry = _Entry(LoadedAdapter(self._model, adapter))
            with self._lock:
                # never the one that is applied: llama.cpp's graph points into it
                unused = [key for key, old in self._entries.items() if not old.users and key != self.applied]
                if len(self._entries) >= MOST_LOADED and unused:
                    self._entries.pop(unused[0]).loaded.close()
                self._entries[key] = entry


def _read_through(path: str) -> None:
    """Leave a file in the page cache. One that cannot be read is the loader's to refuse."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass
