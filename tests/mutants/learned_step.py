"""Wrong backends of chapter S: learned step sizes."""

from __future__ import annotations

from . import edit

FORWARD = "lsq_code lsq"
ALL = "lsq_code lsq lsq_gradient"

edit("S-1", "unsigned range for all", "learned_step", "lsq_init", ("/ math.sqrt(Qp)", "/ math.sqrt(2**bits - 1)"))
edit("S-1", "doubles signed ones too", "learned_step", "lsq_init", (" and not signed else 2", " else 2"))
edit(
    "S-1",
    "two deviations",
    "learned_step",
    "lsq_init",
    ("np.abs(μ + 3 * σ)", "np.abs(μ + 2 * σ)"),
    ("np.abs(μ - 3 * σ)", "np.abs(μ - 2 * σ)"),
)
edit("S-1", "offset at the smallest value", "learned_step", "lsq_init", ("offset = low + s * Qn", "offset = low"))
edit(
    "S-1",
    "root mean square",
    "learned_step",
    "lsq_init",
    ("(np.abs(X).sum(axis=over, keepdims=True) / count)", "np.sqrt((X**2).sum(axis=over, keepdims=True) / count)"),
)
edit("S-1a", "step of zero", "learned_step", "lsq_init", ("np.where(s > 0, s, 1.0)", "s"))
edit("S-1a", "step of epsilon", "learned_step", "lsq_init", ("np.where(s > 0, s, 1.0)", "np.maximum(s, 1e-5)"))
edit(
    "S-2",
    "symmetric codes",
    "learned_step",
    ALL,
    ("return (2 ** (bits - 1), 2 ** (bits - 1) - 1)", "return (2 ** (bits - 1) - 1, 2 ** (bits - 1) - 1)"),
)
edit("S-2", "forgets the offset", "learned_step", ALL, ("(X - β) / s", "X / s"))
edit("S-2", "floors", "learned_step", FORWARD, ("np.rint(np.clip", "np.floor(np.clip"))
edit(
    "S-2",
    "no clamp",
    "learned_step",
    "lsq_code",
    ("np.asarray(np.rint(np.clip(q.v, q.low, q.high)),", "np.asarray(np.clip(np.rint(q.v), -(2.0**31), 2.0**31 - 1),"),
)
edit(
    "S-2a",
    "halves away from zero",
    "learned_step",
    FORWARD,
    ("np.rint(np.clip(q.v, q.low, q.high))", "np.copysign(np.floor(np.abs(np.clip(q.v, q.low, q.high)) + 0.5), q.v)"),
)
edit(
    "S-2a",
    "multiplies by the reciprocal",
    "learned_step",
    FORWARD,
    ("(X - β) / s", "(X - β) * np.float32(1 / s).astype(np.float64)"),
)
AWAY = "np.copysign(np.floor(np.abs(np.clip(q.v, q.low, q.high)) + 0.5), q.v)"
edit(
    "S-2a",
    "values round halves away from zero, though codes do not",
    "learned_step",
    "lsq",
    ("np.rint(np.clip(q.v, q.low, q.high))", AWAY),
)
edit(
    "S-2a",
    "gradients round halves away from zero, though codes do not",
    "learned_step",
    "lsq_gradient",
    ("np.rint(q.v) - q.v,", f"{AWAY} - q.v,"),
)
edit("S-2b", "adds epsilon", "learned_step", ALL, ("np.maximum(s, ε)", "np.where(s > ε, s, s + ε)"))
edit("S-2b", "magnitude of the step", "learned_step", ALL, ("np.maximum(s, ε)", "np.maximum(np.abs(s), ε)"))
edit(
    "S-2c",
    "the first step for all",
    "learned_step",
    ALL,
    ("s, β = np.maximum(s, ε)", "s, β = np.maximum(s[:1] + 0 * s, ε)"),
)
edit("S-2c", "steps in reverse", "learned_step", ALL, ("s, β = np.maximum(s, ε)", "s, β = np.maximum(s[::-1], ε)"))
edit("S-3", "does not add the offset back", "learned_step", "lsq", ("q.high)) + q.offset", "q.high))"))
edit(
    "S-3",
    "multiplies by the step given",
    "learned_step",
    "lsq",
    (
        "return np.asarray(q.step * np.rint",
        "return np.asarray(np.reshape(np.asarray(step, np.float64), q.step.shape) * np.rint",
    ),
)
edit(
    "S-3",
    "no rounding",
    "learned_step",
    "lsq",
    ("q.step * np.rint(np.clip(q.v, q.low, q.high))", "q.step * np.clip(q.v, q.low, q.high)"),
)
edit("S-4", "passes everywhere", "learned_step", "lsq_gradient", ("D * inside,", "D,"))
edit("S-4", "divided by the step", "learned_step", "lsq_gradient", ("D * inside,", "D * inside / q.step,"))
edit(
    "S-4",
    "cut by rounded codes",
    "learned_step",
    "lsq_gradient",
    ("inside = (q.v >= q.low) & (q.v <= q.high)", "inside = (np.rint(q.v) >= q.low) & (np.rint(q.v) <= q.high)"),
)
edit(
    "S-4a",
    "ends are outside",
    "learned_step",
    "lsq_gradient",
    ("(q.v >= q.low) & (q.v <= q.high)", "(q.v > q.low) & (q.v < q.high)"),
)
edit("S-4a", "the upper end is outside", "learned_step", "lsq_gradient", ("(q.v <= q.high)", "(q.v < q.high)"))
edit("S-5", "no rounding error", "learned_step", "lsq_gradient", ("np.rint(q.v) - q.v,", "0 * q.v,"))
edit(
    "S-5", "sign of the rounding error", "learned_step", "lsq_gradient", ("np.rint(q.v) - q.v,", "q.v - np.rint(q.v),")
)
edit("S-5", "codes inside", "learned_step", "lsq_gradient", ("np.rint(q.v) - q.v,", "np.rint(q.v),"))
edit(
    "S-5",
    "nothing from outside",
    "learned_step",
    "lsq_gradient",
    ("np.clip(q.v, q.low, q.high))\n    N", "0 * q.v)\n    N"),
)
edit(
    "S-5a",
    "counts all values",
    "learned_step",
    "lsq_gradient",
    ('for i in q.over if count == "elements" or i > 0', "for i in range(q.x.ndim)"),
)
edit(
    "S-5a",
    "counts elements for features",
    "learned_step",
    "lsq_gradient",
    ('if count == "elements" or i > 0', "if True"),
)
edit("S-5a", "forgets the range", "learned_step", "lsq_gradient", ("max(N, 1) * q.high)", "max(N, 1))"))
edit(
    "S-5b",
    "no gradient below epsilon",
    "learned_step",
    "lsq_gradient",
    (
        "g * (D * slope).sum(axis=q.over).reshape(-1),",
        "g * (D * slope).sum(axis=q.over).reshape(-1) * (np.asarray(step) >= epsilon),",
    ),
)
edit(
    "S-5b",
    "a hint of the step given",
    "learned_step",
    "lsq_gradient",
    (
        "g * (D * slope).sum(axis=q.over).reshape(-1),",
        "g * (D * slope).sum(axis=q.over).reshape(-1) * (1 + np.asarray(step)),",
    ),
)
edit("S-6", "gradient of the inside", "learned_step", "lsq_gradient", ("g * (D * ~inside)", "g * (D * inside)"))
edit("S-6", "not scaled", "learned_step", "lsq_gradient", ("g * (D * ~inside)", "(D * ~inside)"))
