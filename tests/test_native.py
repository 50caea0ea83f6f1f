"""The kernels outside Python: under sanitizers, and built for other processors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from prunus.kernels import native
from prunus.kernels.native import usable

SOURCES = Path(native.__file__).parent
DRIVER = Path(__file__).parent / "native" / "driver.cpp"
AVX2 = ["-mavx2", "-mfma", "-mpopcnt"]
AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mpopcnt"]
FLAGS = {"portable": ["-DPRUNUS_PORTABLE"], "avx2": AVX2, "avx512": AVX512}
SANITIZERS = {
    name: [f"-fsanitize={name}", "-fno-sanitize-recover=all"]
    for name in ("thread", "address,undefined")
}
# the address sanitizer stops at address 0 as well, and there are no virtual functions
SANITIZERS["address,undefined"].append("-fno-sanitize=null,vptr")


def built(place: Path, *flags: str, compiler: str = "g++") -> Path:
    """The driver with all kernels in it; skipped where the compiler cannot do that."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    begin = [compiler, "-std=c++17", "-Wno-psabi", *flags]
    probe = place / "probe.cpp"
    probe.write_text("#include <thread>\nint main() { std::thread([] {}).join(); }")
    tried = subprocess.run([*begin, str(probe), "-o", str(place / "probe"), "-pthread"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    if tried.returncode:
        pytest.skip(f"{compiler} cannot build with {' '.join(flags)}: {tried.stderr[-200:]}")
    sources = [str(p) for p in sorted(SOURCES.glob("*.cpp"))]
    command = [*begin, "-I", str(SOURCES), str(DRIVER), *sources, "-o", str(place / "driver")]
    done = subprocess.run([*command, "-pthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "driver"


def right(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"right on {name}\n"
    assert done.stderr == ""


ZOO = pytest.mark.zoo  # minutes of a compiler: make test-zoo


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize(
    "name", ["portable", pytest.param("avx2", marks=ZOO), pytest.param("avx512", marks=ZOO)]
)
def test_two_threads_on_different_models_are_clean_under_sanitizers(
    sanitizer: str, name: str, tmp_path: Path
) -> None:
    if name != "portable" and name not in usable():
        pytest.skip(f"{name}: this processor does not have it, or nothing is compiled")
    path = built(tmp_path, "-O0", "-g1", "-DPRUNUS_SHORT", *SANITIZERS[sanitizer], *FLAGS[name])
    right([str(path)], name)


@pytest.mark.zoo
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_variant_of_the_loops_is_clean_as_it_is_optimized(
    sanitizer: str, tmp_path: Path
) -> None:
    path = built(tmp_path, "-O1", "-g1", *SANITIZERS[sanitizer], *FLAGS["portable"])
    right([str(path)], "portable")


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "compiler", "flags", "emulator"),
    [
        ("neon", "aarch64-linux-gnu-g++", [], ["qemu-aarch64"]),
        ("portable", "aarch64-linux-gnu-g++", FLAGS["portable"], ["qemu-aarch64"]),
        ("avx2", "g++", AVX2, ["qemu-x86_64", "-cpu", "max"]),
    ],
)
def test_the_kernels_are_right_on_an_emulated_processor(
    name: str, compiler: str, flags: list[str], emulator: list[str], tmp_path: Path
) -> None:
    if shutil.which(emulator[0]) is None:
        pytest.skip(f"{emulator[0]} is not installed (qemu-user)")
    path = built(tmp_path, "-O2", "-static", *flags, compiler=compiler)
    right([*emulator, str(path)], name)


def test_the_widest_set_compiles_on_any_machine(tmp_path: Path) -> None:
    if usable() and "avx512" in usable():
        pytest.skip("avx512: this processor has it, and other tests run it")
    built(tmp_path, "-O0", *AVX512)
