"""Deliberately wrong backends: each breaks one clause in a way that real code has broken it, and names that clause.

Most are the specification's own source with one line edited, so that everything else about them is right. A mutant that the named
clause does not kill is a hole in the conformance kit (tests/conformance/test_mutants.py).
"""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)
from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lowbit import reference
from lowbit.reference.errors import SpecError
from lowbit.reference.protocol import operations

Array = npt.NDArray[Any]
Ops = dict[str, Callable[..., Any]]


@dataclass(frozen=True)
class Mutant:
    """A wrong backend: operations of the specification, some of them replaced."""

    clause: str  # the clause that must kill it
    name: str
    ops: Callable[[], Ops] = field(repr=False)

    def backend(self) -> SimpleNamespace:
        """The backend object."""
        members: dict[str, Any] = {op: getattr(reference, op) for op in operations()}
        members.update(asarray=reference.asarray, to_numpy=reference.to_numpy, device="cpu")
        return SimpleNamespace(**{**members, **self.ops()}, name=f"mutant {self.name}", compute_dtype="float64")


MUTANTS: list[Mutant] = []


def edited(module: str, *edits: tuple[str, str]) -> dict[str, Any]:
    """Namespace of a module of the specification after replacing text in its source; the text must be there."""
    original = importlib.import_module(f"lowbit.reference.{module}")
    source = inspect.getsource(original)
    for old, new in edits:
        if old not in source:
            raise AssertionError(f"lowbit.reference.{module} no longer has {old!r}: bring the mutant up to date")
        source = source.replace(old, new)
    namespace: dict[str, Any] = {"__name__": original.__name__, "__package__": "lowbit.reference"}
    exec(compile(source, f"<mutant of {module}>", "exec"), namespace)
    return namespace


def edit(clause: str, name: str, module: str, ops: str, *edits: tuple[str, str]) -> None:
    """Register a mutant made by editing source; ``ops`` are the operations taken from it, separated by blanks."""

    def build() -> Ops:
        namespace = edited(module, *edits)
        return {op: namespace[op] for op in ops.split()}

    MUTANTS.append(Mutant(clause, name, build))


def replace(clause: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a mutant whose operation of the function's name is replaced by the function."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        MUTANTS.append(Mutant(clause, name, lambda: {function.__name__: function}))
        return function

    return decorate


def wrap(clause: str, name: str, op: str, change: Callable[[Any], Any]) -> None:
    """Register a mutant that changes the result of an operation."""
    original = getattr(reference, op)
    MUTANTS.append(Mutant(clause, name, lambda: {op: lambda *a, **k: change(original(*a, **k))}))


def half_away(x: npt.ArrayLike) -> Array:
    """C's round()."""
    a = np.asarray(x, np.float64)
    return np.asarray(np.copysign(np.floor(np.abs(a) + 0.5), a))


def low_precision(x: npt.ArrayLike) -> Array:
    """A TF32 operand: 11 significand bits."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, 11)), exponent - 11))


# -- R -----------------------------------------------------------------------------------------------------------------

edit(
    "R-1",
    "rounds half away from zero",
    "rounding",
    "round_half_even",
    (
        'return np.rint(checks.real(x, "x", "R-1"))',
        'x = checks.real(x, "x", "R-1"); return np.copysign(np.floor(abs(x) + 0.5), x)',
    ),
)
edit(
    "R-1",
    "rounds half up",
    "rounding",
    "round_half_even",
    ('np.rint(checks.real(x, "x", "R-1"))', 'np.floor(checks.real(x, "x", "R-1") + 0.5)'),
)
edit(
    "R-1",
    "adds and subtracts 1.5 * 2^23 in float32",
    "rounding",
    "round_half_even",
    (
        'np.rint(checks.real(x, "x", "R-1"))',
        '((checks.real(x, "x", "R-1").astype("f4") + np.float32(2**23 * 1.5)) - np.float32(2**23 * 1.5))',
    ),
)
edit(
    "R-2", "clips one code too low", "rounding", "round_clip", ("np.rint(a), low, high)", "np.rint(a), low, high - 1)")
)
edit(
    "R-2",
    "rounds half away before clipping",
    "rounding",
    "round_clip",
    ("np.rint(a), low", "np.copysign(np.floor(abs(a) + 0.5), a), low"),
)
edit(
    "R-2",
    "turns NaN into a code",
    "rounding",
    "round_clip",
    ("np.isnan(a).any()", "False"),
    ("np.rint(a)", "np.rint(np.nan_to_num(a))"),
)
edit("R-2", "truncates", "rounding", "round_clip", ("np.rint(a)", "np.trunc(a)"))
edit(
    "R-3",
    "midpoints in half precision",
    "rounding",
    "nearest_level",
    ("midpoint = l[:-1] + (l[1:] - l[:-1]) / 2", "midpoint = ((l[:-1] + l[1:]) / 2).astype('f2').astype('f8')"),
)
edit("R-3", "takes the next level below", "rounding", "nearest_level", ("midpoint, a, side", "l[1:], a, side"))
edit("R-3a", "tie to the higher index", "rounding", "nearest_level", ('side="left"', 'side="right"'))

# -- Q -----------------------------------------------------------------------------------------------------------------

edit(
    "Q-1",
    "leaves out the lowest signed code",
    "uniform",
    "quantize",
    (
        'return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)),',
        'return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)) + 1,',
    ),
)
edit("Q-1", "accepts any width", "uniform", "quantize fit_grid", ("high=8)", "high=16)"))
edit("Q-1", "clips one code too high", "uniform", "quantize", ("low=first, high=last)", "low=first, high=last + 1)"))
edit(
    "Q-2",
    "divides the range by 2^b",
    "uniform",
    "fit_grid",
    ("s = round_scale((hi0 - lo0) / n", "s = round_scale((hi0 - lo0) / (n + 1)"),
)
edit("Q-2", "truncates the zero point", "uniform", "fit_grid", ("round_half_even(-lo0 / s))", "np.floor(-lo0 / s))"))
edit(
    "Q-2",
    "leaves zero out of the range",
    "uniform",
    "fit_grid",
    ("lo0, hi0 = np.minimum(lo, 0), np.maximum(hi, 0)", "lo0, hi0 = lo, np.where(hi > lo, hi, lo + 1)"),
)
edit("Q-2", "forgets the clip ratio of the low end", "uniform", "fit_grid", ("p * lo0, p * hi0", "lo0, p * hi0"))
edit("Q-2", "forces zero into every range", "uniform", "fit_grid", ("if not include_zero:", "if False:"))
edit(
    "Q-2a",
    "swaps the two symmetric conventions",
    "uniform",
    "fit_grid",
    ('if scheme == "symmetric":', 'if scheme == "symmetric-full":'),
)
edit(
    "Q-2a",
    "ignores the one-sided groups of the published scheme",
    "uniform",
    "fit_grid",
    ('np.where(lo0 < 0, 2 * a, a) if scheme == "symmetric-gptq" else 2 * a', "2 * a"),
)
edit(
    "Q-2a", "takes the maximum without the sign", "uniform", "fit_grid", ("np.maximum(-lo0, hi0)", "np.maximum(hi0, 0)")
)
edit(
    "Q-2a",
    "middle code as the zero point",
    "uniform",
    "fit_grid",
    ("np.zeros(s.shape, np.int32)", "np.full(s.shape, 2 ** (bits - 1), np.int32)"),
)
edit(
    "Q-2b",
    "interleaves the columns of groups",
    "uniform",
    "fit_grid",
    (
        "v = x.reshape(*x.shape[:-1], k // group_size, group_size)",
        "v = np.swapaxes(x.reshape(*x.shape[:-1], group_size, k // group_size), -1, -2)",
    ),
)
edit(
    "Q-2b",
    "one scale for the whole tensor per row",
    "uniform",
    "fit_grid",
    ("v = x[..., None, :]", "v = np.broadcast_to(x.ravel(), (*x.shape[:-1], 1, x.size))"),
)
edit(
    "Q-2c",
    "zero point from the scale before rounding",
    "uniform",
    "fit_grid",
    ("round_half_even(-lo0 / s))", "round_half_even(-lo0 / ((hi0 - lo0) / n)))"),
)
edit(
    "Q-2c",
    "truncates the scale",
    "uniform",
    "fit_grid",
    ("np.rint(mantissa * 2**8)", "np.floor(mantissa * 2**8)"),
    (
        'scale.astype(dtype or "float64").astype(np.float64)',
        'np.where(scale.astype(dtype or "f8").astype("f8") > scale, np.nextafter(scale.astype(dtype or "f8"), np.zeros((), dtype or "f8")), scale.astype(dtype or "f8")).astype("f8")',
    ),
)
edit("Q-2c", "keeps subnormal scales", "uniform", "fit_grid", ("2.0**-14 if dtype", "2.0**-24 if dtype"))
edit(
    "Q-2c",
    "saturates an infinite scale",
    "uniform",
    "fit_grid",
    ("if not np.isfinite(rounded).all():", "rounded = np.minimum(rounded, 65504.0)\n    if False:"),
)
edit(
    "Q-2d",
    "floor after the clip ratio",
    "uniform",
    "fit_grid",
    ("a = np.maximum(np.maximum(-lo0, hi0), floor)", "a = np.maximum(np.maximum(-lo0, hi0), floor / p)"),
)
edit(
    "Q-2d",
    "floor ignored",
    "uniform",
    "fit_grid",
    ("np.maximum(np.maximum(-lo0, hi0), floor)", "np.maximum(-lo0, hi0)"),
)
edit(
    "Q-3",
    "divides in half precision",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even((a / s).astype('f2').astype('f8'))"),
)
edit("Q-3", "truncates the quotient", "uniform", "quantize", ("round_half_even(a / s)", "np.trunc(a / s)"))
edit(
    "Q-3",
    "subtracts the zero point",
    "uniform",
    "quantize",
    ("round_half_even(a / s) + z", "round_half_even(a / s) - z"),
)
edit(
    "Q-3a",
    "ties away from zero",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "np.copysign(np.floor(abs(a / s) + 0.5), a)"),
)
edit(
    "Q-3a",
    "multiplies by the reciprocal",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even(a * (1 / s))"),
)
edit(
    "Q-3a",
    "multiplies by the reciprocal in float32",
    "uniform",
    "quantize",
    ("round_half_even(a / s)", "round_half_even((a.astype('f4') * (np.float32(1) / s.astype('f4'))).astype('f8'))"),
)
edit(
    "Q-3a",
    "adds the zero point before rounding",
    "uniform",
    "quantize",
    ("round_half_even(a / s) + z", "round_half_even(a / s + z)"),
)
edit(
    "Q-3b",
    "scales taken in turns",
    "uniform",
    "quantize dequantize",
    ("np.repeat(scale, k // g if g else 0, axis=-1)", "np.tile(scale, k // g if g else 0)"),
)
edit("Q-4", "adds the zero point", "uniform", "dequantize", ("s * (q - z)", "s * (q + z)"))
edit(
    "Q-4",
    "subtracts after scaling, rounded twice in float32",
    "uniform",
    "dequantize",
    ("s * (q - z)", "((s * q).astype('f4') - (s * z).astype('f4')).astype('f8')"),
)
edit(
    "Q-4",
    "product in half precision",
    "uniform",
    "dequantize",
    ("s * (q - z)", "(s * (q - z)).astype('f2').astype('f8')"),
)
edit("Q-5", "squares whatever the norm", "uniform", "clip_search", ("** norm", "** 8"))
edit(
    "Q-5",
    "tries half of the ratios",
    "uniform",
    "clip_search",
    ("math.floor(max_shrink * grid)", "math.floor(max_shrink * grid / 4)"),
)
edit("Q-5", "tells the next step", "uniform", "clip_search", ("step[better] = i", "step[better] = i + 1"))
edit("Q-5", "keeps the last ratio", "uniform", "clip_search", ("better = error < least", "better = error < np.inf"))
edit("Q-5a", "smaller ratio wins ties", "uniform", "clip_search", ("error < least", "error <= least"))
edit("Q-6", "big end first", "packing", "pack", ('.view("<u4")', '.view(">u4")'))
edit(
    "Q-6",
    "high bits first inside a code",
    "packing",
    "pack",
    (">> np.arange(bits)) & 1", ">> np.arange(bits)[::-1]) & 1"),
)
edit(
    "Q-6",
    "unpack forgets the length",
    "packing",
    "unpack",
    ("value[:, :length]", "value"),
    ("w.shape[1] != wanted", "False"),
)
edit("Q-6", "lets a code spill", "packing", "pack", ("if outside.any():", "if False:"))
edit(
    "Q-7",
    "packs densely",
    "packing",
    "pack unpack",
    ('return (32, bits) if layout == "dense" else (32 // bits, 1)', "return (32, bits)"),
    ('if layout == "dense" else -(-length // values) * words', "if layout else 0"),
)
edit(
    "Q-7",
    "high codes first",
    "packing",
    "pack",
    (
        "stream[:, :, : values * bits] = bit.reshape(n, runs, values * bits)",
        "stream[:, :, : values * bits] = bit.reshape(n, runs, values, bits)[:, :, ::-1 if words == 1 else 1].reshape(n, runs, values * bits)",
    ),
)
edit("Q-8", "scale zero for zeros", "uniform", "fit_grid", ("s = np.where(empty, 1.0, a / last)", "s = a / last"))
edit(
    "Q-8",
    "zero point zero for zeros",
    "uniform",
    "fit_grid",
    ("np.where(empty, round_half_even(n / 2)", "np.where(empty, 0"),
)
edit("Q-8", "no fall-back for constants", "uniform", "fit_grid", ("apart = (hi > lo) &", "apart = (hi >= lo) &"))

# -- G -----------------------------------------------------------------------------------------------------------------

edit(
    "G-1",
    "damping missing",
    "gptq",
    "inverse_cholesky",
    ("H + damping * (np.mean(np.diag(H)) if len(H) else 0.0) * np.eye(len(H))", "H + 1e-12 * np.eye(len(H))"),
)
edit(
    "G-1",
    "damps by the largest diagonal entry",
    "gptq",
    "inverse_cholesky",
    ("np.mean(np.diag(H))", "np.max(np.diag(H))"),
)
edit(
    "G-1",
    "lower factor",
    "gptq",
    "inverse_cholesky",
    (
        "np.triu(solve_triangular(R, np.eye(len(H)), lower=False))",
        "np.tril(solve_triangular(R, np.eye(len(H)), lower=False).T)",
    ),
)
edit(
    "G-1",
    "factor of H, not of its inverse",
    "gptq",
    "inverse_cholesky",
    ("solve_triangular(R, np.eye(len(H)), lower=False)", "R"),
)
edit(
    "G-1a",
    "dead columns overlooked",
    "gptq",
    "inverse_cholesky",
    ("return H + damping", "dead = np.zeros_like(dead)\n    return H + damping"),
)
edit(
    "G-1a",
    "mean before the repair",
    "gptq",
    "inverse_cholesky",
    (
        "    H = H + np.diag(dead.astype(np.float64))  # (G.1)",
        "    mean = np.mean(np.diag(H)) if len(H) else 0.0\n    H = H + np.diag(dead.astype(np.float64))",
    ),
    ("(np.mean(np.diag(H)) if len(H) else 0.0)", "mean"),
)
edit("G-2", "no update: plain rounding", "gptq", "gptq", ("W[:, i:] -= np.outer(e, U[i, i:])", "pass"))
edit("G-2", "lower factor", "gptq", "gptq", ("np.outer(e, U[i, i:])", "np.outer(e, U.T[i, i:])"))
edit(
    "G-2",
    "update not divided by the pivot",
    "gptq",
    "gptq",
    ("e = (W[:, i] - Q[:, j]) / U[i, i]", "e = W[:, i] - Q[:, j]"),
)
edit("G-2", "update of the wrong sign", "gptq", "gptq", ("W[:, i:] -= np.outer", "W[:, i:] += np.outer"))
edit(
    "G-2",
    "update stops at the block",
    "gptq",
    "gptq",
    (
        "W[:, i:] -= np.outer(e, U[i, i:])",
        "b = i // block_size * block_size + block_size; W[:, i:b] -= np.outer(e, U[i, i:b])",
    ),
)
edit(
    "G-2",
    "damping missing",
    "gptq",
    "gptq",
    ("[np.ix_(order, order)], damping=damping)", "[np.ix_(order, order)], damping=1e-9)"),
)
edit("G-2a", "loss without the half", "gptq", "gptq", ("float((e**2).sum() / 2)", "float((e**2).sum())"))
edit(
    "G-2a",
    "loss not divided by the pivot",
    "gptq",
    "gptq",
    ("float((e**2).sum() / 2)", "float(((e * U[i, i])**2).sum() / 2)"),
)
edit(
    "G-2b",
    "returns the updated weight",
    "gptq",
    "gptq",
    ("zero, group_index, Q, loss)", "zero, group_index, W[:, np.argsort(order)], loss)"),
)
edit("G-2c", "dead columns kept", "gptq", "gptq", ("W[:, dead] = 0", "pass"))
edit(
    "G-2c",
    "row grid after the dead columns are zeroed",
    "gptq",
    "gptq",
    ("    grid = find(W)  # of", "    W[:, np.diag(H) == 0] = 0\n    grid = find(W)  # of"),
)
edit("G-3", "act-order ascending", "gptq", "gptq", ("np.argsort(-np.where(dead", "np.argsort(np.where(dead"))
edit(
    "G-3",
    "ties to the higher index",
    "gptq",
    "gptq",
    (
        'np.argsort(-np.where(dead, 1.0, np.diag(H)), kind="stable")',
        'np.argsort(np.where(dead, 1.0, np.diag(H)), kind="stable")[::-1]',
    ),
)
edit("G-3", "dead columns last", "gptq", "gptq", ("-np.where(dead, 1.0, np.diag(H))", "-np.diag(H)"))
edit(
    "G-3b", "groups of original columns under act-order", "gptq", "gptq", ("(j if static_groups else i) // g", "j // g")
)
edit(
    "G-3b",
    "grids of original columns under act-order",
    "gptq",
    "gptq",
    (
        'grid = find((W if group_scales == "current" else seen)[:, i : i + g])',
        "grid = find(W[:, np.argsort(order)][:, i : i + g])",
    ),
)
edit("G-3a", "static groups by position", "gptq", "gptq", ("(j if static_groups else i) // g", "i // g"))
edit(
    "G-3a",
    "static groups fit on updated weights",
    "gptq",
    "gptq",
    ("if static_groups and group_size is not None:", "if False:"),
)
edit("G-4", "stale group scales", "gptq", "gptq", ('W if group_scales == "current" else seen', "seen"))
edit("G-4", "never stale", "gptq", "gptq", ('W if group_scales == "current" else seen', "W"))
edit(
    "G-4",
    "groups from the un-updated weight",
    "gptq",
    "gptq",
    ("if i % block_size == 0:", "if i == 0:"),
    ('W if group_scales == "current" else seen', "seen"),
)
edit(
    "G-4a",
    "clip search ignored",
    "gptq",
    "gptq",
    ("uniform.clip_search if clip_search else uniform.fit_grid", "uniform.fit_grid"),
)
edit("G-5", "prunes the largest", "sparsity", "sparsegpt", ("smallest((W[:, j]", "smallest(-(W[:, j]"))
edit("G-5", "saliency without the pivot", "sparsity", "sparsegpt", ("(W[:, j] / np.diag(U)[j]) ** 2", "W[:, j] ** 2"))
edit("G-5", "no update", "sparsity", "sparsegpt", ("W[:, i:] -= np.outer(e, U[i, i:])", "pass"))
edit("G-5", "keep and prune swapped", "sparsity", "sparsegpt", ("** 2, of - keep)", "** 2, keep)"))
edit(
    "G-5",
    "mask from the un-updated weight",
    "sparsity",
    "sparsegpt",
    ("    W[:, dead] = 0", "    W[:, dead] = 0\n    W0 = W.copy()"),
    ("smallest((W[:, j]", "smallest((W0[:, j]"),
)
edit(
    "G-5a",
    "ties prune the higher index",
    "sparsity",
    "sparsegpt",
    (
        'np.argsort(score, axis=-1, kind="stable")[..., :count]',
        'score.shape[-1] - 1 - np.argsort(score[..., ::-1], axis=-1, kind="stable")[..., :count]',
    ),
)
edit(
    "G-5b",
    "a pruned weight has code zero",
    "sparsity",
    "sparsegpt",
    ("            codes[:, [i]] = uniform.quantize(q,", "            codes[:, [i]] = 0 * uniform.quantize(q,"),
)
edit(
    "G-5b",
    "grid of the pruned weight",
    "sparsity",
    "sparsegpt",
    (
        'grid = find((W if group_scales == "current" else seen)[:, i : i + g])',
        'grid = find(np.where(mask, 0, W if group_scales == "current" else seen)[:, i : i + g])',
    ),
)
edit(
    "G-5b",
    "rounds the original weight",
    "sparsity",
    "sparsegpt",
    ("    W[:, dead] = 0", "    W[:, dead] = 0\n    W0 = W.copy()"),
    (
        "codes[:, [i]] = uniform.quantize(q,",
        "codes[:, [i]] = uniform.quantize(np.where(mask[:, [i]], 0.0, W0[:, [i]]),",
    ),
)
edit("G-6", "without the square root", "sparsity", "wanda", ("np.sqrt(a)", "a"))
edit("G-6", "prunes the largest", "sparsity", "wanda", ("smallest(score.reshape", "smallest(-score.reshape"))
edit("G-6", "ignores the activations", "sparsity", "wanda", ("np.abs(W) * np.sqrt(a)", "np.abs(W)"))
edit(
    "G-6",
    "tuples across columns",
    "sparsity",
    "wanda",
    ("score.reshape(m, k // of, of), of - keep)", "np.swapaxes(score.reshape(m, of, k // of), 1, 2), of - keep)"),
)
edit(
    "G-6a",
    "ties prune the higher index",
    "sparsity",
    "wanda",
    (
        'np.argsort(score, axis=-1, kind="stable")[..., :count]',
        'score.shape[-1] - 1 - np.argsort(score[..., ::-1], axis=-1, kind="stable")[..., :count]',
    ),
)

# -- C -----------------------------------------------------------------------------------------------------------------


def tf32(op: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that sees its float arguments with 11 significand bits."""

    def call(*arrays: Any, **options: Any) -> Any:
        return op(*(low_precision(a) for a in arrays), **options)

    return call


MUTANTS.append(Mutant("C-1", "TF32 product", lambda: {"moment_leaf": tf32(reference.moment_leaf)}))
edit("C-1", "covariance of tokens", "moments", "moment_leaf", ("S = X.T @ X", "S = X @ X.T"))
edit(
    "C-1",
    "mean instead of sum",
    "moments",
    "moment_leaf",
    ("gram(X), np.abs(X).sum(axis=0)", "gram(X) / max(len(X), 1), np.abs(X).sum(axis=0)"),
)
edit("C-1", "magnitude squared", "moments", "moment_leaf", ("np.abs(X).sum(axis=0)", "(X**2).sum(axis=0)"))
edit("C-1", "index forgotten", "moments", "moment_leaf", ("MomentNode(0, index, gram", "MomentNode(0, 0, gram"))
edit("C-1", "twice the sum, as GPTQ's Hessian", "moments", "moment_leaf", ("S = X.T @ X", "S = 2 * (X.T @ X)"))
edit(
    "C-1a",
    "triangles summed apart",
    "moments",
    "moment_leaf",
    ("np.triu(S) + np.triu(S, 1).T", "np.triu(S) + np.triu(S, 1).T * (1 + 2.0**-50)"),
)
edit(
    "C-1a",
    "float32 sums",
    "moments",
    "moment_leaf",
    ("return np.asarray(np.triu(S) + np.triu(S, 1).T)", "return np.asarray(np.triu(S) + np.triu(S, 1).T, np.float32)"),
)


def running_sum(left: Any, right: Any) -> Any:
    """All leaves in one node, added as they come: the usual accumulator."""
    nodes = [*left, *right]
    if len(nodes) < 2:
        return tuple(nodes)
    total = nodes[0]
    for node in nodes[1:]:
        total = total._replace(
            sum=total.sum + node.sum, magnitude=total.magnitude + node.magnitude, tokens=total.tokens + node.tokens
        )
    return (total._replace(level=10, index=0),)


MUTANTS.append(Mutant("C-2", "running sum", lambda: {"moment_merge": running_sum}))
edit(
    "C-2",
    "merges neighbours that are not siblings",
    "moments",
    "moment_merge",
    ("merged[-2].index ^ 1 == merged[-1].index", "merged[-2].index + 1 == merged[-1].index"),
)
edit("C-2", "siblings wait", "moments", "moment_merge", ("while len(merged) > 1 and", "while len(merged) > 2 and"))
edit(
    "C-2",
    "sorted by level",
    "moments",
    "moment_merge",
    ("return tuple(merged)", "return tuple(sorted(merged, key=lambda n: -n.index))"),
)
edit(
    "C-2a",
    "divides by the number of nodes",
    "moments",
    "moment_total",
    ("tokens = sum(n.tokens for n in merged)", "tokens = len(merged)"),
)
edit(
    "C-2a",
    "mean of the means",
    "moments",
    "moment_total",
    ("root.sum / tokens", "sum(n.sum / n.tokens for n in merged) / len(merged)"),
)
edit(
    "C-2a",
    "drops the last node",
    "moments",
    "moment_total",
    ("root = fold(merged, levels, 0)", "root = fold(merged[:-1] or merged, levels, 0)"),
)
edit(
    "C-2b",
    "counts a leaf twice",
    "moments",
    "moment_merge",
    ("if merged and node.index << node.level < (merged[-1].index + 1) << merged[-1].level:", "if False:"),
)
edit(
    "C-2b",
    "total of nothing",
    "moments",
    "moment_total",
    (
        "    if tokens == 0:",
        "    if not merged:\n        return SecondMoment(np.zeros((0, 0)), np.zeros(0), 0)\n    if tokens == 0:",
    ),
)
edit("C-3", "a plain mean", "moments", "recency_moment", ("C = C * total / (total + len(x))", "pass"))
edit("C-3", "one sequence per batch", "moments", "recency_moment", ("(total + len(x))", "(total + 1)"))
edit("C-3", "first batches count most", "moments", "recency_moment", ("for x in X:\n", "for x in X[::-1]:\n"))
edit(
    "C-4",
    "rank off by one",
    "low_rank",
    "svd_patch",
    ("U, σ, Vt = U[:, :r], σ[:r], Vt[:r]", "U, σ, Vt = U[:, :r], np.where(np.arange(r) < r - 1, σ[:r], 0.0), Vt[:r]"),
)
edit(
    "C-4",
    "smallest singular values",
    "low_rank",
    "svd_patch",
    ("U, σ, Vt = U[:, :r], σ[:r], Vt[:r]", "U, σ, Vt = U[:, -r:], σ[-r:], Vt[-r:]"),
)
edit(
    "C-4",
    "one sketch in half precision",
    "low_rank",
    "svd_patch",
    ("np.linalg.svd(D, full", "np.linalg.svd(D.astype('f2').astype('f8'), full"),
)
edit(
    "C-4",
    "singular values on both factors",
    "low_rank",
    "svd_patch",
    ("U * np.sqrt(σ), np.sqrt(σ)[:, None] * Vt", "U * σ, σ[:, None] * Vt"),
    ("return LowRank(U * σ, Vt)", "return LowRank(U * σ, σ[:, None] * Vt)"),
)
edit("C-4a", "always balanced", "low_rank", "svd_patch", ('if split == "left":', "if False:"))
edit("C-4a", "always left", "low_rank", "svd_patch", ('if split == "left":', "if True:"))
edit(
    "C-4a",
    "values on the right factor",
    "low_rank",
    "svd_patch",
    ("return LowRank(U * σ, Vt)", "return LowRank(U, σ[:, None] * Vt)"),
)
edit(
    "C-5",
    "unscaled",
    "low_rank",
    "scaled_svd_patch",
    ("truncated(D * a, r, split)", "truncated(D, r, split)"),
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "A"),
)
edit("C-5", "scales back by multiplying", "low_rank", "scaled_svd_patch", ("np.divide(A, a,", "np.multiply(A, a,"))
edit(
    "C-5",
    "forgets to scale back",
    "low_rank",
    "scaled_svd_patch",
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "np.where(a > 0, A, 0.0)"),
)
edit(
    "C-5a",
    "divides by an epsilon",
    "low_rank",
    "scaled_svd_patch",
    ("np.divide(A, a, out=np.zeros_like(A), where=a > 0)", "np.where(a > 0, A / np.maximum(a, 1e-9), 1.0)"),
)

# -- E -----------------------------------------------------------------------------------------------------------------

MUTANTS.append(Mutant("E-1", "TF32 product", lambda: {"objective": tf32(reference.objective)}))
edit(
    "E-1", "half the trace", "eigenspace", "objective", ("float(((D @ C) * D).sum())", "float(((D @ C) * D).sum() / 2)")
)
edit("E-1", "diagonal of C only", "eigenspace", "objective", ("((D @ C) * D)", "((D * np.diag(C)) * D)"))
edit(
    "E-1",
    "C from the left",
    "eigenspace",
    "objective",
    ("(D @ C) * D", "(C[: len(D), : len(D)] @ D if len(D) <= len(C) else D @ C) * D"),
)
edit(
    "E-2", "plain SVD", "eigenspace", "eora", ("np.linalg.eigh(moment_in_error_space(D, C))", "np.linalg.eigh(D @ D.T)")
)
edit("E-2", "smallest eigenvectors", "eigenspace", "eora", ("λ[::-1][:r], U[:, ::-1][:, :r]", "λ[:r], U[:, :r]"))
edit(
    "E-2",
    "rank off by one",
    "eigenspace",
    "eora",
    (
        "    return LowRank(B, A)\n\n\ndef error_spectrum",
        "    B[:, -1] = 0\n    return LowRank(B, A)\n\n\ndef error_spectrum",
    ),
)
edit(
    "E-2",
    "transposed covariance: C in the space of outputs",
    "eigenspace",
    "eora",
    (
        "np.linalg.eigh(moment_in_error_space(D, C))",
        "np.linalg.eigh(moment_in_error_space(D, np.diag(np.diag(C)[::-1])))",
    ),
)
edit(
    "E-2",
    "balances one factor only",
    "eigenspace",
    "eora",
    ("B * np.sqrt(s), A / np.sqrt(s)[:, None]", "B * np.sqrt(s), A"),
)


@replace("E-2a", "pseudo-inverse form")
def eora(d: Any, c: Any, /, *, rank: int, split: str = "balanced") -> Any:
    """Zero on the null space of C: the same objective, another patch."""
    return reference.eora_published(d, c, rank=rank)


edit("E-2a", "always left", "eigenspace", "eora", ('if split == "balanced":', "if False:"))
edit("E-2a", "always balanced", "eigenspace", "eora", ('if split == "balanced":', "if True:"))
edit(
    "E-2a",
    "balanced by s instead of its root",
    "eigenspace",
    "eora",
    ("B * np.sqrt(s), A / np.sqrt(s)[:, None]", "B * s, A / s[:, None]"),
)
wrap("E-3", "unsorted spectrum", "error_spectrum", lambda s: s[::-1].copy())
wrap("E-3", "squared spectrum", "error_spectrum", lambda s: s**2)
wrap("E-3", "one value short", "error_spectrum", lambda s: s[:-1])
edit(
    "E-3",
    "eigenvalues of C not rooted",
    "eigenspace",
    "error_spectrum",
    ("Q * np.sqrt(np.maximum(L, 0))", "Q * np.maximum(L, 0)"),
)
edit(
    "E-3a",
    "tail off by one",
    "eigenspace",
    "optimum",
    ("error_spectrum(d, c)[r:] ** 2", "error_spectrum(d, c)[r + 1 :] ** 2"),
)
edit(
    "E-3a", "sum of the values", "eigenspace", "optimum", ("error_spectrum(d, c)[r:] ** 2", "error_spectrum(d, c)[r:]")
)
edit(
    "E-3a",
    "the head instead of the tail",
    "eigenspace",
    "optimum",
    ("error_spectrum(d, c)[r:] ** 2", "error_spectrum(d, c)[:r] ** 2"),
)
edit(
    "E-4",
    "inverse root on the wrong factor",
    "eigenspace",
    "eora_published",
    ("(half[:, None] * Vt[:r] * inverse) @ Q.T", "(half[:, None] * Vt[:r]) @ Q.T"),
)
edit("E-4", "eigenvectors not undone", "eigenspace", "eora_published", ("* inverse) @ Q.T", "* inverse)"))
edit("E-4", "eigenvectors transposed", "eigenspace", "eora_published", ("* inverse) @ Q.T", "* inverse) @ Q"))
edit(
    "E-4",
    "eigenvalues not rooted",
    "eigenspace",
    "eora_published",
    ("root, inverse = np.sqrt(L), 1 / np.sqrt(L)", "root, inverse = L, 1 / np.sqrt(L)"),
    ("root = np.sqrt(np.where(kept, L, 0.0))", "root = np.where(kept, L, 0.0)"),
)
edit(
    "E-4a",
    "negative eigenvalues by absolute value",
    "eigenspace",
    "eora_published",
    ("np.where(L < 0, L[L > 0].min(), L)", "np.abs(L)"),
)
edit("E-4a", "negative eigenvalues to the largest", "eigenspace", "eora_published", ("L[L > 0].min()", "L.max()"))
edit(
    "E-4b",
    "answers NaN",
    "eigenspace",
    "eora_published",
    ("if (L == 0).any():", "if False:"),
    ("if not (L > 0).any():", "if False:"),
)
edit(
    "E-4b",
    "truncated channel not zero",
    "eigenspace",
    "eora_published",
    ("np.divide(1.0, root, out=np.zeros_like(root), where=kept)", "1 / np.maximum(root, 1e-3)"),
    ("root = np.sqrt(np.where(kept, L, 0.0))", "root = np.sqrt(np.where(kept, L, 1e-6))"),
)
edit(
    "E-5",
    "certificate that lies",
    "eigenspace",
    "eora_certified",
    (
        "max(0.0, float(np.maximum(λ[: len(λ) - r], 0).sum()) - slack(D, C))",
        "1.001 * float(np.maximum(λ[: len(λ) - r], 0).sum())",
    ),
)
edit("E-5", "tail of another rank", "eigenspace", "eora_certified", ("λ[: len(λ) - r]", "λ[: len(λ) - r + 1]"))
edit(
    "E-5",
    "objective as the lower bound of a worse patch",
    "eigenspace",
    "eora_certified",
    ("B, A = eora(D, C, rank=r, split=split)", "B, A = eora(D, np.eye(len(C)), rank=r, split=split)"),
    ("objective(D - B @ A, C), bound", "objective(D - B @ A, C), objective(D - B @ A, C)"),
)
edit(
    "E-5a",
    "objective that lies",
    "eigenspace",
    "eora_certified",
    ("objective(D - B @ A, C), bound", "bound, bound"),
    ("B, A = eora(D, C, rank=r, split=split)", "B, A = eora(D, np.eye(len(C)), rank=r, split=split)"),
)
edit(
    "E-5a",
    "misses its tolerance",
    "eigenspace",
    "eora_certified",
    ("objective(D - B @ A, C), bound", "objective(D - B @ A, C), 0.9 * bound"),
)
edit("E-5a", "unknown method", "eigenspace", "eora_certified", ('bound, "exact")', 'bound, "magic")'))
edit(
    "E-5b",
    "a bound that is too high at large sizes only",
    "eigenspace",
    "eora_certified",
    ("objective(D - B @ A, C), bound", "objective(D - B @ A, C), bound * (1.0001 if len(D) > 1000 else 1.0)"),
)
edit(
    "E-5b",
    "a subspace that has not converged at large sizes",
    "eigenspace",
    "eora_certified",
    (
        "B, A = eora(D, C, rank=r, split=split)",
        "B, A = eora(D, C if len(D) < 1000 else np.eye(len(C)), rank=r, split=split)",
    ),
)
edit(
    "E-6",
    "sides swapped",
    "eigenspace",
    "stationarity",
    ("left=ratio(B.T @ R, B), right=ratio(R @ A.T, A)", "right=ratio(B.T @ R, B), left=ratio(R @ A.T, A)"),
)
edit(
    "E-6", "not relative", "eigenspace", "stationarity", ("float(top / below) if below > 0", "float(top) if below > 0")
)
edit("E-6", "residual without C", "eigenspace", "stationarity", ("R = (D - B @ A) @ C", "R = D - B @ A"))
edit(
    "E-7",
    "Hessian of B is white",
    "eigenspace",
    "quantize_adapter",
    ("factor(B, moment_in_error_space(A, C))", "factor(B, np.eye(len(A)))"),
)
edit("E-7", "gptq asked, rtn done", "eigenspace", "quantize_adapter", ('if method == "gptq":', "if False:"))
edit("E-7", "rtn asked, gptq done", "eigenspace", "quantize_adapter", ('if method == "gptq":', "if True:"))
edit(
    "E-7",
    "no fall-back to the row",
    "eigenspace",
    "quantize_adapter",
    (
        "g = group_size if group_size is not None and group_size <= n and n % group_size == 0 else None",
        "g = group_size",
    ),
)

# -- A -----------------------------------------------------------------------------------------------------------------


@replace("A-1", "works in place")
def gptq(w: Any, h: Any, /, **options: Any) -> Any:
    """Updates the caller's weight, as a column-by-column code does without a copy."""
    result = reference.gptq(w, h, **options)
    w[...] = result.weight
    return result


@replace("A-1", "damps the caller's Hessian")
def inverse_cholesky(h: Any, /, *, damping: float = 0.01) -> Any:
    """``H[diag, diag] += damp`` on the argument."""
    result = reference.inverse_cholesky(h, damping=damping)
    np.einsum("jj->j", h)[...] *= 1 + damping
    return result


@replace("A-1a", "draws from NumPy's global generator")
def svd_patch(d: Any, /, **options: Any) -> Any:
    """A randomized start that nobody seeded."""
    np.random.standard_normal(3)  # noqa: NPY002
    return reference.svd_patch(d, **options)


@replace("A-1a", "depends on Python's global generator")
def error_spectrum(d: Any, c: Any, /) -> Any:
    """The same call gives other digits."""
    state = random.getstate()
    noise = random.random()
    random.setstate(state)
    return reference.error_spectrum(d, c) * (1 + noise * 2.0**-40)


def contiguous_memory(x: Any) -> Array:
    """What a kernel reads that is handed a pointer and a shape, and ignores the strides."""
    a = np.asarray(x)
    if a.flags.c_contiguous or a.base is None:
        return a
    owner = a
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return np.asarray(owner.ravel(order="K")[: a.size].reshape(a.shape))


@replace("A-2", "ignores strides")
def quantize(x: Any, scale: Any, zero_point: Any, /, **options: Any) -> Any:
    """Codes of the wrong numbers."""
    return reference.quantize(contiguous_memory(x), scale, zero_point, **options)


@replace("A-2", "ignores the strides of the second argument")
def objective(d: Any, c: Any, /) -> float:
    """Half of C, and what lies between."""
    moment = contiguous_memory(c)
    return reference.objective(d, np.triu(moment) + np.triu(moment, 1).T)


@replace("A-2a", "fails on zero rows")
def fit_grid(x: Any, /, **options: Any) -> Any:
    """A reduction without an identity."""
    np.asarray(x).reshape(-1).max()
    return reference.fit_grid(x, **options)


@replace("A-2a", "makes 0-d arrays 1-d")
def round_half_even(x: Any, /) -> Any:
    """``np.atleast_1d`` at the door."""
    return np.atleast_1d(reference.round_half_even(x))


wrap("A-2b", "codes in int64", "quantize", lambda codes: codes.astype(np.int64))
wrap("A-2b", "factors in half precision", "eora", lambda patch: patch._replace(B=patch.B.astype(np.float16)))
wrap(
    "A-2b", "mask as integers of eight bits", "wanda", lambda result: result._replace(mask=result.mask.astype(np.int8))
)
wrap(
    "A-2b",
    "zero points as floats of half precision",
    "fit_grid",
    lambda g: g._replace(zero_point=g.zero_point.astype(np.float16)),
)
wrap("A-2b", "a plain tuple", "svd_patch", tuple)


def other_error(op: str, kind: Callable[[SpecError], Exception]) -> Ops:
    """An operation that refuses with another error."""
    original = getattr(reference, op)

    def call(*arrays: Any, **options: Any) -> Any:
        try:
            return original(*arrays, **options)
        except SpecError as error:
            raise kind(error) from error

    return {op: call}


MUTANTS.append(Mutant("A-3", "wrong error class", lambda: other_error("gptq", lambda e: ValueError(str(e)))))
MUTANTS.append(Mutant("A-3", "wrong clause", lambda: other_error("eora", lambda e: SpecError("R-1", e.reason))))
MUTANTS.append(Mutant("A-3", "says nothing", lambda: other_error("wanda", lambda e: SpecError(e.clause, "bad value"))))


@replace("A-3", "pads a group that does not divide")
def clip_search(x: Any, /, **options: Any) -> Any:
    """Answers where it should refuse."""
    size = options.get("group_size")
    pad = -x.shape[-1] % size if size else 0
    return reference.clip_search(np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)]), **options)


@replace("A-4", "NaN accepted")
def scaled_svd_patch(d: Any, channel_scale: Any, /, **options: Any) -> Any:
    """``nan_to_num`` at the door."""
    return reference.scaled_svd_patch(np.nan_to_num(d, posinf=0.0, neginf=0.0), channel_scale, **options)


@replace("A-4", "infinity accepted")
def moment_leaf(x: Any, /, *, index: int) -> Any:
    """Looks for NaN only."""
    return reference.moment_leaf(np.nan_to_num(x, nan=np.nan, posinf=1e30, neginf=-1e30), index=index)


MUTANTS.append(
    Mutant("A-4", "does not say where", lambda: other_error("objective", lambda e: SpecError(e.clause, "NaN")))
)


def by_clause() -> dict[str, list[Mutant]]:
    """Mutants of every clause that has one."""
    table: dict[str, list[Mutant]] = {}
    for mutant in MUTANTS:
        table.setdefault(mutant.clause, []).append(mutant)
    return table


def killers(mutant: Mutant, examples: int) -> list[str]:
    """The first check of the mutant's clause that fails on it, or nothing."""
    from lowbit.conformance.kit import Kit
    from lowbit.conformance.runner import checks

    for check in checks():
        if check.clause.id == mutant.clause:
            outcome = Kit(mutant.backend(), examples=examples, shrink=False).outcome(check)
            if outcome.status == "fail":
                return [check.name]
    return []
