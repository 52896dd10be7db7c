"""Chapter U: the scales of binary codes, their gradient, a step of training, and their least-squares fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowbit.conformance import compare, laws, strategies
from lowbit.conformance.clauses import clause
from lowbit.conformance.kit import Kit
from lowbit.conformance.strategies import Array
from lowbit.conformance.suite.test_eigenspace import check_moments


class CodedLayer(NamedTuple):
    """A binary-coded layer, something of its weight's shape, and inputs."""

    codes: Array  # int32, (m, k)
    scale: Array  # (m, G, q)
    weight: Array  # (m, k), a weight or a gradient
    tokens: Array  # (T, k)
    bits: int
    group_size: int | None


@st.composite
def coded_layers(draw: st.DrawFn, *, half: bool = False) -> CodedLayer:
    """Codes with planes that coincide or part, scales of either sign and in any order, integers throughout."""
    dtype = draw(strategies.float_dtypes(half=half))
    m, groups, width, bits = (draw(st.integers(1, n)) for n in (4, 3, 6, 3))
    k = groups * width
    codes = draw(arrays(np.int32, (m, k), elements=st.integers(0, 2**bits - 1), fill=st.nothing()))
    match draw(st.sampled_from(["general", "general", "constant row", "equal planes"])):
        case "constant row":
            codes[0] = codes[0, 0]
        case "equal planes":
            codes = np.where(codes & 1, 2**bits - 1, 0).astype(np.int32)
        case _:
            pass
    scale = draw(strategies.integers((m, groups, bits), 40)) / 8
    weight = draw(strategies.integers((m, k), 99)) * draw(st.sampled_from(strategies.UNITS))
    tokens = draw(strategies.integers((draw(st.integers(1, 2 * k + 4)), k), 9))
    if draw(st.booleans()):
        tokens[:, draw(arrays(np.bool_, (k,)))] = 0
    size = width if groups > 1 or draw(st.booleans()) else None
    return CodedLayer(codes, scale.astype(dtype), weight.astype(dtype), tokens.astype(dtype), bits, size)


LAYERS = coded_layers(half=True)
TRAIN = st.sampled_from(["first", "largest", "all"])


def signed_sums(values: Array, codes: Array, bits: int, groups: int) -> Array:
    """Σ over every group of values (m, k) with the signs of each plane → (m, G, q)."""
    m, k = codes.shape
    products = values.astype(np.float64) * laws.signs(codes, bits)
    return np.moveaxis(products.reshape(bits, m, groups, k // groups).sum(axis=-1), 0, -1)


def trained(scale: Array, train: str) -> Array:
    """The mask, element by element."""
    mask = np.zeros(scale.shape, np.bool_)
    for row, group in np.ndindex(scale.shape[:2]):
        values = [abs(float(v)) for v in scale[row, group]]
        chosen = {"first": [0], "largest": [values.index(max(values))], "all": list(range(len(values)))}[train]
        mask[row, group, chosen] = True
    return mask


@clause("U-1", tier="exact", layer=LAYERS, train=TRAIN)
def test_which_scales_train(kit: Kit, layer: CodedLayer, train: str) -> None:
    """Plane 0 whatever its size; the largest magnitude, negative ones too; every one."""
    found = kit.call("trainable_scales", layer.scale, train=train)
    kit.require(found.dtype == np.bool_, f"the mask has dtype {found.dtype}, expected bool")
    kit.check(compare.exact(found, trained(layer.scale, train), f"mask of {train!r}"))


@clause("U-1a", tier="exact", dtype=strategies.FLOATS, bits=st.integers(1, 4))
def test_the_lower_of_equal_planes_trains(kit: Kit, dtype: str, bits: int) -> None:
    """Equal magnitudes of either sign, and groups of zeros."""
    scale = np.array([[[0.5, -0.5, 0.5, -0.5]], [[0, 2, -2, 1]], [[0, 0, 0, 0]]], dtype)[..., :bits]
    found = kit.call("trainable_scales", scale, train="largest")
    kit.check(compare.exact(found, trained(scale, "largest"), "mask"))


def check_gradient(kit: Kit, layer: CodedLayer, norm: str) -> None:
    """Signed sums of the group's values, at most one rounding per term and one for the division."""
    codes, bits, size = layer.codes, layer.bits, layer.group_size
    width = size or codes.shape[1]
    found = kit.call("scale_grad", layer.weight, codes, bits=bits, group_size=size, norm=norm)
    groups, divisor = codes.shape[1] // width, width if norm == "mean" else 1
    expected = signed_sums(layer.weight, codes, bits, groups) / divisor
    magnitude = signed_sums(np.abs(layer.weight), np.full_like(codes, 2**bits - 1), bits, groups) / divisor
    allowed = compare.gamma(width + 1, kit.u(layer.weight, result=found)) * magnitude + kit.tiny(width)
    kit.check(compare.forward(found, expected, allowed, f"{norm} gradient"))


@clause("U-2", tier="forward-error", layer=LAYERS)
def test_gradient_is_the_signed_sum(kit: Kit, layer: CodedLayer) -> None:
    """The derivative itself, for every plane, row and group."""
    check_gradient(kit, layer, "sum")


@clause("U-2a", tier="forward-error", layer=LAYERS)
def test_mean_gradient(kit: Kit, layer: CodedLayer) -> None:
    """Divided by the columns of a group: of the row when there are no groups, never by k when there are."""
    check_gradient(kit, layer, "mean")


@clause("U-2b", tier="exact", dtype=strategies.FLOATS, bits=st.integers(1, 8))
def test_planes_are_bits(kit: Kit, dtype: str, bits: int) -> None:
    """One column per code, so that each entry of the gradient is one bit of it."""
    codes = np.arange(2**bits, dtype=np.int32)[None]
    found = kit.call("scale_grad", np.ones(codes.shape, dtype), codes, bits=bits, group_size=1)
    expected = 2 * ((codes[..., None] >> np.arange(bits)) & 1) - 1
    kit.check(compare.exact(found, expected, "signs"))


@clause("U-3", tier="forward-error", layer=LAYERS, norm=["sum", "mean"], data=st.data())
def test_gradient_from_tokens(kit: Kit, layer: CodedLayer, norm: str, data: Any) -> None:
    """That of the weight gradient δᵀx, however the products are associated."""
    codes, bits, x = layer.codes, layer.bits, layer.tokens
    tokens, (m, k) = len(x), codes.shape
    values = data.draw(st.lists(st.integers(-40, 40), min_size=tokens * m, max_size=tokens * m))
    unit = data.draw(st.sampled_from(strategies.UNITS))
    delta = (np.array(values).reshape(tokens, m) * unit).astype(x.dtype)
    width = layer.group_size or k
    found = kit.call("scale_grad_tokens", x, delta, codes, bits=bits, group_size=layer.group_size, norm=norm)
    slope, size = (f(delta.astype(np.float64)).T @ f(x.astype(np.float64)) for f in (np.positive, np.abs))
    divisor = width if norm == "mean" else 1
    expected = signed_sums(slope, codes, bits, k // width) / divisor
    magnitude = signed_sums(size, np.full_like(codes, 2**bits - 1), bits, k // width) / divisor
    allowed = compare.gamma(tokens + width + 2, kit.u(x, result=found)) * magnitude + kit.tiny(tokens * width)
    kit.check(compare.forward(found, expected, allowed, f"{norm} gradient"))


@st.composite
def training_states(draw: st.DrawFn) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """Arrays and options of one step; numbers are eighths, so that nothing but the update rounds."""
    shape = tuple(draw(st.integers(1, 3)) for _ in range(3))
    dtype = draw(strategies.float_dtypes())

    def eighths(low: int, high: int) -> Array:
        size = int(np.prod(shape))
        drawn = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
        return (np.array(drawn).reshape(shape) / 8).astype(dtype)

    scale, grad, initial, first = (eighths(-40, 40) for _ in range(4))
    trainable = eighths(0, 2) > 0
    options = {
        "step": draw(st.integers(1, 5)),
        "lr": draw(st.sampled_from([0.5, 0.1, 0.02])),
        "beta1": draw(st.sampled_from([0.9, 0.5, 0.0])),
        "beta2": draw(st.sampled_from([0.999, 0.95])),
        "epsilon": draw(st.sampled_from([0.0, 0.125])),
        "decay": draw(st.sampled_from([0.0, 0.1, 0.5])),
    }
    return (scale, grad, initial, first, eighths(0, 40), trainable), options


@clause("U-4", tier="forward-error", case=training_states())
def test_step_of_training(kit: Kit, case: tuple[tuple[Array, ...], dict[str, Any]]) -> None:
    """AdamW with both bias corrections; coefficients are formed in double precision, then rounded once each.

    Three roundings in the first moment, five in the second; the quotient adds nine and the update four. A group whose
    gradient and state are zero does not move, not even without an epsilon.
    """
    arrays, options = case
    found = kit.call("tune_step", *arrays, **options)
    scale, grad, initial, first, second = (a.astype(np.float64) for a in arrays[:5])
    u, on = kit.u(arrays[0], result=found.scale), arrays[5]
    b1, b2, t, lr = options["beta1"], options["beta2"], options["step"], options["lr"]
    mean, size = b1 * first + (1 - b1) * grad, b1 * np.abs(first) + (1 - b1) * np.abs(grad)
    square = b2 * second + (1 - b2) * grad**2
    below = np.sqrt(square / (1 - b2**t)) + options["epsilon"]
    safe = np.where(below > 0, below, 1.0)
    move, most = (np.where(below > 0, a / (1 - b1**t) / safe, 0.0) for a in (mean, size))
    pull = options["decay"] * (scale - initial)
    moved = scale - lr * (move + pull)
    reach = np.abs(scale) + lr * (most + options["decay"] * (np.abs(scale) + np.abs(initial)))
    for name, old, new, allowed in (
        ("first", first, mean, compare.gamma(3, u) * size),
        ("second", second, square, compare.gamma(5, u) * square),
        ("scale", scale, moved, compare.gamma(16, u) * reach),
    ):
        kit.check(compare.forward(getattr(found, name), np.where(on, new, old), allowed + kit.tiny(16), name))


@clause("U-4", tier="forward-error", dtype=strategies.WIDE_FLOATS, step=st.integers(1, 3))
def test_a_scale_without_gradient_stays(kit: Kit, dtype: str, step: int) -> None:
    """No gradient, now or before, and no epsilon: 0 / 0 is no movement, and decay still acts."""
    scale, zero = np.array([[[1.5, -2.0]]], dtype), np.zeros((1, 1, 2), dtype)
    for decay in (0.0, 0.5):
        found = kit.call(
            "tune_step", scale, zero, zero, zero, zero, np.ones(zero.shape, np.bool_),
            step=step, lr=0.5, epsilon=0.0, decay=decay,
        )  # fmt: skip
        allowed = compare.gamma(4, kit.u(scale, result=found.scale)) * np.abs(scale)
        kit.check(compare.forward(found.scale, scale * (1 - 0.5 * decay), allowed, "scale"))


@clause("U-4a", tier="exact", case=training_states())
def test_frozen_state_stays(kit: Kit, case: tuple[tuple[Array, ...], dict[str, Any]]) -> None:
    """Scales that do not train, and their moments, in every bit, whatever gradient arrives."""
    arrays, options = case
    found = kit.call("tune_step", *arrays, **options)
    frozen = ~arrays[5]
    for name, old in (("scale", arrays[0]), ("first", arrays[3]), ("second", arrays[4])):
        kit.check(compare.exact(getattr(found, name)[frozen], old[frozen], f"frozen {name}"))


@st.composite
def fits(draw: st.DrawFn) -> tuple[CodedLayer, Array, Array]:
    """A layer, a second moment of integers, and a mask that leaves some rows nothing to train."""
    layer = draw(coded_layers())
    x = layer.tokens.astype(np.float64)
    flat = draw(st.lists(st.booleans(), min_size=layer.scale.size, max_size=layer.scale.size))
    mask = np.array(flat).reshape(layer.scale.shape)
    if draw(st.booleans()):
        mask = trained(layer.scale, "first")
    return layer, (x.T @ x).astype(layer.scale.dtype), mask


def stationarity(layer: CodedLayer, c: Array, fitted: Array) -> tuple[Array, Array]:
    """∂J/∂α / 2 at the fitted scales, and the size of what its sum and the solve before it rounded, (m, G, q).

    A backward stable solve of n equations of length k leaves a residual of order γ_{k+n} of the row's largest terms.
    """
    m, groups, bits = layer.scale.shape
    moment, w = c.astype(np.float64), layer.weight.astype(np.float64)
    slope = signed_sums((w - laws.coded_weight(layer.codes, fitted)) @ moment, layer.codes, bits, groups)
    reach = np.abs(w)
    for scale in (fitted, layer.scale):
        wide = np.repeat(np.abs(scale.astype(np.float64)).sum(axis=-1), w.shape[1] // groups, axis=1)
        reach = reach + wide
    size = signed_sums(reach @ np.abs(moment), np.full_like(layer.codes, 2**bits - 1), bits, groups)
    return slope, np.broadcast_to(size.max(axis=(1, 2), keepdims=True), (m, groups, bits))


@clause("U-5", tier="forward-error", case=fits())
def test_fitted_scales_are_stationary(kit: Kit, case: tuple[CodedLayer, Array, Array]) -> None:
    """The gradient of the output error vanishes for every scale that trains: with J convex, that is the least J."""
    layer, c, mask = case
    fitted = kit.call("fit_scales", layer.weight, c, layer.codes, layer.scale, mask)
    slope, size = stationarity(layer, c, fitted)
    count = layer.codes.shape[1] + layer.scale[0].size
    allowed = compare.gamma(8 * count, kit.u(layer.weight, result=fitted)) * size + kit.tiny(count)
    kit.check(compare.forward(np.where(mask, slope, 0.0), np.zeros(slope.shape), allowed, "gradient"))


@clause("U-5a", tier="exact", case=fits())
def test_scales_that_do_not_train(kit: Kit, case: tuple[CodedLayer, Array, Array]) -> None:
    """Unchanged in every bit, also in rows where others train."""
    layer, c, mask = case
    fitted = kit.call("fit_scales", layer.weight, c, layer.codes, layer.scale, mask)
    kit.check(compare.exact(fitted[~mask], layer.scale[~mask], "frozen scales"))


@clause("U-5b", tier="forward-error", dtype=strategies.WIDE_FLOATS, bits=st.integers(2, 4), groups=st.integers(1, 2))
def test_the_nearest_fit(kit: Kit, dtype: str, bits: int, groups: int) -> None:
    """Planes that coincide share what is missing; with opposite signs they share it so; a dead group does not move."""
    target, width = np.array([[5.0], [-3.0], [2.0]]), 4
    w = np.repeat(target, groups * width, axis=1).astype(dtype)
    codes = np.full(w.shape, 2**bits - 1, np.int32)
    codes[1] -= 1  # plane 0 the other way round
    scale = np.tile(np.arange(1.0, bits + 1), (3, groups, 1)).astype(dtype)
    c = np.diag(np.where(np.arange(groups * width) < width, 4.0, 0.0)).astype(dtype)
    signs = np.ones((3, 1, bits))
    signs[1, 0, 0] = -1
    missing = target[..., None] - (signs * scale[:, :1]).sum(axis=-1, keepdims=True)
    expected = scale.astype(np.float64)
    expected[:, :1] += missing * signs / bits
    fitted = kit.call("fit_scales", w, c, codes, scale, np.ones(scale.shape, np.bool_))
    count = groups * width + scale[0].size
    allowed = compare.gamma(8 * count, kit.u(w, result=fitted)) * (np.abs(target)[..., None] + bits**2)
    kit.check(compare.forward(fitted, expected, allowed * np.ones(scale.shape), "fitted scales"))


@clause("U-5c", tier="exact", dtype=strategies.WIDE_FLOATS, k=st.integers(3, 12))
def test_what_is_no_second_moment_fits_no_scales(kit: Kit, dtype: str, k: int) -> None:
    """Where an error has a negative price, no scales have the least."""
    w, codes = np.ones((2, k), dtype), np.ones((2, k), np.int32)
    scale, trainable = np.ones((2, 1, 1), dtype), np.ones((2, 1, 1), np.bool_)
    check_moments(kit, "fit_scales", lambda c: [w, c, codes, scale, trainable], k, dtype, "U")
