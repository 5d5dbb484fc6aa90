"""Attacks by the network: reach a server, be one, look around."""

import errno
import socket

from tests.attacks.attack import World, attack


@attack("network", "connect by TCP")
def tcp(world: World) -> object:
    with socket.socket() as client:
        client.connect(("127.0.0.1", world.tcp_port))
        return client.recv(6)


@attack("network", "connect by TCP over IPv6")
def tcp6(world: World) -> object:
    with socket.socket(socket.AF_INET6) as client:
        client.connect(("::1", world.tcp_port))
        return client.recv(6)


@attack("network", "connect by TCP fast open")
def tcp_fast_open(world: World) -> object:
    with socket.socket() as client:
        return client.sendto(b"x", 0x20000000, ("127.0.0.1", world.tcp_port))


@attack("network", "connect by multipath TCP")
def mptcp(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as client:
        client.connect(("127.0.0.1", world.tcp_port))
        return client.recv(6)


@attack("network", "listen on a TCP port")
def listen(world: World) -> object:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        _only_loopback_is_nothing()
        return server.getsockname()


@attack("network", "send by UDP")
def udp(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.sendto(b"secret", ("127.0.0.1", world.udp_port))


@attack("network", "ask a name server")
def dns(world: World) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        return client.sendto(b"query", ("192.0.2.1", 53))


@attack("network", "connect to a unix socket by its path")
def unix(world: World) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(world.unix_path)
        return client.recv(6)


@attack("network", "connect to an abstract unix socket")
def abstract(world: World) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + world.abstract_name)
        return client.recv(6)


@attack("network", "see the interfaces (netlink)")
def netlink(world: World) -> object:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
    return _only_loopback_is_nothing()


@attack("network", "sniff packets", denied_by="privileges")
def packet(world: World) -> object:
    return socket.socket(17, socket.SOCK_RAW, 0x300).recv(1)


@attack("network", "send raw IP", denied_by="privileges")
def raw(world: World) -> object:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


@attack("network", "reach the hypervisor (vsock)")
def vsock(world: World) -> object:
    with socket.socket(40, socket.SOCK_STREAM) as client:
        return client.connect_ex((2, 1)) or "connected"


def _only_loopback_is_nothing() -> object:
    """The interfaces. Raises ENETUNREACH where there is no other than one's own loopback."""
    names = [name for _, name in socket.if_nameindex()]
    if names == ["lo"]:
        raise OSError(errno.ENETUNREACH, "a network of its own")
    return names
