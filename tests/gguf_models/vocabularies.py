"""Vocabularies for models of random weights: SentencePiece of syllables, and byte-level BPE of a few words."""

import string
from collections.abc import Iterator, Sequence
from itertools import product

import gguf

SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
WORDS = ["the", "box", "badge", "expires", "after", "ninety", "days", "hello", "world", "start", "system", "user"]
UNKNOWN, CONTROL = gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL
NORMAL, DEFINED, BYTE = gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED, gguf.TokenType.BYTE

Vocabulary = list[tuple[str, gguf.TokenType]]


def word(index: int) -> str:
    """A made-up word that is one token (with the blank before it) in the SentencePiece vocabularies here."""
    count = len(SYLLABLES)
    return SYLLABLES[index % count] if index < count else SYLLABLES[index // count % count] + SYLLABLES[index % count]


def add_spm(
    writer: gguf.GGUFWriter,
    specials: Vocabulary,
    size: int,
    *,
    bos: int = 1,
    eos: int = 2,
    unknown: int = 0,
    add_bos: bool = False,
) -> None:
    """Specials, bytes, characters, syllables, and words of two and three syllables until there are `size`."""
    tokens = specials + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    seen = {text for text, _ in tokens}
    for text in _spm_texts():
        if len(tokens) == size:
            break
        if text not in seen:
            seen.add(text)
            tokens.append((text, NORMAL))
    assert len(tokens) == size
    writer.add_tokenizer_model("llama")
    _add_tokens(writer, tokens)
    writer.add_token_scores([0.0 if i < len(specials) else -float(i) for i in range(size)])
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(unknown)
    writer.add_add_bos_token(add_bos)


def add_bpe(
    writer: gguf.GGUFWriter, template: str, specials: Sequence[str], defined: Sequence[str], *, eos: str
) -> int:
    """Bytes and the merges that make WORDS, then control tokens (the first is BOS) and user-defined ones; the size."""
    tokens: Vocabulary = [(char, NORMAL) for char in _byte_alphabet()]
    merges: list[str] = []
    for form in [form for plain in WORDS for form in ("Ġ" + plain, plain)]:
        for cut in range(1, len(form)):
            pair, made = f"{form[:cut]} {form[cut]}", form[: cut + 1]
            if (made, NORMAL) not in tokens:
                tokens.append((made, NORMAL))
                merges.append(pair)
    tokens += [(text, CONTROL) for text in specials] + [(text, DEFINED) for text in defined]
    writer.add_chat_template(template)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    _add_tokens(writer, tokens)
    writer.add_token_merges(merges)
    ids = {text: i for i, (text, _) in enumerate(tokens)}
    writer.add_eos_token_id(ids[eos])
    writer.add_bos_token_id(ids[specials[0]])
    writer.add_add_bos_token(False)
    return len(tokens)


def _spm_texts() -> Iterator[str]:
    yield "▁"
    yield from string.printable.strip()
    yield from SYLLABLES
    yield from ("▁" + syllable for syllable in SYLLABLES)
    for first, second in product(SYLLABLES, SYLLABLES):
        yield first + second
        yield "▁" + first + second
    for parts in product(SYLLABLES, repeat=3):
        yield "▁" + "".join(parts)


def _add_tokens(writer: gguf.GGUFWriter, tokens: Vocabulary) -> None:
    writer.add_vocab_size(len(tokens))
    writer.add_token_list([text.encode() for text, _ in tokens])
    writer.add_token_types([int(kind) for _, kind in tokens])


def _byte_alphabet() -> list[str]:
    """GPT-2's 256 printable characters for bytes, in byte order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(spare)) for byte in range(256)]
