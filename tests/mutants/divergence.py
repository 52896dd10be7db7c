"""Wrong backends of chapter F: divergence of the output."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit import reference

from . import MUTANTS, Mutant, edit, replace, wrap
from .moments import tf32

FILE = "divergence"

MUTANTS.append(Mutant("F-1", "TF32 product", lambda: {"divergence": tf32(reference.divergence)}))
edit("F-1", "not halved", FILE, "divergence", ("((G @ D @ C) * D).sum() / 2", "((G @ D @ C) * D).sum()"))
edit("F-1", "outputs not weighed", FILE, "divergence", ("(G @ D @ C) * D", "(D @ C) * D"))
edit("F-1", "diagonal of G only", FILE, "divergence", ("(G @ D @ C)", "(np.diag(np.diag(G)) @ D @ C)"))
edit("F-2", "not halved", FILE, "divergence_spectrum", (" / np.sqrt(2)  # (F.3)", ""))
edit("F-2", "halved before the root", FILE, "divergence_spectrum", (" / np.sqrt(2)  # (F.3)", " / 2"))
edit("F-2", "damping left out", FILE, "divergence_spectrum", ('damping, "F-2")', '0.0, "F-2")'))
edit("F-2", "damping not relative", FILE, "divergence_spectrum", ("damping * np.trace(G) / max(m, 1)", "damping"))
edit("F-2", "damping by the trace", FILE, "divergence_spectrum", ("np.trace(G) / max(m, 1)", "np.trace(G)"))
wrap("F-2", "unsorted spectrum", "divergence_spectrum", lambda s: s[::-1].copy())
edit(
    "F-2",
    "as long as the outputs that count",
    FILE,
    "divergence_spectrum",
    ("values[: len(found)] = found[: len(values)]\n    return values", "return found"),
)
edit("F-3", "patch of the weighted error, not brought back", FILE, "divergence_patch", ("inverse @ B[: len(R)]", "B"))
edit("F-3", "outputs not weighed", FILE, "divergence_patch", ("padded[: len(R)] = R @ D", "padded[:] = D"))
edit("F-3", "damping left out", FILE, "divergence_patch", ('damping, "F-3")', '0.0, "F-3")'))
edit("F-3", "root not inverted but transposed", FILE, "divergence_patch", ("V[:, kept] / s", "V[:, kept] * s"))


@replace("F-3", "EoRA, then told in the unit")
def divergence_patch(d: Any, c: Any, g: Any, /, *, rank: int, damping: float = 0.1, tolerance: float = 1e-6) -> Any:
    """The best patch of the layer's own output."""
    found = reference.divergence_patch(d, c, g, rank=rank, damping=damping, tolerance=tolerance)
    b, a = reference.eora(d, c, rank=rank)
    return found._replace(B=b, A=a)


edit("F-3a", "bound not halved", FILE, "divergence_patch", ("bound / 2", "bound"))
edit("F-3a", "objective not halved", FILE, "divergence_patch", ("objective / 2", "objective"))
edit("F-3a", "bound far below", FILE, "divergence_patch", ("bound / 2", "bound / 4"))
edit("F-3a", "unknown method", FILE, "divergence_patch", ("method)  # (F.4)", "'magic')"))
edit(
    "F-3b",
    "outputs that nothing depends on are patched too",
    FILE,
    "divergence_patch",
    ("γ = np.maximum(γ, 0.0) +", "γ = np.maximum(γ, 2.0**-12) +"),
)


def divided(d: Any, c: Any, g: Any, /, **options: Any) -> Any:
    """Infinite where an output does not count."""
    found = reference.divergence_patch(d, c, g, **options)
    dead = np.diag(np.asarray(g)) == 0
    if options["damping"] == 0 and dead.any():
        found.B[dead] = np.inf
    return found


MUTANTS.append(Mutant("F-3b", "divides by the zero", lambda: {"divergence_patch": divided}))
edit("F-4", "every address the same", FILE, "draw_labels", ("first + np.arange(len(L))", "first"))
edit("F-4", "first left out", FILE, "draw_labels", ("first + np.arange(len(L))", "np.arange(len(L))"))
edit("F-4", "another purpose", FILE, "draw_labels", ("Purpose.LABEL", "Purpose.SAMPLE"))
edit("F-4", "seed left out", FILE, "draw_labels", ("seed=seed", "seed=0"))
edit(
    "F-4",
    "one label too early",
    FILE,
    "draw_labels",
    ("np.argmax(above, axis=1), last", "np.argmax(above, axis=1) - 1, last"),
)
edit("F-4", "distribution not normalised", FILE, "draw_labels", ("[:, None] * total[:, -1:]", "[:, None]"))
edit("F-4", "a flatter distribution", FILE, "draw_labels", ("np.exp(L - ", "np.exp(0.5 * L - 0.5 * "))
edit("F-4a", "addresses of the call", FILE, "draw_labels", ("first + np.arange(len(L))", "np.arange(len(L))"))


@replace("F-4a", "numbers of a stream")
def draw_labels(logits: Any, /, *, seed: int, first: int = 0) -> Any:
    """What comes next depends on how much was drawn before in this call."""
    p = np.exp(logits - np.max(logits, axis=1, keepdims=True))
    u = np.random.default_rng(seed).random(len(p))
    return (np.cumsum(p, 1) < (u * p.sum(1))[:, None]).sum(1)


edit(
    "F-1a",
    "inputs may be indefinite",
    "divergence",
    "divergence",
    (
        'checks.definite(checks.second_moment(c, D.shape[1], "c", "F-1"), "c", "F-1")',
        'checks.second_moment(c, D.shape[1], "c", "F-1")',
    ),
)
edit(
    "F-1a",
    "outputs may be indefinite",
    "divergence",
    "divergence",
    (
        'checks.definite(checks.second_moment(g, D.shape[0], "g", "F-1"), "g", "F-1")',
        'checks.second_moment(g, D.shape[0], "g", "F-1")',
    ),
)
edit(
    "F-1a",
    "an indefinite moment of outputs gets a certificate",
    "divergence",
    "divergence_patch divergence_spectrum",
    (
        'checks.definite(checks.second_moment(g, m, "g", clause), "g", clause)',
        'checks.second_moment(g, m, "g", clause)',
    ),
)
