"""The one part that pyproject.toml cannot say for good yet: a C extension that may be missing."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "prunus._common.kernels.kernels",
            ["src/prunus/_common/kernels/kernels.c"],
            extra_compile_args=["-O3"],
            optional=True,  # without a C compiler torch does the same, more slowly
        )
    ]
)
