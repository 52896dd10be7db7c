"""Chapter W: distillation losses, their gradients against central differences, masks and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.distill import IGNORED, mixing_weights, total_loss
from lowbit.reference.errors import SpecError
from lowbit.reference.types import LossGradient

from .bounds import Array, near

Loss = Callable[[Array], LossGradient[Array]]
STEP = 2.0**-17  # of a central difference: its square, and u / step, are both near 2⁻³⁵
CLOSE = 2.0**-26


def central(loss: Loss, at: Array) -> Array:
    """∂L/∂S by central differences, entry by entry."""
    slope = np.zeros(at.shape)
    for i in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            x = at.copy()
            x[i] += sign * STEP
            ends.append(loss(x).loss)
        slope[i] = (ends[0] - ends[1]) / (2 * STEP)
    return slope


def maps(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def draw(*shape: int, seed: int = 0) -> tuple[Array, Array]:
    g = np.random.default_rng(seed)
    return 2 * g.standard_normal(shape), 2 * g.standard_normal(shape)


LENGTHS = np.array([4, 2, 1])
LABELS = np.array([[0, 4, IGNORED, 2], [1, IGNORED, IGNORED, 3]])


def losses() -> dict[str, tuple[Array, Loss]]:
    """Every loss with every option, as a function of the student alone; scores avoid the floors."""
    (s2, t2), (s3, t3), (s4, t4) = draw(3, 5), draw(2, 4, 5), draw(3, 2, 4, 4)
    wide, towards = draw(3, 4, 5)
    return {
        "logits": (s2, lambda x: ref.logit_loss(x, t2)),
        "logits, kl, warm": (s2, lambda x: ref.logit_loss(x, t2, temperature=3.0, divergence="kl")),
        "logits, cold": (s2, lambda x: ref.logit_loss(x, t2, temperature=0.5)),
        "tokens": (s3, lambda x: ref.token_loss(x, t3, LABELS)),
        "tokens, skip": (s3, lambda x: ref.token_loss(x, t3, LABELS, temperature=0.7, ignored="skip")),
        "features": (wide, lambda x: ref.feature_loss(x, towards)),
        "features of valid tokens": (wide, lambda x: ref.feature_loss(x, towards, LENGTHS)),
        "scores": (s4, lambda x: ref.score_loss(x, t4, floor=-1.0)),
        "scores, causal": (s4, lambda x: ref.score_loss(x, t4, causal=True)),
        "maps": (s4, lambda x: ref.attention_map_loss(x, t4, LENGTHS)),
        "maps, floor active": (s4, lambda x: ref.attention_map_loss(x, t4, LENGTHS, floor=0.1)),
    }


@pytest.mark.parametrize("name", losses())
def test_w_every_gradient_is_the_derivative(name: str) -> None:
    at, loss = losses()[name]
    found = loss(at)
    assert isinstance(found.loss, float)
    assert np.abs(found.gradient - central(loss, at)).max() < CLOSE
    assert np.abs(found.gradient).max() > 1000 * CLOSE


@pytest.mark.parametrize("name", losses())
def test_w_every_gradient_is_that_of_autograd(name: str) -> None:
    """The same losses written with torch's own functions."""
    torch = pytest.importorskip("torch")
    F: Any = torch.nn.functional
    at, loss = losses()[name]
    (_, t2), (_, t3), (_, t4), (_, towards) = (
        torch.tensor(np.array(draw(*n))) for n in ((3, 5), (2, 4, 5), (3, 2, 4, 4), (3, 4, 5))
    )
    x = torch.tensor(at, requires_grad=True)
    s = torch.tensor(LENGTHS)
    if name.startswith("logits"):
        τ = {"logits": 1.0, "logits, kl, warm": 3.0, "logits, cold": 0.5}[name]
        log_q, target = (x / τ).log_softmax(-1), (t2 / τ).softmax(-1)
        plain = τ**2 * -(target * log_q).sum(-1).mean()
        if "kl" in name:
            plain = τ**2 * F.kl_div(log_q, target, reduction="batchmean")
    elif name.startswith("tokens"):
        labels = torch.tensor(LABELS)
        c = F.cross_entropy(t3.flatten(0, 1), labels.flatten(), reduction="none").reshape(labels.shape)
        if "skip" in name:
            c = (c / 0.7).masked_fill(labels == IGNORED, -torch.inf)
        w = (c if "skip" in name else c / 10).softmax(-1)
        plain = (w * -(t3.softmax(-1) * x.log_softmax(-1)).sum(-1)).sum()
    elif name.startswith("features"):
        keep = (torch.arange(4) < s[:, None]).unsqueeze(-1).expand_as(x)
        plain = F.mse_loss(x[keep], towards[keep]) if "valid" in name else F.mse_loss(x, towards)
    elif name.startswith("scores"):
        φ = -1.0 if name == "scores" else -100.0
        a, b = torch.where(x <= φ, 0.0, x), torch.where(t4 <= φ, 0.0, t4)
        low = torch.ones(4, 4).tril().bool().expand_as(x)
        plain = F.mse_loss(a[low], b[low]) if "causal" in name else F.mse_loss(a, b)
    else:
        φ = 0.1 if "floor" in name else 1e-8
        key = (torch.arange(4) < s[:, None])[:, None, None]
        p, q = (y.masked_fill(~key, -1e4).softmax(-1).clamp(min=φ) for y in (t4, x))
        weight = (key & key.mT).double() / (6 * s[:, None, None, None])
        plain = (weight * p * (p.log() - q.log())).sum()
    plain.backward()
    found = loss(at)
    near(found.loss, plain.item(), roundings=400, magnitude=1.0)
    near(found.gradient, x.grad.numpy(), roundings=400, magnitude=1.0)


def test_w1_cross_entropy_and_divergence_differ_by_the_entropy_of_the_teacher() -> None:
    s, t = draw(4, 6)
    p = maps(t)
    soft, kl = ref.logit_loss(s, t), ref.logit_loss(s, t, divergence="kl")
    near(soft.loss - kl.loss, -(p * np.log(p)).sum() / 4, roundings=99, magnitude=9.0)
    assert np.array_equal(soft.gradient, kl.gradient)
    assert abs(ref.logit_loss(t, t, divergence="kl").loss) < CLOSE
    assert ref.logit_loss(t, t).loss > 0.1  # at least the entropy: it does not vanish
    assert ref.logit_loss(s, t).loss >= ref.logit_loss(t, t).loss
    assert ref.logit_loss(s[:0], t[:0]).loss == 0


@pytest.mark.parametrize("seed", range(20))
def test_w1_at_least_the_entropy_of_the_teacher(seed: int) -> None:
    """Unsure and sure teachers, students near and far; equal only where the maps are."""
    spread, apart = 2.0 ** (seed % 5 - 1), 2.0 ** (seed % 7 - 3)
    noise, t = (x * f for x, f in zip(draw(4, 6, seed=seed), (apart, spread), strict=True))
    p = maps(t)
    entropy = -(p * np.log(p)).sum() / 4
    assert ref.logit_loss(t + noise, t).loss > entropy
    near(ref.logit_loss(t - 3.0, t).loss, entropy, roundings=2**9, magnitude=9.0)
    assert ref.logit_loss(t + noise, t, divergence="kl").loss > 0


def test_w1_logits_shifted_by_a_constant() -> None:
    s, t = draw(4, 6)
    shifted = ref.logit_loss(s + 64, t - 32)
    near(shifted.loss, ref.logit_loss(s, t).loss, roundings=2**9, magnitude=9.0)


def test_w2_weights_follow_the_teacher_and_add_up_to_one() -> None:
    """Uniform teachers and students: every token costs log V, so the loss is log V times the number of sequences."""
    zero = np.zeros((3, 4, 8))
    near(ref.token_loss(zero, zero, np.zeros((3, 4), int)).loss, 3 * np.log(8), roundings=99)
    sure, unsure = [30.0, 0.0], [0.0, 0.0]
    g = ref.token_loss([[[0.0, 1.0]] * 2], [[sure, unsure]], [[0, 0]], temperature=0.01).gradient
    assert np.abs(g[0, 0]).max() < CLOSE < np.abs(g[0, 1]).max()


def test_w2a_a_sequence_without_labels() -> None:
    s, t = draw(1, 3, 4)
    none = np.full((1, 3), IGNORED)
    skipped = ref.token_loss(s, t, none, ignored="skip")
    assert skipped.loss == 0
    assert not skipped.gradient.any()
    weighed = ref.token_loss(s, t, none)  # equal weights, as in the code
    near(weighed.loss, -(maps(t) * np.log(maps(s))).sum() / 3, roundings=99, magnitude=9.0)
    assert ref.token_loss(s[:, :0], t[:, :0], none[:, :0]).loss == 0


@pytest.mark.parametrize("pad", [np.nan, 1e300, 0.0])
def test_w2a_w3a_w5a_padding_is_not_read(pad: float) -> None:
    def spoil(x: Array, keep: Array) -> Array:
        return np.where(keep, x, pad)

    s, t = draw(2, 4, 5)
    has = (LABELS != IGNORED)[..., None]
    found = ref.token_loss(spoil(s, has), spoil(t, has), LABELS, ignored="skip")
    expected = ref.token_loss(s, t, LABELS, ignored="skip")
    assert found.loss == expected.loss
    assert np.array_equal(found.gradient, expected.gradient)
    s, t = draw(3, 4, 5)
    inside = np.arange(4) < LENGTHS[:, None]
    keep = inside[..., None]
    found, expected = (ref.feature_loss(f(s, keep), f(t, keep), LENGTHS) for f in (spoil, lambda x, _: x))
    assert found.loss == expected.loss
    assert np.array_equal(found.gradient, expected.gradient)
    s, t = draw(3, 2, 4, 4)
    keep = (inside[:, :, None] & inside[:, None])[:, None]
    found, expected = (ref.attention_map_loss(f(s, keep), f(t, keep), LENGTHS) for f in (spoil, lambda x, _: x))
    assert found.loss == expected.loss
    assert np.array_equal(found.gradient, expected.gradient)
    assert not found.gradient[~np.broadcast_to(keep, s.shape)].any()


def test_w3_w5_the_width_of_the_batch() -> None:
    """Appended padding changes neither the map loss nor (W.7), and does change the published mean."""
    s, t = draw(3, 4, 5)
    wide = [np.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=5.0) for x in (s, t)]
    assert ref.feature_loss(wide[0], wide[1], LENGTHS).loss == ref.feature_loss(s, t, LENGTHS).loss
    near(ref.feature_loss(wide[0], wide[1]).loss, ref.feature_loss(s, t).loss * 4 / 7, roundings=99)
    s, t = draw(3, 2, 4, 4)
    wide = [np.pad(x, ((0, 0), (0, 0), (0, 3), (0, 3)), constant_values=-9.0) for x in (s, t)]
    found, expected = ref.attention_map_loss(wide[0], wide[1], LENGTHS), ref.attention_map_loss(s, t, LENGTHS)
    assert found.loss == expected.loss
    assert np.array_equal(found.gradient[..., :4, :4], expected.gradient)
    near(ref.score_loss(wide[0], wide[1]).loss, ref.score_loss(s, t).loss * 16 / 49, roundings=99)  # padding counts
    s, t = draw(2, 4, 5)
    wide = [np.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=5.0) for x in (s, t)]
    labels = np.pad(LABELS, ((0, 0), (0, 3)), constant_values=IGNORED)
    found = ref.token_loss(wide[0], wide[1], labels, ignored="skip")
    near(found.loss, ref.token_loss(s, t, LABELS, ignored="skip").loss, roundings=99)
    assert ref.token_loss(wide[0], wide[1], labels).loss != pytest.approx(ref.token_loss(s, t, LABELS).loss, rel=1e-3)


def test_w4_w5_a_constant_per_row() -> None:
    """It leaves maps and their loss alone, and changes the loss of scores."""
    s, t = draw(3, 2, 4, 4)
    shift = np.arange(24.0).reshape(3, 2, 4, 1)
    before, after = (ref.attention_map_loss(x, t, LENGTHS) for x in (s, s + shift))
    near(after.loss, before.loss, roundings=2**9, magnitude=9.0)
    near(after.gradient, before.gradient, roundings=2**9, magnitude=1.0)
    assert ref.score_loss(s + shift, t).loss > 2 * ref.score_loss(s, t).loss


def test_w5_heads_and_agreement() -> None:
    s, t = draw(3, 2, 4, 4)
    found = ref.attention_map_loss(s, t, LENGTHS)
    turned = ref.attention_map_loss(s[:, ::-1], t[:, ::-1], LENGTHS)
    near(turned.loss, found.loss, roundings=99, magnitude=9.0)
    same = ref.attention_map_loss(t, t, LENGTHS)
    assert abs(same.loss) < CLOSE
    assert np.abs(same.gradient).max() < CLOSE
    assert found.loss > -4e-8
    assert ref.attention_map_loss(np.zeros((2, 0, 3, 3)), np.zeros((2, 0, 3, 3)), [1, 3]).loss == 0


@pytest.mark.parametrize("floor", [1e-8, 1e-3, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_w5_never_below_what_the_floor_allows(seed: int, floor: float) -> None:
    """L ≥ −log(1 + n φ), by the log-sum inequality: P sums to 1 at least, max(q, φ) to 1 + n φ at most.

    Maps from flat to one-hot, the same, near each other and far apart.
    """
    flat, apart = 4.0 ** (seed % 4 - 1), (0.0, 2.0**-12, 0.5, 30.0)[seed // 3]
    noise, t = draw(3, 2, 4, 4, seed=seed)
    found = ref.attention_map_loss(flat * t + apart * noise, flat * t, LENGTHS, floor=floor)
    assert found.loss >= -np.log1p(4 * floor) * (1 + 2.0**-40) - 2.0**-46


def test_w5_a_floor_can_take_the_loss_below_zero() -> None:
    """The bound is not idle: a teacher just above the floor, and a student that is lifted to it."""
    t = np.log(np.array([[[[0.78, 0.11, 0.11]] * 3]]))
    s = np.log(np.array([[[[0.98, 0.01, 0.01]] * 3]]))
    assert -np.log1p(0.3) < ref.attention_map_loss(s, t, [3], floor=0.1).loss < 0
    assert ref.attention_map_loss(s, t, [3]).loss > 0


@pytest.mark.parametrize("seed", range(8))
def test_w5_zero_where_valid_maps_agree_and_nowhere_else(seed: int) -> None:
    """Outside the valid block, and by constants of rows, networks may differ as they like; in no other way."""
    noise, t = draw(3, 2, 4, 4, seed=seed)
    inside = np.arange(4) < LENGTHS[:, None]
    valid = np.broadcast_to((inside[:, :, None] & inside[:, None])[:, None], t.shape)
    s = np.where(valid, t, noise) + noise[..., :1]
    assert abs(ref.attention_map_loss(s, t, LENGTHS).loss) < 2.0**-44
    for at in np.argwhere(valid & (LENGTHS[:, None, None, None] > 1)).tolist():
        one = s.copy()
        one[tuple(at)] += 0.5
        assert ref.attention_map_loss(one, t, LENGTHS).loss > 2.0**-40


def test_w5_the_masked_softmax_over_all_keys() -> None:
    """An additive mask of −10000 and the published expression over whole rows give the same numbers."""
    s, t = draw(3, 2, 4, 4)
    mask = np.where(np.arange(4) < LENGTHS[:, None], 0.0, -1e4)[:, None, None]
    inside = np.arange(4) < LENGTHS[:, None]
    valid = (inside[:, :, None] & inside[:, None])[:, None]
    P, Q = (np.maximum(maps(x + mask), 1e-8) for x in (t, s))
    each = (valid * P * np.log(P / Q)).sum(axis=(1, 2, 3)) / LENGTHS
    near(ref.attention_map_loss(s + mask, t + mask, LENGTHS).loss, each.sum() / 6, roundings=999, magnitude=9.0)


def test_w5b_the_floor_cuts_the_own_term_only() -> None:
    s, t = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    s[0, 0, 0] = [0.0, -40.0]  # q = (1, 4e-18), p = (1/2, 1/2)
    found = ref.attention_map_loss(s, t, [2])
    near(found.loss, 0.25 * (np.log(0.5) + np.log(0.5) - np.log(1e-8)), roundings=99, magnitude=9.0)
    q = np.exp(-40) / (1 + np.exp(-40))
    near(found.gradient[0, 0, 0], [((1 - q) * 0.5 - 0.5) / 2, q * 0.5 / 2], roundings=999, magnitude=1e-3)
    assert 0 < found.gradient[0, 0, 0, 1] < 1e-17  # uncut, it would be −1/4


def test_w_mixing() -> None:
    assert mixing_weights(0.0) == (0.0, 1.0)
    assert total_loss(1, features=[1, 2], maps=[3], outputs=[4], scores=[5], map_weight=2, output_weight=3) == 27
    with pytest.raises(SpecError, match="gamma"):
        mixing_weights(1.5)


OPS: Any = ref  # options that no type allows


@pytest.mark.parametrize(
    ("call", "clause", "word"),
    [
        (lambda a, b: OPS.logit_loss(a[0], b[0, :2]), "W-1", "shape"),
        (lambda a, b: OPS.logit_loss(a[0], b[0], divergence="js"), "W-1", "js"),
        (lambda a, b: OPS.logit_loss(a[0], b[0], temperature=0.0), "W-1", "temperature"),
        (lambda a, b: OPS.token_loss(a, b[:, :1], LABELS[:, :3]), "W-2", "shape"),
        (lambda a, b: OPS.token_loss(a, b, LABELS), "W-2", "labels"),
        (lambda a, b: OPS.token_loss(a, b, [[0, 0, 9], [0, 0, 0]]), "W-2", "9"),
        (lambda a, b: OPS.token_loss(a, b, [[0, 0, -1], [0, 0, 0]]), "W-2", "-1"),
        (lambda a, b: OPS.token_loss(a, b, [[0, 0, 1], [0, 0, 0]], ignored="drop"), "W-2", "drop"),
        (lambda a, b: OPS.feature_loss(a, b[:1]), "W-3", "shape"),
        (lambda a, b: OPS.feature_loss(a, b[:1], [1]), "W-3", "shape"),
        (lambda a, b: OPS.feature_loss(a, b, [1]), "W-3", "lengths"),
        (lambda a, b: OPS.feature_loss(a, b, [1, 4]), "W-3", "4"),
        (lambda a, b: OPS.feature_loss(a, b, [1, 0]), "W-3", "0"),
        (lambda a, b: OPS.score_loss(a[None], b[None], causal=1), "W-4", "causal"),
        (lambda a, b: OPS.score_loss(a[None], b[None]), "W-4", "n, n"),
        (lambda a, b: OPS.attention_map_loss(a[None], b[None], [2]), "W-5", "n, n"),
        (lambda a, b: OPS.attention_map_loss(a[None, :, :, :3], b[None, :, :, :3], [2], floor=0.0), "W-5", "floor"),
    ],
)
def test_w_refusals(call: Callable[[Array, Array], Any], clause: str, word: str) -> None:
    with pytest.raises(SpecError, match=word) as refused:
        call(*draw(2, 3, 5))
    assert refused.value.clause == clause


def test_w_bad_numbers_that_count_are_refused_and_nothing_costs_nothing() -> None:
    s, t = draw(3, 2, 4, 4)
    s[1, 0, 1, 1] = np.nan
    with pytest.raises(SpecError, match=r"student holds nan at \(1, 0, 1, 1\)"):
        ref.attention_map_loss(s, t, LENGTHS)
    assert ref.feature_loss(np.zeros((2, 3, 0)), np.zeros((2, 3, 0)), [1, 2]).loss == 0
