#!/bin/sh
# Builds vectors_check.cpp with the vector search and runs it.
#
#   vectors_check.sh native    on this processor, under sanitizers
#   vectors_check.sh avx2      on a processor without AVX-512, under qemu
#   vectors_check.sh neon      on aarch64 with dotprod and without, under qemu
set -eu
cd "$(dirname "$0")/../../native"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

needs() {
    command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install $2"; exit 3; }
}

compile() {
    # GCC's own AVX-512 headers set off its warnings about uninitialized values
    "$@" -std=c++17 -ffp-contract=off -Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized -I. \
        allowed.cpp scan_i8.cpp graph_i8.cpp rescore_f16.cpp ../tests/native/vectors_check.cpp -o "$out/check"
}

case $1 in
    native)
        compile "${CXX:-g++}" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
        "$out/check"
        ;;
    avx2)
        needs qemu-x86_64-static qemu-user-static
        compile "${CXX:-g++}" -O2 -static
        qemu-x86_64-static -cpu Haswell "$out/check"
        ;;
    neon)
        needs aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
        needs qemu-aarch64-static qemu-user-static
        compile aarch64-linux-gnu-g++ -O2 -static
        qemu-aarch64-static -cpu max "$out/check"
        qemu-aarch64-static -cpu cortex-a53 "$out/check"
        ;;
esac
