"""Which vetted prompt scaffold a model's family uses; `tenancy/scaffolds.py` has the scaffolds, by the same names.

The GGUF's chat template is searched for markers and never run. A family is only believed where the markers that must
act as control tokens are control (or user-defined) tokens of the vocabulary: else a prompt would spell them as text.
Markers follow `llm_chat_detect_template` in llama.cpp's src/llama-chat.cpp.
"""

from dataclasses import dataclass

from appliance.models.gguf import Header

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Family:
    """`markers`: all in the template; `strangers`: none in it; `control`: all guarded tokens of the vocabulary."""

    scaffold: str
    markers: tuple[str, ...]
    control: tuple[str, ...]
    strangers: tuple[str, ...] = ()


FAMILIES = (
    Family(
        "chatml",
        markers=("<|im_start|>", "<|im_end|>"),
        control=("<|im_start|>", "<|im_end|>"),
        strangers=("<|im_sep|>", "<end_of_utterance>"),  # phi-4, SmolVLM: other turns by the same token
    ),
    Family(
        "llama3",
        markers=("<|start_header_id|>", "<|end_header_id|>"),
        control=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    Family(
        "phi4",
        markers=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        control=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    Family(
        "llama4",
        markers=("<|header_start|>", "<|header_end|>"),
        control=("<|header_start|>", "<|header_end|>", "<|eot|>"),
    ),
    Family(
        "granite",
        markers=("<|start_of_role|>", "<|end_of_role|>"),
        control=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    Family(
        "deepseek3",
        markers=("<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>"),
        control=("<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>"),
    ),
    Family("gemma", markers=("<start_of_turn>",), control=("<start_of_turn>", "<end_of_turn>")),
    Family("phi3", markers=("<|assistant|>", "<|end|>"), control=("<|user|>", "<|assistant|>", "<|end|>")),
    Family(
        "command-r",
        markers=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"),
        control=("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    ),
    Family(
        "mistral-v7",
        markers=("[INST]", "[SYSTEM_PROMPT]"),
        control=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "</s>"),
    ),
    Family("mistral-v3-tekken", markers=('"[INST]"',), control=("[INST]", "[/INST]", "</s>"), strangers=("<<SYS>>",)),
    Family("mistral", markers=("[INST]",), control=("[INST]", "[/INST]", "</s>"), strangers=("<<SYS>>",)),
    Family("llama2", markers=("[INST]", "<<SYS>>"), control=("<s>", "</s>")),
    Family("mistral-v1", markers=("[INST]",), control=("</s>",), strangers=("<<SYS>>", "[SYSTEM_PROMPT]")),
    Family("zephyr", markers=("<|user|>", "<|assistant|>", "eos_token"), control=("</s>",), strangers=("<|end|>",)),
)
NAMES = frozenset(family.scaffold for family in FAMILIES) | {PLAIN}


def detect(header: Header) -> str:
    """The name of the scaffold for a model, PLAIN where no family fits."""
    for family in FAMILIES:
        if _fits(family, header):
            return family.scaffold
    return PLAIN


def _fits(family: Family, header: Header) -> bool:
    template = header.chat_template
    return (
        all(marker in template for marker in family.markers)
        and not any(stranger in template for stranger in family.strangers)
        and header.guarded_tokens.issuperset(family.control)
    )
