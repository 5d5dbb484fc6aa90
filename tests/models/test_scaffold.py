from pathlib import Path

import pytest

from appliance.models import gguf, scaffold
from appliance.tenancy.scaffolds import SCAFFOLDS
from tests import gguf_models
from tests.models.headers import write_chat

LLAMA2 = "{% if system %}<<SYS>>\\n{% endif %}[INST] {{ content }} [/INST]"
ZEPHYR = "{{ '<|user|>\\n' + message['content'] + eos_token }}{{ '<|assistant|>' }}"
COHERE = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
CASES = {
    "chatml": ("<|im_start|>{{ role }}<|im_end|>", ("<|im_start|>", "<|im_end|>")),
    "llama3": ("<|start_header_id|>user<|end_header_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": ("<start_of_turn>user", ("<start_of_turn>", "<end_of_turn>")),
    "phi3": ("<|user|>{{ x }}<|end|><|assistant|>", ("<|user|>", "<|assistant|>", "<|end|>")),
    "command-r": ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", COHERE),
    "mistral-v7": ("[SYSTEM_PROMPT] [INST]", ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "</s>")),
    "phi4": ("<|im_start|>{{ role }}<|im_sep|><|im_end|>", ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    "llama4": ("<|header_start|>user<|header_end|>", ("<|header_start|>", "<|header_end|>", "<|eot|>")),
    "granite": ("<|start_of_role|>user<|end_of_role|>", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")),
    "deepseek3": ("".join(DEEPSEEK), DEEPSEEK),
    "mistral-v3-tekken": ('{{ "[INST]" + x + "[/INST]" }}', ("[INST]", "[/INST]", "</s>")),
    "mistral": ("[INST] {{ x }} [/INST]", ("[INST]", "[/INST]", "</s>")),
    "mistral-v1": ("[INST] {{ x }} [/INST]", ("<s>", "</s>")),
    "llama2": (LLAMA2, ("<s>", "</s>")),
    "zephyr": (ZEPHYR, ("<s>", "</s>")),
    "plain": ("", ("<s>", "</s>")),
}


def detect(tmp_path: Path, template: str, control: tuple[str, ...]) -> str:
    return scaffold.detect(gguf.read(write_chat(tmp_path / "x.gguf", template=template, control=control)))


@pytest.mark.parametrize("name", CASES)
def test_a_family_is_known_by_its_template_and_its_control_tokens(tmp_path: Path, name: str) -> None:
    assert detect(tmp_path, *CASES[name]) == name


def test_markers_that_are_no_control_tokens_make_no_family(tmp_path: Path) -> None:
    assert detect(tmp_path, CASES["chatml"][0], ("<s>",)) == "plain"
    assert detect(tmp_path, CASES["gemma"][0], ("<start_of_turn>",)) == "plain"


def test_control_tokens_without_the_template_make_no_family(tmp_path: Path) -> None:
    assert detect(tmp_path, "", CASES["chatml"][1]) == "plain"


def test_a_relative_with_other_turns_is_not_taken_for_the_family(tmp_path: Path) -> None:
    template = "<|im_start|>{{ role }}{{ x }}<end_of_utterance><|im_end|>"
    assert detect(tmp_path, template, ("<|im_start|>", "<|im_end|>")) == "plain"


@pytest.mark.parametrize(("architecture", "name"), [("llama", "plain"), ("qwen2", "chatml"), ("gemma2", "gemma")])
def test_the_models_of_the_other_tests_get_their_scaffold(tmp_path: Path, architecture: str, name: str) -> None:
    path = gguf_models.ARCHITECTURES[architecture](tmp_path / "x.gguf")
    assert scaffold.detect(gguf.read(path)) == name


def test_every_name_that_is_detected_has_a_scaffold_and_the_reverse() -> None:
    assert set(SCAFFOLDS) == scaffold.NAMES == set(CASES)
