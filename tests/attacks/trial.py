"""An attack in a locked child, and what stopped it; with all layers, or with one taken away.

A layer is taken away by a statement in the zygote of the trial, which replaces a function of `lockdown`: the product
has no option for that.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
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
NOTHING = "NOTHING"
TEMPORARY = (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp"))

REMOVALS = {
    "seccomp": "lockdown.seccomp = lambda: None",
    "landlock": "lockdown.landlock = lambda *_, **__: None",
    "limits": "lockdown.limit = lambda *_: None",
    "namespaces": "lockdown.enter_namespaces = lambda: ()",
    "privileges": "lockdown.drop_capabilities = lambda: None",
}
_BY_ERROR = {
    **dict.fromkeys(("ENOMEM", "EAGAIN", "EMFILE", "EFBIG"), "limits"),
    **dict.fromkeys(("ENOENT", "ENETUNREACH", "ESRCH", "ENOSPC", "ECONNREFUSED", "EXDEV"), "namespaces"),
    **dict.fromkeys(("ENOSYS", "EAFNOSUPPORT", "ENODEV", "EOPNOTSUPP", "EPROTONOSUPPORT", "EINVAL"), "kernel"),
    "EBADF": "daemon",  # it closed the descriptor, or gave one that may only be read
    "RecursionError": "interpreter",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """stopped_by: a layer, "daemon", "kernel" (it lacks the call, or refuses it to all) or NOTHING. how: in a word."""

    stopped_by: str
    how: str


def zygote(without: str = "") -> tuple[str, ...]:
    """The command for a zygote, as an unprivileged user runs it, with a layer taken away."""
    tamper = f"{REMOVALS[without]}\nzygote.attest = lambda *_: ()" if without else ""
    program = f"{IMPORTS}\n{DROP if os.geteuid() == 0 else ''}\n{tamper}\nzygote.main()"
    return (sys.executable, "-s", "-c", program)


async def tried(extractor: LockedExtractor, attack: Attack, without: str = "") -> Outcome:
    """Let a child attack. without: the layer that its zygote lacks."""
    try:
        page = (await extract(extractor, attack.name.encode().ljust(8192, b"\0"))).pages[0]
    except DocumentRefused as refusal:
        return _by_refusal(refusal, attack)
    how, _, said = page.partition(": ")
    if how != "stopped":
        return Outcome(NOTHING, said[:40])
    if said in ("EPERM", "EACCES"):  # seccomp's refusals say EPERM, and come before any other
        return Outcome(attack.denied_by if without == "seccomp" else "seccomp", said)
    return Outcome(_BY_ERROR.get(said, NOTHING), said)


def _by_refusal(refusal: DocumentRefused, attack: Attack) -> Outcome:
    reason = refusal.file_reason
    if reason == "FORBIDDEN_CALL":
        return Outcome("seccomp", "SIGSYS")
    if reason == "TOO_MUCH_MEMORY" or (reason == "CRASHED" and "memory" in attack.name):
        return Outcome("limits", "of memory")
    if reason == "SPUN" and "processor" in str(refusal):
        return Outcome("limits", "of processor time")
    hows = {"SPUN": "wall time", "TOO_MUCH_TEXT": "size of a result", "PARSER_FAILED": "form of a result"}
    return Outcome("daemon", hows.get(reason, reason))


@contextlib.contextmanager
def outside() -> Iterator[World]:
    """A world that is worth attacking, open to every user of the machine."""
    with tempfile.TemporaryDirectory(prefix="attacked-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o777)
        for file in ("secret", "present"):
            (folder / file).write_text("secret")
            (folder / file).chmod(0o666)
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


def extractor(world: World, without: str = "", wall_seconds: int = 5) -> LockedExtractor:
    """One of the attackers' parser."""
    return LockedExtractor(
        replace(LIMITS, parse_wall_seconds=wall_seconds), "tests.attacks.parser", asdict(world), zygote=zygote(without)
    )


def left_behind() -> frozenset[str]:
    """Files in places that all may write to which an attack made, or which belong to whom it ran as."""
    files = (path for folder in TEMPORARY for path in folder.glob("*"))
    return frozenset(str(path) for path in files if "escaped" in path.name or _is_nobodys(path))


def _is_nobodys(path: Path) -> bool:
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
