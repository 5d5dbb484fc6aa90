from pathlib import Path

import pytest

from appliance.config import Config, load
from appliance.errors import ConfigInvalid


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "appliance.toml").write_text('listen = "127.0.0.1:1"\ndrain_seconds = 1\nmodel_queue = 9\n')
    given = {"data_dir": str(tmp_path), "listen": "127.0.0.1:3"}
    config = load(given, {"APPLIANCE_LISTEN": "127.0.0.1:2", "APPLIANCE_DRAIN_SECONDS": "2", "APPLIANCE_OTHER": "x"})
    assert (config.listen, config.drain_seconds, config.model_queue) == ("127.0.0.1:3", 2, 9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no_such = 1", "no_such"),
        ("listen = 5", "listen"),
        ('listen = "nowhere"', "listen"),
        ('listen = "127.0.0.1:99999"', "listen"),
        ('http_listen = "7432"', "http_listen"),
        ('drain_seconds = "soon"', "drain_seconds"),
        ("drain_seconds = -1", "drain_seconds"),
        ("model_queue = true", "model_queue"),
        ('log_level = "loud"', "log_level"),
        ("model_batch_tokens = 32\nmodel_sequences = 33", "model_batch_tokens"),
        ('sticks_allowed = "some"', "sticks_allowed"),
        ('ocr_languages = "../../etc/passwd"', "ocr_languages"),
        ("archive_max_ratio = 1", "archive_max_ratio"),
        ('sticks_must_be_signed = "maybe"', "sticks_must_be_signed"),
        ("sticks_must_be_signed = true", "sticks_must_be_signed"),
        ('stick_mount = "ext4 xfs"', "stick_mount"),
        ('stick_mount = "../ext4"', "stick_mount"),
        ('clamav_socket = "clamd.sock"', "clamav_socket"),
        ("source_poll_seconds = 0", "source_poll_seconds"),
        ("listen = [", "appliance.toml"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "appliance.toml").write_text(text)
    with pytest.raises(ConfigInvalid, match=named):
        load({"data_dir": str(tmp_path)}, {})


def test_file_systems_that_may_be_mounted_are_named_one_by_one() -> None:
    assert Config().mountable() == ()
    assert Config(stick_mount="ext4, xfs,btrfs").mountable() == ("ext4", "xfs", "btrfs")


def test_folders_that_files_may_be_taken_from_are_named_one_by_one_some_for_a_tenant_alone() -> None:
    assert ("", Path("/srv")) in Config().roots()
    assert Config(ingest_roots="").roots() == ()
    named = Config(ingest_roots=" acme:/srv/../data//x/ ,//b, ,/c d")
    assert named.roots() == (("acme", Path("/data/x")), ("", Path("/b")), ("", Path("/c d")))


@pytest.mark.parametrize(
    "folders", ["/", "//", "srv", "/srv, /proc", "/sys/kernel", "ACME:/srv", "a b:/srv", "/x/..", "acme:srv", "acme:"]
)
def test_a_folder_that_is_none_or_the_whole_box_is_refused_by_name(folders: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"^ingest_roots: .* must be an absolute folder"):
        Config(ingest_roots=folders)


def test_the_http_port_may_be_switched_off(tmp_path: Path) -> None:
    assert load({"data_dir": str(tmp_path), "http_listen": ""}, {}).http_listen == ""


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "appliance.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigInvalid, match=r"appliance\.toml"):
        load({"data_dir": str(tmp_path)}, {})


def test_every_option_has_a_sentence_that_explains_it() -> None:
    for item in Config.__dataclass_fields__.values():
        assert item.metadata["doc"].endswith("."), item.name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model_kv_type", "q4"),
        ("model_attention", "none"),
        ("model_speculate_below", -1),
        ("model_draft", "models/small"),
        ("model_prefill_beside_streams", -1),
    ],
)
def test_what_the_engine_does_not_know_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigInvalid, match=rf"^{option}: "):
        Config(**{option: value})  # type: ignore[arg-type]


def test_tenants_that_must_quote_are_named_one_by_one_or_all_at_once() -> None:
    named = Config(quote_only_tenants="acme, audit ,")
    assert [named.quotes_only(tenant) for tenant in ("acme", "audit", "other", "")] == [True, True, False, False]
    assert Config(quote_only_tenants="*").quotes_only("other")
    assert not Config().quotes_only("acme")
