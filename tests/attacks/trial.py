"""An attack in a locked child, and how it ended; behind all walls, or with some taken away.

A wall is taken away by a statement in the zygote of the trial, which replaces a function of `lockdown`: the product has
no option for that.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tests.attacks.parser  # noqa: F401 - declares the attacks
from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.sandbox.extractor import LockedExtractor
from tests.attacks.attack import Attack, World
from tests.sandbox.locked import extract

LIMITS = Config(data_dir=Path("/nowhere"), parse_memory_mib=128, parse_cpu_seconds=1, document_max_mib=1)
NOBODY = 65534
IMPORTS = """import os, tests.attacks.parser, appliance.sandbox.services.documents
from appliance.sandbox import lockdown, zygote"""
# The kernel exempts root from much: a trial that root started goes on as nobody, after it imported what root may read.
DROP = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); lockdown._prctl(lockdown.PR_SET_DUMPABLE, 1)"
TEMPORARY = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"))

REMOVALS = {
    "seccomp": "lockdown.seccomp = lambda: None",
    "landlock": "lockdown.landlock = lambda *_, **__: None",
    "limits": """lockdown.limit, call = lambda *_: None, lockdown._call
lockdown._call = lambda name, *rest: 0 if name == "close_range" else call(name, *rest)""",
    "namespaces": "lockdown.enter_namespaces = lambda: ()",
    "privileges": """lockdown.drop_capabilities, prctl = lambda: None, lockdown._prctl
lockdown._prctl = lambda option, value: None if option == lockdown.PR_SET_DUMPABLE else prctl(option, value)""",
}
_BY_REASON = {
    "FORBIDDEN_CALL": "SIGSYS",
    "TOO_MUCH_MEMORY": "memory",
    "TOO_MUCH_TEXT": "size",
    "PARSER_FAILED": "form",
    "CRASHED": "crash",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """how: the error that it met, how the daemon says that its child ended, or what it got."""

    stopped: bool
    how: str


def zygote(without: Collection[str] = ()) -> tuple[str, ...]:
    """The command for a zygote, as an unprivileged user runs it, with walls taken away."""
    tamper = [*(REMOVALS[wall] for wall in without), "zygote.attest = lambda *_: ()"] if without else []
    program = "\n".join((IMPORTS, DROP if os.geteuid() == 0 else "", *tamper, "zygote.main()"))
    return (sys.executable, "-s", "-c", program)


async def tried(extractor: LockedExtractor, attack: Attack) -> Outcome:
    """Let a child attack."""
    try:
        page = (await extract(extractor, attack.name.encode().ljust(8192, b"\0"))).pages[0]
    except DocumentRefused as refusal:
        if refusal.file_reason == "SPUN":
            return Outcome(True, "processor time" if "processor" in str(refusal) else "wall time")
        return Outcome(True, _BY_REASON.get(refusal.file_reason, refusal.file_reason))
    how, _, said = page.partition(": ")
    return Outcome(how == "stopped", said)


def restore(folder: Path) -> None:
    """Undo what attacks did where nothing stopped them. All files belong to whom the attackers run as."""
    for place in TEMPORARY:
        (place / f"{folder.name}-escaped").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name not in ("secret", "present", "server"):
            path.rmdir() if path.is_dir() else path.unlink()
    for name, mode in (("secret", 0o666), ("present", 0o777)):
        (folder / name).write_text("secret")
        (folder / name).chmod(mode)
        if os.geteuid() == 0:
            os.chown(folder / name, NOBODY, NOBODY)


@contextlib.contextmanager
def outside() -> Iterator[World]:
    """A world that is worth attacking, open to every user of the machine."""
    with tempfile.TemporaryDirectory(prefix="attacked-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o777)
        restore(folder)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        servers = [tcp]
        for address in (f"{folder}/server", f"\0attacked-{os.getpid()}"):
            servers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            servers[-1].bind(address)
            servers[-1].listen()
        (folder / "server").chmod(0o777)
        with contextlib.suppress(OSError):
            port = tcp.getsockname()[1]
            servers.append(stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6)))
        for server in servers:
            threading.Thread(target=_serve, args=(server,), daemon=True).start()
        sleep = f"{IMPORTS}\n{DROP if os.geteuid() == 0 else ''}\nimport time; time.sleep(600)"
        victim = stack.enter_context(subprocess.Popen((sys.executable, "-c", sleep)))
        stack.callback(victim.kill)
        yield World(
            secret=f"{folder}/secret",
            folder=name,
            tcp_port=tcp.getsockname()[1],
            udp_port=udp.getsockname()[1],
            unix_path=f"{folder}/server",
            abstract_name=f"attacked-{os.getpid()}",
            victim_pid=victim.pid,
        )
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)


def extractor(world: World, without: Collection[str] = (), wall_seconds: int = 5) -> LockedExtractor:
    """One of the attackers' parser."""
    return LockedExtractor(
        replace(LIMITS, parse_wall_seconds=wall_seconds), "tests.attacks.parser", asdict(world), zygote=zygote(without)
    )


def left_behind(world: World) -> frozenset[str]:
    """Files in places that all may write to which an attack made, or which belong to whom it ran as; those of another
    trial that runs at the same time are not of this one."""
    files = (path for place in TEMPORARY for path in place.glob("*"))
    return frozenset(str(path) for path in files if _is_of_attacks(path, Path(world.folder).name))


def _is_of_attacks(path: Path, trial: str) -> bool:
    if path.name.startswith("attacked-"):
        return path.name.startswith(f"{trial}-")
    try:
        return path.lstat().st_uid == NOBODY
    except FileNotFoundError:
        return False


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(b"secret")
