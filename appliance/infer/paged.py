"""Paged attention: the backend of native/paged_attention, put before ggml's own kernels in this process.

llama.cpp asks every registered backend whether it computes an operation. Ours claims attention over the unified KV
cache, and products of several rows with weights of the types for which it is faster than ggml. It leaves the rest, and
what it cannot do exactly, to ggml. It refuses to register where ggml is of another version than it was built for, or
where its numbers differ from ggml's: then the stock kernels serve, and `register` says why.
"""

import ctypes
import functools
from importlib import metadata
from typing import Any

_LIBRARY = "appliance/libpaged_attention.so"
PAGED, STOCK = "paged", "stock"
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "register": (ctypes.c_char_p, []),
    "registered": (ctypes.c_bool, []),
    "kernels": (ctypes.c_char_p, []),
    "computed": (ctypes.c_longlong, []),
    "multiplied": (ctypes.c_longlong, []),
    "enable": (None, [ctypes.c_bool]),
    "free": (None, [ctypes.c_bool]),
    "use": (ctypes.c_bool, [ctypes.c_char_p]),
    "refusals": (ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]),
    "trial": (ctypes.c_bool, [ctypes.c_void_p, ctypes.c_bool, ctypes.c_int, ctypes.c_void_p]),
    "products": (None, [ctypes.c_bool]),
    "product_types": (ctypes.c_char_p, []),
    "product_trial": (ctypes.c_bool, [ctypes.c_void_p, ctypes.c_bool, ctypes.c_int, ctypes.c_void_p]),
    "read": (ctypes.c_uint64, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
}


def register(products: bool = True) -> str:
    """Claim attention and, unless switched off, products from now on, once a process, before any context is made.

    Returns "paged (KERNELS)", with ", products (TYPES)" where there are any, or "stock: WHY". llama.cpp must have been
    initialised. A type whose products differ from ggml's is left to ggml; `refusals` says so.
    """
    found = library()
    if found is None:
        return f"{STOCK}: the paged attention library was not built for this version"
    if why := found.paged_attention_register().decode():
        return f"{STOCK}: {why}"
    found.paged_attention_products(products)
    types = found.paged_attention_product_types().decode() if products else ""
    return f"{PAGED} ({found.paged_attention_kernels().decode()})" + (f", products ({types})" if types else "")


def registered() -> bool:
    """Has `register` put it in place?"""
    found = library()
    return found is not None and bool(found.paged_attention_registered())


def enable(claims: bool) -> None:
    """Whether graphs that are built from now on use it; off, they are stock."""
    _there().paged_attention_enable(claims)


def products(claims: bool) -> None:
    """Whether graphs that are built from now on use its products of activations with weights."""
    _there().paged_attention_products(claims)


def use(kernels: str) -> bool:
    """Only the kernels of that name, such as "avx2", or the best again (""). False where this processor has no such."""
    return bool(_there().paged_attention_use(kernels.encode()))


def leave_out(on: bool) -> None:
    """Zeros at no cost in attention's place: for benches, to see what all else costs."""
    _there().paged_attention_free(on)


def counters() -> dict[str, int]:
    """claimed, products: what it computed. fell_through: refusals, of attentions in graphs that were planned."""
    found = _there()
    claimed, products = int(found.paged_attention_computed()), int(found.paged_attention_multiplied())
    return {"claimed": claimed, "fell_through": sum(refusals().values()), "products": products}


def refusals() -> dict[str, int]:
    """Why operations were left to ggml, and how often one was asked about."""
    size = _there().paged_attention_refusals(None, 0)
    text = ctypes.create_string_buffer(size)
    _there().paged_attention_refusals(text, size)
    lines = (line.split(" ", 1) for line in text.value.decode().splitlines())
    return {reason: int(count) for count, reason in lines}


def _there() -> ctypes.CDLL:
    found = library()
    assert found is not None, "register() tells whether it is there"
    return found


@functools.cache
def library() -> ctypes.CDLL | None:
    """The native library; None where it was not built, is of another version, or its ggml is not there."""
    try:
        found = ctypes.CDLL(str(metadata.distribution("appliance").locate_file(_LIBRARY)))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(found, f"paged_attention_{name}")
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError, metadata.PackageNotFoundError):
        return None
    return found
