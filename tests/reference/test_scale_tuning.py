"""Chapter U: AlphaTuning. The scales of binary codes, their gradient, their fit, and what a task costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit.reference as ref
from lowbit.reference.errors import SpecError
from lowbit.reference.scale_tuning import RESOLVED, bcq_bits, gpt2_shape, group_count, task_size
from lowbit.reference.types import ScaleNorm, Trained

from .bounds import LAW, Array, factorisation, near, psd

TRAIN: tuple[Trained, ...] = ("first", "largest", "all")
problems = st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))


def coded(seed: int, m: int, groups: int, width: int, q: int) -> tuple[Array, Array]:
    """Random codes (m, G·width) and scales (m, G, q), none of them ordered."""
    g = np.random.default_rng(seed)
    return g.integers(0, 2**q, (m, groups * width)), g.standard_normal((m, groups, q))


def weight(codes: Array, scale: Array) -> Array:
    """Ŵ of (U.1), plane by plane."""
    _, groups, q = scale.shape
    signs = [2.0 * (codes >> i & 1) - 1 for i in range(q)]
    repeat = codes.shape[1] // groups
    return sum((s * np.repeat(scale[:, :, i], repeat, axis=1) for i, s in enumerate(signs)), np.zeros(codes.shape))


def greedy(w: Array, q: int) -> tuple[Array, Array]:
    """Row-wise greedy code."""
    r, codes, scale = w.copy(), np.zeros(w.shape, np.int64), np.zeros((len(w), 1, q))
    for i in range(q):
        b = np.where(r < 0, -1, 1)
        scale[:, 0, i] = np.abs(r).mean(axis=1)
        codes |= (b > 0).astype(np.int64) << i
        r = r - scale[:, :, i] * b
    return codes, scale


# -- which scales train ------------------------------------------------------------------------------------------------


def test_u1_first_largest_all() -> None:
    α = np.array([[[3.0, 1.0], [1.0, -3.0], [2.0, -2.0]]])
    assert ref.trainable_scales(α).tolist() == [[[True, False]] * 3]
    assert ref.trainable_scales(α, train="largest").tolist() == [[[True, False], [False, True], [True, False]]]
    assert ref.trainable_scales(α, train="all").all()
    with pytest.raises(SpecError, match=r"\[U-1\] train must be one of 'first', 'largest', 'all', got 'last'"):
        ref.trainable_scales(α, train="last")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[U-1\] scale must have 3 dimensions"):
        ref.trainable_scales(α[0])
    for train in TRAIN:
        assert ref.trainable_scales(np.zeros((2, 3, 0)), train=train).shape == (2, 3, 0)
        assert ref.trainable_scales(np.zeros((2, 0, 3)), train=train).shape == (2, 0, 3)


def test_u1_the_first_scale_need_not_be_the_largest() -> None:
    """A sparse group with one far value: greedy gives α_2 almost twice α_1, and first and largest part."""
    w = np.zeros((1, 64))
    w[0, 5] = 1.0
    _, α = greedy(w, 2)
    assert 1.9 < α[0, 0, 1] / α[0, 0, 0] < 2
    assert ref.trainable_scales(α).tolist() != ref.trainable_scales(α, train="largest").tolist()


# -- gradient ----------------------------------------------------------------------------------------------------------


@LAW
@given(problems)
def test_u2_gradient_is_the_finite_difference(problem: tuple[int, int, int, int, int]) -> None:
    """A loss that is quadratic in Ŵ is quadratic in α: central differences are exact but for rounding."""
    seed, m, groups, width, q = problem
    codes, α = coded(*problem)
    target = np.random.default_rng(seed + 1).standard_normal(codes.shape)

    def loss(scale: Array) -> float:
        return float(((weight(codes, scale) - target) ** 2).sum() / 2)

    g = ref.scale_grad(weight(codes, α) - target, codes, bits=q, group_size=width)
    assert g.shape == α.shape == (m, groups, q)
    h = 0.5
    for at in np.ndindex(α.shape):
        step = np.zeros(α.shape)
        step[at] = h
        size = loss(np.abs(α) + step) + (target**2).sum() + (q * np.abs(α).max() + h) ** 2 * codes.size
        near((loss(α + step) - loss(α - step)) / (2 * h), g[at], roundings=8 * codes.size + 8 * q, magnitude=size / h)


@LAW
@given(problems)
def test_u2_norms_and_groups(problem: tuple[int, int, int, int, int]) -> None:
    width, q = problem[3:]
    codes, _ = coded(*problem)
    g = np.random.default_rng(0).standard_normal(codes.shape)
    total = ref.scale_grad(g, codes, bits=q, group_size=width)
    mean = ref.scale_grad(g, codes, bits=q, group_size=width, norm="mean")
    near(mean * width, total, roundings=2)
    row = ref.scale_grad(g, codes, bits=q)
    near(row[:, 0], total.sum(axis=1), roundings=2 * codes.shape[1], magnitude=np.abs(g).sum())
    flipped = ref.scale_grad(g, 2**q - 1 - codes, bits=q, group_size=width)
    assert (flipped == -total).all()  # all signs turned


@LAW
@given(problems, st.integers(0, 5))
def test_u3_tokens_give_the_same_gradient(problem: tuple[int, int, int, int, int], tokens: int) -> None:
    seed, m, _, width, q = problem
    codes, _ = coded(*problem)
    g = np.random.default_rng(seed)
    x, δ = g.standard_normal((tokens, codes.shape[1])), g.standard_normal((tokens, m))
    norms: tuple[ScaleNorm, ...] = ("sum", "mean")
    for norm in norms:
        found = ref.scale_grad_tokens(x, δ, codes, bits=q, group_size=width, norm=norm)
        assert (found == ref.scale_grad(δ.T @ x, codes, bits=q, group_size=width, norm=norm)).all()
        per_plane = [(δ[:, :, None] * (2.0 * (codes >> i & 1) - 1) * x[:, None, :]).sum(axis=0) for i in range(q)]
        direct = np.stack([p.reshape(m, -1, width).sum(axis=-1) for p in per_plane], axis=-1)
        size = (np.abs(δ).T @ np.abs(x)).sum() if tokens else 0.0
        scale = width if norm == "mean" else 1
        near(found * scale, direct, roundings=2 * (tokens + width) + 2, magnitude=size)


def test_u2_u3_empty_shapes() -> None:
    assert ref.scale_grad(np.zeros((2, 0)), np.zeros((2, 0), int), bits=3).tolist() == [[[0.0] * 3]] * 2
    assert ref.scale_grad(np.zeros((2, 0)), np.zeros((2, 0), int), bits=3, norm="mean").tolist() == [[[0.0] * 3]] * 2
    for norm in ("sum", "mean"):
        g = ref.scale_grad(np.zeros((2, 0)), np.zeros((2, 0), int), bits=3, group_size=4, norm=norm)  # type: ignore[arg-type]
        assert g.shape == (2, 0, 3)
    assert ref.scale_grad(np.zeros((0, 4)), np.zeros((0, 4), int), bits=1).shape == (0, 1, 1)
    zero = ref.scale_grad_tokens(np.zeros((0, 2)), np.zeros((0, 3)), np.zeros((3, 2), int), bits=1)
    assert zero.tolist() == [[[0.0]]] * 3


def test_u2_u3_refusals() -> None:
    g, q = np.ones((2, 4)), np.ones((2, 4), int)
    with pytest.raises(SpecError, match=r"\[U-2\] group size 3 does not divide axis length 4"):
        ref.scale_grad(g, q, bits=1, group_size=3)
    with pytest.raises(SpecError, match=r"\[U-2\] code 2 at \(1, 3\) is outside 0\.\.1"):
        ref.scale_grad(g, [[0, 1, 0, 1], [0, 1, 1, 2]], bits=1)
    with pytest.raises(SpecError, match=r"\[U-2\] code -1 at \(0, 0\)"):  # signs where codes belong
        ref.scale_grad(g[:1], [[-1, 1, 1, 1]], bits=1)
    with pytest.raises(SpecError, match=r"\[U-2\] bits must be in 1\.\.8, got 9"):
        ref.scale_grad(g, q, bits=9)
    with pytest.raises(SpecError, match=r"\[U-2\] codes \(1, 4\) and grad \(2, 4\) must have one shape"):
        ref.scale_grad(g, q[:1], bits=1)
    with pytest.raises(SpecError, match=r"\[U-2\] norm must be one of 'sum', 'mean'"):
        ref.scale_grad(g, q, bits=1, norm="rms")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"\[U-3\] x \(3, 4\), delta \(2, 2\) and codes \(2, 4\)"):
        ref.scale_grad_tokens(np.ones((3, 4)), g[:, :2], q, bits=1)
    with pytest.raises(SpecError, match=r"\[U-3\] norm"):
        ref.scale_grad_tokens(np.ones((2, 4)), g[:, :2], q, bits=1, norm="rms")  # type: ignore[arg-type]


# -- a step of training ------------------------------------------------------------------------------------------------


def test_u4_first_step_moves_by_the_learning_rate() -> None:
    """m̂ / √v̂ = sign(g): whatever the size of the gradient, and so whatever its normalisation."""
    α, zero, on = np.ones((1, 2, 2)), np.zeros((1, 2, 2)), np.ones((1, 2, 2), bool)
    g = np.array([[[1e-6, -5.0], [0.0, 1e9]]])
    found = ref.tune_step(α, g, α, zero, zero, on, step=1, lr=0.125, epsilon=0.0)
    near(found.scale, 1 - 0.125 * np.sign(g), roundings=8)
    assert found.first[0, 1, 0] == 0  # no gradient, no movement, no 0/0
    with_epsilon = ref.tune_step(α, g, α, zero, zero, on, step=1, lr=0.125)
    assert with_epsilon.scale[0, 0, 0] > found.scale[0, 0, 0]  # 1e-8 shows beside 1e-6
    assert with_epsilon.scale[0, 1, 0] == 1


def test_u4_epsilon_is_all_that_the_normalisation_changes_under_adam() -> None:
    codes, α = coded(0, 3, 2, 8, 2)
    runs = {}
    for norm in ("sum", "mean"):
        state = ref.tune_step(α, α * 0, α, α * 0, α * 0, np.ones(α.shape, bool), step=1, lr=0.0, epsilon=0.0)
        draws = np.random.default_rng(1)
        for t in range(1, 6):
            slope = ref.scale_grad(draws.standard_normal(codes.shape), codes, bits=2, group_size=8, norm=norm)  # type: ignore[arg-type]
            state = ref.tune_step(
                state.scale, slope, α, state.first, state.second, np.ones(α.shape, bool), step=t, lr=0.1, epsilon=0.0
            )
        runs[norm] = state.scale
    near(runs["sum"], runs["mean"], roundings=200, magnitude=5)
    assert np.abs(runs["sum"] - α).max() > 0.1


def test_u4_the_formula_over_several_steps() -> None:
    """Against a scalar transcription with the bias corrections as products."""
    α0, β1, β2, ε, λ, lr = 0.75, 0.8, 0.9, 1e-3, 0.25, 0.1
    α, m, v = 1.5, 0.0, 0.0
    scale, first, second = (np.full((1, 1, 1), x) for x in (α, m, v))
    for t, g in enumerate((0.5, -2.0, 0.0, 3.0), 1):
        m, v = β1 * m + (1 - β1) * g, β2 * v + (1 - β2) * g * g
        α = α - lr * (m / (1 - β1**t) / ((v / (1 - β2**t)) ** 0.5 + ε) + λ * (α - α0))
        scale, first, second = ref.tune_step(
            scale, np.full((1, 1, 1), g), np.full((1, 1, 1), α0), first, second, np.ones((1, 1, 1), bool),
            step=t, lr=lr, beta1=β1, beta2=β2, epsilon=ε, decay=λ,
        )  # fmt: skip
    near(scale.item(), α, roundings=100, magnitude=3)
    near(first.item(), m, roundings=20, magnitude=3)
    near(second.item(), v, roundings=20, magnitude=9)


def test_u4_decay_pulls_to_the_start_not_to_zero() -> None:
    """The trap of weight decay: it would shrink the dominant plane."""
    start, zero, on = np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1)), np.ones((1, 1, 1), bool)
    kept = ref.tune_step(start, zero, start, zero, zero, on, step=1, lr=0.5, decay=0.5)
    assert kept.scale.item() == 2
    shrunk = ref.tune_step(start, zero, zero, zero, zero, on, step=1, lr=0.5, decay=0.5)
    assert shrunk.scale.item() == 1.5


@pytest.mark.parametrize("train", TRAIN)
def test_u4a_frozen_scales_and_their_state_stay(train: Trained) -> None:
    codes, α = coded(3, 4, 2, 4, 3)
    g = np.random.default_rng(4)
    m, v = g.standard_normal(α.shape), g.random(α.shape)
    on = ref.trainable_scales(α, train=train)
    grad = ref.scale_grad(g.standard_normal(codes.shape), codes, bits=3, group_size=4)
    found = ref.tune_step(α, grad, α * 0, m, v, on, step=3, lr=0.1, decay=0.1)
    for new, old in zip(found, (α, m, v), strict=True):
        assert (new[~on] == old[~on]).all()
        assert (new[on] != old[on]).all()


def test_u4_refusals() -> None:
    α, on = np.ones((1, 1, 2)), np.ones((1, 1, 2), bool)

    def step(*arrays: Array, **options: object) -> None:
        given = [*arrays, *[α, α, α, α, α, on][len(arrays) :]]
        ref.tune_step(*given, **{"step": 1, "lr": 0.1, **options})  # type: ignore[arg-type]

    step()
    for words, arrays, options in (
        ("grad of shape \\(1, 2, 1\\) must have the shape of scale", (α, np.ones((1, 2, 1))), {}),
        ("trainable of shape", (α, α, α, α, α, on[:, :, :1]), {}),
        ("trainable must hold booleans, got dtype float64", (α, α, α, α, α, α), {}),
        ("second must be at least 0, got -1.0", (α, α, α, α, -α), {}),
        ("step must be at least 1, got 0", (), {"step": 0}),
        ("lr must be at least 0", (), {"lr": -0.1}),
        ("beta1 and beta2 must be below 1, got 0.9 and 1.0", (), {"beta2": 1.0}),
        ("beta1 must be at least 0", (), {"beta1": -0.1}),
        ("epsilon must be at least 0", (), {"epsilon": -1.0}),
        ("decay must be at least 0", (), {"decay": -1.0}),
        ("scale must have 3 dimensions", (α[0],), {}),
    ):
        with pytest.raises(SpecError, match=rf"\[U-4\] {words}"):
            step(*arrays, **options)  # type: ignore[arg-type]


# -- least squares -----------------------------------------------------------------------------------------------------


def objective(w: Array, codes: Array, scale: Array, c: Array) -> float:
    d = w - weight(codes, scale)
    return float(np.einsum("ij,jk,ik->", d, c, d))


def brute_force(w: Array, codes: Array, scale: Array, x: Array, on: Array) -> Array:
    """lstsq on the outputs themselves, row by row, one column of the design per scale that trains."""
    best = scale.copy()
    for r in range(len(w)):
        columns = []
        for at in zip(*np.nonzero(on[r]), strict=True):
            unit = np.zeros((1, *scale.shape[1:]))
            unit[(0, *at)] = 1
            columns.append(x @ weight(codes[r : r + 1], unit)[0])
        if columns:
            rest = np.where(on[r : r + 1], 0, scale[r : r + 1])
            y = x @ (w[r] - weight(codes[r : r + 1], rest)[0])
            best[r][on[r]] = np.linalg.lstsq(np.stack(columns, axis=1), y, rcond=None)[0]
    return best


@LAW
@given(problems, st.sampled_from(TRAIN))
def test_u5_fit_is_least_squares_on_the_outputs(problem: tuple[int, int, int, int, int], train: Trained) -> None:
    seed, _, _, _, _ = problem
    codes, α = coded(*problem)
    g = np.random.default_rng(seed + 2)
    x, w = g.standard_normal((40, codes.shape[1])), g.standard_normal(codes.shape)
    c, on = x.T @ x, ref.trainable_scales(α, train=train)
    fitted = ref.fit_scales(w, c, codes, α, on)
    assert (fitted[~on] == α[~on]).all()
    best = objective(w, codes, brute_force(w, codes, α, x, on), c)
    before = objective(w, codes, α, c) + objective(w, codes, α * 0, c)
    near(objective(w, codes, fitted, c), best, roundings=factorisation(40), magnitude=before)


def test_u5_tuning_by_gradient_ends_at_the_fit() -> None:
    """The oracle: training α_1 alone on a linear model is least squares."""
    g = np.random.default_rng(5)
    w, x = g.standard_normal((3, 16)), g.standard_normal((200, 16))
    codes, α = greedy(w, 3)
    task = w + 0.3 * g.standard_normal(w.shape)
    c, on = x.T @ x, ref.trainable_scales(α)
    y = x @ task.T
    tuned = α
    for _ in range(400):
        δ = x @ weight(codes, tuned).T - y
        tuned = tuned - on * ref.scale_grad_tokens(x, δ, codes, bits=3) / (2 * np.trace(c))
    fitted = ref.fit_scales(task, c, codes, α, on)
    near(tuned, fitted, roundings=10**4, magnitude=np.abs(α).max())
    assert (tuned[~on] == α[~on]).all()
    assert objective(task, codes, fitted, c) < objective(task, codes, α, c)
    slope = ref.scale_grad_tokens(x, x @ weight(codes, fitted).T - y, codes, bits=3)
    near(slope * on, 0 * slope, roundings=10**4, magnitude=np.abs(y).sum())


def test_u5_with_white_inputs_it_is_the_least_squares_step_of_binary_coding() -> None:
    w = np.random.default_rng(6).standard_normal((4, 32))
    codes, α = greedy(w, 3)
    fitted = ref.fit_scales(w, np.eye(32), codes, α, np.ones(α.shape, bool))
    for r in range(4):
        b = np.stack([2.0 * (codes[r] >> i & 1) - 1 for i in range(3)], axis=1)
        near(fitted[r, 0], np.linalg.lstsq(b, w[r], rcond=None)[0], roundings=factorisation(32), magnitude=1)


def test_u5b_planes_that_coincide_share_the_change() -> None:
    """A constant row: every plane is the same, B Bᵀ has rank 1 and its inverse does not exist."""
    codes = np.full((1, 4), 3)
    fitted = ref.fit_scales(np.full((1, 4), 5.0), np.eye(4), codes, [[[1.0, 2.0]]], np.ones((1, 1, 2), bool))
    near(fitted, [[[2.0, 3.0]]], roundings=factorisation(4))
    opposite = ref.fit_scales(np.full((1, 4), 5.0), np.eye(4), codes - 2, [[[1.0, 2.0]]], np.ones((1, 1, 2), bool))
    near(opposite, [[[4.0, -1.0]]], roundings=factorisation(4))


def test_u5b_dead_groups_and_exact_weights_do_not_move() -> None:
    codes, α = coded(7, 2, 2, 3, 2)
    c = psd(np.random.default_rng(7), 6)
    c[3:] = c[:, 3:] = 0  # no input reaches the second group
    on = np.ones(α.shape, bool)
    fitted = ref.fit_scales(np.ones((2, 6)), c, codes, α, on)
    assert (fitted[:, 1] == α[:, 1]).all()
    assert (fitted[:, 0] != α[:, 0]).any()
    near(ref.fit_scales(weight(codes, α), c, codes, α, on), α, roundings=factorisation(6), magnitude=4)
    assert (ref.fit_scales(np.ones((2, 6)), np.zeros((6, 6)), codes, α, on) == α).all()
    assert (ref.fit_scales(np.ones((2, 6)), c, codes, α, ~on) == α).all()
    assert RESOLVED < 2.0**-24


def test_u5_empty_shapes_and_refusals() -> None:
    none = np.zeros((2, 0))
    assert ref.fit_scales(none, np.eye(0), none.astype(int), np.ones((2, 1, 1)), np.ones((2, 1, 1), bool)).tolist() == [
        [[1.0]],
        [[1.0]],
    ]
    assert ref.fit_scales(none, np.eye(0), none.astype(int), np.ones((2, 0, 1)), np.ones((2, 0, 1), bool)).size == 0
    w, c, q, α, on = np.ones((2, 4)), np.eye(4), np.ones((2, 4), int), np.ones((2, 2, 1)), np.ones((2, 2, 1), bool)
    for words, arrays in (
        (r"codes \(1, 4\) and w \(2, 4\) must have one shape", (w, c, q[:1], α, on)),
        (r"scale \(2, 3, 1\) does not cover codes \(2, 4\)", (w, c, q, np.ones((2, 3, 1)), on)),
        (r"scale \(1, 2, 1\) does not cover codes \(2, 4\)", (w, c, q, α[:1], on)),
        (r"scale \(2, 0, 1\) does not cover codes \(2, 4\)", (w, c, q, α[:, :0], on)),
        (r"trainable must be bool of the shape of scale, \(2, 2, 1\), got bool \(2, 1, 1\)", (w, c, q, α, on[:, :1])),
        (r"trainable must be bool of the shape of scale, \(2, 2, 1\), got int64 \(2, 2, 1\)", (w, c, q, α, on * 1)),
        (r"c must have shape \(4, 4\), got \(3, 3\)", (w, np.eye(3), q, α, on)),
        (r"bits must be in 1\.\.8, got 0", (w, c, q, α[..., :0], on[..., :0])),
    ):
        with pytest.raises(SpecError, match=rf"\[U-5\] {words}"):
            ref.fit_scales(*arrays)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "width", "full", "sizes", "trainable", "task"),
    [
        (24, 1024, 1419, {2: 288.6, 3: 327.2, 4: 365.9}, 0.22, 0.88),
        (36, 1280, 3096, {2: 445.2, 3: 535.4, 4: 625.5}, 0.41, 1.66),
    ],
)
def test_published_sizes_of_gpt2(
    layers: int, width: int, full: float, sizes: dict[int, float], trainable: float, task: float
) -> None:
    shape = gpt2_shape(layers, width)
    for q, expected in sizes.items():
        size = task_size(*shape, bits=q)
        assert round(size.compressed / 1e6, 1) == expected
        assert round(size.full / 1e6) == full
        assert round(size.trainable / 1e6, 2) == trainable
        assert round(size.task / 1e6, 2) == task
        assert size.trainable == 9 * width * layers


def test_headline_of_the_paper() -> None:
    """Over 10 times smaller where it counts, in the linear layers at 3 bits, and over 1000 times fewer parameters."""
    linears, other = gpt2_shape(24, 1024)
    size = task_size(linears, 0, bits=3)
    assert size.full / size.compressed > 10
    whole = task_size(linears, other, bits=4)
    assert whole.full / 4 / whole.trainable > 1000


@LAW
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), st.integers(1, 4))
def test_sizes_add_up(shapes: list[tuple[int, int]], q: int) -> None:
    total = sum(bcq_bits(m, 8 * k, bits=q, group_size=8) for m, k in shapes)
    assert total == sum(q * m * 8 * k + 32 * q * m * k for m, k in shapes)
    wide = [(m, 8 * k) for m, k in shapes]
    for train, factor in (("first", 1), ("largest", 1), ("all", q)):
        size = task_size(wide, 5, bits=q, group_size=8, train=train, scale_bits=16)  # type: ignore[arg-type]
        assert size.trainable == factor * sum(m * k for m, k in shapes)
        assert size.task == 2 * size.trainable
        assert size.compressed - 20 == -(-sum(q * m * 8 * k + 16 * q * m * k for m, k in shapes) // 8)


def test_sizes_refuse() -> None:
    assert group_count(0, 4, "A-3") == 0
    for options in ({"bits": 9}, {"bits": 1, "group_size": 3}, {"bits": 1, "scale_bits": 0}):
        with pytest.raises(SpecError):
            bcq_bits(2, 8, **options)
    with pytest.raises(SpecError, match="train must be one of"):
        task_size([(2, 8)], 0, bits=1, train="last")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="other must be at least 0"):
        task_size([(2, 8)], -1, bits=1)
