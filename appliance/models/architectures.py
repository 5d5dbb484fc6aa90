"""What a sound GGUF is to this engine: which architectures serve as chat models, and how much memory a token takes.

The names are those of llama.cpp as llama-cpp-python 0.3.36 has it (src/llama-arch.cpp); how the attention's shape is
read follows `llama_model::load_hparams` there.
"""

from dataclasses import dataclass

from appliance.errors import ModelDamaged, ModelUnsupported
from appliance.models.gguf import Header, shown

# Names by what the model is, parted by spaces.
DECODERS = """
afmoe apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm cohere2
cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 dots1 dots3note ernie4_5 ernie4_5-moe
exaone exaone-moe exaone4 falcon gemma gemma2 gemma3 gemma3n gemma4 glm-dsa glm4 glm4moe gpt-oss gpt2 gptj gptneox
granite granite_swa granitemoe graniteswitch grok grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4
internlm2 jais jais2 laguna llama llama4 maincoder maple mellum mimo2 minicpm minicpm3 minimax-m2 minimax-m3
mistral3 mistral4 mpt muse-glimmer nanbeige nemotron olmo olmo2 olmoe openelm orion paddleocr pangu-embedded phi2
phi3 phimoe plamo plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact seed_oss
smallthinker smollm3 spark2_5 stablelm starcoder starcoder2 step35 talkie xverse
"""
ENCODERS = """
bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert nomic-bert nomic-bert-moe
t5 t5encoder
"""
# llm_arch_is_recurrent and llm_arch_is_hybrid: their state cannot be cut back to a shared prefix, as the engine does.
RECURRENT = """
arwkv7 bailingmoe3 deepseek4 falcon-h1 glm5-next granitehybrid jamba kimi-k3 kimi-linear lfm2 lfm2moe mamba mamba2
minimax-01 nemotron_h nemotron_h_moe plamo2 qwen35 qwen35moe qwen3next qwen4exp rwkv6 rwkv6qwen2 rwkv7
"""
OTHERS = {
    **dict.fromkeys(("dream", "llada", "llada-moe", "rnd1"), "writes by diffusion, not token by token"),
    **dict.fromkeys(("eagle3", "dflash", "gemma4-assistant"), "only drafts for another model"),
    **dict.fromkeys(("wavtokenizer-dec", "qwen3tts", "pockettts"), "makes sound, not text"),
    "clip": "is the vision part of another model",
}
TOKENIZERS = frozenset({"llama", "gpt2", "gemma4", "plamo2", "bert", "t5", "rwkv"})
STARTER_NAME = "starter pointer"  # what models/starter writes as general.name
MAX_LAYERS = 512
MAX_WIDTH = 1 << 20
KV_ELEMENT_BYTES = 2  # f16
WEIGHTS = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Shape:
    """The memory-relevant shape of a decoder. `kv_heads`: one a layer; sizes in elements."""

    width: int
    kv_heads: tuple[int, ...]
    key_size: int
    value_size: int
    context_tokens: int
    vocabulary: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers in f16. An upper bound where layers have a sliding window."""
        return sum(self.kv_heads) * (self.key_size + self.value_size) * KV_ELEMENT_BYTES

    @property
    def compute_bytes_per_token(self) -> int:
        """Logits and activations of a token in a step, f32: llama.cpp's compute buffer, less the attention mask."""
        return (self.vocabulary + 4 * self.width) * 4


def describe(header: Header) -> Shape:
    """The shape of a chat model. Raises ModelUnsupported for anything else, ModelDamaged where keys contradict."""
    _require_chat(header)
    architecture = header.architecture
    layers = _between(header, f"{architecture}.block_count", 1, MAX_LAYERS)
    width = _between(header, f"{architecture}.embedding_length", 1, MAX_WIDTH)
    context = _between(header, f"{architecture}.context_length", 1, 1 << 31)
    heads = _per_layer(header, f"{architecture}.attention.head_count", layers)
    kv_key = f"{architecture}.attention.head_count_kv"
    kv_heads = _per_layer(header, kv_key, layers) if kv_key in header.metadata else heads
    if not heads[0]:
        raise ModelDamaged(f"{architecture}.attention.head_count is 0 in the first layer.")
    key_size, value_size = (_head_size(header, part, width // heads[0]) for part in ("key", "value"))
    _require_weights(header, width)
    return Shape(width, kv_heads, key_size, value_size, context, header.vocabulary)


def _require_chat(header: Header) -> None:
    """Raises ModelUnsupported, saying what the file is instead."""
    if header.type not in ("", "model"):
        raise ModelUnsupported(f"It is of type {shown(header.type)}, not a whole model.")
    if (parts := header.integer("split.count", 1)) > 1:  # first: later parts have no architecture
        number = header.integer("split.no", 0) + 1
        raise ModelUnsupported(f"It is part {number} of {parts}. Merge the parts first (llama-gguf-split --merge).")
    architecture = header.architecture
    if architecture in ENCODERS.split():
        raise ModelUnsupported(f"A {architecture} model makes vectors or reads text; it does not chat.")
    if architecture in RECURRENT.split():
        raise ModelUnsupported(f"A {architecture} model keeps recurrent state, which this engine cannot page.")
    if architecture in OTHERS:
        raise ModelUnsupported(f"A {architecture} model {OTHERS[architecture]}.")
    if architecture not in DECODERS.split():
        raise ModelUnsupported(f"The architecture {shown(architecture)} is not one that this engine knows.")
    if header.name == STARTER_NAME:
        raise ModelUnsupported("It is the starter model: it points at sentences and is built in; it does not chat.")
    if header.tokenizer not in TOKENIZERS:
        raise ModelUnsupported(f"The tokenizer {shown(header.tokenizer)} is not one that this engine knows.")


def _require_weights(header: Header, width: int) -> None:
    """The vocabulary, the embedding and the header's width must agree."""
    embedding = next((tensor for tensor in header.tensors if tensor.name == WEIGHTS), None)
    if embedding is None:
        raise ModelDamaged(f"It has no tensor {WEIGHTS}: the weights are missing.")
    expected = (width, header.vocabulary)
    if embedding.dimensions != expected:
        raise ModelDamaged(f"{WEIGHTS} has the shape {embedding.dimensions}; the header says {expected}.")


def _head_size(header: Header, part: str, default: int) -> int:
    """Elements of a head, the larger of full and sliding-window layers."""
    prefix = f"{header.architecture}.attention.{part}_length"
    keys = [key for key in (prefix, f"{prefix}_swa") if key in header.metadata]
    return max([_between(header, key, 1, 1 << 16) for key in keys] or [default])


def _between(header: Header, key: str, low: int, high: int) -> int:
    value = header.integer(key)
    if not low <= value <= high:
        raise ModelDamaged(f"The key {shown(key)} is {value}; it must lie between {low} and {high}.")
    return value


def _per_layer(header: Header, key: str, layers: int) -> tuple[int, ...]:
    """One number a layer, from an array or one number for all."""
    value = header.metadata.get(key)
    values = value if isinstance(value, tuple) else (header.integer(key),) * layers
    found = tuple(item for item in values if isinstance(item, int) and 0 <= item <= 1 << 16)
    if len(found) != len(values) or len(found) < layers:
        raise ModelDamaged(f"The key {shown(key)} must hold {layers} numbers from 0 to {1 << 16}.")
    return found[:layers]
