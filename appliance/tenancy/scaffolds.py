"""The vetted prompt scaffolds, as data: what stands around each turn in the prompts of a model family.

Each follows what the family was trained on, as `llm_chat_apply_template` in llama.cpp's src/llama-chat.cpp writes it;
the beginning-of-sequence token is the engine's to add. `models/scaffold.py` tells which one a model uses, by these
names.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Around:
    """Scaffold text before and after a turn."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Scaffold:
    """`system`: a turn of its own; None where the family has none, and `folded` goes around it in the first user turn.

    `literals`: turn marks that the family spells as ordinary text, so that the vocabulary cannot guard them.
    """

    user: Around
    assistant: Around
    system: Around | None = None
    folded: Around = Around("", "\n\n")
    literals: tuple[str, ...] = ()


def _named(before: str, after: str) -> Scaffold:
    """The families that write each role by name in the same way."""
    user, assistant, system = (Around(before.format(role=role), after) for role in ("user", "assistant", "system"))
    return Scaffold(user, assistant, system)


SCAFFOLDS = {
    "chatml": _named("<|im_start|>{role}\n", "<|im_end|>\n"),
    "llama3": _named("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
    "phi3": _named("<|{role}|>\n", "<|end|>\n"),
    "gemma": Scaffold(
        user=Around("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=Around("<start_of_turn>model\n", "<end_of_turn>\n"),
    ),
    "command-r": Scaffold(
        user=Around("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        assistant=Around("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        system=Around("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    "mistral-v7": Scaffold(
        user=Around("[INST]", "[/INST]"),
        assistant=Around("", "</s>"),
        system=Around("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "mistral": Scaffold(user=Around("[INST] ", "[/INST]"), assistant=Around(" ", "</s>")),
    "mistral-v1": Scaffold(
        user=Around(" [INST] ", " [/INST]"),
        assistant=Around(" ", "</s>"),
        literals=("[INST]", "[/INST]"),
    ),
    "llama2": Scaffold(
        user=Around("[INST] ", " [/INST]"),
        assistant=Around(" ", " </s><s>"),
        folded=Around("<<SYS>>\n", "\n<</SYS>>\n\n"),
        literals=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "zephyr": Scaffold(
        user=Around("<|user|>\n", "</s>\n"),
        assistant=Around("<|assistant|>\n", "</s>\n"),
        system=Around("<|system|>\n", "</s>\n"),
        literals=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "plain": Scaffold(
        user=Around("User: ", "\n\n"), assistant=Around("Assistant: ", "\n\n"), folded=Around("", "\n\n")
    ),
}
