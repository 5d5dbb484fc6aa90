"""Adapters on a real model: which answers they change, and what becomes of those that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import AdapterMismatch, ModelDamaged, ModelMissing
from appliance.infer import lora
from appliance.types import Adapter, Generation
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
