"""The specification: what every method computes, in float64 NumPy and SciPy, one algorithm per file.

Reading order (the letter is the chapter, and the first part of every clause id):

1.  ``philox``         P  addressed randomness: words, uniforms, integers and normals
2.  ``rounding``       R  half to even, clipping, nearest level
3.  ``uniform``        Q  affine grids per tensor, row, token or group, and the search for a clipping ratio
4.  ``packing``        Q  codes of 1 to 8 bits in 32-bit words, dense and padded
5.  ``codebook``       N  NormalFloat and other levels, block scales, double quantization
6.  ``ternary``        T  ternary and min-max fake quantizers, straight-through gradients
7.  ``learned_step``   S  LSQ with every published granularity, count, floor and first step; gradients, offset
8.  ``statsq``         O  weights quantized by their own mean magnitude
9.  ``oscillation``    O  weights that go back and forth: frequency, freezing, annealing
10. ``qk_reparam``     O  the product of query and key weights as what is quantized
11. ``binary_coding``  B  binary codes: greedy, refined, alternating; packed planes, product by tables
12. ``scale_tuning``     U  AlphaTuning: gradient, update and least-squares fit of the scales of binary codes, sizes
13. ``mixed_precision``  M  bits per row by word frequency, bits per block by sensitivity, projection while retraining
14. ``gptq``           G  GPTQ
15. ``sparsity``       G  SparseGPT, alone or joint with quantization, and Wanda
16. ``moments``        C  second moments of activations, exactly associative
17. ``low_rank``       C  SVD and activation-scaled SVD patches
18. ``loftq``          N  LoftQ: quantization and a patch by turns
19. ``eigenspace``     E  EoRA: the best patch for the inputs that a layer sees
20. ``divergence``     F  errors of layers in one unit: the divergence that they cause at the output
21. ``rank_budget``    K  ranks per module under a budget, and nested patches
22. ``choices``        K  one choice for every module under a budget, and the whole frontier
23. ``dora``           D  DoRA: magnitude and direction apart
24. ``rotation``       H  Hadamard and Haar rotations, moved into weights; quantized activations
25. ``lut``            L  look-up tables: straight lines for non-linear functions, evaluated in integers
26. ``lut_search``     L  searches of look-up tables: the published genetic one, and the optimum with a certificate
27. ``coreset``        X  which samples to train on: error vectors, disagreement, ACS and its baselines
28. ``distill``        W  distillation losses of quantization-aware training, with their gradients
29. ``diagnostics``    W  order of attention, ranges, norms, and eigenvalues of the Hessian with a certificate

``tables`` holds constants found by search, ``types`` names the results, ``protocol`` is the contract of a backend,
``errors`` the two ways to refuse, ``checks`` the refusals themselves. The docstring of a function is the normative
text; clause ids stand in brackets.

This module is itself a backend, the slow one: it takes array-likes and answers in float64 NumPy arrays.

>>> import lowbit.reference as reference
>>> reference.quantize([[0.5, 1.5]], [[1.0]], [[0]], bits=2).tolist()
[[0, 2]]
"""

# ruff: noqa: F403  a file says itself what it exports

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import checks
from .binary_coding import *
from .choices import *
from .codebook import *
from .coreset import *
from .diagnostics import *
from .distill import *
from .divergence import *
from .dora import *
from .eigenspace import *
from .gptq import *
from .learned_step import *
from .loftq import *
from .low_rank import *
from .lut import *
from .lut_search import *
from .mixed_precision import *
from .moments import *
from .oscillation import *
from .packing import *
from .philox import *
from .protocol import operations
from .qk_reparam import *
from .rank_budget import *
from .rotation import *
from .rounding import *
from .scale_tuning import *
from .sparsity import *
from .statsq import *
from .ternary import *
from .uniform import *

__all__ = list(operations())  # pyright: ignore[reportUnsupportedDunderAll]  files also export sizes and presets

SPEC_VERSION = 1
"""Version of the specification; ``lowbit.SPEC_VERSION`` is the same number."""

name = "reference"
compute_dtype = "float64"
device = "cpu"


def asarray(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """NumPy to the backend's own array, which is NumPy."""
    return checks.plain(x, "x", "A-3")


def to_numpy(x: npt.NDArray[Any], /) -> npt.NDArray[Any]:
    """The backend's own array to NumPy."""
    return np.asarray(x)
