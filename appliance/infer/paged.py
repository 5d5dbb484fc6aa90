"""Paged attention: the backend of native/paged_attention, put before ggml's own kernels in this process.

llama.cpp asks every registered backend whether it computes an operation. Ours claims attention over the unified KV cache
and leaves the rest, and what it cannot do exactly, to ggml. It refuses to register where ggml is of another version than
it was built for, or where its numbers differ from ggml's: then the stock kernels serve, and `register` says why.
"""

import ctypes
import functools
from importlib import metadata

_LIBRARY = "appliance/libpaged_attention.so"
PAGED, STOCK = "paged", "stock"


def register() -> str:
    """Claim attention from now on, once a process, before any context is made.

    Returns "paged (KERNELS)", or "stock: WHY". llama.cpp must have been initialised.
    """
    library = _library()
    if library is None:
        return f"{STOCK}: the paged attention library was not built"
    if why := library.paged_attention_register().decode():
        return f"{STOCK}: {why}"
    return f"{PAGED} ({library.paged_attention_kernels().decode()})"


def enable(claims: bool) -> None:
    """Whether graphs that are built from now on use it; off, they are stock."""
    _there().paged_attention_enable(claims)


def use(kernels: str) -> bool:
    """Only the kernels of that name, such as "avx2", or the best again (""). False where this processor has none such."""
    return bool(_there().paged_attention_use(kernels.encode()))


def leave_out(on: bool) -> None:
    """Zeros at no cost in attention's place: for benches, to see what all else costs."""
    _there().paged_attention_free(on)


def counters() -> dict[str, int]:
    """claimed: operations that it computed. fell_through: refusals, of operations in graphs that were planned."""
    return {"claimed": int(_there().paged_attention_computed()), "fell_through": sum(refusals().values())}


def refusals() -> dict[str, int]:
    """Why operations were left to ggml, and how often one was asked about."""
    size = _there().paged_attention_refusals(None, 0)
    text = ctypes.create_string_buffer(size)
    _there().paged_attention_refusals(text, size)
    lines = (line.split(" ", 1) for line in text.value.decode().splitlines())
    return {reason: int(count) for count, reason in lines}


def _there() -> ctypes.CDLL:
    library = _library()
    assert library is not None, "register() tells whether it is there"
    return library


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
    except (OSError, metadata.PackageNotFoundError):
        return None
    library.paged_attention_register.restype = ctypes.c_char_p
    library.paged_attention_kernels.restype = ctypes.c_char_p
    library.paged_attention_computed.restype = ctypes.c_longlong
    library.paged_attention_enable.argtypes = [ctypes.c_bool]
    library.paged_attention_free.argtypes = [ctypes.c_bool]
    library.paged_attention_use.argtypes, library.paged_attention_use.restype = [ctypes.c_char_p], ctypes.c_bool
    library.paged_attention_refusals.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.paged_attention_refusals.restype = ctypes.c_size_t
    return library
