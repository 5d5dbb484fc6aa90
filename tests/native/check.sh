#!/bin/sh
# Builds attention_check.cpp with the kernels and runs it; GGML_INCLUDE names the folder of ggml's headers.
#
#   check.sh native    on this processor, under sanitizers
#   check.sh avx2      all of it on a processor without AVX-512, under qemu
#   check.sh neon      on aarch64, under qemu
set -eu
cd "$(dirname "$0")/../../native/paged_attention"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
compiler=${CXX:-g++} flags="-std=c++17 -fopenmp -fno-math-errno -I. -isystem $GGML_INCLUDE" units=attention.cpp
avx2="-mavx2 -mfma -mf16c" avx512="-mavx512f -mavx512bw -mavx512vl -mavx512dq"

needs() {
    command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install $2"; exit 3; }
}

compile() {
    for unit; do
        case $unit in
            *_avx512_vnni.cpp) set_flags="$avx2 $avx512 -mavx512vnni" ;;
            *_avx512.cpp) set_flags="$avx2 $avx512" ;;
            *_avx2.cpp) set_flags=$avx2 ;;
            *) set_flags= ;;
        esac
        # GCC's own AVX-512 headers set off its warnings about uninitialized values
        $compiler $flags -Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized $set_flags \
            -c "$unit" -o "$out/$(basename "$unit").o"
    done
    $compiler $flags "$out"/*.o -o "$out/check" 2>"$out/link" || { cat "$out/link"; exit 1; }
}

x86="kernel_avx2.cpp kernel_avx512.cpp kernel_avx512_vnni.cpp product_avx512_vnni.cpp"
driver=../../tests/native/attention_check.cpp
case $1 in
    native)
        flags="$flags -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
        case $(uname -m) in x86_64) units="$units $x86" ;; *) units="$units kernel_neon.cpp" ;; esac
        compile $units $driver
        "$out/check" 60
        ;;
    avx2)
        needs qemu-x86_64-static qemu-user-static
        flags="$flags -O2 -static"
        compile $units $x86 $driver
        qemu-x86_64-static -cpu Haswell "$out/check" 60 2>"$out/log" || { cat "$out/log"; exit 1; }
        ;;
    neon)
        compiler=aarch64-linux-gnu-g++
        needs $compiler g++-aarch64-linux-gnu
        needs qemu-aarch64-static qemu-user-static
        flags="$flags -O2 -static"
        compile $units kernel_neon.cpp $driver
        qemu-aarch64-static "$out/check" 60
        ;;
esac
