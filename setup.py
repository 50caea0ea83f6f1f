"""What pyproject.toml cannot say for good yet: compiled parts, each of which may be missing."""

import copy
import os
import platform
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "src/prunus/kernels/native"
SETS = {
    "x86_64": {
        "avx2": ["-mavx2", "-mfma", "-mpopcnt"],
        "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mpopcnt"],
    },
    "aarch64": {"neon": []},
}
ALIKE = {"amd64": "x86_64", "arm64": "aarch64"}


def kernels() -> list[Extension]:
    """The sparse kernels, once for each instruction set: which one is used, the processor says."""
    machine = platform.machine().lower()
    sets = {"portable": ["-DPRUNUS_PORTABLE"], **SETS.get(ALIKE.get(machine, machine), {})}
    return [
        Extension(
            f"prunus.kernels.native.{name}",
            sorted(glob(f"{NATIVE}/*.cpp")),
            depends=sorted(glob(f"{NATIVE}/*.h")),
            extra_compile_args=["-std=c++17", "-O3", "-fvisibility=hidden", "-Wno-psabi", *flags],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,  # without a C++ compiler the runtime "sparse" says what is missing
        )
        for name, flags in sets.items()
    ]


class Parallel(build_ext):
    """Builds the parts beside each other: each takes a quarter of a minute."""

    def finalize_options(self) -> None:
        """Unless told otherwise."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        """Object files of its own: the same sources are compiled once for each set."""
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        super(Parallel, own).build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        """Libraries that ctypes opens have no function that Python would look for."""
        return [] if "native" in ext.name else super().get_export_symbols(ext)


setup(
    cmdclass={"build_ext": Parallel},
    ext_modules=[
        Extension(
            "prunus._common.kernels.kernels",
            ["src/prunus/_common/kernels/kernels.c"],
            extra_compile_args=["-O3"],
            optional=True,  # without a C compiler torch does the same, more slowly
        ),
        *kernels(),
    ],
)
