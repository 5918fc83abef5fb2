"""Builds the optional C library of indextts2.native; everything else is said in pyproject.toml.

The library is loaded with ctypes: it knows nothing of Python or torch, so it needs no headers of either and one wheel
serves every Python version. Without a C compiler the installation succeeds and the package computes with PyTorch.
"""

from __future__ import annotations

import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "src/indextts2/native"
SOURCES = ("library", "snake", "convolution", "product", "matrix", "softmax", "attention")
VARIANTS = ("convolution", "product", "matrix", "softmax", "attention")
HEADERS = ("kernels", "snake", "softmax_row", *(f"{name}_variant" for name in VARIANTS))
# Nothing here ties the library to the processor of the building machine, and nothing may reorder sums.
GCC_FLAGS = ["-std=c11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
MSVC_FLAGS = ["/std:c11", "/O2", "/fp:contract"]


class BuildLibrary(build_ext):
    """A plain shared library rather than a Python module."""

    def build_extensions(self) -> None:
        flags = MSVC_FLAGS if self.compiler.compiler_type == "msvc" else GCC_FLAGS
        for extension in self.extensions:
            extension.extra_compile_args = flags
        super().build_extensions()

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", "/") + (".dll" if sys.platform == "win32" else ".so")

    def get_export_symbols(self, extension: Extension) -> list[str]:
        # The default is the entry point of a Python module, which this is not.
        return []


class PlatformWheel(bdist_wheel):
    """Tagged for the platform, for any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "indextts2.native._kernels",
            sources=[f"{FOLDER}/{name}.c" for name in SOURCES],
            depends=[f"{FOLDER}/{name}.h" for name in HEADERS],
            libraries=[] if sys.platform == "win32" else ["m"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
