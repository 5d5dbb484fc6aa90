"""What is held by one wall alone, and what cannot be shown to succeed without its walls, each with its reason."""

ALONE = {
    **dict.fromkeys(
        ("code-map_code", "code-protect_code", "code-protect_code_by_key", "code-map_document"),
        "no other wall knows of code; it would be the attacker's own, behind the same walls",
    ),
    **dict.fromkeys(
        ("kernel-keyctl", "kernel-add_key"),
        "Landlock and namespaces rule no keys; the box keeps none in the kernel",
    ),
    **dict.fromkeys(
        ("kernel-memfd", "kernel-memfd_secret"),
        "memory that the limit counts only while it is mapped; it goes when the attacker does",
    ),
    "kernel-shared_memory": "as a memfd, but that it stays, in the namespace of the zygote, until that ends",
    "kernel-socket_pair": "it leads nowhere but to the attacker itself",
    **dict.fromkeys(
        ("kernel-userfaultfd", "kernel-bpf", "kernel-perf", "kernel-alg"),
        "a wide door of the kernel; where the kernel opens it to all, seccomp alone closes it",
    ),
    "network-vsock": "the kernel has one vsock for all namespaces, and Landlock knows none",
    "files-inherited": "that a descriptor is closed is the wall; seccomp lets what is open be read",
    "processes-execute_document": "Landlock rules no memfd; the new program stands behind the same walls",
    "processes-limit_parent": "same user: starved of descriptors or of time, the zygote ends, and a new one is proven",
    "privileges-seccomp_notify": "a filter more takes away, and its listener answers its own process alone",
    "privileges-personality": "it changes the attacker itself alone",
    "privileges-kernel_log": "where the kernel shows its log to all users, seccomp alone hides it",
    **dict.fromkeys(
        (
            "resources-memory_at_once",
            "resources-memory_creep",
            "resources-memory_natively",
            "resources-memory_maps",
        ),
        "no other wall counts memory: children have no cgroup of their own",
    ),
    "resources-spin": "no other wall counts processor time; the daemon's clock ends it later",
}
"""Attacks that one wall alone stops, and why that is borne."""

UNPROVEN = {
    **dict.fromkeys(
        (
            "files-open_by_handle",
            "files-link_descriptor",
            "files-make_device",
            "network-packet",
            "network-raw",
            "privileges-setuid",
            "privileges-setgid",
            "privileges-clock",
            "privileges-module",
            "privileges-kexec",
            "privileges-swap",
            "privileges-account",
            "processes-advise",
            "processes-real_time",
            "processes-nice",
        ),
        "the kernel grants it to root of the machine alone",
    ),
    **dict.fromkeys(
        ("privileges-kernel_log", "kernel-bpf", "kernel-perf", "kernel-io_uring", "kernel-userfaultfd"),
        "a kernel may be set to grant it to root alone",
    ),
    **dict.fromkeys(
        (
            *("kernel-alg", "kernel-memfd_secret", "kernel-keyctl", "kernel-add_key", "kernel-shared_memory"),
            *("network-tcp6", "network-tcp_fast_open", "network-mptcp", "network-vsock", "code-protect_code_by_key"),
        ),
        "a kernel may be without it",
    ),
    **dict.fromkeys(
        (
            *("files-process_memory", "processes-pidfd_getfd", "processes-ptrace", "processes-read_memory"),
            *("processes-write_memory", "processes-kcmp", "processes-move_pages"),
        ),
        "Yama may forbid it to all",
    ),
    "network-dns": "a box may have no road out",
    "network-netlink": "a box may have no other interface than its own",
    "network-listen": "a box may have no other interface than its own",
    "privileges-new_privileges": "the kernel lifts it for nobody",
    "processes-vfork": "it comes to pass, and the new process crashes its parent, whose stack it shares",
    "processes-type_into_terminal": "no terminal is handed over",
    "files-grow_document": "the daemon hands the document over for reading alone",
    "files-allocate_document": "the daemon hands the document over for reading alone",
}
"""Attacks that may fail although their walls are away, and why."""
