"""The Torch backend: every operation of the contract on torch tensors of any device.

>>> import lowbit, numpy as np
>>> torch_backend = lowbit.load("torch")
>>> torch_backend.round_half_even(torch_backend.asarray(np.array([0.5, 1.5, -0.5]))).tolist()
[0.0, 2.0, -0.0]

The module itself is the backend on the CPU; :func:`configure` gives it another device or choice of kernels. An
operation is a function of its chapter, which lists it in ``__all__`` and checks, chooses a kernel and answers.
"""

# ruff: noqa: F403

from __future__ import annotations

from .arrays import asarray as asarray
from .arrays import to_numpy as to_numpy
from .backend import TorchBackend as TorchBackend
from .backend import configure as configure
from .operations import *
from .policy import Policy

name, compute_dtype, device = "torch", "float32", "cpu"
supports = Policy().supports
