"""Chapter W: distillation losses with their gradients in closed form, nothing recorded for autograd.

On a CPU sentences are taken one by one, cut to their length, so that padding costs nothing and temporaries stay in
cache; elsewhere a batch is masked and taken in a few large launches. :mod:`.nn.losses` gives the same to autograd.
The rules are those of :mod:`lowbit.reference.distill`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowbit.accel.common.distill import check_above_zero, check_labels, check_lengths, check_pair, check_scores
from lowbit.accel.common.refusals import check_choice, check_number
from lowbit.reference.errors import SpecError
from lowbit.reference.types import DIVERGENCES, IGNORED_TOKENS, Divergence, IgnoredTokens, LossGradient

from . import triton
from .arrays import as_integers, as_weights, operation, refuse_nan, row_chunks, working_dtype
from .policy import by_kernel

__all__ = ["attention_map_loss", "feature_loss", "logit_loss", "score_loss", "token_loss"]

WIDEST_MAP = 16384  # keys of an attention map whose rows fit the registers of a program


def _fits(op: str, facts: Mapping[str, Any], /) -> Literal[True] | str:
    """Whether the kernel takes the dtype, and a row fits."""
    reason = triton.narrow(op, facts)
    if reason is True and facts.get("width", 0) > WIDEST_MAP:
        return f"a row of {facts['width']} keys is too large for one program: torch serves it"
    return reason


triton.KERNELS.update(attention_map_loss=_fits)


def pair(clause: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both networks' tensors, on one device."""
    student = as_weights(clause, "student", student)
    return student, as_weights(clause, "teacher", teacher, like=student)


def check_valid(clause: str, lengths: Tensor, batch: int, longest: int, *, like: Tensor) -> list[int]:
    """Lengths as Python integers."""
    return check_lengths(clause, as_integers(clause, "lengths", lengths, like=like), batch, longest)


def refuse_pair(clause: str, student: Tensor, teacher: Tensor, used: Tensor | None = None) -> None:
    """A-4 for the entries that are read."""
    for name, x in (("student", student), ("teacher", teacher)):
        refuse_nan(clause, name, x if used is None else torch.where(used, x, x.new_zeros(())))


def soft_rows(
    student: Tensor, teacher: Tensor, weight: Tensor, factor: float, *, entropy: bool
) -> tuple[Tensor, Tensor]:
    """Weighted soft cross-entropies of rows (R, C), summed in float64, and their gradient."""
    gradient = torch.empty_like(student)
    total = torch.zeros((), dtype=torch.float64, device=student.device)
    for rows in row_chunks(student.shape[0], student.shape[1], student.device):
        log_q, log_p = (x[rows].mul(factor).log_softmax(-1) for x in (student, teacher))
        p = log_p.exp()
        each = (p * (log_p - log_q)).sum(-1) if entropy else -(p * log_q).sum(-1)
        total += (each.double() * weight[rows]).sum()
        torch.sub(log_q.exp_(), p, out=gradient[rows]).mul_((weight[rows] * factor).to(p.dtype)[:, None])
    return total, gradient


@operation
def logit_loss(
    student: Tensor, teacher: Tensor, /, *, temperature: float = 1.0, divergence: Divergence = "cross-entropy"
) -> LossGradient[Tensor]:
    """Soft cross-entropy of logits, mean over the batch.  [W-1]"""
    check_choice("W-1", "divergence", divergence, DIVERGENCES)
    τ = check_above_zero("W-1", "temperature", temperature)
    student, teacher = pair("W-1", student, teacher)
    batch, _ = check_pair("W-1", student.shape, teacher.shape, 2)
    refuse_pair("W-1", student, teacher)
    dtype = working_dtype(student, teacher)
    S, T = student.to(dtype), teacher.to(dtype)
    if not S.numel():
        return LossGradient(0.0, torch.zeros_like(S))
    weight = torch.full((batch,), τ * τ / batch, dtype=torch.float64, device=S.device)
    total, gradient = soft_rows(S, T, weight, 1 / τ, entropy=divergence == "kl")
    return LossGradient(float(total), gradient)


@operation
def token_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    /,
    *,
    temperature: float = 10.0,
    ignored: IgnoredTokens = "weigh",
) -> LossGradient[Tensor]:
    """Token-scaled logit distillation.  [W-2]"""
    check_choice("W-2", "ignored", ignored, IGNORED_TOKENS)
    τ = check_above_zero("W-2", "temperature", temperature)
    student, teacher = pair("W-2", student, teacher)
    batch, n, vocabulary = check_pair("W-2", student.shape, teacher.shape, 3)
    labels = as_integers("W-2", "labels", labels, like=student)
    has = check_labels("W-2", labels, student.shape)
    counted = has if ignored == "skip" else torch.ones_like(has)
    used = counted.unsqueeze(-1)
    refuse_pair("W-2", student, teacher, used)
    dtype = working_dtype(student, teacher)
    S, T = (torch.where(used, x, x.new_zeros(())).to(dtype).reshape(-1, vocabulary) for x in (student, teacher))
    if not S.numel():
        return LossGradient(0.0, torch.zeros(student.shape, dtype=dtype, device=S.device))
    at = torch.where(has, labels, 0).to(torch.int64).reshape(-1, 1)
    own = torch.cat([-T[r].log_softmax(-1).gather(1, at[r]) for r in row_chunks(T.shape[0], T.shape[1], T.device)])
    cost = torch.where(has, own.reshape(batch, n), own.new_zeros(())).double() / τ
    weight = cost.masked_fill(~counted, -torch.inf).softmax(-1)
    weight = torch.where(counted, weight, weight.new_zeros(())).reshape(-1)  # a sequence without labels: NaN
    total, gradient = soft_rows(S, T, weight, 1.0, entropy=False)
    return LossGradient(float(total), gradient.reshape(student.shape))


@operation
def feature_loss(student: Tensor, teacher: Tensor, lengths: Tensor | None = None, /) -> LossGradient[Tensor]:
    """Mean square difference of features, over every element or over valid tokens.  [W-3]"""
    student, teacher = pair("W-3", student, teacher)
    batch, n, d = check_pair("W-3", student.shape, teacher.shape, 3)
    used, count = None, batch * n * d
    if lengths is not None:
        s = check_valid("W-3", lengths, batch, n, like=student)
        used = (torch.arange(n, device=student.device) < lengths.detach()[:, None]).unsqueeze(-1)
        count = d * sum(s)
    refuse_pair("W-3", student, teacher, used)
    dtype = working_dtype(student, teacher)
    difference = student.to(dtype) - teacher.to(dtype)
    if used is not None:
        difference = torch.where(used, difference, difference.new_zeros(()))
    flat = difference.reshape(-1)
    total = sum((float(flat[r].double().square().sum()) for r in row_chunks(flat.numel(), 1, flat.device)), 0.0)
    return LossGradient(total / max(count, 1), difference.mul_(2 / max(count, 1)))


@operation
def score_loss(
    student: Tensor, teacher: Tensor, /, *, floor: float = -100.0, causal: bool = False
) -> LossGradient[Tensor]:
    """Mean square difference of scores, those at most ``floor`` set to 0 in each network.  [W-4]"""
    if not isinstance(causal, bool):
        raise SpecError("W-4", f"causal must be True or False, got {causal!r}")
    least = check_number("W-4", "floor", floor)
    student, teacher = pair("W-4", student, teacher)
    batch, heads, n, _ = check_scores("W-4", student.shape, teacher.shape)
    refuse_pair("W-4", student, teacher)
    dtype = working_dtype(student, teacher)
    count = max(batch * heads * (n * (n + 1) // 2 if causal else n * n), 1)
    gradient = torch.zeros(student.shape, dtype=dtype, device=student.device)
    total = 0.0
    for b in row_chunks(batch, heads * n * n, student.device):
        S, T = student[b].to(dtype), teacher[b].to(dtype)
        kept = least < S.double()
        difference = torch.where(kept, S, 0.0) - torch.where(least < T.double(), T, 0.0)
        if causal:
            difference.tril_()
        total += float(difference.double().square().sum())
        gradient[b] = torch.where(kept, difference, 0.0).mul_(2 / count)
    return LossGradient(total / count, gradient)


def map_block(student: Tensor, teacher: Tensor, log_floor: float, gradient: Tensor) -> Tensor:
    """Loss terms per row of score blocks (…, s, s), and q Σa − a into ``gradient``; masked keys hold −∞."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1).clamp_(min=log_floor)
    a = log_p.exp()
    floored = log_q.clamp(min=log_floor)
    loss = (a * log_p.sub_(floored)).sum(-1, dtype=torch.float64)
    a.mul_(floored.eq_(log_q))
    torch.mul(log_q.exp_(), a.sum(-1, keepdim=True), out=gradient).sub_(a)
    return loss


@operation
def attention_map_loss(
    student: Tensor, teacher: Tensor, lengths: Tensor, /, *, floor: float = 1e-8
) -> LossGradient[Tensor]:
    """Divergence of attention maps from scores.  [W-5]"""
    least = check_above_zero("W-5", "floor", floor, 1.0)
    student, teacher = pair("W-5", student, teacher)
    batch, heads, n, _ = check_scores("W-5", student.shape, teacher.shape)
    s = check_valid("W-5", lengths, batch, n, like=student)
    lengths, log_floor = lengths.detach(), math.log(least)

    def refuse() -> None:
        inside = torch.arange(n, device=student.device) < lengths[:, None]
        refuse_pair("W-5", student, teacher, (inside[:, :, None] & inside[:, None]).unsqueeze(1))

    if student.numel() and by_kernel("attention_map_loss", student, teacher, width=n):
        terms, gradient = triton.launcher("distill").attention_map_loss(
            student.contiguous(), teacher.contiguous(), lengths, log_floor
        )
        loss = float(terms.sum()) / (batch * heads)
        if not math.isfinite(loss):
            refuse()
        return LossGradient(loss, gradient)
    dtype = working_dtype(student, teacher)
    gradient = torch.zeros(student.shape, dtype=dtype, device=student.device)
    if not gradient.numel():
        return LossGradient(0.0, gradient)
    each: list[Tensor] = []
    proof: list[Tensor] = []
    for b, length in enumerate(s):
        corner = (b, slice(None), slice(length), slice(length))
        S, T = student[corner].to(dtype), teacher[corner].to(dtype)
        out = torch.empty(S.shape, dtype=dtype, device=S.device)
        each.append(map_block(S, T, log_floor, out).sum() / length)
        proof.append(S.sum() + T.sum())  # finite only if every entry is
        gradient[corner] = out.mul_(1 / (batch * heads * length))
    if not bool(torch.isfinite(torch.stack(proof)).all()):
        refuse()
    return LossGradient(float(torch.stack(each).sum()) / (batch * heads), gradient)
