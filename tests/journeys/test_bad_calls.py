"""Callers that do it wrong get told, and the box goes on."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from appliance.client import Client
from appliance.errors import InvalidArgument, NoChatModel, NotFound, Unreachable
from appliance.gen.v1 import telemetry_pb2, telemetry_pb2_grpc
from appliance.types import Message, Speaker
from tests.daemon import Daemon, running

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("box") / "data") as started:
        yield started


def _credential(box: Daemon, name: str) -> bytes:
    return (box.data_dir / "clients" / "local" / name).read_bytes()


def _daemon(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance.daemon", f"--data-dir={data_dir}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_second_daemon_on_the_same_data_directory_is_told_who_has_it(box: Daemon) -> None:
    ended = _daemon(box.data_dir, "--listen=127.0.0.1:0")
    assert ended.returncode == 3
    assert f"Process {box.process.pid} uses {box.data_dir} already." in ended.stderr
    assert "remedy:" in ended.stderr


def test_a_port_in_use_is_named(box: Daemon, tmp_path: Path) -> None:
    ended = _daemon(tmp_path / "other", f"--listen={box.address}")
    assert ended.returncode == 3
    assert box.address in ended.stderr


def test_an_unknown_option_in_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "appliance.toml").write_text("lisen = '127.0.0.1:1'\n")
    ended = _daemon(tmp_path)
    assert ended.returncode == 3
    assert "lisen" in ended.stderr


def test_a_client_without_a_certificate_is_not_let_in(box: Daemon) -> None:
    credentials = grpc.ssl_channel_credentials(_credential(box, "ca.pem"))
    with grpc.secure_channel(box.address, credentials) as channel:
        stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetStatus(telemetry_pb2.GetStatusRequest(), timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with box.client() as client:
        assert client.status().principal


def test_a_call_without_a_deadline_is_refused_by_name(box: Daemon) -> None:
    pair = (_credential(box, "key.pem"), _credential(box, "cert.pem"))
    credentials = grpc.ssl_channel_credentials(_credential(box, "ca.pem"), *pair)
    with grpc.secure_channel(box.address, credentials) as channel:
        stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.GetStatus(telemetry_pb2.GetStatusRequest())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "without a deadline" in str(refused.value.details())


def test_names_limits_and_empty_texts_are_checked_before_anything_is_done(box: Daemon) -> None:
    with box.client() as client:
        with pytest.raises(NotFound):
            client.search("nothing-there", "badge")
        with pytest.raises(InvalidArgument, match="collection"):
            client.search("../etc", "badge")
        with pytest.raises(InvalidArgument, match="query"):
            client.search("nothing-there", "   ")
        with pytest.raises(InvalidArgument, match="limit"):
            client.search("nothing-there", "badge", limit=1000)
        with pytest.raises(InvalidArgument, match="messages"):
            list(client.chat([]))
        with pytest.raises(InvalidArgument, match="absolute"):
            client.ingest("relative/path", "handbook")


def test_chat_without_a_chat_model_says_what_to_do(box: Daemon) -> None:
    with box.client() as client, pytest.raises(NoChatModel) as refused:
        list(client.chat([Message(Speaker.USER, "Good morning.")]))
    assert "import folder" in refused.value.remedy


def test_a_daemon_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=str(tmp_path)):
        Client.local(tmp_path)
    (tmp_path / "endpoint").write_text("\n")
    with pytest.raises(Unreachable, match=str(tmp_path)):
        Client.local(tmp_path)


def test_sigterm_ends_the_daemon_with_zero_and_takes_its_endpoint_away(tmp_path: Path) -> None:
    with running(tmp_path / "data") as started:
        with started.client() as client:
            assert client.serving()
        assert started.stop() == 0
        assert not (started.data_dir / "endpoint").exists()
        assert "daemon.stopped" in started.log()


def test_a_box_that_listens_everywhere_is_reached_by_its_own_user(tmp_path: Path) -> None:
    with running(tmp_path / "data", "--listen=0.0.0.0:0") as started, started.client() as client:
        assert started.address.startswith("127.0.0.1:")
        assert client.status().listen_address.startswith("0.0.0.0:")


def test_a_data_directory_that_is_a_file_or_open_to_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "shared").mkdir(mode=0o755)
    (tmp_path / "shared" / "letter.txt").write_text("")
    for path, why in ((tmp_path / "file", "cannot be read"), (tmp_path / "shared", "open to others")):
        ended = _daemon(path)
        assert ended.returncode == 3
        assert why in ended.stderr
        assert str(path) in ended.stderr


def test_embed_knows_its_model_by_name_and_takes_no_endless_text(box: Daemon) -> None:
    with box.client() as client:
        assert client.embed(["badge"], model="all-MiniLM-L6-v2").shape == (1, 384)
        with pytest.raises(NotFound, match="nope"):
            client.embed(["badge"], model="nope")
        with pytest.raises(InvalidArgument, match=r"texts\[1\]"):
            client.embed(["badge", "a " * 60_000])
