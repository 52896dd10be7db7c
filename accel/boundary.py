"""Argument checks shared by the fast backends: pure Python on shapes and parameters, no arrays.

They state the same rules as the specification in the backend's own words, so that a wrong call is refused with
the same clause everywhere, before any work is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lowbit.reference.errors import SpecError
from lowbit.reference.types import (
    ACS_SCHEDULES,
    BINARY_METHODS,
    GRANULARITIES,
    LSQ_COUNTS,
    SCHEMES,
    SHARINGS,
    TABLE_TIES,
    TRAINED,
)

DORA_LAYOUTS = ("linear", "transposed", "conv")

__all__ = [
    "acs_blend",
    "binary_groups",
    "check_allocation",
    "check_attention",
    "check_binary",
    "check_binary_scale",
    "check_bits",
    "check_block_size",
    "check_bound",
    "check_budget",
    "check_choice",
    "check_class_logits",
    "check_clip",
    "check_codebook_product",
    "check_counters",
    "check_damping",
    "check_gptq",
    "check_group_scales",
    "check_heads",
    "check_label_range",
    "check_learned_step",
    "check_loftq",
    "check_matrix",
    "check_n_of_m",
    "check_norm",
    "check_number",
    "check_patch",
    "check_planes",
    "check_range",
    "check_rows",
    "check_scales",
    "check_seed",
    "check_square",
    "check_steps",
    "check_table",
    "check_tie",
    "check_train",
    "check_tuning",
    "check_update",
    "check_whole",
    "class_budget",
    "cluster_counts",
    "code_range",
    "gradient_scale",
    "grid_groups",
    "refuse_nonfinite",
    "shared_shape",
    "step_view",
]


def check_counters(shape: Sequence[int]) -> None:
    """Refuse counters without four words in their last axis."""
    if not shape or shape[-1] != 4:
        raise SpecError("P-1", f"counters must have shape (..., 4), got {tuple(shape)}")


def check_seed(seed: int) -> None:
    """Refuse a seed that is not an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise SpecError("P-1", f"seed must be an integer in 0..2^64 - 1, got {seed!r}")


def check_bound(bound: int) -> None:
    """Refuse a bound that int32 results cannot reach."""
    if isinstance(bound, bool) or not isinstance(bound, int) or not 1 <= bound <= 2**31:
        raise SpecError("P-3", f"bound must be an integer in 1..2^31, got {bound!r}")


def check_bits(bits: int, scheme: str) -> None:
    """Refuse a width or scheme outside clause Q-1."""
    if scheme not in SCHEMES:
        raise SpecError("Q-1", f"unknown scheme {scheme!r}; one of {', '.join(SCHEMES)}")
    low = 1 if scheme == "asymmetric" else 2
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= 8:
        raise SpecError("Q-1", f"{scheme} grids have {low} to 8 bits, got {bits!r}")


def code_range(bits: int, scheme: str) -> tuple[int, int]:
    """Smallest and largest code of a checked width and scheme."""
    return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def grid_groups(shape: Sequence[int], granularity: str, group_size: int | None) -> tuple[int, ...]:
    """Shape of the scales for an input of ``shape``; refuses what clause Q-2 refuses."""
    if granularity not in GRANULARITIES:
        raise SpecError("Q-2", f"unknown granularity {granularity!r}; one of {', '.join(GRANULARITIES)}")
    if granularity != "group" and group_size is not None:
        raise SpecError("Q-2", f"group_size {group_size} needs granularity 'group', got {granularity!r}")
    if granularity == "tensor":
        return (1,) * len(shape)
    if not shape:
        raise SpecError("Q-2", f"granularity {granularity!r} needs at least one axis, got a 0-d array")
    if granularity == "row" and len(shape) != 2:
        raise SpecError("Q-2", f"granularity 'row' needs a 2-D array, got shape {tuple(shape)}")
    if granularity != "group":
        return (*shape[:-1], 1)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise SpecError("Q-2", f"granularity 'group' needs a positive group_size, got {group_size!r}")
    if shape[-1] % group_size:
        raise SpecError("Q-2", f"group size {group_size} does not divide axis length {shape[-1]}")
    return (*shape[:-1], shape[-1] // group_size)


def check_block_size(clause: str, block_size: int) -> None:
    """Refuse a block size that is not a positive integer."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise SpecError(clause, f"block_size must be a positive integer, got {block_size!r}")


def check_scales(clause: str, shape: Sequence[int], size: int, block_size: int) -> None:
    """Refuse scales of another number than that of the blocks of ``size`` values."""
    wanted = -(-size // block_size)
    if tuple(shape) != (wanted,):
        raise SpecError(
            clause, f"{size} values in blocks of {block_size} have scales of shape ({wanted},), got {tuple(shape)}"
        )


def check_codebook_product(
    x: Sequence[int], words: Sequence[int], scale: Sequence[int], bits: int, block_size: int
) -> None:
    """Refuse shapes of clause N-6 that do not fit together."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise SpecError("N-6", f"bits must be in 1..8, got {bits!r}")
    check_block_size("N-6", block_size)
    check_matrix("N-6", "x", x, (None, None))
    check_matrix("N-6", "words", words, (None, -(-x[1] * bits // 32)))
    check_scales("N-6", scale, words[0] * x[1], block_size)


def check_loftq(
    shape: Sequence[int], rank: int, bits: int, quantizer: str, block_size: int, iterations: int, keep: str,
    scaling: float,
) -> None:  # fmt: skip
    """Refuse what clause N-7 refuses."""
    check_matrix("N-7", "w", shape, (None, None))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise SpecError("N-7", f"rank must be between 1 and {min(shape)} for shape {tuple(shape)}, got {rank!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SpecError("N-7", f"bits must be in 2..8, got {bits!r}")
    check_block_size("N-7", block_size)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SpecError("N-7", f"iterations must be a positive integer, got {iterations!r}")
    if quantizer not in ("normal-float", "uniform"):
        raise SpecError("N-7", f"quantizer must be 'normal-float' or 'uniform', got {quantizer!r}")
    if keep not in ("best", "last"):
        raise SpecError("N-7", f"keep must be 'best' or 'last', got {keep!r}")
    if isinstance(scaling, bool) or not (math.isfinite(scaling) and scaling > 0):
        raise SpecError("N-7", f"scaling must be finite and above 0, got {scaling!r}")


def check_matrix(clause: str, name: str, shape: Sequence[int], expected: tuple[int | None, ...]) -> None:
    """Refuse a shape that differs from ``expected`` (None matches any length)."""
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        want = ", ".join("any" if e is None else str(e) for e in expected)
        raise SpecError(clause, f"{name} must have shape ({want}), got {tuple(shape)}")


def check_square(clause: str, name: str, shape: Sequence[int], size: int | None = None) -> None:
    """Refuse anything but a (size, size) matrix."""
    if len(shape) != 2 or shape[0] != shape[1] or (size is not None and shape[0] != size):
        want = "square" if size is None else f"of shape ({size}, {size})"
        raise SpecError(clause, f"{name} must be {want}, got {tuple(shape)}")


def check_damping(clause: str, damping: float) -> None:
    """Refuse a damping that is negative or not finite."""
    if not (math.isfinite(damping) and damping >= 0):
        raise SpecError(clause, f"damping must be finite and not negative, got {damping!r}")


def check_n_of_m(clause: str, k: int, keep: int, of: int) -> None:
    """Refuse an N:M pattern that does not tile the input axis."""
    if not (isinstance(keep, int) and isinstance(of, int) and 0 < keep <= of):
        raise SpecError(clause, f"keep must be between 1 and of, got keep={keep!r} of={of!r}")
    if k % of:
        raise SpecError(clause, f"{keep}:{of} sparsity needs an input axis divisible by {of}, got {k}")


def check_gptq(clause: str, k: int, group_size: int | None, block_size: int) -> int:
    """Refuse bad block and group sizes; return the length of one group."""
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise SpecError(clause, f"block_size must be a positive integer, got {block_size!r}")
    if group_size is None:
        return k
    grid_groups((1, k), "group", group_size)
    return group_size


def check_group_scales(clause: str, group_scales: str) -> None:
    """Refuse an unknown rule for which weights make a group's grid."""
    if group_scales not in ("current", "block"):
        raise SpecError(clause, f"group_scales must be 'current' or 'block', got {group_scales!r}")


def check_rows(clause: str, name: str, shape: Sequence[int], layout: str) -> tuple[int, int]:
    """Refuse a weight that ``layout`` cannot store; return its (m, k): outputs and weights of each."""
    if layout not in DORA_LAYOUTS:
        raise SpecError(clause, f"unknown layout {layout!r}; one of {', '.join(DORA_LAYOUTS)}")
    if layout == "conv":
        if len(shape) < 3:
            raise SpecError(clause, f"{name} of a convolution needs 3 axes or more, got shape {tuple(shape)}")
        return shape[0], math.prod(shape[1:])
    check_matrix(clause, name, shape, (None, None))
    return (shape[1], shape[0]) if layout == "transposed" else (shape[0], shape[1])


def check_update(
    clause: str, name: str, w: Sequence[int], b: Sequence[int], a: Sequence[int], scaling: float, layout: str
) -> tuple[int, int, int]:
    """Refuse factors and a scaling that are no update of a weight; return (m, k, r). Arguments are shapes."""
    number = isinstance(scaling, (int, float)) and not isinstance(scaling, bool)
    if not number or not math.isfinite(scaling):
        raise SpecError(clause, f"scaling must be a finite number, got {scaling!r}")
    m, k = check_rows(clause, name, w, layout)
    r = a[0] if len(a) else -1
    axes = (1,) * (len(w) - 2)
    if tuple(b) != (m, r, *axes) or tuple(a) != ((r, *w[1:]) if layout == "conv" else (r, k)):
        update = f"b {tuple(b)} and a {tuple(a)} do not multiply to an update of {name} {tuple(w)}"
        raise SpecError(clause, f"{update} in layout {layout!r}")
    return m, k, r


def check_patch(clause: str, shape: Sequence[int], rank: int, split: str) -> None:
    """Refuse a rank outside 1..min(m, k) or an unknown split."""
    check_matrix(clause, "d", shape, (None, None))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(shape):
        raise SpecError(clause, f"rank must be between 1 and {min(shape)} for shape {tuple(shape)}, got {rank!r}")
    if split not in ("balanced", "left"):
        raise SpecError(clause, f"split must be 'balanced' or 'left', got {split!r}")


def check_train(clause: str, train: str) -> None:
    """Refuse an unknown rule for which scales train."""
    if train not in TRAINED:
        raise SpecError(clause, f"unknown rule {train!r} for what trains; one of {', '.join(TRAINED)}")


def check_norm(clause: str, norm: str) -> None:
    """Refuse an unknown normalisation of a gradient."""
    if norm not in ("sum", "mean"):
        raise SpecError(clause, f"norm must be 'sum' or 'mean', got {norm!r}")


def check_tuning(
    clause: str, *, step: int, lr: float, beta1: float, beta2: float, epsilon: float, decay: float
) -> None:
    """Refuse parameters with which no step of AdamW can be taken."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise SpecError(clause, f"step must be a positive integer, got {step!r}")
    for name, value in {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "decay": decay}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(clause, f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and value >= 0):
            raise SpecError(clause, f"{name} must be finite and not negative, got {value!r}")
        if name.startswith("beta") and value >= 1:
            raise SpecError(clause, f"{name} must be below 1, got {value!r}")


def cluster_counts(clause: str, rows: int, clusters: int, ratio: int) -> list[int]:
    """Rows per cluster, the most frequent first: shares 1 : r : r² … rounded down, the rest to the last."""
    if isinstance(clusters, bool) or not isinstance(clusters, int) or not 1 <= clusters <= 8:
        raise SpecError(clause, f"clusters must be between 1 and 8, got {clusters!r}")
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1:
        raise SpecError(clause, f"ratio must be a positive integer, got {ratio!r}")
    whole = (ratio**clusters - 1) // (ratio - 1) if ratio > 1 else clusters
    counts, left = [], rows
    for power in range(clusters - 1):
        counts.append(rows * ratio**power // whole)
        left -= counts[-1]
    return [*counts, left]


def check_binary(clause: str, method: str, rounds: int) -> None:
    """Refuse an unknown way to find a binary code, or a number of rounds that is none."""
    if method not in BINARY_METHODS:
        raise SpecError(clause, f"method must be one of {', '.join(BINARY_METHODS)}, got {method!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise SpecError(clause, f"rounds must be an integer of at least 0, got {rounds!r}")


def check_allocation(clause: str, errors: Sequence[int], sizes: Sequence[int], budget: int) -> None:
    """Refuse tables of different shape, without a width, and a budget that is no integer."""
    if len(errors) != 2 or tuple(errors) != tuple(sizes) or errors[1] == 0:
        raise SpecError(
            clause, f"errors and sizes must share a shape (n, Q) with Q >= 1, got {tuple(errors)} and {tuple(sizes)}"
        )
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise SpecError(clause, f"budget must be an integer and not negative, got {budget!r}")


def check_choice(clause: str, name: str, value: str, options: Sequence[str]) -> None:
    """Refuse anything but one of a few words."""
    if value not in options:
        raise SpecError(clause, f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def check_whole(clause: str, name: str, value: int, low: int, high: int = 2**31 - 1) -> int:
    """Refuse anything but an integer in low..high; NumPy's integers pass, booleans do not."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value <= high:
        raise SpecError(clause, f"{name} must be an integer in {low}..{high}, got {value!r}")
    return value.__index__()


def check_budget(clause: str, budget: int, leftover: str) -> int:
    """Refuse a negative budget, and an unknown rule for what it does not cover."""
    check_choice(clause, "leftover", leftover, ("stop", "fill"))
    return check_whole(clause, "budget", budget, 0, 2**63 - 1)


def check_number(clause: str, name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Refuse what is not a finite number in low..high."""
    if (
        isinstance(value, bool)
        or not hasattr(value, "__float__")
        or not (math.isfinite(value) and low <= value <= high)
    ):
        raise SpecError(clause, f"{name} must be a finite number in {low}..{high}, got {value!r}")
    return float(value)


def shared_shape(clause: str, shape: Sequence[int], granularity: str) -> tuple[int, ...]:
    """Shape of statistics over all axes ("tensor"), the last one ("row") or the last two ("matrix")."""
    check_choice(clause, "granularity", granularity, SHARINGS)
    count = {"tensor": len(shape), "row": 1, "matrix": 2}[granularity]
    if len(shape) < count:
        raise SpecError(clause, f"x of shape {tuple(shape)} has no {granularity!r}")
    return (*shape[: len(shape) - count], *(1,) * count)


def step_view(clause: str, shape: Sequence[int], axis: int | None) -> tuple[int, int, int]:
    """Lengths (before, n, after) around the axis of the steps; (1, 1, size) for one step."""
    if axis is None:
        return 1, 1, math.prod(shape)
    found = check_whole(clause, "axis", axis, -len(shape), len(shape) - 1) % len(shape)
    return math.prod(shape[:found]), shape[found], math.prod(shape[found + 1 :])


def check_learned_step(clause: str, bits: int, signed: bool, epsilon: float = 0.0) -> tuple[int, int, float]:
    """First and last code, and the floor of the step; refuses what clauses S-1 to S-4 refuse."""
    if not isinstance(signed, bool):
        raise SpecError(clause, f"signed must be True or False, got {signed!r}")
    check_whole(clause, "bits", bits, 2 if signed else 1, 8)
    floor = check_number(clause, "epsilon", epsilon, low=0.0)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, floor) if signed else (0, 2**bits - 1, floor)


def gradient_scale(shape: Sequence[int], axis: int | None, count: str, last: int) -> float:
    """1 / √(N Q_p) of clause S-5a."""
    check_choice("S-4", "count", count, LSQ_COUNTS)
    step_view("S-4", shape, axis)
    own = axis is not None and axis % len(shape) == 0
    if count == "features" and (not shape or own):
        raise SpecError("S-4", f"count 'features' needs a batch on axis 0, x is {tuple(shape)} and axis {axis}")
    if count == "unscaled":
        return 1.0
    sizes = list(shape[1:] if count == "features" else shape)
    if axis is not None:
        del sizes[axis % len(shape) - (count == "features")]
    return 1 / math.sqrt(max(math.prod(sizes), 1) * last)


def check_clip(clause: str, clip: float | None) -> float:
    """The bound of a clip, infinite without one; refuses what is not above 0."""
    if clip is None:
        return math.inf
    bound = check_number(clause, "clip", clip, low=0.0)
    if bound == 0:
        raise SpecError(clause, f"clip must be above 0, got {clip!r}")
    return bound


def check_steps(clause: str, shape: Sequence[int]) -> None:
    """Refuse a weight without the axis that StatsQ has a scale for."""
    if len(shape) < 2:
        raise SpecError(clause, f"w must have 2 axes or more, got shape {tuple(shape)}")


def check_range(clause: str, boundary_range: float) -> float:
    """Refuse a boundary range outside 0..1/2, where the windows of two thresholds would overlap."""
    return check_number(clause, "boundary_range", boundary_range, 0.0, 0.5)


def check_heads(clause: str, name: str, rows: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the rows of ``name``."""
    check_whole(clause, "heads", heads, 1)
    if rows % heads:
        raise SpecError(clause, f"{heads} heads do not divide {rows} rows of {name}")


def check_attention(clause: str, x: Sequence[int], w_q: Sequence[int], w_v: Sequence[int], heads: int) -> None:
    """Refuse weights of another width than x, and values that the heads do not divide. Arguments are shapes."""
    if not x[2] == w_q[1] == w_v[1]:
        raise SpecError(clause, f"x {tuple(x)}, w_q {tuple(w_q)} and w_v {tuple(w_v)} must end in one width")
    check_heads(clause, "w_v", w_v[0], heads)


def refuse_nonfinite(clause: str, name: str, count: int, position: tuple[int, ...]) -> None:
    """Raise the clause A-4 error for ``count`` bad values of argument ``name``, the first at ``position``."""
    raise SpecError("A-4", f"{name} holds {count} NaN or infinite values, the first at {position} (clause {clause})")


def check_planes(clause: str, name: str, count: int, most: int = 8) -> None:
    """Refuse a number of bits, planes or table inputs outside 1..most."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise SpecError(clause, f"{name} must be 1 to {most}, got {count!r}")


def binary_groups(clause: str, k: int, group_size: int | None) -> int:
    """Groups of a binary code along an axis of length k: 1 for whole rows."""
    if group_size is None:
        return 1
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise SpecError(clause, f"group_size must be a positive integer, got {group_size!r}")
    if k % group_size:
        raise SpecError(clause, f"group size {group_size} does not divide axis length {k}")
    return k // group_size


def check_binary_scale(
    clause: str, values: Sequence[int], scale: Sequence[int], offset: Sequence[int] | None
) -> tuple[int, int, int]:
    """Refuse scales (m, G, q) and offsets (m, G) that do not cover values (m, k); return m, G and q."""
    if len(scale) != 3:
        raise SpecError(clause, f"scale must have shape (m, G, planes), got {tuple(scale)}")
    m, groups, planes = scale
    check_planes(clause, "planes of scale", planes)
    if offset is not None and tuple(offset) != (m, groups):
        raise SpecError(clause, f"offset must have shape {(m, groups)}, got {tuple(offset)}")
    if len(values) != 2 or values[0] != m or (values[1] % groups if groups else values[1]):
        raise SpecError(clause, f"scale of shape {tuple(scale)} does not cover values of shape {tuple(values)}")
    return m, groups, planes


def check_tie(tie: str) -> None:
    """Refuse an unknown rule for an input on a breakpoint."""
    if tie not in TABLE_TIES:
        raise SpecError("L-8", f"tie must be one of {', '.join(map(repr, TABLE_TIES))}, got {tie!r}")


def check_table(
    clause: str, breakpoints: Sequence[int], slopes: Sequence[int], intercepts: Sequence[int], ascending: bool
) -> None:
    """Refuse shapes that are no table, and breakpoints that descend."""
    if not len(breakpoints) == len(slopes) == len(intercepts) == 1:
        raise SpecError(clause, f"a table has vectors, got {breakpoints}, {slopes} and {intercepts}")
    if not breakpoints[0] + 1 == slopes[0] == intercepts[0]:
        raise SpecError(
            clause,
            f"{breakpoints[0]} breakpoints separate {breakpoints[0] + 1} pieces, got {slopes[0]} slopes and "
            f"{intercepts[0]} intercepts",
        )
    if not ascending:
        raise SpecError(clause, "breakpoints must ascend")


def check_pair(clause: str, student: Sequence[int], teacher: Sequence[int], axes: int) -> tuple[int, ...]:
    """Refuse student and teacher of different shape or another number of axes; return the shape."""
    if len(student) != axes:
        raise SpecError(clause, f"student must have {axes} dimensions, got shape {tuple(student)}")
    if tuple(teacher) != tuple(student):
        raise SpecError(clause, f"teacher of shape {tuple(teacher)} must have the shape of student, {tuple(student)}")
    return tuple(student)


def check_scores(clause: str, student: Sequence[int], teacher: Sequence[int]) -> tuple[int, ...]:
    """Refuse scores that are not (B, H, n, n) in both networks."""
    shape = check_pair(clause, student, teacher, 4)
    if shape[2] != shape[3]:
        raise SpecError(clause, f"scores must be (B, H, n, n), got {shape}")
    return shape


def check_lengths(clause: str, lengths: Sequence[int], batch: int, longest: int) -> None:
    """Refuse lengths that are not one per sentence, from 1 to the width of the batch."""
    if len(lengths) != batch:
        raise SpecError(clause, f"{len(lengths)} lengths for a batch of {batch}")
    for length in lengths:
        if not 1 <= length <= longest:
            raise SpecError(clause, f"lengths must be in 1..{longest}, got {length}")


def check_labels(clause: str, low: int, high: int, vocabulary: int) -> None:
    """Refuse labels, least and largest of those that are not -100, outside the vocabulary."""
    if low < 0 or high >= vocabulary:
        raise SpecError(clause, f"labels must be in 0..{vocabulary - 1} or -100, got {low if low < 0 else high}")


def check_class_logits(clause: str, name: str, shape: Sequence[int], ndim: int = 2) -> None:
    """Refuse logits of another number of axes, or without a class."""
    if len(shape) != ndim or shape[-1] == 0:
        raise SpecError(clause, f"{name} must have {ndim} axes and at least one class, got shape {tuple(shape)}")


def check_label_range(clause: str, least: int, most: int, classes: int | None) -> None:
    """Refuse labels whose smallest or largest names no class."""
    if least < 0 or (classes is not None and most >= classes):
        wrong = least if least < 0 else most
        raise SpecError(clause, f"labels must lie in 0..{'' if classes is None else classes - 1}, got {wrong}")


def acs_blend(epoch: float, epochs: int, schedule: str) -> float:
    """Share of the error-vector score at ``epoch``; refuses what clause X-3 refuses."""
    check_whole("X-3", "epochs", epochs, 1)
    check_number("X-3", "epoch", epoch, 0, epochs)
    check_choice("X-3", "schedule", schedule, ACS_SCHEDULES)
    left = 1 - epoch / epochs  # of the training
    if schedule in ("paper", "cosine"):
        quarter_wave = math.sin(left * math.pi / 2)  # a sine of what is left is exact at both ends
        return quarter_wave if schedule == "paper" else quarter_wave * quarter_wave
    if schedule in ("linear", "quadratic", "sqrt"):
        power = {"linear": 1.0, "quadratic": 2.0, "sqrt": 0.5}[schedule]
        return left if power == 1 else 1 - math.pow(epoch / epochs, power)
    return {"half": 0.5, "error-vector": 1.0, "disagreement": 0.0}[schedule]


def class_budget(fraction: float, members: int) -> int:
    """How many of ``members`` samples are kept: half to even, of the product in float64."""
    return round(float(fraction) * members)


def check_maps(clause: str, student: Sequence[int], teacher: Sequence[int]) -> None:
    """Refuse maps that are not (H, n, n) in both networks."""
    shape = check_pair(clause, student, teacher, 3)
    if shape[1] != shape[2]:
        raise SpecError(clause, f"maps must be (H, n, n) in both networks, got {shape}")


def check_layer(clause: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, int]:
    """Refuse maps, inputs and weights that are not of one attention layer; return H, n and v."""
    for name, axes in (("maps", 3), ("x", 2), ("w_v", 2), ("w_o", 2)):
        if len(shapes[name]) != axes:
            raise SpecError(clause, f"{name} must have {axes} dimensions, got shape {tuple(shapes[name])}")
    heads, n, keys = shapes["maps"]
    v, d = shapes["w_v"]
    bias = tuple(shapes.get("b_v", (v,)))
    if keys != n or tuple(shapes["x"]) != (n, d) or bias != (v,) or shapes["w_o"][1] != v:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise SpecError(clause, f"{given} are not of one layer")
    if heads == 0 or v % heads:
        raise SpecError(clause, f"{heads} heads do not divide {v} values")
    return heads, n, v
