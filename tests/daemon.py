"""A real daemon in a child process, for tests that look at the box from outside."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.client import Client

START_SECONDS = 60.0
SAMPLES = Path(__file__).resolve().parents[1] / "appliance" / "cli" / "samples"


@dataclass
class Daemon:
    """A running daemon and how to call it."""

    data_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def files(self) -> Path:
        """The data directory as the daemon sees it, also where it has a mount of its own there."""
        return Path(f"/proc/{self.process.pid}/root{self.data_dir}")

    @property
    def address(self) -> str:
        return (self.files / "endpoint").read_text()

    def client(self) -> Client:
        return Client.local(self.files)

    def log(self) -> str:
        return _log_of(self.data_dir).read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def start(data_dir: Path, *options: str, launcher: Sequence[str] = ()) -> Daemon:
    """Start a daemon on a free port and wait until it listens. launcher: a command to run it under.

    It takes files from where tests put theirs (beside its data directory, or one folder up), and the samples.
    """
    (data_dir / "endpoint").unlink(missing_ok=True)
    roots = ",".join(map(str, (data_dir.parents[1].resolve(), SAMPLES)))
    own = (f"--data-dir={data_dir}", f"--ingest-roots={roots}", "--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0")
    command = [*launcher, sys.executable, "-m", "appliance.daemon", *own]
    with open(_log_of(data_dir), "ab") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    daemon = Daemon(data_dir, process)
    deadline = time.monotonic() + START_SECONDS
    while not (daemon.files / "endpoint").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"The daemon did not start:\n{daemon.log()[-4000:]}")
        time.sleep(0.05)
    return daemon


@contextmanager
def running(data_dir: Path, *options: str, launcher: Sequence[str] = ()) -> Iterator[Daemon]:
    """A daemon for the length of a with block."""
    daemon = start(data_dir, *options, launcher=launcher)
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.process.terminate()
            try:
                daemon.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until it holds. The limit only ends a test that would never end."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("It did not come about.")
        time.sleep(0.05)


def _log_of(data_dir: Path) -> Path:
    return data_dir.with_suffix(".log")
