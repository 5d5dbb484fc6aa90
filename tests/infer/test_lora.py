"""Adapters on a real model: which answers they change, and what becomes of those that do not fit."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from appliance.errors import AdapterMismatch, ModelDamaged, ModelMissing
from appliance.infer import lora
from appliance.infer.pages import Move
from appliance.infer.speculate import PromptLookup
from appliance.types import Adapter, Generation, Sampling
from tests.gguf_lora import write_lora
from tests.gguf_models import Shape, write_llama
from tests.infer.conftest import Bench, greedy, words

MakeBench = Callable[..., Bench]


def adapter(path: Path, name: str = "tone", scale: float = 1.0) -> Adapter:
    return Adapter(name, str(path), f"{path.name:0>64}", scale)


def asked(of: Adapter | None, start: int = 0, **options: object) -> Generation:
    return replace(greedy(words(start, 100), max_tokens=16), adapter=of, **options)  # type: ignore[arg-type]


@pytest.fixture
def tones(tmp_path: Path, models: dict[str, Path]) -> list[Adapter]:
    return [adapter(write_lora(tmp_path / f"{seed}.gguf", models["llama"], seed=seed)) for seed in range(4)]


def test_each_request_is_answered_with_its_own_adapter_whoever_runs_beside_it(
    bench: MakeBench, tones: list[Adapter]
) -> None:
    choices = [None, *tones]
    alone = [bench().answer(asked(choice))[0] for choice in choices]
    assert len(set(alone)) == 5
    together = bench(sequences=10, cells=4096)
    names = [together.submit(asked(choice)) for choice in choices * 2]
    together.engine.run_until_idle()
    assert [together.result(name)[0] for name in names] == alone * 2


def test_an_adapters_scale_counts(bench: MakeBench, tones: list[Adapter]) -> None:
    engine = bench()
    assert engine.answer(asked(replace(tones[0], scale=0.0)))[0] == engine.answer(asked(None))[0]
    assert engine.answer(asked(tones[0]))[0] != engine.answer(asked(None))[0]


def test_adapters_share_no_prefix(bench: MakeBench, tones: list[Adapter]) -> None:
    engine = bench()
    cached = [
        engine.answer(asked(choice))[1].usage.cached_input_tokens for choice in (None, tones[0], tones[1], tones[0])
    ]
    assert cached == [0, 0, 0, 64]


def test_an_adapter_for_another_model_is_refused_and_others_are_served_on(
    bench: MakeBench, tmp_path: Path, models: dict[str, Path]
) -> None:
    engine = bench()
    bases = {
        "wide": write_llama(tmp_path / "wide", Shape(embedding=128)),
        "deep": write_llama(tmp_path / "deep", Shape(layers=3)),
        "other": models["qwen2"],
    }
    for wrong in [adapter(write_lora(tmp_path / f"{name}.gguf", base), name) for name, base in bases.items()]:
        with pytest.raises(AdapterMismatch, match=wrong.name):
            engine.submit(asked(wrong))
    assert engine.answer(asked(None))[1].usage.output_tokens == 16


def test_a_missing_or_damaged_adapter_is_refused_by_name(
    bench: MakeBench, tmp_path: Path, models: dict[str, Path]
) -> None:
    engine = bench()
    with pytest.raises(ModelMissing, match="tone"):
        engine.submit(asked(adapter(tmp_path / "none.gguf")))
    whole = write_lora(tmp_path / "whole.gguf", models["llama"]).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelDamaged, match="tone"):
            engine.submit(asked(adapter(cut)))
    with pytest.raises(ModelDamaged, match="tone"):
        engine.submit(asked(adapter(models["llama"])))
    assert engine.answer(asked(None))[1].usage.output_tokens == 16


def test_adapters_that_nobody_uses_make_room_for_others(
    bench: MakeBench, tones: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "MOST_LOADED", 2)
    engine = bench()
    first = [engine.answer(asked(tone))[0] for tone in tones]
    assert [engine.answer(asked(tone))[0] for tone in tones] == first
    assert len(engine.engine._adapters._entries) == 2


def test_an_adapter_that_all_release_while_a_step_begins_is_still_the_one_it_computes_with(
    bench: MakeBench, tones: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench().answer(asked(tones[0]))[0]
    monkeypatch.setattr(lora, "MOST_LOADED", 1)
    engine = bench()
    request, move = engine.submit(asked(tones[0])), engine.engine._move

    def cancel_and_load_another(moves: Sequence[Move]) -> None:
        move(moves)
        engine.engine.cancel(request)
        engine.engine.cancel(engine.submit(asked(tones[1])))

    with monkeypatch.context() as patch:
        patch.setattr(engine.engine, "_move", cancel_and_load_another)
        engine.engine._step()
    text, finish = engine.answer(asked(tones[0]))
    assert (text, finish.usage.cached_input_tokens) == (right, 64)
    assert not any(entry.users for entry in engine.engine._adapters._entries.values())


def test_an_adapter_that_is_used_or_applied_makes_no_room(
    bench: MakeBench, tones: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [bench().answer(asked(tone))[0] for tone in tones[:3]]
    monkeypatch.setattr(lora, "MOST_LOADED", 1)
    engine = bench()
    adapters = engine.engine._adapters
    assert engine.answer(asked(tones[0]))[0] == alone[0]
    names = [engine.submit(asked(tone)) for tone in tones[1:3]]
    assert adapters.applied in adapters._entries, "the graph points into it"
    assert len(adapters._entries) == 3
    engine.engine.run_until_idle()
    assert [engine.result(name)[0] for name in names] == alone[1:]


def test_an_adapters_file_is_read_before_the_streams_wait_for_it(
    bench: MakeBench, tones: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, read = bench(), list[tuple[str, bool]]()
    monkeypatch.setattr(
        lora, "_read_through", lambda path: read.append((path, engine.engine._adapters.native.locked()))
    )
    engine.answer(asked(tones[0]))
    engine.answer(asked(tones[0]))
    assert read == [(tones[0].path, False)]


def test_only_streams_of_the_adapter_that_computes_are_asked_for_drafts(bench: MakeBench, tones: list[Adapter]) -> None:
    engine, asked_in_turn = bench().engine, list[bool]()

    class Watched(PromptLookup):
        def __init__(self, adapter: str) -> None:
            super().__init__(np.empty(0, np.int32))
            self._adapter = adapter

        def draft(self, most: int) -> Sequence[int]:
            asked_in_turn.append(engine._adapters.applied.startswith(self._adapter))
            return super().draft(most)

    def drafter(generation: Generation, prompt: object) -> PromptLookup:
        assert generation.adapter
        return Watched(generation.adapter.sha256)

    engine._drafter = drafter  # type: ignore[method-assign]
    for tone in tones[:2]:
        engine.submit(replace(asked(tone), sampling=Sampling(temperature=0.0, max_tokens=60)), lambda piece: None)
    engine.run_until_idle()
    assert len(asked_in_turn) > 10
    assert all(asked_in_turn)
