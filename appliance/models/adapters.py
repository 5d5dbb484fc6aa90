"""Whether a LoRA adapter in GGUF belongs to a base model: by both headers, before any native code reads them.

Format: what convert_lora_to_gguf.py of llama.cpp writes and `llama_adapter_lora_init_impl` (src/llama-adapter.cpp)
reads. That function trusts more than it checks: a wrong value type aborts the process, which would be the base's
worker; what it would take and compute wrongly, or abort on, is refused here.
"""

import math
from collections.abc import Mapping

from appliance.errors import AdapterMismatch, ModelDamaged, ModelUnsupported
from appliance.models.gguf import FLOAT32, Header, Tensor, shown

ADAPTER = "adapter"  # its general.type
ALPHA = "adapter.lora.alpha"
ACTIVATED = "adapter.alora.invocation_tokens"
A, B = ".lora_a", ".lora_b"
IGNORED = "_norm.weight"  # llama.cpp leaves these out; adapters work without them
STORAGE = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
EMBEDDING = "token_embd.weight"  # its pair is stored the other way round


def check(adapter: Header, base: Header) -> None:
    """Raises ModelUnsupported or ModelDamaged where it is no sound LoRA, AdapterMismatch where the base is another."""
    describe(adapter)
    if adapter.architecture != base.architecture:
        raise AdapterMismatch(f"The adapter is for a {adapter.architecture} model; the base is {base.architecture}.")
    of_base = {tensor.name: tensor for tensor in base.tensors}
    for name, (low, high) in _pairs(adapter).items():
        if name not in of_base:
            raise AdapterMismatch(f"The adapter changes {shown(name)}, which the base does not have.")
        _check_pair(low, high, of_base[name])


def describe(adapter: Header) -> None:
    """Whether it is a LoRA that this engine can apply to some base. Raises ModelUnsupported, ModelDamaged."""
    if adapter.type != ADAPTER:
        raise ModelUnsupported("It is a whole model, not an adapter.")
    if (kind := adapter.text("adapter.type")) != "lora":
        raise ModelUnsupported(f"It is an adapter of type {shown(kind)}; only 'lora' is applied.")
    if ACTIVATED in adapter.metadata:
        raise ModelUnsupported("It is an activated LoRA, which acts on a part of the prompt; this engine has none.")
    alpha = adapter.metadata.get(ALPHA)
    if adapter.kinds.get(ALPHA) != FLOAT32 or not isinstance(alpha, float) or not math.isfinite(alpha):
        raise ModelDamaged(f"The key {shown(ALPHA)} must hold a 32-bit number.")
    if not adapter.architecture or not _pairs(adapter):
        raise ModelDamaged("It changes nothing: it has no pair of tensors.")


def _pairs(adapter: Header) -> Mapping[str, tuple[Tensor, Tensor]]:
    """The two factors of each change, by the name of the base's tensor."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in adapter.tensors:
        name, suffix = tensor.name[: -len(A)], tensor.name[-len(A) :]
        if suffix in (A, B) and A not in name and B not in name:
            halves.setdefault(name, {})[suffix] = tensor
        elif not tensor.name.endswith(IGNORED):
            raise ModelDamaged(f"Tensor {shown(tensor.name)} is no half of a LoRA pair.")
    for name, found in halves.items():
        if len(found) != 2:
            raise ModelDamaged(f"The LoRA pair of {shown(name)} lacks one half.")
    return {name: (found[A], found[B]) for name, found in halves.items()}


def _check_pair(low: Tensor, high: Tensor, base: Tensor) -> None:
    for half in (low, high):
        if half.storage not in STORAGE:
            raise ModelUnsupported(f"Tensor {shown(half.name)} must be stored as {', '.join(STORAGE.values())}.")
    fits = base.dimensions == _product(low, high)
    if not fits or len(base.dimensions) < 2:
        raise AdapterMismatch(
            f"The adapter's change of {shown(base.name)} has the shapes {low.dimensions} and {high.dimensions}; "
            f"the base's tensor has {base.dimensions}."
        )


def _product(low: Tensor, high: Tensor) -> tuple[int, ...] | None:
    """The shape that the pair makes together, innermost first; None where they do not go together."""
    a, b = low.dimensions, high.dimensions
    if len(a) != len(b) or len(a) not in (2, 3) or a[2:] != b[2:]:
        return None
    if low.name == EMBEDDING + A:
        return (b[1], a[1]) if a[0] == b[0] and len(a) == 2 else None
    return (a[0], b[1], *a[2:]) if a[1] == b[0] else None
