"""What is known to hold by one layer alone, and why that is borne."""

REDUNDANT_KINDS = ("files", "network", "processes", "privileges")
"""Kinds of attack for which any one layer may be missing; code, kernel and resources are each held by one layer."""

ALONE = {
    ("network-vsock", "seccomp"): "the kernel has one vsock for all namespaces, and Landlock knows none",
    ("processes-execute_document", "seccomp"): "Landlock rules no memfd; the new program stands behind the same walls",
    ("processes-limit_parent", "seccomp"): "same user: the zygote may be starved, which ends it; a new one is proven",
    ("privileges-personality", "seccomp"): "it changes the attacker itself alone",
}
"""(attack, layer that is away): why nothing else stops it."""

NAMESPACES_TOO = frozenset(
    {
        *("network-udp", "network-dns", "network-tcp_fast_open", "network-mptcp", "network-unix", "network-netlink"),
        *("files-watch", "privileges-unshare", "processes-kill_everyone"),
    }
)
"""Where a box gives no namespaces, seccomp alone holds these: Landlock knows only files and plain TCP."""


def borne(name: str, layer: str, namespaces: bool) -> bool:
    """Whether an attack may succeed with a layer away. namespaces: whether the box gives any."""
    return (name, layer) in ALONE or (layer == "seccomp" and not namespaces and name in NAMESPACES_TOO)
