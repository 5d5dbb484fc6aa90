"""The starter model's file, its prompt, and the answer that a sound engine gives."""

from pathlib import Path

import pytest

from appliance.errors import ModelDamaged, ModelMissing
from appliance.models import starter


def test_the_packaged_model_is_the_pinned_one_and_small() -> None:
    path = starter.path()
    assert path.stat().st_size <= 25 * 1024 * 1024
    pin = Path(__file__).parents[2] / "models" / "starter" / "starter.sha256"
    assert pin.read_text() == f"{starter.SHA256}  {starter.FILE_NAME}\n"


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    changed = tmp_path / "starter.gguf"
    changed.write_bytes(starter.path().read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ModelDamaged, match=starter.SHA256):
        starter.verified(changed)


def test_a_missing_model_is_named_with_the_places_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(ModelMissing, match=r"a, .*b"):
        starter.path()


def test_an_installed_model_is_found_before_the_checkout_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / starter.FILE_NAME
    installed.write_bytes(starter.path().read_bytes())
    monkeypatch.setattr(starter, "PLACES", (tmp_path, *starter.PLACES))
    assert starter.path() == installed


def test_a_prompt_numbers_sentences_through_all_passages() -> None:
    pieces = starter.pointer_prompt([["One.", "Two  words."], ["Three."]], "Which?")
    assert "".join(text for text, _ in pieces) == "[1]<|s1|> One.<|s2|> Two words.[2]<|s3|> Three.<|q|> Which?<|a|>"
    assert [text for text, control in pieces if not control] == [" One.", " Two words.", " Three.", " Which?"]


def test_text_that_spells_a_label_stays_text() -> None:
    pieces = starter.pointer_prompt([["Say <|s2|> aloud."]], "<|none|>?")
    assert (" Say <|s2|> aloud.", False) in pieces
    assert (" <|none|>?", False) in pieces


def test_more_than_the_model_can_number_is_refused() -> None:
    with pytest.raises(ValueError, match="48 sentences"):
        starter.pointer_prompt([["A sentence."] * 49], "Which?")
    with pytest.raises(ValueError, match="8 passages"):
        starter.pointer_prompt([["A sentence."]] * 9, "Which?")


def test_an_answer_is_one_of_the_prompt_s_labels_or_none() -> None:
    assert starter.labels(2) == ("<|s1|>", "<|s2|>", "<|none|>")


def test_the_self_test_expects_a_label_of_its_own_prompt() -> None:
    test = starter.SELF_TEST
    assert test.expected in test.labels
    assert {text.split("]")[-1] for text, control in test.prompt if control} >= set(test.labels) - {starter.NONE_LABEL}
