"""Modules, losses and optimizers for torch models: the public face of what the Torch backend has for training.

Everything here is made of the operations of that backend; each chapter of the documentation says what its own are for.
Needs torch and nothing else.

>>> import torch
>>> from lowbit.nn import DoRALinear, QuantLinear
>>> layer = DoRALinear(QuantLinear.from_linear(torch.nn.Linear(64, 32), bits=4), rank=8)  # QDoRA
>>> layer(torch.zeros(2, 64)).shape, sum(p.numel() for p in layer.parameters())
(torch.Size([2, 32]), 800)
"""

from __future__ import annotations

from lowbit._hints import hint
from lowbit.backends import BackendError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise BackendError(f"lowbit.nn needs torch: {hint('torch')}") from error

from lowbit.accel.torch_cuda.nn.binary import BCQLinear, ScaleTunedLinear
from lowbit.accel.torch_cuda.nn.dora import DoRALinear
from lowbit.accel.torch_cuda.nn.fake_quant import FakeMinMax, FakeTernary, LearnedStep
from lowbit.accel.torch_cuda.nn.losses import attention_map_loss, feature_loss, logit_loss, score_loss, token_loss
from lowbit.accel.torch_cuda.nn.optim import AnnealedAdamW, OscillationTracker
from lowbit.accel.torch_cuda.nn.packed import LowRankLinear, QuantLinear
from lowbit.accel.torch_cuda.nn.qk_reparam import QKRAttention
from lowbit.accel.torch_cuda.nn.rotated import RotatedLinear
from lowbit.accel.torch_cuda.nn.statsq import StatsQLinear
from lowbit.accel.torch_cuda.nn.table import TableActivation

__all__ = [
    "AnnealedAdamW",
    "BCQLinear",
    "DoRALinear",
    "FakeMinMax",
    "FakeTernary",
    "LearnedStep",
    "LowRankLinear",
    "OscillationTracker",
    "QKRAttention",
    "QuantLinear",
    "RotatedLinear",
    "ScaleTunedLinear",
    "StatsQLinear",
    "TableActivation",
    "attention_map_loss",
    "feature_loss",
    "logit_loss",
    "score_loss",
    "token_loss",
]
