"""Paged attention beside exact arithmetic and ggml's kernel: random masks, shapes, types, and what changes scores."""

import ctypes
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from appliance.infer import llama, paged
from appliance.types import Floats

KERNELS = [name for name in ("avx512-vnni", "avx512", "avx2", "neon") if paged.use(name)]  # that this processor has
F32, F16, Q8_0, BF16 = 0, 1, 8, 30  # ggml_type
HIDDEN = np.float16(-np.inf)
Exact = NDArray[np.float64]


class Arguments(ctypes.Structure):
    """native/paged_attention/trial.h"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "mask", "sinks")),
        *(
            (name, ctypes.c_int)
            for name in ("rows", "cells", "heads", "kv_heads", "key_size", "value_size", "key_type", "value_type")
        ),
        *((name, ctypes.c_float) for name in ("scale", "max_bias", "softcap")),
    )


@dataclass(frozen=True)
class Case:
    """q [rows, heads, size], k and v [cells, kv_heads, size], mask float16 [rows, cells]."""

    q: Floats
    k: Floats
    v: Floats
    mask: NDArray[np.float16]
    kv_type: int = F16
    max_bias: float = 0.0
    softcap: float = 0.0
    sinks: Floats | None = field(default=None)

    @property
    def scale(self) -> float:
        return float(1 / np.sqrt(self.q.shape[2]))


def case(
    rows: int = 3,
    pages: int = 4,
    kv_heads: int = 2,
    group: int = 2,
    size: int = 64,
    value_size: int = 0,
    kv_type: int = F16,
    seed: int = 0,
) -> Case:
    """Queries and a cache at random; each row sees runs of cells, as a sequence's blocks lie in the cache."""
    draw = np.random.default_rng(seed)
    cells = pages * 64
    mask = np.full((rows, cells), HIDDEN)
    for row in mask:
        for _ in range(int(draw.integers(1, 5))):
            start = int(draw.integers(0, cells))
            row[start : start + int(draw.integers(1, cells))] = 0
    return Case(
        q=draw.standard_normal((rows, kv_heads * group, size), np.float32) * 2,
        k=draw.standard_normal((cells, kv_heads, size), np.float32),
        v=draw.standard_normal((cells, kv_heads, value_size or size), np.float32),
        mask=mask,
        kv_type=kv_type,
    )


def compute(one: Case, *, ours: bool, threads: int = 1) -> Floats | None:
    """[rows, heads, value size]; None where our backend leaves the operation to ggml."""
    library = paged.library()
    assert library
    q, k, v = (np.ascontiguousarray(part, np.float32) for part in (one.q, one.k, one.v))
    mask = np.ascontiguousarray(one.mask)
    sinks = None if one.sinks is None else np.ascontiguousarray(one.sinks, np.float32)
    arguments = Arguments(
        *(part.ctypes.data for part in (q, k, v, mask)),
        None if sinks is None else sinks.ctypes.data,
        *(q.shape[0], k.shape[0], q.shape[1], k.shape[1], q.shape[2], v.shape[2], one.kv_type, one.kv_type),
        *(one.scale, one.max_bias, one.softcap),
    )
    out = np.empty((*q.shape[:2], v.shape[2]), np.float32)
    done = library.paged_attention_trial(ctypes.byref(arguments), ours, threads, out.ctypes.data)
    return out if done else None


def stored(values: Floats, kv_type: int) -> Exact:
    """What is left of values in a cache of that type."""
    if kv_type == F16:
        return values.astype(np.float16).astype(np.float64)
    if kv_type == BF16:
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    if kv_type == Q8_0:
        blocks = values.reshape(-1, 32)
        scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        codes = np.rint(blocks / np.where(scale == 0, 1, scale))
        return np.asarray(codes * scale.astype(np.float16), np.float64).reshape(values.shape)
    return values.astype(np.float64)


def exact(one: Case) -> Exact:
    """The definition, in float64, over what the cache holds."""
    group = one.q.shape[1] // one.k.shape[1]
    k, v = (np.repeat(stored(part, one.kv_type), group, axis=1) for part in (one.k, one.v))
    scores = np.einsum("rhd,chd->hrc", one.q.astype(np.float64), k) * one.scale
    if one.softcap:
        scores = one.softcap * np.tanh(scores / one.softcap)
    with np.errstate(invalid="ignore"):
        scores = scores + slopes(one)[:, None, None] * one.mask.astype(np.float64)
    sinks = np.full(one.q.shape[1], -np.inf) if one.sinks is None else one.sinks.astype(np.float64)
    top = np.maximum(scores.max(2), sinks[:, None])
    top[np.isinf(top)] = 0
    weights = np.exp(scores - top[:, :, None])
    whole = weights.sum(2) + np.exp(sinks[:, None] - top)
    whole[whole == 0] = 1
    return np.asarray(np.einsum("hrc,chd->rhd", weights / whole[:, :, None], v))


def slopes(one: Case) -> Exact:
    """ALiBi's, for any number of heads (Press et al. 2021)."""
    heads = one.q.shape[1]
    if not one.max_bias:
        return np.ones(heads)
    below = 2 ** int(np.log2(heads))
    first = 2.0 ** (-one.max_bias / below)
    second = 2.0 ** (-one.max_bias / 2 / below)
    return np.array([first ** (h + 1) if h < below else second ** (2 * (h - below) + 1) for h in range(heads)])


def error(found: Floats | None, right: Exact) -> float:
    """Root of the mean square, relative to the values'."""
    assert found is not None
    assert np.isfinite(found).all()
    return float(np.sqrt(((found - right) ** 2).mean() / max((right**2).mean(), 1e-30)))


def check(one: Case, threads: int = 1) -> None:
    """As near to exact arithmetic as ggml's own kernel is, or as float16 is: ggml computes few rows in float16, with
    errors of some 5e-4, and many rows in float32."""
    right = exact(one)
    stock = error(compute(one, ours=False), right)
    mine = error(compute(one, ours=True, threads=threads), right)
    assert mine <= max(1.5 * stock, 5e-4), f"ours {mine:.2e}, ggml's {stock:.2e}"


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    llama.init()
    assert paged.register().startswith(paged.PAGED)


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in its turn."""
    assert paged.use(request.param)
    yield request.param
    paged.use("")


@pytest.mark.parametrize("kv_type", [F16, BF16, Q8_0, F32])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_it_is_as_exact_as_ggml_for_every_cache_type_and_batch(kernels: str, rows: int, kv_type: int) -> None:
    check(case(rows=rows, kv_type=kv_type, seed=rows))


@pytest.mark.parametrize("size", [32, 40, 64, 72, 80, 96, 112, 128, 192, 256])
def test_it_is_as_exact_as_ggml_for_every_head_size(kernels: str, size: int) -> None:
    one = case(rows=9, size=size)
    if compute(one, ours=True) is None:
        assert size % 16, "left to ggml, as it fills no vectors"
        return
    check(one)
    check(case(rows=1, size=size))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8, 16])
def test_it_is_as_exact_as_ggml_for_every_group_of_query_heads(kernels: str, group: int) -> None:
    check(case(rows=1, group=group))
    check(case(rows=30, group=group))


def test_keys_and_values_may_differ_in_size(kernels: str) -> None:
    check(case(rows=1, size=192, value_size=128))
    check(case(rows=30, size=192, value_size=128))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    pages=st.integers(1, 9),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 3, 4]),
    size=st.sampled_from([32, 64, 128]),
    kv_type=st.sampled_from([F16, Q8_0]),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_it_is_as_exact_as_ggml_for_random_masks_and_shapes(
    rows: int, pages: int, kv_heads: int, group: int, size: int, kv_type: int, threads: int, seed: int
) -> None:
    check(case(rows, pages, kv_heads, group, size, kv_type=kv_type, seed=seed), threads)


def test_rows_that_share_a_prefix_each_get_their_own_answer(kernels: str) -> None:
    one = case(rows=12, pages=6)
    one.mask[:] = HIDDEN
    one.mask[:, :128] = 0  # a prefix that all see, then cells of their own
    for row in range(12):
        one.mask[row, 128 + 20 * row : 128 + 20 * row + 20] = 0
    check(one)


def test_a_row_that_sees_nothing_is_zero_and_disturbs_no_other(kernels: str) -> None:
    one = case(rows=5)
    one.mask[2] = HIDDEN
    found = compute(one, ours=True)
    assert found is not None
    assert not found[2].any()
    check(one)


def test_what_lies_in_hidden_cells_never_counts_not_even_nan(kernels: str) -> None:
    for rows in (1, 30):
        one = case(rows=rows)
        one.mask[:, 70:90] = HIDDEN
        clean = compute(one, ours=True)
        one.k[70:90], one.v[70:90] = np.nan, np.inf
        assert clean is not None
        np.testing.assert_array_equal(compute(one, ours=True), clean)


def test_a_soft_cap_on_scores_is_exact(kernels: str) -> None:
    for rows in (1, 30):
        one = case(rows=rows)
        check(replace(one, q=one.q * 20, softcap=30.0))


def test_sinks_are_exact(kernels: str) -> None:
    for rows in (1, 30):
        check(replace(case(rows=rows, group=4), sinks=np.linspace(-3, 4, 8, dtype=np.float32)))


def test_a_sink_is_all_there_is_where_a_row_sees_nothing(kernels: str) -> None:
    one = replace(case(rows=3), sinks=np.ones(4, np.float32))
    one.mask[1] = HIDDEN
    check(one)


@pytest.mark.parametrize("group", [2, 3])  # 3: six heads, where the slopes come in two series
def test_alibi_is_exact(kernels: str, group: int) -> None:
    for rows in (1, 30):
        one = case(rows=rows, group=group)
        seen = one.mask == 0
        distance = -np.abs(np.arange(rows)[:, None] * 3 - np.arange(one.mask.shape[1])[None])
        check(replace(one, mask=np.where(seen, distance, HIDDEN).astype(np.float16), max_bias=8.0))


def test_outliers_among_keys_and_values_cost_no_more_than_in_ggml(kernels: str) -> None:
    one = case(rows=30)
    one.k[:, :, 3] *= 30  # as some channels of real keys are
    one.v[5] *= 50
    check(one)


def test_a_long_context_with_one_dominant_key_is_exact(kernels: str) -> None:
    one = case(rows=16, pages=64, kv_heads=1)
    one.mask[:] = 0
    one.k[777] = one.q[3, 0] * 4
    check(one)


def test_threads_change_no_more_than_rounding_does() -> None:
    for rows in (1, 30):
        one = case(rows=rows, pages=40, kv_heads=1)
        alone = compute(one, ours=True)
        together = compute(one, ours=True, threads=4)
        assert alone is not None
        assert together is not None
        np.testing.assert_allclose(alone, together, atol=1e-3)  # pages are rounded by themselves


def test_what_it_cannot_do_exactly_is_left_to_ggml_with_the_reason() -> None:
    odd = case(size=36)
    before = paged.refusals().get("head size", 0)
    assert compute(odd, ours=True) is None
    assert paged.refusals()["head size"] == before + 1
    assert error(compute(odd, ours=False), exact(odd)) < 1e-2


def test_switched_off_it_claims_nothing() -> None:
    paged.enable(False)
    try:
        assert compute(case(), ours=True) is None
    finally:
        paged.enable(True)
    assert compute(case(), ours=True) is not None


def test_a_cell_that_holds_no_numbers_spoils_only_the_rows_that_see_it(kernels: str) -> None:
    """Pages hold cells of many sequences, and one of them may be broken."""
    for rows in (2, 30):
        one = case(rows=rows, pages=2)
        one.mask[1:, 5] = HIDDEN
        one.mask[0, 5] = 0
        clean = compute(one, ours=True)
        for bad in (np.nan, np.inf):
            one.k[5], one.v[5] = 1, bad
            found = compute(one, ours=True)
            assert found is not None
            assert clean is not None
            assert not np.isfinite(found[0]).any()
            np.testing.assert_allclose(found[1:], clean[1:], atol=2e-3)


def test_rows_that_all_see_nothing_are_zero_on_many_threads(kernels: str) -> None:
    one = case(rows=4)
    one.mask[:] = HIDDEN
    found = compute(one, ours=True, threads=3)
    assert found is not None
    assert not found.any()


@pytest.mark.long
def test_the_kernels_are_right_and_touch_nothing_else_under_sanitizers() -> None:
    include = Path(sysconfig.get_path("purelib")) / "include"
    check = Path(__file__).parents[1] / "native" / "check.sh"
    done = subprocess.run(
        [check, "native"], env=os.environ | {"GGML_INCLUDE": str(include)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.endswith(" passed, 0 failed\n")
