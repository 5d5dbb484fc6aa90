"""Products of activations and quantized weights beside ggml's: equal bit for bit, or but for rounding."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import llama_cpp as native
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.infer import llama, paged
from appliance.types import Floats
from tests.gguf_models import Shape, write_llama
from tests.infer import logits

Q4_0, Q8_0, Q4_K, Q5_K, Q6_K, F16 = 2, 8, 12, 13, 14, 1  # ggml_type
DEPTHS = {Q4_0: 32, Q8_0: 32, Q4_K: 256, Q6_K: 256}  # elements of a block
EQUAL = (Q4_0, Q4_K)  # bit for bit what ggml computes for one row
FEWEST_ROWS = {Q4_0: 3, Q8_0: 2, Q4_K: 3, Q6_K: 3}
ROUNDING = 3e-6  # of the largest value: ggml sums eight parts of a depth one by one, and ours in one go


class Arguments(ctypes.Structure):
    """ProductTrial of native/paged_attention/trial.h"""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weights", "activations")),
        *((name, ctypes.c_int) for name in ("rows", "depth", "channels", "type")),
    )


def multiply(weights: Floats, activations: Floats, kind: int, *, ours: bool, threads: int = 1) -> Floats | None:
    """activations [rows, depth] x weights [channels, depth], quantized: [rows, channels]. None where left to ggml."""
    library = paged.library()
    assert library
    weights, activations = (np.ascontiguousarray(part, np.float32) for part in (weights, activations))
    (rows, depth), channels = activations.shape, len(weights)
    arguments = Arguments(weights.ctypes.data, activations.ctypes.data, rows, depth, channels, kind)
    out = np.empty((rows, channels), np.float32)
    done = library.paged_attention_product_trial(ctypes.byref(arguments), ours, threads, out.ctypes.data)
    return out if done else None


def drawn(rows: int, blocks: int, channels: int, kind: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Weights and activations at random, some columns of which stand out, as in models."""
    draw = np.random.default_rng(seed)
    depth = blocks * DEPTHS[kind]
    weights = draw.standard_normal((channels, depth), np.float32) * draw.uniform(0.01, 1, (channels, 1))
    activations = draw.standard_normal((rows, depth), np.float32)
    activations[:, draw.integers(depth)] *= 30
    return weights.astype(np.float32), activations


def ours_and_ggmls(weights: Floats, activations: Floats, kind: int, threads: int = 1) -> tuple[Floats, Floats]:
    ours = multiply(weights, activations, kind, ours=True, threads=threads)
    stock = multiply(weights, activations, kind, ours=False)
    assert ours is not None
    assert stock is not None
    return ours, stock


def check(weights: Floats, activations: Floats, kind: int, threads: int = 1) -> None:
    ours, stock = ours_and_ggmls(weights, activations, kind, threads)
    assert np.abs(ours - stock).max() <= ROUNDING * np.abs(stock).max()


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    llama.init()
    said = paged.register()
    if "products" not in said:
        pytest.skip(f"this processor has no kernels for products: {said}")
    yield
    paged.products(True)


def test_registration_proves_every_type_and_names_it() -> None:
    assert paged.register().endswith(", products (q4_0 q4_K q6_K q8_0)")
    assert "products" not in paged.register(products=False)
    assert "products" in paged.register()
    assert not any("products" in reason for reason in paged.refusals())


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(DEPTHS)),
    rows=st.integers(3, 70),
    blocks=st.integers(1, 5),
    strips=st.integers(1, 4),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 1000),
)
def test_products_of_random_shapes_are_ggmls_but_for_rounding(
    kind: int, rows: int, blocks: int, strips: int, threads: int, seed: int
) -> None:
    check(*drawn(rows, blocks, 32 * strips, kind, seed), kind, threads)


@pytest.mark.parametrize("kind", EQUAL)
def test_products_are_bit_for_bit_what_ggml_computes_for_each_row_alone(kind: int) -> None:
    weights, activations = drawn(13, 4, 64, kind)
    alone = [multiply(weights, row[None], kind, ours=False) for row in activations]
    np.testing.assert_array_equal(multiply(weights, activations, kind, ours=True), np.concatenate(alone))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [3, 4, 7, 13, 64])
def test_products_with_q4_0_are_bit_for_bit_ggmls(rows: int) -> None:
    ours, stock = ours_and_ggmls(*drawn(rows, 20, 96, Q4_0), Q4_0)
    np.testing.assert_array_equal(ours, stock)


@pytest.mark.parametrize("kind", DEPTHS)
def test_a_row_does_not_depend_on_those_beside_it(kind: int) -> None:
    weights, activations = drawn(31, 3, 64, kind)
    whole = multiply(weights, activations, kind, ours=True)
    assert whole is not None
    for rows in range(FEWEST_ROWS[kind], 31):
        np.testing.assert_array_equal(multiply(weights, activations[:rows], kind, ours=True), whole[:rows])


@pytest.mark.parametrize("kind", DEPTHS)
def test_threads_change_nothing_even_where_there_are_more_than_work(kind: int) -> None:
    weights, activations = drawn(9, 3, 160, kind)
    alone = multiply(weights, activations, kind, ours=True)
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(multiply(weights, activations, kind, ours=True, threads=threads), alone)


@pytest.mark.parametrize("kind", DEPTHS)
def test_rows_of_zeros_stay_zeros_and_disturb_no_other(kind: int) -> None:
    weights, activations = drawn(8, 2, 32, kind)
    activations[[0, 5]] = 0
    ours, _ = ours_and_ggmls(weights, activations, kind)
    assert not ours[[0, 5]].any()
    check(weights, activations, kind)
    assert not ours_and_ggmls(np.zeros_like(weights), activations, kind)[0].any()


@pytest.mark.parametrize("kind", DEPTHS)
@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-6, 1e6])
def test_tiny_and_huge_activations_are_as_in_ggml(kind: int, size: float) -> None:
    weights, activations = drawn(7, 2, 32, kind)
    activations[2] *= np.float32(size)
    ours, stock = ours_and_ggmls(weights, activations, kind)
    for row, right in zip(ours, stock, strict=True):  # each by its own size
        assert np.abs(row - right).max() <= ROUNDING * np.abs(right).max()


@pytest.mark.parametrize("kind", [Q4_0, Q8_0])
def test_activations_beyond_the_scale_of_a_block_overflow_as_in_ggml(kind: int) -> None:
    weights, activations = drawn(7, 2, 32, kind)
    activations[2] *= np.float32(1e12)  # a block's scale is a float16
    ours, stock = ours_and_ggmls(weights, activations, kind)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(stock))
    assert not np.isfinite(ours[2]).any()
    assert np.isfinite(ours[[0, 1, 3, 4, 5, 6]]).all()


@pytest.mark.parametrize("kind", DEPTHS)
def test_all_codes_and_scales_of_weights_are_read_right(kind: int) -> None:
    """A row of activations that picks one element shows that element of every channel."""
    depth = DEPTHS[kind]
    weights, _ = drawn(1, 1, 32, kind)
    weights *= np.logspace(-2, 2, depth, dtype=np.float32)
    check(weights, np.eye(depth, dtype=np.float32), kind)


def test_what_is_not_claimed_is_left_to_ggml() -> None:
    for kind, fewest in FEWEST_ROWS.items():
        assert multiply(*drawn(fewest, 1, 32, kind), kind, ours=True) is not None
        assert multiply(*drawn(fewest - 1, 1, 32, kind), kind, ours=True) is None, "rows"
        assert multiply(*drawn(8, 1, 40, kind), kind, ours=True) is None, "channels"
        assert multiply(*drawn(8, 1, 40, kind), kind, ours=False) is not None
    for kind in (Q5_K, F16):
        assert multiply(*drawn(8, 1, 32, Q4_K), kind, ours=True) is None


def test_switched_off_no_product_is_claimed() -> None:
    paged.products(False)
    try:
        assert multiply(*drawn(8, 1, 32, Q4_0), Q4_0, ours=True) is None
    finally:
        paged.products(True)
    assert multiply(*drawn(8, 1, 32, Q4_0), Q4_0, ours=True) is not None


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide = Shape(embedding=256, feed_forward=512, heads=4, kv_heads=2, vocabulary=512)
    return write_llama(tmp_path_factory.mktemp("products") / "f16.gguf", wide)


def quantized(source: Path, kind: str, **options: object) -> Path:
    """The model stored as that ftype of llama.cpp."""
    params = native.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, getattr(native, f"LLAMA_FTYPE_{kind}")
    for name, value in options.items():
        setattr(params, name, value)
    target = source.with_name(f"{source.stem}-{kind}.gguf")
    assert native.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


def evaluate(path: Path, *, ours: bool) -> tuple[Floats, int]:
    """Logits of all that a cache goes through, and how many products were ours."""
    paged.products(ours)
    before = paged.counters()["products"]
    model = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
    found = logits.compute(model, native.GGML_TYPE_F16, native.LLAMA_FLASH_ATTN_TYPE_ENABLED)
    native.llama_model_free(model)
    return found, paged.counters()["products"] - before


def test_a_q4_0_models_logits_are_bit_for_bit_the_same_with_and_without(plain: Path) -> None:
    path = quantized(plain, "MOSTLY_Q4_0", pure=True)
    (theirs, none), (ours, some) = evaluate(path, ours=False), evaluate(path, ours=True)
    assert none == 0
    assert some > 0
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["MOSTLY_Q4_K_M", "MOSTLY_Q8_0", "MOSTLY_Q6_K"])
def test_a_models_logits_are_as_near_to_those_of_unrounded_activations_as_without(plain: Path, kind: str) -> None:
    """Where a sum differs in its last bit an activation may round to the next of its 255 values, and all that follows
    with it: as far apart as any two ways to compute the same model."""
    path = quantized(plain, kind)
    exact, none = evaluate(quantized(path, "ALL_F32", allow_requantize=True), ours=True)
    (theirs, _), (ours, some) = evaluate(path, ours=False), evaluate(path, ours=True)
    assert none == 0
    assert some > 0
    mine, stock = logits.error(ours, exact), logits.error(theirs, exact)
    assert mine.all <= 1.1 * stock.all
    assert mine.worst <= 1.3 * stock.worst
    assert logits.error(ours, theirs).all <= 1.5 * stock.all
