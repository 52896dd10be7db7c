"""Wrong backends of chapter E: eigenspace compensation."""

from __future__ import annotations

from typing import Any

from lowbit import reference

from . import MUTANTS, Mutant, edit, replace, wrap
from .moments import tf32

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
    "E-1a",
    "an indefinite moment has an optimum",
    "eigenspace",
    "optimum error_spectrum",
    ('    return D, checks.definite(C, "c", clause)', "    return D, C"),
)
edit(
    "E-1a",
    "half of the moment is enough",
    "eigenspace",
    "objective",
    (
        'checks.second_moment(c, D.shape[1], "c", clause)',
        'checks.second_moment((np.triu(c) + np.triu(c, 1).T), D.shape[1], "c", clause)',
    ),
)
edit(
    "E-1a",
    "every rounding is refused",
    "eigenspace",
    "eora",
    (
        'checks.definite(C, "c", clause)',
        'checks.definite(C + np.linalg.norm(C) * (checks.INDEFINITE - 2**-40) * -np.eye(len(C)), "c", clause)',
    ),
)
edit(
    "E-1a",
    "a negative objective is none of its business",
    "eigenspace",
    "objective",
    ("    if -checks.INDEFINITE", "    if False and -checks.INDEFINITE"),
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

edit(
    "E-8",
    "B left out: the moment itself",
    "eigenspace",
    "residual_moment",
    ("H: F64 = C - G.T @ G", "H: F64 = C.copy()"),
)
edit(
    "E-8",
    "rows taken as orthogonal",
    "eigenspace",
    "residual_moment",
    ("np.linalg.eigh(moment_in_error_space(N, C))", "np.ones(len(N)), np.eye(len(N))"),
)
edit(
    "E-8",
    "projection blind to C",
    "eigenspace",
    "residual_moment",
    ("N = A[seen] / np.sqrt(energy[seen])[:, None]", "N = A[seen] / np.linalg.norm(A[seen], axis=1)[:, None]"),
    ("moment_in_error_space(N, C)", "N @ N.T"),
)
edit("E-8", "dependent rows not left out", "eigenspace", "residual_moment", ("λ > 2.0**-30", "λ > -1.0"))
edit(
    "E-8",
    "rows without energy not left out",
    "eigenspace",
    "residual_moment",
    ("energy > 2.0**-40 * bulk", "energy >= 0"),
)
edit("E-8", "twice the correction", "eigenspace", "residual_moment", ("C - G.T @ G", "C - 2 * G.T @ G"))
edit(
    "E-8a",
    "a restored channel counts as dead",
    "eigenspace",
    "residual_moment",
    (
        "np.maximum(H.diagonal(), len(C) * 2 * U64 * C.diagonal())",
        "np.where(H.diagonal() > len(C) * 4 * U64 * C.diagonal(), H.diagonal(), 0.0)",
    ),
)
edit(
    "E-8a",
    "diagonal below zero by rounding",
    "eigenspace",
    "residual_moment",
    ("np.maximum(H.diagonal(), len(C) * 2 * U64 * C.diagonal())", "H.diagonal() - U64 * C.diagonal()"),
)
edit(
    "E-8a",
    "not quite symmetric",
    "eigenspace",
    "residual_moment",
    ("    return H\n", "    return H * (1 + U64 * 4 * np.tri(len(H), k=-1))\n"),
)
edit(
    "E-8b",
    "an indefinite moment leaves one",
    "eigenspace",
    "residual_moment",
    (
        'checks.definite(checks.second_moment(c, A.shape[1], "c", "E-8"), "c", "E-8")',
        'checks.second_moment(c, A.shape[1], "c", "E-8")',
    ),
)
edit(
    "E-8b",
    "factors are rounded by an indefinite moment",
    "eigenspace",
    "quantize_adapter",
    (
        'checks.definite(checks.second_moment(c, A.shape[1], "c", "E-7"), "c", "E-7")',
        'checks.second_moment(c, A.shape[1], "c", "E-7")',
    ),
)
edit(
    "E-8b",
    "a patch is best by an indefinite moment",
    "eigenspace",
    "stationarity",
    ('D, C = solvable(d, c, "E-6")', 'D, C = problem(d, c, "E-6")'),
)
edit(
    "E-8b",
    "every rounding is refused",
    "eigenspace",
    "residual_moment",
    (
        'c, A.shape[1], "c", "E-8"), "c", "E-8")',
        'c, A.shape[1], "c", "E-8"), "c", "E-8")\n'
        '    checks.definite(C - np.linalg.norm(C) * (checks.INDEFINITE - 2**-40) * np.eye(len(C)), "c", "E-8")',
    ),
)
