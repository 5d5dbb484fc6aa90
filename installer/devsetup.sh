#!/usr/bin/env bash
# System packages that the build needs, and those that only some parts and tests do. As root they are installed with apt;
# otherwise they are named, and the build stops only for the former.
set -euo pipefail

declare -A package_of=([c++]=g++ [cmake]=cmake [make]=make [git]=git)
missing=()
for tool in "${!package_of[@]}"; do
    command -v "$tool" >/dev/null || missing+=("${package_of[$tool]}")
done
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; set PYTHON=." >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import pathlib, sys, sysconfig; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' || missing+=(python3-dev)

# tesseract reads pictures and scanned pages; the rest makes the sticks of the tests
optional=()
libraries="$( (PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null || true) )"
grep -q 'libtesseract\.so\.[45]' <<<"$libraries" || optional+=(libtesseract5)
has_language() {
    local file
    for file in "${TESSDATA_PREFIX:-/usr/share/tessdata}/$1.traineddata" /usr/share/tesseract-ocr/*/tessdata/"$1".traineddata; do
        [ -f "$file" ] && return 0
    done
    return 1
}
for language in eng deu; do
    has_language $language || optional+=("tesseract-ocr-$language")
done
command -v mcopy >/dev/null || optional+=(mtools)
PATH="$PATH:/sbin:/usr/sbin" command -v mkfs.fat >/dev/null || optional+=(dosfstools)
PATH="$PATH:/sbin:/usr/sbin" command -v mkfs.exfat >/dev/null || optional+=(exfatprogs)
PATH="$PATH:/sbin:/usr/sbin" command -v mkfs.ext4 >/dev/null || optional+=(e2fsprogs)

[ $((${#missing[@]} + ${#optional[@]})) -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" "${optional[@]}"
    exit 0
fi
if [ ${#optional[@]} -ne 0 ]; then
    echo "warning: without ${optional[*]}, pictures are not read, or tests of sticks fail." >&2
fi
if [ ${#missing[@]} -ne 0 ]; then
    echo "error: these system packages are missing: ${missing[*]}. Install them, then run make again." >&2
    exit 1
fi
