"""Wrong backends of chapter O: StatsQ, oscillations, annealing, and the query-key product."""

# ruff: noqa: E501  (edits quote lines of source, and their replacements, whole)

from __future__ import annotations

from . import edit

STATSQ, OSCILLATION, QKR = "statsq", "oscillation", "qk_reparam"
CODE = "np.clip(round_half_even(v - 0.5), -n, n - 1)"


def statsq(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong quantizer."""
    edit(clause, name, STATSQ, "statsq", *edits)


statsq("O-1", "a level at zero", (CODE, "np.clip(round_half_even(v), -n, n - 1)"))
statsq("O-1", "one bit too few", (CODE, "np.clip(round_half_even(v / 2 - 0.5), -n // 2, max(n // 2, 1) - 1)"))
statsq("O-1", "floor after the half was taken off", (CODE, "np.clip(np.floor(v - 0.5), -n, n - 1)"))
statsq("O-1", "symmetric codes", (CODE, "np.clip(round_half_even(v - 0.5), 1 - n, n - 1)"))
statsq("O-1a", "the mean magnitude itself", ("2 * np.abs(W).sum", "np.abs(W).sum"))
statsq("O-1a", "one scale for all", ("others = tuple(axis for axis in range(W.ndim) if axis != W.ndim - 2)\n    count = W.size // W.shape[-2] if W.size else 1",
                                     "others = tuple(range(W.ndim))\n    count = max(W.size, 1)"))  # fmt: skip
statsq(
    "O-1a",
    "twice the largest magnitude",
    (
        "2 * np.abs(W).sum(axis=others, keepdims=True) / count",
        "2 * np.abs(W).max(axis=others, keepdims=True, initial=0)",
    ),
)
statsq(
    "O-1a",
    "sums in half precision",
    (
        "np.abs(W).sum(axis=others, keepdims=True)",
        "np.abs(W).astype(np.float16).sum(axis=others, keepdims=True, dtype=np.float16).astype(np.float64)",
    ),
)
statsq(
    "O-1a",
    "a scale for every row of a stack",
    ("if axis != W.ndim - 2)\n    count = W.size // W.shape[-2]", "if axis == W.ndim - 1)\n    count = W.shape[-1]"),
)
statsq("O-1b", "levels without the half", ("values=α * (k + 0.5) / n", "values=α * k / n"))
statsq("O-1b", "levels of one bit more", ("values=α * (k + 0.5) / n", "values=α * (k + 0.5) / (2 * n)"))
statsq("O-1b", "returns the weight of the straight-through form", ("values=α * (k + 0.5) / n", "values=v * α / n"))
statsq("O-1c", "rounds half up", (CODE, "np.clip(np.floor(v), -n, n - 1)"))
statsq("O-1c", "rounds half down", (CODE, "np.clip(np.ceil(v) - 1, -n, n - 1)"))
statsq(
    "O-1c",
    "rounds half away from zero",
    (CODE, "np.clip(np.copysign(np.floor(np.abs(v - 0.5) + 0.5), v - 0.5), -n, n - 1)"),
)
statsq(
    "O-2",
    "clips in half precision before it rounds, as the published module does after .bfloat16()",
    (CODE, "round_half_even(n * np.clip(v / n, -1, float(np.float16(1 - 1e-6))) - 0.5)"),
)
statsq(
    "O-2",
    "clips in float32, and so has no lower level with one bit",
    (CODE, "round_half_even(n * np.clip(v / n, -1, 1 - 1e-6) - 0.5)"),
)
statsq("O-2", "does not clip", (CODE, "round_half_even(v - 0.5)"))
statsq(
    "O-2a",
    "divides by zero",
    ("np.divide(n * W, α, out=np.zeros_like(W), where=α > 0)", "np.divide(n * W, α)"),
    ("codes=k.astype(np.int32)", "codes=np.nan_to_num(k).astype(np.int32)"),
)
statsq("O-2a", "an epsilon for the scale", ("/ count  # (O.1)", "/ count + 1e-5"))
statsq("O-2a", "a scale of one", ("return W, α, np.divide", "α = np.where(α > 0, α, 1.0)\n    return W, α, np.divide"))

GRAD = "        return G  # (O.4)"
for _name, _new in (
    ("cuts clipped weights off", "        return np.where(np.abs(v) > n, 0.0, G)"),
    ("zero at the clipping point", "        return np.where(np.abs(W) >= α * (1 - 1 / (2 * n)), 0.0, G)"),
    (
        "lets the gradient through the scale as well",
        "        return G + 2 * np.sign(W) * G.sum(axis=-1, keepdims=True)",
    ),
):
    edit("O-3", _name, STATSQ, "statsq_grad", (GRAD, _new))
edit("O-3a", "forgets the sign of the weight", STATSQ, "statsq_grad", ("2 * np.sign(W) * pull", "2 * pull"))
edit(
    "O-3a",
    "sums instead of averaging",
    STATSQ,
    "statsq_grad",
    ("* pull / max(W.size // α.size if α.size else 1, 1)", "* pull"),
)
edit(
    "O-3a",
    "every matrix of a stack by itself",
    STATSQ,
    "statsq_grad",
    (
        "others = tuple(axis for axis in range(W.ndim) if axis != W.ndim - 2)\n    pull",
        "others = (-1,)\n    pull",
    ),
)
edit("O-3a", "moves weights of zero", STATSQ, "statsq_grad", ("np.sign(W)", "np.where(W < 0, -1.0, 1.0)"))
edit("O-3a", "levels without the half", STATSQ, "statsq_grad", ("nearest_code(v, n) + 0.5", "nearest_code(v, n)"))


def tracker(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong tracker."""
    edit(clause, name, OSCILLATION, "track_oscillation", *edits)


tracker("O-4", "every change is an oscillation", ("o = d * went == -1", "o = d != 0"))
tracker("O-4", "forgets the direction when nothing changes", ("direction=np.where(d != 0, d, went)", "direction=d"))
tracker("O-4", "counts repeated directions", ("o = d * went == -1", "o = d * went == 1"))
tracker("O-4", "the mean of changes in one direction", ("f = m * o +", "f = m * (d != 0) +"))
tracker(
    "O-4", "the direction of the new code", ('d = np.sign(whole["previous"] - k)', 'd = np.sign(k - whole["previous"])')
)
edit(
    "O-4",
    "starts at zero",
    OSCILLATION,
    "start_oscillation",
    ("return Oscillation(k.astype(np.int32)", "return Oscillation(0 * k.astype(np.int32)"),
)
tracker("O-4a", "thaws when the frequency falls", ("np.asarray(held | often)", "np.asarray(often)"))
tracker("O-4a", "freezes at the threshold", ("often = f > limit", "often = f >= limit"))
tracker("O-4a", "freezes at once", ("codes=k.astype(np.int32)", "codes=np.where(written, pinned, k).astype(np.int32)"))
tracker(
    "O-4a",
    "rounds the mean after the step",
    ('mean = means["average"]', 'mean = m * k + (1 - m) * means["average"]'),
    ("average=np.asarray(m * k + (1 - m) * mean)", "average=mean"),
)
tracker("O-4a", "rounds a half up", ("round_half_even(mean)", "np.floor(mean + 0.5)"))
tracker(
    "O-4a",
    "never rewrites a target",
    ('written = often & ~held if targets == "held" else often', "written = often & ~held"),
)
tracker(
    "O-4a", "always rewrites targets", ('written = often & ~held if targets == "held" else often', "written = often")
)
tracker("O-4a", "freezes to the code whatever was asked", ('if freeze_to == "average" else k', "if False else k"))
tracker(
    "O-4a", "the mean of what came in, not of what was used", ("np.asarray(m * k +", 'np.asarray(m * whole["codes"] +')
)
tracker("O-4b", "the other way round", ("f = m * o + (1 - m) * means", "f = (1 - m) * o + m * means"))
tracker("O-4b", "a momentum of half precision", ("limit = math.inf", "m = float(np.float16(m))\n    limit = math.inf"))
tracker("O-4b", "a sum that never fades", ("f = m * o + (1 - m) *", "f = m * o +"))

WITHIN = "found |= np.abs(v - t) <= r"


def statistics(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """Wrong boundary statistics."""
    edit(clause, name, OSCILLATION, "boundary_statistics", *edits)


statistics(
    "O-5",
    "a change to zero is a change of sign",
    ("np.sign(g) * np.sign(before) == -1", "np.sign(g) != np.sign(before)"),
)
statistics(
    "O-5",
    "flips of all weights",
    ("int((flip & at).sum()) / max(count, 1)", "int((flip & at).sum()) / max(at.size, 1)"),
)
statistics("O-5", "looks everywhere for those elsewhere", ("(flip & ~at).sum()", "flip.sum()"))
statistics("O-5", "counts what is far", ("count = int(at.sum())", "count = at.size - int(at.sum())"))


def mask(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong mask."""
    edit(clause, name, OSCILLATION, "cga_mask", *edits)


mask("O-6", "freezes what is near", (WITHIN, "found |= ~(np.abs(v - t) <= r)"))
mask("O-6", "distances in units of the scale", (WITHIN, "found |= np.abs(v - t) / n <= r"))
mask("O-6", "looks at levels instead of thresholds", (WITHIN, "found |= np.abs(v - t - 0.5) <= r"))
mask(
    "O-6",
    "leaves out the threshold at zero",
    ("for t in range(low + 1, high + 1):", "for t in set(range(low + 1, high + 1)) - {0}:"),
)
mask("O-6a", "an open range", (WITHIN, "found |= np.abs(v - t) < r"))
mask(
    "O-6a",
    "thresholds beyond the outer levels",
    ("for t in range(low + 1, high + 1):", "for t in range(low, high + 2):"),
)
mask("O-6a", "always all thresholds", ('if thresholds == "all" or not k.size else', "if True else"))
mask("O-6a", "never all thresholds", ('if thresholds == "all" or not k.size else', "if not k.size else"))
mask("O-6a", "extreme codes of the first row", ("(int(k.min()), int(k.max()))", "(int(k[0].min()), int(k[0].max()))"))
STEP = "np.where(on, W - η * (move + λ * W), W), m, v)"


def step(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong step."""
    edit(clause, name, OSCILLATION, "cga_step", *edits)


step("O-7", "zeroes the gradient and leaves the rest to the optimizer", (STEP, "W - η * (move + λ * W), m, v)"))
step("O-7", "decays frozen weights", (STEP, "np.where(on, W - η * (move + λ * W), W - η * λ * W), m, v)"))
step("O-7", "momentum moves frozen weights", (STEP, "np.where(on, W - η * (move + λ * W), W - η * move), m, v)"))
step(
    "O-7",
    "writes frozen weights back through a sum",
    (STEP, "np.where(on, W - η * (move + λ * W), W + (1.1 - 1.1 * (1 + 2.0**-50)) * (W + 1)), m, v)"),
)
step("O-7", "freezes what is active", (STEP, "np.where(on, W, W - η * (move + λ * W)), m, v)"))
step("O-7a", "moments of frozen weights see their gradient", ("g = np.where(on, g, 0.0)", "g = g + 0.0"))
step(
    "O-7a",
    "moments of frozen weights stay",
    (
        "m, v = β1 * m + (1 - β1) * g, β2 * v + (1 - β2) * g**2",
        "m, v = np.where(on, β1 * m + (1 - β1) * g, m), np.where(on, β2 * v + (1 - β2) * g**2, v)",
    ),
)
step("O-7a", "no decay", ("move + λ * W", "move"))
step(
    "O-7a",
    "decay inside the gradient",
    ("g = np.where(on, g, 0.0)", "g = np.where(on, g + λ * W, 0.0)"),
    ("move + λ * W", "move"),
)
step("O-7a", "no bias correction", ("m / (1 - β1**t)", "m"))
step("O-7a", "epsilon under the root", ("np.sqrt(v / (1 - β2**t)) + ε", "np.sqrt(v / (1 - β2**t) + ε)"))
step("O-7a", "divides zero by zero", ("where=below > 0)", "where=below >= 0)"))

edit("O-8", "features of the key first", QKR, "qkr_weight", ('"hdi,hdj->hij"', '"hdi,hdj->hji"'))
edit("O-8", "heads interleaved", QKR, "qkr_weight", ('"hdi,hdj->hij"', '"hdi,hdj->ihj"'))
edit(
    "O-8", "sums over heads", QKR, "qkr_weight", ('np.einsum("hdi,hdj->hij", q, k)', 'np.einsum("hdi,gdj->hij", q, k)')
)
edit(
    "O-8",
    "the scale of attention folded in",
    QKR,
    "qkr_weight",
    ('"hdi,hdj->hij", q, k)', '"hdi,hdj->hij", q / np.sqrt(2), k)'),
)
GRADIENTS = 'np.einsum("hdj,hij->hdi", k, g), np.einsum("hdi,hij->hdj", q, g)'


def product_gradient(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong gradient."""
    edit(clause, name, QKR, "qkr_grad", *edits)


product_gradient(
    "O-8a",
    "the query gradient is not transposed",
    (GRADIENTS, 'np.einsum("hdj,hji->hdi", k, g), np.einsum("hdi,hij->hdj", q, g)'),
)
product_gradient(
    "O-8a",
    "query and key swapped",
    (
        "QkrGradient(q=dq.reshape(np.shape(w_q)), k=dk.reshape(np.shape(w_k)))",
        "QkrGradient(q=dk.reshape(np.shape(w_q)), k=dq.reshape(np.shape(w_k)))",
    ),
)
product_gradient("O-8a", "nothing reaches the key", (GRADIENTS, 'np.einsum("hdj,hij->hdi", k, g), 0 * k'))
product_gradient(
    "O-8a",
    "a quantized weight in the gradient",
    (GRADIENTS, 'np.einsum("hdj,hij->hdi", np.sign(k), g), np.einsum("hdi,hij->hdj", q, g)'),
)
product_gradient("O-8b", "the mask touches nothing, as in the published code", ('if freeze == "product":', "if False:"))
product_gradient("O-8b", "freezes what is active", ("G = np.where(on, G, 0.0)", "G = np.where(on, 0.0, G)"))
product_gradient("O-8b", "freezes always", ('if freeze == "product":', "if True:"))
product_gradient(
    "O-8b", "freezes rows", ("G = np.where(on, G, 0.0)", "G = np.where(on.all(axis=1, keepdims=True), G, 0.0)")
)


def attention(clause: str, name: str, *edits: tuple[str, str]) -> None:
    """A wrong attention."""
    edit(clause, name, QKR, "qkr_attention", *edits)


attention("O-9", "divides by the width instead of its root", ("np.sqrt(max(q.shape[1], 1))", "max(q.shape[1], 1)"))
attention("O-9", "divides by the root of the whole width", ("np.sqrt(max(q.shape[1], 1))", "np.sqrt(C)"))
attention(
    "O-9",
    "softmax over queries",
    ("scores.max(axis=-1", "scores.max(axis=-2"),
    ("A / A.sum(axis=-1", "A / A.sum(axis=-2"),
)
attention(
    "O-9",
    "keys by head first",
    ("Ŵ, x_hat).reshape(B, N * heads, C)", "Ŵ, x_hat).swapaxes(1, 2).reshape(B, N * heads, C)"),
)
attention("O-9", "forgets the value bias", (".T + bias_v", ".T"))
attention("O-9", "query and key exchanged", ('"hij,bmj->bmhi"', '"hji,bmj->bmhi"'))
attention("O-9a", "drops the query bias", ('if biases == "kept":', "if False:"))
attention("O-9a", "keeps the query bias", ('if biases == "kept":', "if True:"))
attention("O-9a", "adds it to queries, where the softmax does not see it", ("x_hat)[:, :, None]", "x_hat)[..., None]"))
attention(
    "O-9a",
    "does not divide it",
    ("    scores = scores / np.sqrt(max(q.shape[1], 1))", ""),
    ('"bni,bmhi->bhnm", x_hat,', '"bni,bmhi->bhnm", x_hat / np.sqrt(max(q.shape[1], 1)),'),
)
attention("O-9b", "scores of the unquantized input", ('"bni,bmhi->bhnm", x_hat', '"bni,bmhi->bhnm", X'))
attention("O-9b", "values of the unquantized input", ("passed(Q.value, x_hat @", "passed(Q.value, X @"))
attention("O-9b", "no quantizer on the keys", ("passed(Q.keys, np", "passed(None, np"))
attention(
    "O-9b",
    "quantizes scores instead of the map",
    (
        'A = passed(Q.attention, A / A.sum(axis=-1, keepdims=True), "attention")',
        'A = A / A.sum(axis=-1, keepdims=True) + 0 * passed(Q.attention, scores, "attention")',
    ),
)
attention(
    "O-9b",
    "quantizes values before their bias",
    (
        'passed(Q.value, x_hat @ passed(Q.value_weight, V, "value_weight").T + bias_v, "value")',
        'passed(Q.value, x_hat @ passed(Q.value_weight, V, "value_weight").T, "value") + bias_v',
    ),
)
attention(
    "O-9b",
    "the unquantized product",
    (
        'Ŵ = passed(Q.product, qkr_weight(w_q, w_k, heads=heads), "product")',
        'Ŵ = passed(Q.product, qkr_weight(w_q, w_k, heads=heads), "product") * 0 + qkr_weight(w_q, w_k, heads=heads)',
    ),
)
