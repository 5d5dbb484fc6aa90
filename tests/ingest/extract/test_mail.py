"""E-mail: messages as programs send them, and messages that attack."""

from email.message import EmailMessage

import pytest

from appliance.ingest.caps import Caps
from tests.container_files import attachment, mail, multipart, nested_mail
from tests.reads import blocks, members, pages, reason

HEADERS = "From: Ada <ada@box.example>\nTo: li@box.example\nSubject: Keys\nDate: Mon, 2 Mar 2026 10:00:00 +0100"
SHOWN = "Keys\n\nFrom: Ada <ada@box.example>\nTo: li@box.example\nDate: Mon, 2 Mar 2026 10:00:00 +0100"


def text_of(data: bytes) -> str:
    (page,) = pages(data, ".eml")
    return page


def with_parts(*parts: str, kind: str = "mixed") -> bytes:
    head, _, body = multipart(*parts, kind=kind).partition("\n\n")
    return mail(f"{HEADERS}\n{head}", body)


def plain(text: str, more: str = "") -> str:
    return f"Content-Type: text/plain; charset=utf-8{more}\n\n{text}"


def page_of_html(text: str) -> str:
    return f"Content-Type: text/html; charset=utf-8\n\n<p>{text}</p>"


def test_headers_and_text_are_a_page_with_the_subject_as_heading() -> None:
    data = mail(HEADERS, "The gate key is back.\n\n> Where is it?\n")
    assert text_of(data) == f"{SHOWN}\n\nThe gate key is back.\n\n> Where is it?"
    assert blocks(data, ".eml") == [("heading", 1, "Keys")]


def test_what_the_standard_library_writes_is_read() -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = (
        "Ädä <a@b.example>",
        "Li <l@b.example>",
        "Schlüssel für Müller " * 5,
    )
    message.set_content("Grüße 🙂\n")
    message.add_alternative("<p>never seen</p>", subtype="html")
    message.add_attachment("a;b\n", subtype="csv", filename="Schlüssel.csv")
    message.add_attachment(b"\x00\xff", maintype="application", subtype="octet-stream", filename="b.bin")
    inner = EmailMessage()
    inner["Subject"] = "inside"
    message.add_attachment(inner)
    data = message.as_bytes()
    assert text_of(data).endswith("Grüße 🙂")
    assert text_of(data).startswith("Schlüssel für Müller Schlüssel")
    assert "From: Ädä <a@b.example>\nTo: Li <l@b.example>" in text_of(data)
    found = members(data, ".eml")
    assert [(name, problem) for name, _, problem in found] == [("Schlüssel.csv", ""), ("b.bin", ""), (found[2][0], "")]
    assert found[1][1] == b"\x00\xff"
    assert found[2][0].endswith(".eml")
    assert b"inside" in found[2][1]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"=?utf-8?Q?Schl=C3=BCssel?= =?utf-8?B?IGRh?=", "Schlüssel da"),
        (b"=?koi8-r?B?7snLydTB?= x", "Никита x"),
        (b"=?no-such?Q?a=FCb?=", "aüb"),
        (b"=?utf-8?B?%%%?=", ""),
        (b"Schl\xc3\xbcssel", "Schlüssel"),
        (b"Schl\xfcssel", "Schlüssel"),
        (b"folded\n over\n\tlines", "folded over lines"),
        (b"=?utf-8?Q?a=0AFrom:_evil?=", "a From: evil"),
        (b"=?utf-8?Q?" + b"=" * 5000, "=?utf-8?Q?" + "=" * 5000),
    ],
)
def test_a_subject_is_decoded(raw: bytes, shown: str) -> None:
    (page,) = pages(b"Subject: " + raw + b"\nTo: x\n\nbody", ".eml")
    assert page.removesuffix("\n\nTo: x\n\nbody") == (shown or page)


def test_of_alternatives_plain_text_is_read_and_html_where_there_is_none() -> None:
    assert text_of(with_parts(plain("as text"), page_of_html("as page"), kind="alternative")) == f"{SHOWN}\n\nas text"
    assert text_of(with_parts(plain("  "), page_of_html("as page"), kind="alternative")) == f"{SHOWN}\n\nas page"
    both = with_parts(plain("one"), page_of_html("two <script>no</script>"))
    assert text_of(both) == f"{SHOWN}\n\none\n\ntwo"


def test_tables_and_headings_of_a_message_in_html_survive() -> None:
    body = "<p>Dear all</p><h2>Keys</h2><table><tr><th>Key<th>Holder<tr><td><p>Gate</p><td>Li</table><p>Bye"
    data = mail(f"{HEADERS}\nContent-Type: text/html", body)
    assert blocks(data, ".eml") == [
        ("heading", 1, "Keys"),
        ("heading", 2, "Keys"),
        ("table", 0, "Key\tHolder\nGate\tLi"),
    ]
    assert text_of(data) == f"{SHOWN}\n\nDear all\n\nKeys\n\nKey\tHolder\nGate\tLi\n\nBye"


def test_a_header_is_named_at_the_start_of_its_line() -> None:
    data = mail(f"X note: see Content-Type: text/html\n{HEADERS}", "<p>plain")
    assert text_of(data) == f"{SHOWN}\n\n<p>plain"


def test_attachments_of_one_name_are_numbered_without_counting_anew() -> None:
    data = with_parts(*[attachment("a.bin", b"x")] * 9_000)
    assert [name for name, _, _ in members(data, ".eml")][:3] == ["a.bin", "a-2.bin", "a-3.bin"]


def test_what_is_attached_to_an_alternative_is_not_lost() -> None:
    related = multipart(page_of_html("page"), attachment("logo.png", b"PNG", "image/png"), kind="related")
    data = with_parts(plain("text"), related, kind="alternative")
    assert text_of(data).endswith("\n\ntext")
    assert members(data, ".eml") == [("logo.png", b"PNG", "")]


def test_attachments_are_members_with_names_that_lead_nowhere() -> None:
    nameless = "Content-Type: application/pdf\n\nx"
    data = with_parts(
        plain("text"),
        attachment("../../etc/passwd", b"1"),
        attachment("a.txt", b"2"),
        attachment("a.txt", b"3"),
        attachment("..", b"4"),
        nameless,
        plain("noted", '\nContent-Disposition: attachment; filename="n.txt"'),
    )
    assert members(data, ".eml") == [
        ("passwd", b"1", ""),
        ("a.txt", b"2", ""),
        ("a-2.txt", b"3", ""),
        ("..", b"", "MEMBER_OUTSIDE"),
        ("part-7.pdf", b"x", ""),
        ("n.txt", b"noted", ""),
    ]


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("filename*=utf-8''Schl%C3%BCssel.txt", "Schlüssel.txt"),
        ('filename*0="a"; filename*1="b.txt"', "ab.txt"),
        ('filename="=?utf-8?Q?Schl=C3=BCssel.txt?="', "Schlüssel.txt"),
        ("filename*=no-such''%FF.txt", "ÿ.txt"),
        ('filename*x=1; filename="c.txt"', "c.txt"),
    ],
)
def test_the_name_of_an_attachment_is_decoded(parameter: str, name: str) -> None:
    data = with_parts(plain("x"), f"Content-Type: application/x\nContent-Disposition: attachment; {parameter}\n\nbody")
    assert [path for path, _, _ in members(data, ".eml")] == [name]


def test_a_message_inside_is_a_member_and_not_looked_into() -> None:
    inner = mail(HEADERS, "inside").decode().replace("\r", "")
    data = with_parts(plain("outside"), f"Content-Type: message/rfc822\n\n{inner}")
    assert "inside" not in text_of(data)
    ((name, content, _),) = members(data, ".eml")
    assert name == "part-3.eml"
    assert pages(content, ".eml") == (f"{SHOWN}\n\ninside",)


@pytest.mark.parametrize(
    ("body", "encoding", "charset", "shown"),
    [
        (b"Gr=FC=DFe", "quoted-printable", "iso-8859-1", "Grüße"),
        (b"R3LDvMOfZQ==", "base64", "utf-8", "Grüße"),
        (b"R3LDvMOfZQ", "base64", "utf-8", "Grüße"),
        (b"R3L*DvM!OfZQ==\n\n--", "base64", "utf-8", "Grüße"),
        ("Grüße".encode(), "8bit", "us-ascii", "Grüße"),
        ("Grüße".encode(), "8bit", "x-unknown", "Grüße"),
        ("Grüße".encode(), "8bit", "rot13", "Grüße"),
        (b"a=ZZb=\n", "quoted-printable", "utf-8", "a=ZZb"),
        (b"plain", "x-nonsense", "utf-8", "plain"),
    ],
)
def test_text_is_decoded_whatever_its_headers_say(body: bytes, encoding: str, charset: str, shown: str) -> None:
    headers = f"{HEADERS}\nContent-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}"
    assert text_of(mail(headers, body)) == f"{SHOWN}\n\n{shown}"


def test_a_text_that_is_none_is_left_out_and_the_rest_is_read() -> None:
    garbage = (
        "Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n" + "AAECAwQFBgcICf////////////////8A" * 40
    )
    data = with_parts(plain("fine"), garbage)
    assert text_of(data) == f"{SHOWN}\n\nfine"
    assert members(data, ".eml") == [("text.txt", b"", "MEMBER_BROKEN")]


def test_a_signature_is_no_attachment_and_an_encrypted_message_is_named() -> None:
    assert (
        members(with_parts(plain("x"), "Content-Type: application/pgp-signature\n\nsig", kind="signed"), ".eml") == []
    )
    assert reason(with_parts("Content-Type: application/pgp-encrypted\n\nx", kind="encrypted"), ".eml") == (
        "DOCUMENT_ENCRYPTED"
    )
    assert reason(mail(f"{HEADERS}\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data", "x"), ".eml") == (
        "DOCUMENT_ENCRYPTED"
    )


# --- hostile


def test_more_parts_than_the_caps_allow_are_refused() -> None:
    data = with_parts(*[plain("x")] * 100_000)
    assert reason(data, ".eml") == "TOO_MANY_MEMBERS"


def test_parts_in_parts_are_refused_beyond_a_depth() -> None:
    assert "deep" in text_of(
        mail(HEADERS + "\n" + nested_mail(10).partition("\n\n")[0], nested_mail(10).partition("\n\n")[2])
    )
    head, _, body = nested_mail(40).partition("\n\n")
    assert reason(mail(f"{HEADERS}\n{head}", body), ".eml") == "TOO_DEEP"


def test_a_boundary_that_names_itself_or_nothing_ends() -> None:
    assert "--b" in text_of(mail(f"{HEADERS}\nContent-Type: multipart/mixed; boundary=", "--b\n\nx"))
    inner = 'Content-Type: multipart/mixed; boundary="b"\n\n--b\n\ntext\n'
    assert "text" in text_of(mail(f'{HEADERS}\nContent-Type: multipart/mixed; boundary="b"', f"--b\n{inner}--b--\n"))


def test_headers_without_end_are_refused_and_very_many_are_read() -> None:
    many = "\n".join(f"X-{n}: y" for n in range(70_000))
    assert text_of(mail(f"{many}\n{HEADERS}", "body")).endswith("body")
    assert reason(mail(f"{HEADERS}\n" + "X: y\n" * 300_000, "body"), ".eml") == "MAIL_HEADERS"
    assert (
        reason(mail(f"{HEADERS}\n" + "\n".join(f"X-{n}: y" for n in range(100_000)), "body"), ".eml") == "MAIL_HEADERS"
    )


def test_a_message_that_is_cut_keeps_what_is_there() -> None:
    data = with_parts(plain("first"), attachment("a.bin", b"x" * 3000))
    cut = data[: len(data) - 2000]
    assert text_of(cut) == f"{SHOWN}\n\nfirst"
    ((name, content, _),) = members(cut, ".eml")
    assert name == "a.bin"
    assert 0 < len(content) < 3000


def test_what_does_not_begin_with_headers_is_no_message() -> None:
    assert reason(b"Dear all,\n\nthe key is back.", ".eml") == "TYPE_MISMATCH"
    assert reason(b"key: value\n\nx", ".eml") == "TYPE_MISMATCH"
    assert text_of(b"From ada Mon Mar  2\nSubject: one\n\nx") == "one\n\nx"


def test_the_attachments_of_a_message_are_capped() -> None:
    data = with_parts(*[attachment(f"{n}.bin", b"x") for n in range(20)])
    assert reason(data, ".eml", Caps(members=20)) == "TOO_MANY_MEMBERS"
    assert len(members(data, ".eml", Caps(members=21))) == 20
