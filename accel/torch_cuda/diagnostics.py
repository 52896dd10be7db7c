"""Chapter W: diagnostics of attention maps and outputs, and eigenvalues of an operator by power iteration.

The rules are those of :mod:`lowbit.reference.diagnostics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowbit.accel.common.diagnostics import (
    LOST,
    SYMMETRY,
    check_iteration,
    check_layer,
    check_maps,
    check_starts,
    check_words,
)
from lowbit.accel.common.refusals import check_matrix, check_whole
from lowbit.reference.errors import SpecError
from lowbit.reference.types import AttentionNorms, EigenStop, Eigenvalues, PairRule, RowRule, TokenRange

from .arrays import as_weights, finite_weights, operation, refuse_nan, row_chunks, working_dtype
from .distill import pair, refuse_pair

__all__ = [
    "attention_norms",
    "attention_range",
    "cover_length",
    "hessian_operator",
    "power_eigenvalues",
    "ranking_loss",
]


def map_pair(clause: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (H, n, n) of both networks, in the precision of the operation."""
    student, teacher = pair(clause, student, teacher)
    check_maps(clause, student.shape, teacher.shape)
    refuse_pair(clause, student, teacher)
    dtype = working_dtype(student, teacher)
    return student.to(dtype), teacher.to(dtype)


@operation
def ranking_loss(student: Tensor, teacher: Tensor, /, *, pairs: PairRule = "published") -> Tensor:
    """Cost of the pairs of keys that the student orders otherwise, per head, summed in float64.  [W-6]"""
    check_words("W-6", pairs=pairs)
    S, T = map_pair("W-6", student, teacher)
    n = S.shape[1]
    place = torch.arange(n, device=S.device)
    i, j = place[:, None], place
    counted = i < j if pairs == "once" else (i < n - 1) & (j > 0)
    out = torch.zeros(len(S), dtype=torch.float64, device=S.device)
    for h in range(len(S)):
        for rows in row_chunks(n, n * n, S.device):
            s, t = S[h, rows], T[h, rows]
            rise = (t[:, None, :] - t[:, :, None]).sign_()
            wrong = (s[:, None, :] - s[:, :, None]).mul_(rise).neg_().clamp_(min=0.0)
            out[h] += wrong.masked_fill_(~counted, 0.0).sum(dtype=torch.float64)
    return out.to(S.dtype)


@operation
def cover_length(student: Tensor, teacher: Tensor, /, *, top: int = 5, rows: RowRule = "published") -> Tensor:
    """How much of the student's order covers the teacher's top keys, per head.  [W-7]"""
    check_words("W-7", rows=rows)
    S, T = map_pair("W-7", student, teacher)
    n = S.shape[1]
    if n == 0:
        return torch.zeros(len(S), dtype=S.dtype, device=S.device)
    k = check_whole("W-7", "top", top, 1, n)
    leading = T.argsort(dim=-1, descending=True, stable=True)[..., :k]
    order = S.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(n, device=S.device).expand_as(order))
    worst = place.gather(-1, leading).amax(-1)
    used = worst if rows == "all" else worst[:, :-1]
    return (used.sum(-1).double() / n**2).to(S.dtype)


@operation
def attention_range(x: Tensor, /) -> TokenRange[Tensor]:
    """Least and largest feature of every token.  [W-8]"""
    x = as_weights("W-8", "x", x)
    check_matrix("W-8", "x", x.shape, (None, None))
    if x.shape[1] == 0:
        raise SpecError("W-8", "x needs at least one feature")
    refuse_nan("W-8", "x", x)
    low, high = torch.aminmax(x.to(working_dtype(x)), dim=1)
    return TokenRange(low, high)


@operation
def attention_norms(maps: Tensor, x: Tensor, w_v: Tensor, b_v: Tensor | None, w_o: Tensor, /) -> AttentionNorms[Tensor]:
    """How much a token is attended to, and how much that moves, per head.  [W-9]"""
    maps = as_weights("W-9", "maps", maps)
    others = {"x": x, "w_v": w_v, "b_v": b_v, "w_o": w_o}
    given = {"maps": maps}
    given |= {name: as_weights("W-9", name, a, like=maps) for name, a in others.items() if a is not None}
    H, n, v = check_layer("W-9", {name: a.shape for name, a in given.items()})
    dtype = working_dtype(*given.values())
    for name, a in given.items():
        refuse_nan("W-9", name, a)
        given[name] = a.to(dtype)
    values = given["x"] @ given["w_v"].mT
    if "b_v" in given:
        values = values + given["b_v"]
    f = values.reshape(n, H, v // H).transpose(0, 1)
    weight = given["w_o"].reshape(-1, H, v // H).permute(1, 2, 0)
    size = torch.stack([torch.linalg.vector_norm(f[h] @ weight[h], dim=-1) for h in range(H)])
    seen, attended = (a.sum(1) / max(n, 1) for a in (given["maps"], given["maps"].abs()))
    return AttentionNorms(seen, size, attended * size)


@operation
def power_eigenvalues(
    operator: Tensor | Callable[[Tensor], Tensor],
    start: Tensor,
    /,
    *,
    iterations: int = 100,
    tolerance: float = 1e-3,
    stop: EigenStop = "change",
    shift: float = 0.0,
) -> Eigenvalues[Tensor]:
    """Eigenvalues of largest magnitude of a symmetric operator, with a bound on their error, in float64.  [W-10]"""
    most, ε, σ = check_iteration(stop, iterations, tolerance, shift)
    start = as_weights("W-10", "start", start)
    count, p = check_starts(start.shape)
    refuse_nan("W-10", "start", start)
    dtype, wide = working_dtype(start), start.new_empty(0)
    if isinstance(operator, Tensor):
        matrix = finite_weights("W-10", "operator", operator, (p, p), like=start)
        dtype, wide = working_dtype(start, matrix), matrix.double()
        if p and bool((wide - wide.mT).abs().max() > SYMMETRY * wide.abs().max()):
            raise SpecError("W-10", "operator must be symmetric")

    def product(v: Tensor) -> Tensor:
        if isinstance(operator, Tensor):
            return wide @ v
        return finite_weights("W-10", "product", operator(v.to(dtype)), (p,), like=start).double()

    value, residual = (torch.zeros(count, dtype=torch.float64, device=start.device) for _ in range(2))
    vectors = torch.zeros((count, p), dtype=torch.float64, device=start.device)
    steps = torch.zeros(count, dtype=torch.int32, device=start.device)
    for k in range(count):
        v, before = start[k].double(), float("inf")
        length = float(v.norm())
        if length == 0:
            raise SpecError("W-10", f"start {k} is zero")
        v = v / length
        found = vectors[:k]
        for step in range(1, most + 1):
            for _ in range(2):
                v = v - found.mT @ (found @ v)
            length = float(v.norm())
            if length <= LOST and step == 1:
                raise SpecError("W-10", f"start {k} lies in the span of the vectors before it")
            if length <= LOST:
                break
            v = v / length
            y = product(v) - σ * v
            μ, size = float(v @ y), float(y.norm())
            off = float((y - μ * v).norm())
            vectors[k], value[k], residual[k], steps[k] = v, μ + σ, off, step
            if stop == "residual":
                done = off <= ε * abs(μ)
            else:
                done = step > 1 and abs(μ - before) < ε * (abs(before) + 1e-6)
            if done or size == 0:
                break
            v, before = y / size, μ
    return Eigenvalues(value.to(dtype), residual.to(dtype), vectors.to(dtype), steps)


def hessian_operator(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """v → H v for the Hessian of ``loss()`` with respect to ``parameters``, flattened one after the other.

    The first gradient is taken once and its graph kept; every product is one more backward pass, and no matrix is
    formed. The loss must be deterministic: a network in eval mode.
    """
    wanted = [p for p in parameters if p.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), wanted, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])

    def product(v: Tensor) -> Tensor:
        with torch.enable_grad():
            parts = torch.autograd.grad(
                flat, wanted, grad_outputs=v.to(flat.dtype), retain_graph=True, materialize_grads=True
            )
        return torch.cat([x.reshape(-1) for x in parts]).detach()

    return product
