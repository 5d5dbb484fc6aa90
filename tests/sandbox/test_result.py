import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DocumentRefused
from appliance.sandbox.result import Malformed, decode, encode, encode_refusal

READABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n"))


def frames(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def header(**fields: object) -> bytes:
    return json.dumps({"media_type": "text/plain", "parser": "text 1", "pages": 1} | fields).encode()


@given(st.lists(READABLE, min_size=1, max_size=5))
def test_what_is_encoded_is_decoded(pages: list[str]) -> None:
    assert decode(encode(("text/plain", "text 1", pages)), max_pages=5) == ("text/plain", "text 1", tuple(pages))


def test_a_refusal_comes_back_as_one() -> None:
    with pytest.raises(DocumentRefused, match="Too bad") as refused:
        decode(encode_refusal("NOT_UTF8", "Too bad."), max_pages=1)
    assert refused.value.file_reason == "NOT_UTF8"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        b"\xff\xff\xff\xff{}",
        frames(b"not json"),
        frames(b"[" * 4000),
        frames(b"[1]"),
        frames(b"{}"),
        frames(b"\xff"),
        frames(b" " * 5000 + header(), b"page"),
        frames(header()),
        frames(header(), b"page", b"more"),
        frames(header(), b"page") + b"x",
        frames(header(pages=True), b"page"),
        frames(header(pages="1"), b"page"),
        frames(header(pages=0)),
        frames(header(pages=-1)),
        frames(header(pages=3), b"a", b"b", b"c"),
        frames(header(pages=1e9)),
        frames(header(parser=""), b"page"),
        frames(header(parser="x" * 501), b"page"),
        frames(header(parser="a\nb"), b"page"),
        frames(header(media_type=None), b"page"),
        frames(header(other=1), b"page"),
        frames(header(), b"\xff\xfe"),
        frames(header(), b"\xed\xa0\x80"),
        frames(header(), b"nul \x00"),
        frames(header(), b"escape \x1b[2J"),
        frames(header(), "c1 \x9b".encode()),
        encode_refusal("lower case", "message"),
        encode_refusal("REASON", "two\nlines"),
        encode_refusal("REASON", "right to left \u202e"),
        encode_refusal("REASON", "message") + b"x",
    ],
)
def test_a_broken_rule_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, max_pages=2)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, max_pages=2)
