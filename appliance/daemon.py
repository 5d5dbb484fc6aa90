"""The daemon process: options, the lock on the data directory, logs, signals, readiness, drain.

`python -m appliance.daemon --data-dir DIR --listen HOST:PORT`; `appliance serve` runs the same.
"""

import argparse
import asyncio
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import structlog

from appliance.app import build
from appliance.config import Config, load
from appliance.errors import ApplianceError, ConfigInvalid, DataDirectoryInUse

log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; the exit code is the error's where the daemon cannot start."""
    try:
        config = load(_given(argv), os.environ)
        configure_logging(config.log_level)
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # that a worker said goodbye is no line of a structured log
        _allow_files()
        _make_private(config.data_dir)
        with _lock(config.data_dir):
            asyncio.run(serve(config))
    except ApplianceError as error:
        print(f"error: {error}\nremedy: {error.remedy}", file=sys.stderr)
        return error.exit_code
    return 0


async def serve(config: Config) -> None:
    """Start everything, tell who waits that the box is ready, and stop in order when asked to."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = build(config)
    endpoint, http_endpoint = config.data_dir / "endpoint", config.data_dir / "http-endpoint"
    try:
        address = await app.start()
        if app.http is not None:
            announce(http_endpoint, reachable(app.http.address))
        announce(endpoint, reachable(address))
        _notify("READY=1")
        log.info("daemon.ready", address=address, data_directory=str(config.data_dir))
        await stop.wait()
        log.info("daemon.draining", grace_seconds=config.drain_seconds)
    finally:
        _notify("STOPPING=1")
        endpoint.unlink(missing_ok=True)
        http_endpoint.unlink(missing_ok=True)
        await app.stop()
    log.info("daemon.stopped")


def announce(endpoint: Path, address: str) -> None:
    """Write where the daemon listens, in one step: who reads it finds a whole address or none."""
    new = endpoint.with_name(f".{endpoint.name}.new")
    new.write_text(address)
    new.replace(endpoint)


def reachable(address: str) -> str:
    """Where a client on this machine finds a server that listens there: a wildcard is no address to call."""
    host, _, port = address.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"  # noqa: S104


def configure_logging(level: str) -> None:
    """One JSON object a line on stderr. Tracebacks keep places and types, never messages: those may quote content."""
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _places_only,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)  # what libraries log: asyncio, grpc
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(structlog.processors.JSONRenderer(), foreign_pre_chain=processors)
    )
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its warnings quote what clients send
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _places_only(logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if found := event.pop("exc_info", None):
        kind, _, trace = found if isinstance(found, tuple) else sys.exc_info()
        event["error"] = kind.__name__ if kind else ""
        event["trace"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]
    return event


def _given(argv: Sequence[str] | None) -> dict[str, str]:
    """The options of the command line, made from `config.Config`."""
    parser = argparse.ArgumentParser("appliance serve", description="Run the box's daemon.")
    for item in fields(Config):
        parser.add_argument(f"--{item.name.replace('_', '-')}", metavar="VALUE", help=item.metadata["doc"])
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}


def _allow_files() -> None:
    """Let the daemon open as many files as it may: each connection and each segment is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _make_private(folder: Path) -> None:
    """Make the data directory. One that is there and open to others is closed only while it is empty."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            if any(folder.iterdir()):
                raise ConfigInvalid(f"data_dir: {folder} is open to others; chmod 700 it, or choose another.")
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigInvalid(f"data_dir: {folder} cannot be used: {error.strerror}.") from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the data directory for this process. Raises DataDirectoryInUse."""
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DataDirectoryInUse(f"Process {file.read().strip()} uses {folder} already.") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)) where it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.connect("\0" + address[1:] if address.startswith("@") else address)
        link.sendall(state.encode())


if __name__ == "__main__":
    sys.exit(main())
