"""Attacks by the network: reach a server, be one, look around."""

import errno
import os
import socket

from tests.attacks.attack import World, attack


@attack("network", "connect by TCP", "seccomp", "landlock", "namespaces")
def tcp(world: World) -> object:
    with socket.socket() as client:
        client.connect(("127.0.0.1", world.tcp_port))
        return client.recv(6)


@attack("network", "connect by TCP over IPv6", "seccomp", "landlock", "namespaces")
def tcp6(world: World) -> object:
    with socket.socket(socket.AF_INET6) as client:
        client.connect(("::1", world.tcp_port))
        return client.recv(6)


@attack("network", "connect by TCP fast open", "seccomp", "namespaces")
def tcp_fast_open(world: World) -> object:
    with socket.socket() as client:
        return client.sendto(b"x", 0x20000000, ("127.0.0.1", world.tcp_port))


@attack("network", "connect by multipath TCP", "seccomp", "namespaces")
def mptcp(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as client:
        client.connect(("127.0.0.1", world.tcp_port))
        return client.recv(6)


@attack("network", "listen on a TCP port", "seccomp", "landlock", "namespaces")
def listen(world: World) -> object:
    os.close(0)
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        _only_loopback_is_nothing()
        return server.getsockname()


@attack("network", "send by UDP", "seccomp", "namespaces")
def udp(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.sendto(b"secret", ("127.0.0.1", world.udp_port))


@attack("network", "ask a name server", "seccomp", "namespaces")
def dns(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.sendto(b"query", ("192.0.2.1", 53))


@attack("network", "connect to a unix socket by its path", "seccomp", "namespaces")
def unix(world: World) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(world.unix_path)
        return client.recv(6)


@attack("network", "connect to an abstract unix socket", "seccomp", "landlock", "namespaces")
def abstract(world: World) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + world.abstract_name)
        return client.recv(6)


@attack("network", "see the interfaces (netlink)", "seccomp", "namespaces")
def netlink(world: World) -> object:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    return _only_loopback_is_nothing()


@attack("network", "sniff packets", "seccomp")
def packet(world: World) -> object:
    socket.socket(17, socket.SOCK_RAW, 0x300).close()
    return _only_loopback_is_nothing()


@attack("network", "send raw IP", "seccomp")
def raw(world: World) -> object:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()
    return _only_loopback_is_nothing()


@attack("network", "reach the hypervisor (vsock)", "seccomp")
def vsock(world: World) -> object:
    with socket.socket(40, socket.SOCK_STREAM) as client:
        return client.connect_ex((2, 1)) or "connected"


def _only_loopback_is_nothing() -> object:
    """The interfaces. Raises ENETUNREACH where there is no other than one's own loopback."""
    names = [name for _, name in socket.if_nameindex()]
    if names == ["lo"]:
        raise OSError(errno.ENETUNREACH, "a network of its own")
    return names
