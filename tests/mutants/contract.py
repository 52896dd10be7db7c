"""Wrong backends of chapter A: the contract itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit import reference
from lowbit.reference.errors import SpecError

from . import MUTANTS, Array, Mutant, Ops, replace, wrap


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
wrap("A-2a", "a scalar for an array of no axes", "round_half_even", lambda x: x[()] if x.ndim == 0 else x)
wrap("A-2b", "lists", "statsq", lambda code: code._replace(codes=code.codes.tolist()))


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


def by_identity(op: str, wrong: Callable[[Any], bool]) -> Ops:
    """An operation that refuses options of some kind."""
    original = getattr(reference, op)

    def call(*arrays: Any, **options: Any) -> Any:
        if any(wrong(value) for value in options.values()):
            raise SpecError("A-3", "an option of the wrong type")
        return original(*arrays, **options)

    return {op: call}


MUTANTS.append(Mutant("A-3a", "Python's int only", lambda: by_identity("eora", lambda v: isinstance(v, np.integer))))
MUTANTS.append(Mutant("A-3a", "Python's bool only", lambda: by_identity("gptq", lambda v: isinstance(v, np.bool_))))


@replace("A-3a", "wraps in the type of the option")
def min_max(x: Any, /, **options: Any) -> Any:
    """2⁸ of eight bits is 0."""
    bits = options.get("bits", 8)
    return reference.min_max(x, **{**options, "bits": bits if 2**bits > 0 else 1})


def masks_are_lost() -> Ops:
    """``np.asarray`` at the door."""
    return {"asarray": np.asarray, "twn": lambda x, /, **options: reference.twn(np.asarray(x), **options)}


MUTANTS.append(Mutant("A-3b", "the mask is lost", masks_are_lost))


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
