"""What a GGUF is to this box, by its header alone: a chat model, or an adapter of one that is here."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from appliance.errors import AdapterMismatch, InvalidArgument, ModelDamaged, ModelMissing, NotFound
from appliance.models import adapters, architectures, gguf, scaffold
from appliance.types import ModelFile, ModelKind


def judge(header: gguf.Header, base: str, bases: Sequence[ModelFile]) -> ModelFile:
    """A model file, but for its name, place, hash, size and time. bases: the chat models that adapters may belong to.

    Raises ModelDamaged, ModelUnsupported, AdapterMismatch, NotFound and InvalidArgument (base).
    """
    file = ModelFile("", ModelKind.CHAT, "", "", "", 0, "", parameters=header.parameters)
    if header.type == adapters.ADAPTER:
        return _adapter(file, _base(header, base, bases))
    if base:
        raise InvalidArgument.of("base", "is for adapters; the file is a whole model.")
    return _chat(file, header)


def _chat(file: ModelFile, header: gguf.Header) -> ModelFile:
    shape = architectures.describe(header)
    return replace(
        file,
        architecture=header.architecture,
        trained_context_tokens=shape.context_tokens,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        compute_bytes_per_token=shape.compute_bytes_per_token,
        scaffold=scaffold.detect(header),
    )


def _adapter(file: ModelFile, base: ModelFile) -> ModelFile:
    return replace(file, kind=ModelKind.ADAPTER, architecture=base.architecture, base=base.name)


def _base(adapter: gguf.Header, name: str, bases: Sequence[ModelFile]) -> ModelFile:
    """The named model, or the only one that the adapter fits."""
    adapters.describe(adapter)
    if name:
        base = next((file for file in bases if file.name == name), None)
        if base is None:
            raise NotFound(f"There is no chat model models/{name} for the adapter.")
        adapters.check(adapter, gguf.read(Path(base.path)))
        return base
    fault = f"It is an adapter for a {adapter.architecture} model, and no such model is imported."
    fitting = []
    for base in bases:
        try:
            adapters.check(adapter, gguf.read(Path(base.path)))
            fitting.append(base)
        except AdapterMismatch as error:
            fault = str(error) if base.architecture == adapter.architecture else fault
        except (ModelMissing, ModelDamaged):  # the base's own fault, which loading it tells of
            continue
    if len(fitting) > 1:
        names = ", ".join(base.name for base in fitting)
        raise AdapterMismatch(f"The adapter fits several models ({names}); say which one is its base.")
    if not fitting:
        raise AdapterMismatch(fault)
    return fitting[0]
