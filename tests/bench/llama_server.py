"""llama-server, the peer of the serving bench: compiled from the sources inside llama-cpp-python's sdist.

Only tools/server is compiled. It is linked to the very libraries of the installed wheel (llama, ggml, mtmd, and the
common library that the wheel also ships), so both sides run the same kernels. Kept in the user's cache directory as
appliance/llama-server/<version>-<flags>/.
"""

import hashlib
import subprocess
import sys
import sysconfig
import tarfile
from importlib.metadata import version
from pathlib import Path

from tests.bench.report import cache_dir

FLAGS = "-O3 -march=native -DNDEBUG"
CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(llama_server CXX)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_FLAGS "${FLAGS}")
file(GLOB SOURCES ${LLAMA}/tools/server/*.cpp)
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/ui.cpp ${CMAKE_BINARY_DIR}/ui.h
  COMMAND ${CMAKE_COMMAND} -DUI_SOURCE_DIR=${LLAMA}/tools/ui -DUI_BINARY_DIR=${CMAKE_BINARY_DIR}
    -DLLAMA_SOURCE_DIR=${LLAMA} -DHF_ENABLED=OFF -DBUILD_UI=OFF -DLLAMA_UI_GZIP=OFF -P ${LLAMA}/scripts/ui-assets.cmake)
add_executable(llama-server ${SOURCES} ${CMAKE_BINARY_DIR}/ui.cpp)
target_include_directories(llama-server PRIVATE ${LLAMA} ${LLAMA}/tools/server ${LLAMA}/tools/mtmd ${LLAMA}/common
  ${LLAMA}/vendor ${LLAMA}/include ${LLAMA}/ggml/include ${CMAKE_BINARY_DIR})
target_compile_definitions(llama-server PRIVATE LLAMA_SUBPROCESS LLAMA_SHARED GGML_SHARED GGML_BACKEND_SHARED
  GGML_USE_CPU ${DEFINES})
find_package(Threads REQUIRED)
target_link_libraries(llama-server PRIVATE ${COMMON_DIR}/libllama-common.so ${LIB_DIR}/libmtmd.so ${LIB_DIR}/libllama.so
  ${LIB_DIR}/libggml.so ${LIB_DIR}/libggml-base.so ${TLS} Threads::Threads)
target_link_options(llama-server PRIVATE -Wl,--disable-new-dtags,-rpath,${LIB_DIR}:${COMMON_DIR})
"""


def library_dirs() -> tuple[Path, Path]:
    """The wheel's llama_cpp/lib, and its lib/ that alone holds libllama-common."""
    site = Path(sysconfig.get_path("platlib"))
    return site / "llama_cpp" / "lib", site / "lib"


def binary() -> Path:
    """The path of llama-server; compiled at the first call (minutes). Raises CalledProcessError."""
    lib_dir, common_dir = library_dirs()
    linked = hashlib.sha256((FLAGS + CMAKE + str(lib_dir)).encode() + (lib_dir / "libllama.so").read_bytes())
    place = cache_dir() / "llama-server" / f"{version('llama-cpp-python')}-{linked.hexdigest()[:12]}"
    built = place / "build" / "llama-server"
    if not built.exists():
        _compile(place, _sources(), lib_dir, common_dir)
    return built


def _sources() -> Path:
    """vendor/llama.cpp of the sdist, downloaded and unpacked once."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    place = cache_dir() / "llama-server"
    place.mkdir(parents=True, exist_ok=True)
    sources = place / name / "vendor" / "llama.cpp"
    if not (sources / "tools" / "server" / "CMakeLists.txt").exists():
        wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
        options = ["--quiet", "--no-deps", "--no-binary=llama-cpp-python", f"--dest={place}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, wanted], check=True)
        with tarfile.open(place / f"{name}.tar.gz") as archive:
            archive.extractall(place, filter="data")
    return sources


def _compile(place: Path, sources: Path, lib_dir: Path, common_dir: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "CMakeLists.txt").write_text(CMAKE)
    # cpp-httplib lies inside libllama-common, and its classes differ with and without TLS: compile as that was
    tls = b"SSL_CTX_new" in (common_dir / "libllama-common.so").read_bytes()
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "FLAGS": FLAGS,
        "LLAMA": str(sources),
        "LIB_DIR": str(lib_dir),
        "COMMON_DIR": str(common_dir),
        "DEFINES": "CPPHTTPLIB_OPENSSL_SUPPORT" if tls else "",
        "TLS": "ssl;crypto" if tls else "",
    }
    options = [f"-D{key}={value}" for key, value in settings.items()]
    subprocess.run(["cmake", "-S", str(place), "-B", str(place / "build"), *options], check=True)
    subprocess.run(["nice", "-n", "10", "cmake", "--build", str(place / "build"), "-j", "2"], check=True)


if __name__ == "__main__":
    print(binary())
