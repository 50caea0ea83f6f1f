"""Products with sparse matrices on processors, forward and backward.

The kernels are C++, compiled with the package where there is a compiler; this floor packs, checks
and calls them. ``native/layout.h`` is the format, ``native/abi.h`` the functions.
"""

from prunus.kernels.conv import SparseConv2d
from prunus.kernels.layouts import Cut, Layout, mask, slices, tiles
from prunus.kernels.linear import SparseLinear
from prunus.kernels.native import LACKING, library, usable
from prunus.kernels.pattern import Pattern

__all__ = [
    "LACKING",
    "Cut",
    "Layout",
    "Pattern",
    "SparseConv2d",
    "SparseLinear",
    "library",
    "mask",
    "slices",
    "tiles",
    "usable",
]
