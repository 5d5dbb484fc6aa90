"""LoRA adapters through the router and a real worker."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import AdapterMismatch, ModelDamaged, ModelInUse
from appliance.infer.launch import EngineOptions
from appliance.infer.router import Router
from appliance.models.store import ModelStore
from appliance.ports import Count
from appliance.types import Finish, MemoryPlan, ModelFile, ModelKind, ModelState, Text
from appliance.vault.keyring import FileKeyring
from tests.gguf_lora import write_lora
from tests.infer.conftest import greedy, words


class NoAliases:
    """ports.Aliases without any."""

    def choose(self, name: str) -> str:
        return ""

    def shadows(self, name: str) -> tuple[str, ...]:
        return ()

    def counter(self, name: str) -> Count:
        return lambda model, outcome: None


def fits(
    file: ModelFile, context_tokens: int, loaded_bytes: int, freed_bytes: int = 0, draft: ModelFile | None = None
) -> MemoryPlan:
    return MemoryPlan(file.name, context_tokens, file.size_bytes, 1 << 40, 1 << 40)


@pytest.fixture
def store(tmp_path: Path, models: dict[str, Path]) -> ModelStore:
    store = ModelStore(tmp_path / "models", FileKeyring.open(tmp_path / "keys", tmp_path / "data"))
    store.add(models["llama"])
    store.add(write_lora(tmp_path / "one.gguf", models["llama"], seed=1, name="formal"))
    store.add(write_lora(tmp_path / "two.gguf", models["llama"], seed=2, name="casual"))
    return store


@pytest.fixture
async def router(store: ModelStore, tmp_path: Path) -> AsyncIterator[Router]:
    options = EngineOptions(tmp_path / "e", context_tokens=2048, batch_tokens=128, threads=1, log_level="warning")
    router = Router(store, options, fits, NoAliases())
    yield router
    await router.close()


def damage(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)


async def says(router: Router, model: str) -> str:
    *texts, finish = [piece async for piece in router.generate(model, greedy(words(0, 20)))]
    assert isinstance(finish, Finish)
    return "".join(piece.text for piece in texts if isinstance(piece, Text))


async def test_an_adapter_is_asked_for_by_name_and_answers_in_its_own_way(router: Router) -> None:
    base = await says(router, "random-llama")
    formal, casual = await says(router, "formal"), await says(router, "casual")
    assert len({base, formal, casual}) == 3
    assert [await says(router, name) for name in ("formal", "random-llama", "casual")] == [formal, base, casual]
    states = {status.name: status for status in router.statuses()}
    assert {status.state for status in states.values()} == {ModelState.READY}
    assert (states["formal"].base, states["formal"].kind) == ("random-llama", ModelKind.ADAPTER)
    assert states["formal"].memory_bytes == 0  # it is in its base's


async def test_an_adapter_has_its_bases_scaffold_and_memory_plan(router: Router, store: ModelStore) -> None:
    base = store.get("random-llama")
    file = router.chat_model("formal")
    assert (file.name, file.kind, file.scaffold) == ("formal", ModelKind.CHAT, base.scaffold)
    assert router.chat_model("").name == "random-llama"  # an adapter is never the default
    sizes = sum(item.size_bytes for item in store.list())
    assert (router.plan("formal").model, router.plan("formal").needed_bytes) == ("random-llama", sizes)
    await router.load("formal")
    assert [status.name for status in router.statuses() if status.memory_bytes] == ["random-llama"]


async def test_an_adapter_that_was_changed_on_disk_never_reaches_the_engine(router: Router, store: ModelStore) -> None:
    damage(Path(store.get("formal").path))
    with pytest.raises(ModelDamaged, match="models/formal"):
        await says(router, "formal")
    assert await says(router, "random-llama")


async def test_a_base_is_kept_while_adapters_need_it_and_a_foreign_adapter_never_enters(
    store: ModelStore, models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelInUse, match="casual, formal"):
        store.delete("random-llama")
    with pytest.raises(AdapterMismatch, match="qwen2"):
        store.add(write_lora(tmp_path / "x.gguf", models["qwen2"]), base="random-llama")
