"""Chapter A: what holds for every operation, whatever it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import lowbit.reference as ref
from lowbit.reference.errors import SpecError, Unsupported
from lowbit.reference.types import DecoderBlock, IntegerTable, Table

from .bounds import Array, psd

g = np.random.default_rng(0)
W, D, C = g.standard_normal((4, 8)), g.standard_normal((4, 8)), psd(g, 8)
S, Z = ref.fit_grid(W, bits=4)
CODES = ref.quantize(W, S, Z, bits=4)
STARTED: Any = ref.start_oscillation(CODES[::-1].copy())
TRACKED = ref.track_oscillation(CODES, *STARTED)
LEAF, OTHER = ref.moment_leaf(W, index=0), ref.moment_leaf(D, index=1)
B, A = ref.eora(D, C, rank=2)
BINARY: Any = ref.bcq(W, bits=2, group_size=4, offset=True)
PACKED = ref.bcq_pack(*BINARY)
PLANES, PLANES5 = CODES % 4, np.repeat(CODES, 2, axis=0)[:5] % 4
SCALE = np.abs(D).reshape(4, 2, 4)[..., :2].copy()
TRAIN = ref.trainable_scales(SCALE)
ROWS = np.array([0.5, 1.0, 1.5, 2.0])
LEVELS = ref.normal_float(bits=4)
BLOCKS = ref.block_scale(W, block_size=12)
SPECTRA = -np.sort(-g.random((4, 5)), axis=1)
EACH = g.random(4)
COST, LOW, HIGH = np.array([3, 1, 2, 5]), np.array([0, 1, 0, 0]), np.array([5, 4, 5, 3])
RANKS = np.array([1, 2, 0, 3])
SEQUENCE, TOWARDS = g.standard_normal((2, 2, 3, 4))
LABELS, LENGTHS = np.array([[3, -100, 0], [1, 1, 2]]), np.array([2, 3])
SCORES = g.standard_normal((2, 2, 3, 3))
PICKED = np.array([1, 0, 1, 3])


class Call(NamedTuple):
    """An operation with valid arguments, and the names of the arrays that must be finite."""

    name: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    finite: tuple[str, ...] = ()

    def __call__(self, *arrays: Any) -> Any:
        operation: Callable[..., Any] = getattr(ref, self.name)
        return operation(*(arrays or self.arrays), **self.options)


ADDRESSES = np.arange(8).reshape(2, 4)
TURN = np.linalg.qr(C)[0]
BLOCK = DecoderBlock(W[0], D, W, W, D.T.copy(), W[1], W, D, W.T.copy(), None, W[2], None)
LINES = Table(np.array([-1.0, 0.5]), np.array([0.0, 0.25, 1.0]), np.array([0.0, 0.25, -0.125]))
INTEGERS = ref.integer_table(LINES, scale_bits=2)
DIVIDE = IntegerTable(np.array([5], np.int32), np.array([-7, -2], np.int32), np.array([75, 45], np.int32), 2, 3)
KNOTS = np.array([-4.0, -1.0, 1.0, 4.0])
PROBLEM = (KNOTS, np.abs(KNOTS), KNOTS / 2, np.abs(KNOTS / 2), np.array([[0, 1, 3, 4]]))
CALLS = [
    Call("philox_words", (ADDRESSES,), {"seed": 1}),
    Call("philox_uniform", (ADDRESSES,), {"seed": 1}),
    Call("philox_integers", (ADDRESSES,), {"seed": 1, "bound": 7}),
    Call("philox_normal", (ADDRESSES,), {"seed": 1}),
    Call("round_half_even", (W,), {}),
    Call("round_clip", (W,), {"low": -2, "high": 2}),
    Call("nearest_level", (W, np.array([-1.0, 0.0, 1.0])), {}, ("x", "levels")),
    Call("fit_grid", (W,), {"bits": 4}, ("x",)),
    Call("clip_search", (W,), {"bits": 4}, ("x",)),
    Call("quantize", (W, S, Z), {"bits": 4}, ("x", "scale")),
    Call("dequantize", (CODES, S, Z), {}, ("", "scale")),
    Call("pack", (CODES,), {"bits": 4}),
    Call("unpack", (ref.pack(CODES, bits=4),), {"bits": 4, "length": 8}),
    Call("normal_float", (), {"bits": 4}),
    Call("dynamic_float", (), {"bits": 8}),
    Call("block_scale", (W,), {"block_size": 12}, ("x",)),
    Call("quantize_blocks", (W, BLOCKS, LEVELS), {"block_size": 12}, ("x", "scale", "levels")),
    Call("dequantize_blocks", (CODES, BLOCKS, LEVELS), {"block_size": 12}, ("", "scale", "levels")),
    Call("quantize_scale", (BLOCKS, LEVELS), {"block_size": 2}, ("scale", "levels")),
    Call(
        "dequantize_scale",
        (CODES[0], BLOCKS, np.array(0.5), LEVELS),
        {"block_size": 3},
        ("", "scale", "offset", "levels"),
    ),
    Call(
        "codebook_matmul",
        (D, ref.pack(CODES, bits=4), BLOCKS, LEVELS),
        {"bits": 4, "block_size": 12},
        ("x", "", "scale", "levels"),
    ),
    Call("twn_code", (W,), {"granularity": "row"}, ("x",)),
    Call("twn", (W,), {}, ("x",)),
    Call("clamped_uniform", (W,), {}, ("x",)),
    Call("min_max", (W,), {"scheme": "asymmetric"}, ("x",)),
    Call("straight_through", (D, W), {"clip": 1.0}, ("grad", "x")),
    Call("lsq_init", (W,), {"bits": 4, "axis": 0}, ("x",)),
    Call("lsq_code", (W, ROWS, D[:, 0].copy()), {"bits": 3, "axis": 0}, ("x", "step", "offset")),
    Call("lsq", (W, ROWS), {"bits": 3, "axis": 0}, ("x", "step")),
    Call("lsq_gradient", (D, W, ROWS, D[:, 0].copy()), {"bits": 3, "axis": 0}, ("grad", "x", "step", "offset")),
    Call("statsq", (W,), {"bits": 2}, ("w",)),
    Call("statsq_grad", (W, D), {"bits": 3, "path": "scale"}, ("w", "grad")),
    Call("start_oscillation", (CODES,), {}),
    Call(
        "track_oscillation",
        (CODES[::-1].copy(), *TRACKED),
        {"threshold": 0.005},
        ("", "", "", "frequency", "", "average"),
    ),
    Call("boundary_statistics", (W, D, D + 1), {"bits": 2, "boundary_range": 0.1}, ("w", "grad", "previous")),
    Call("cga_mask", (W,), {"bits": 2, "boundary_range": 0.1}, ("w",)),
    Call(
        "cga_step",
        (W, D, D + 1, W**2, W > 0),
        {"step": 2, "lr": 0.1, "decay": 0.1},
        ("w", "grad", "first", "second"),
    ),
    Call("qkr_weight", (W, D), {"heads": 2}, ("w_q", "w_k")),
    Call("qkr_grad", (W, D, np.tile(C, (2, 1)), np.tile(C, (2, 1)) > 0), {"heads": 2}, ("w_q", "w_k", "grad")),
    Call(
        "qkr_attention",
        (W.reshape(2, 2, 8), W, D, D[:2].copy(), W[:, 0].copy(), W[0, :2].copy()),
        {"heads": 2},
        ("x", "w_q", "w_k", "w_v", "b_q", "b_v"),
    ),
    Call("bcq", (W,), {"bits": 2}, ("w",)),
    Call("bcq_refit", (W, BINARY.codes), {"bits": 2}, ("w",)),
    Call("bcq_assign", (W, BINARY.scale, BINARY.offset), {}, ("w", "scale", "offset")),
    Call("bcq_weight", tuple(BINARY), {}, ("", "scale", "offset")),
    Call("bcq_from_grid", (CODES, S, Z), {"bits": 4}, ("", "scale")),
    Call("bcq_pack", tuple(BINARY), {}, ("", "scale", "offset")),
    Call("bcq_unpack", tuple(PACKED), {"length": 8}, ("", "scale", "offset")),
    Call("lookup_tables", (W,), {"width": 4}, ("x",)),
    Call("bcq_product", (W, *PACKED), {}, ("x", "", "scale", "offset")),
    Call("trainable_scales", (SCALE,), {"train": "largest"}, ("scale",)),
    Call("scale_grad", (W, PLANES), {"bits": 2, "group_size": 4}, ("grad",)),
    Call("scale_grad_tokens", (W, D[:, :5], PLANES5), {"bits": 2, "norm": "mean"}, ("x", "delta")),
    Call(
        "tune_step",
        (SCALE, SCALE - 1, SCALE + 1, SCALE * 0, SCALE**2, TRAIN),
        {"step": 2, "lr": 0.1, "decay": 0.1},
        ("scale", "grad", "initial", "first", "second"),
    ),
    Call("fit_scales", (W, C, PLANES, SCALE, TRAIN), {}, ("w", "c", "", "scale")),
    Call("row_bits", (np.array([3, 9, 3, 1]),), {"clusters": 2}),
    Call("allocate_bits", (W**2, np.cumsum(np.ones((4, 8), int), axis=1)), {"budget": 9}, ("errors",)),
    Call("project_rows", (W, np.array([1, 2, 3, 1])), {}, ("w",)),
    Call("inverse_cholesky", (C,), {}, ("h",)),
    Call("gptq", (W, C), {"bits": 4}, ("w", "h")),
    Call("sparsegpt", (W, C), {"bits": 4}, ("w", "h")),
    Call("wanda", (W, np.diag(C).copy()), {}, ("w", "feature_moment")),
    Call("moment_leaf", (W,), {"index": 0}, ("x",)),
    Call("moment_merge", (LEAF, OTHER), {}),
    Call("moment_total", (LEAF,), {}),
    Call("recency_moment", ([W[None], D[None]],), {"total": 2}),
    Call("svd_patch", (D,), {"rank": 2}, ("d",)),
    Call("scaled_svd_patch", (D, np.diag(C).copy()), {"rank": 2}, ("d", "channel_scale")),
    Call("loftq", (W,), {"rank": 2, "bits": 2, "block_size": 12, "iterations": 2}, ("w",)),
    Call("objective", (D, C), {}, ("d", "c")),
    Call("eora", (D, C), {"rank": 2}, ("d", "c")),
    Call("error_spectrum", (D, C), {}, ("d", "c")),
    Call("optimum", (D, C), {"rank": 2}, ("d", "c")),
    Call("eora_published", (D, C), {"rank": 2}, ("d", "c")),
    Call("eora_certified", (D, C), {"rank": 2}, ("d", "c")),
    Call("stationarity", (D, C, B, A), {}, ("d", "c", "b", "a")),
    Call("quantize_adapter", (B, A, C), {"bits": 4}, ("b", "a", "c")),
    Call("residual_moment", (C, A), {}, ("c", "a")),
    Call("explained_error", (SPECTRA,), {}, ("spectra",)),
    Call("residual_damage", (SPECTRA, EACH), {}, ("spectra", "energy")),
    Call("subspace_overlap", (W, D, C), {"rank": 2}, ("w", "w_hat", "c")),
    Call("gradient_importance", (W,), {}, ("gradient",)),
    Call("loss_importance", (EACH, SPECTRA), {"base": 0.5}, ("losses", "spectra")),
    Call("rank_cost", (np.array([[4, 9], [3, 8]]),), {"bits": 3}),
    Call("allocate_greedy", (SPECTRA, EACH, COST, LOW, HIGH), {"budget": 20}, ("spectra", "importance")),
    Call("threshold_ranks", (SPECTRA, LOW, HIGH), {"threshold": 0.8}, ("spectra",)),
    Call("allocate_threshold", (SPECTRA, COST, LOW, HIGH), {"budget": 20}, ("spectra",)),
    Call("allocate_proportional", (EACH, COST, LOW, HIGH), {"budget": 20}, ("sensitivity",)),
    Call("allocation_objective", (SPECTRA, EACH, RANKS), {}, ("spectra", "importance")),
    Call("allocation_bound", (SPECTRA, EACH, COST, LOW, HIGH), {"budget": 20}, ("spectra", "importance")),
    Call("pool_modules", (SPECTRA, EACH, COST, LOW, HIGH, np.array([0, 1, 0, 1])), {}, ("spectra", "importance")),
    Call(
        "reallocate_ranks",
        (SPECTRA[:, :2], SPECTRA[:, 2:], EACH, COST, LOW, HIGH, RANKS),
        {"budget": 20, "step": 1},
        ("kept", "residual", "importance"),
    ),
    Call("nest_patch", (B, A, C), {}, ("b", "a", "c")),
    Call("dora_magnitude", (W,), {}, ("w",)),
    Call("dora_norm", (W, B, A), {"scaling": 2.0}, ("w", "b", "a")),
    Call("factored_norm", (W, 100 * ROWS, B, A), {"scaling": 0.5}, ("w", "square_norm", "b", "a")),
    Call("dora_weight", (W, B, A, ROWS), {"scaling": 2.0}, ("w", "b", "a", "magnitude")),
    Call(
        "dora_forward",
        (D, D / 2, W, ROWS / 2, B, A, ROWS),
        {"scaling": 2.0},
        ("x", "dropped", "w", "bias", "b", "a", "magnitude"),
    ),
    Call("dora_gradient", (D, W, B, A, ROWS), {"scaling": 2.0}, ("grad", "w", "b", "a", "magnitude")),
    Call("dora_merge", (W, B, A, ROWS), {"scaling": 2.0}, ("w", "b", "a", "magnitude")),
    Call("dora_unmerge", (W, B, A, ROWS), {"scaling": 2.0}, ("merged", "b", "a", "factor")),
    Call("dvora_factors", (B, A, ROWS, ROWS[:2]), {}, ("b", "a", "row_scale", "rank_scale")),
    Call("dvora_gradient", (B, A, B / 2, A / 2), {}, ("grad_b", "grad_a", "b", "a")),
    Call("decomposition_change", (W, D), {}, ("w", "start")),
    Call("dora_to_lora", (W, B, A, ROWS), {"scaling": 2.0, "rank": 2}, ("w", "b", "a", "magnitude")),
    Call("hadamard_matrix", (), {"order": 12}),
    Call("hadamard_transform", (W,), {}, ("x",)),
    Call("kronecker_transform", (W, np.array([[1.0, 1.0], [-1.0, 1.0]])), {}, ("x", "table")),
    Call("random_hadamard", (), {"order": 12, "seed": 1}),
    Call("orthogonal_factor", (C,), {}, ("z",)),
    Call("random_orthogonal", (), {"order": 6, "seed": 1}),
    Call("fuse_norm", (W, D[0].copy()), {}, ("w", "gain")),
    Call("rotate_inputs", (W, TURN), {}, ("w", "q")),
    Call("rotate_outputs", (W.T.copy(), TURN), {}, ("w", "q")),
    Call("rotate_block", (BLOCK, TURN, None), {}, ("", "r1")),
    Call("rotate_ends", (W, D[0].copy(), D, TURN), {}, ("embedding", "gain", "head", "r1")),
    Call("outlier_measures", (W,), {}, ("x",)),
    Call("quantize_activations", (W,), {"bits": 4}, ("x",)),
    Call("activation_clip", (W,), {"bits": 4}, ("x",)),
    Call("fit_chords", (np.array([-1.0, 0.0, 2.0]), ROWS[:3].copy()), {}, ("knots", "values")),
    Call("fit_segments", (W[0], D[0], np.array([-0.5, 0.5])), {}, ("x", "y", "breakpoints")),
    Call("round_table", (LINES,), {"fraction_bits": 1, "bits": 2}),
    Call("integer_table", (LINES,), {"scale_bits": 2}),
    Call("evaluate_table", (W, LINES), {}, ("x",)),
    Call("evaluate_codes", (CODES, INTEGERS), {}),
    Call("lookup_codes", (CODES, np.arange(16.0)), {"low": 0}, ("", "entries")),
    Call("requantize_codes", (9 * CODES,), {"shift": 2}),
    Call("table_gradient", (W, CODES), {"scale": 0.25, "function": "tanh"}, ("grad",)),
    Call("evaluate_ranges", (np.abs(W), LINES), {"function": "rsqrt"}, ("x",)),
    Call("table_softmax", (CODES, INTEGERS, DIVIDE), {}),
    Call("table_layer_norm", (CODES, DIVIDE), {}),
    Call("verify_table", (INTEGERS, D[0].copy()), {}, ("", "values")),
    Call("genome_fitness", (D,), {"function": "gelu"}, ("genomes",)),
    Call("genetic_search", (), {"function": "gelu", "entries": 4, "generations": 1, "population": 4}),
    Call("knot_grid", (), {"function": "exp", "fraction_bits": 1}),
    Call("search_problem", (KNOTS,), {"function": "gelu"}, ("knots",)),
    Call("optimal_search", PROBLEM, {"entries": 3}, ("knots", "values", "x", "y")),
    Call("optimality_bound", (*PROBLEM, np.ones((3, 4))), {}, ("knots", "values", "x", "y", "", "potentials")),
    Call("table_objective", (*PROBLEM[2:], KNOTS[1:], KNOTS[1:]), {}, ("x", "y", "", "slopes", "intercepts")),
    Call("error_vector_score", (W, PICKED), {}, ("logits",)),
    Call("disagreement_score", (W, D), {}, ("logits", "reference")),
    Call("acs_score", (W, D, PICKED), {"epoch": 1, "epochs": 3}, ("logits", "reference")),
    Call("select_coreset", (EACH, PICKED), {"fraction": 0.5}, ("scores",)),
    Call("el2n_score", (np.stack([W, D]), PICKED), {}, ("logits",)),
    Call("grand_score", (W, D, PICKED), {}, ("logits", "features")),
    Call("forgetting_score", (W > 0,), {}),
    Call("moderate_score", (W, PICKED), {}, ("features",)),
    Call("contextual_diversity", (np.abs(W), np.abs(D)), {}, ("p", "q")),
    Call("k_center", (W, PICKED[:1]), {"count": 2}, ("x",)),
    Call("herding", (W,), {"count": 2}, ("x",)),
    Call("random_score", (), {"size": 5, "seed": 1}),
    Call("logit_loss", (W, D), {"temperature": 2.0}, ("student", "teacher")),
    Call("token_loss", (SEQUENCE, TOWARDS, LABELS), {}, ("student", "teacher")),
    Call("feature_loss", (SEQUENCE, TOWARDS, LENGTHS), {}, ("student", "teacher")),
    Call("score_loss", (SCORES, SCORES[::-1].copy()), {"causal": True}, ("student", "teacher")),
    Call("attention_map_loss", (SCORES, SCORES[::-1].copy(), LENGTHS), {}, ("student", "teacher")),
    Call("ranking_loss", (SCORES[0], SCORES[1]), {}, ("student", "teacher")),
    Call("cover_length", (SCORES[0], SCORES[1]), {"top": 2}, ("student", "teacher")),
    Call("attention_range", (W,), {}, ("x",)),
    Call(
        "attention_norms",
        (SCORES[0], W[:3], D, D[:, 0].copy(), D[:, :4].copy()),
        {},
        ("maps", "x", "w_v", "b_v", "w_o"),
    ),
    Call("power_eigenvalues", (C, W), {"iterations": 5}, ("operator", "start")),
]
calls = pytest.mark.parametrize("call", CALLS, ids=lambda c: c.name)
# Moment nodes are float64 arrays by definition: there is no other precision and no list to pass.
calls_on_values = pytest.mark.parametrize(
    "call", [c for c in CALLS if c.name not in ("moment_merge", "moment_total")], ids=lambda c: c.name
)


def leaves(x: Any) -> list[Array]:
    """Every array of nested tuples and lists."""
    if isinstance(x, np.ndarray):
        return [x]
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, (tuple, list)) else []


def each(x: Any, change: Callable[[Array], Any]) -> Any:
    if isinstance(x, np.ndarray):
        return change(x)
    if isinstance(x, (tuple, list)):
        parts = [each(part, change) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return x


def assert_same(one: Any, other: Any) -> None:
    assert [a.tobytes() for a in leaves(one)] == [a.tobytes() for a in leaves(other)]


def strided(x: Array) -> Array:
    """The same values with every second element in between."""
    spaced = np.full(tuple(2 * n for n in x.shape), 99, x.dtype)
    view = spaced[(*(slice(None, None, 2) for _ in x.shape), ...)]  # the dots keep a 0-d view an array
    view[...] = x
    return view


def test_every_operation_is_called_here() -> None:
    assert [call.name for call in CALLS] == ref.__all__


@calls
def test_a1_inputs_are_never_written_and_results_are_fresh(call: Call) -> None:
    arrays = copy.deepcopy(call.arrays)
    result = call(*arrays)
    assert_same(arrays, call.arrays)
    for out in leaves(result):
        assert out.flags.writeable
        assert not any(np.shares_memory(out, given) for given in leaves(arrays))


@calls
def test_a2_non_contiguous_inputs(call: Call) -> None:
    assert_same(call(*each(call.arrays, strided)), call())
    assert_same(call(*each(call.arrays, lambda x: np.asarray(x, order="F"))), call())


@calls
def test_a2_read_only_inputs(call: Call) -> None:
    arrays = copy.deepcopy(call.arrays)
    for array in leaves(arrays):
        array.flags.writeable = False
    assert_same(call(*arrays), call())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@calls_on_values
def test_low_precision_inputs_are_the_same_numbers(call: Call, dtype: type) -> None:
    low = each(call.arrays, lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
    wide = each(low, lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x)
    result = call(*low)
    assert_same(result, call(*wide))
    assert all(out.dtype in (np.float64, np.int32, np.bool_) for out in leaves(result))


@calls_on_values
def test_array_likes(call: Call) -> None:
    assert_same(call(*each(call.arrays, lambda x: x.tolist())), call())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("call", [c for c in CALLS if c.finite], ids=lambda c: c.name)
def test_a4_not_finite_is_refused_with_name_and_position(call: Call, bad: float) -> None:
    for i, name in enumerate(call.finite):
        if not name:
            continue
        arrays = list(copy.deepcopy(call.arrays))
        at = tuple(n - 1 for n in arrays[i].shape)
        arrays[i][at] = bad
        with pytest.raises(SpecError) as refused:
            call(*arrays)
        assert refused.value.clause == "A-4"
        assert refused.value.reason == f"{name} holds {bad} at {at}"


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (Call("fit_grid", (np.zeros((0, 8)),), {"bits": 4}), (0, 1)),
        (Call("fit_grid", (np.zeros((3, 0)),), {"bits": 4}), (3, 1)),
        (Call("fit_grid", (np.zeros((3, 0)),), {"bits": 4, "granularity": "group", "group_size": 4}), (3, 0)),
        (Call("fit_grid", (np.zeros((0, 0)),), {"bits": 4, "granularity": "tensor"}), (1, 1)),
        (Call("fit_grid", (np.zeros((0, 0)),), {"bits": 4, "include_zero": False}), (0, 1)),
        (Call("clip_search", (np.zeros((3, 0)),), {"bits": 4}), (3, 1)),
        (Call("quantize", (np.zeros((3, 0)), np.ones((3, 1)), np.zeros((3, 1), int)), {"bits": 4}), (3, 0)),
        (Call("dequantize", (np.zeros((0, 8), int), np.ones((0, 2)), np.zeros((0, 2), int)), {}), (0, 8)),
        (Call("pack", (np.zeros((2, 0), int),), {"bits": 3}), (2, 0)),
        (Call("pack", ([[]],), {"bits": 3}), (1, 0)),
        (Call("unpack", (np.zeros((0, 2), int),), {"bits": 3, "length": 20}), (0, 20)),
        (Call("inverse_cholesky", (np.zeros((0, 0)),), {}), (0, 0)),
        (Call("nearest_level", (np.zeros((0,)), [0.0]), {}), (0,)),
        (Call("error_spectrum", (np.zeros((0, 3)), np.eye(3)), {}), (0,)),
        (Call("error_spectrum", (np.zeros((3, 0)), np.eye(0)), {}), (0,)),
        (Call("residual_moment", (np.eye(3), np.zeros((0, 3))), {}), (3, 3)),
        (Call("residual_moment", (np.zeros((0, 0)), np.zeros((2, 0))), {}), (0, 0)),
    ],
)
def test_a2_zero_size(call: Call, shape: tuple[int, ...]) -> None:
    result = call()
    assert leaves(result)[0].shape == shape
    assert ref.objective(np.zeros((0, 3)), np.eye(3)) == 0


def test_unsupported_carries_its_reason() -> None:
    refusal = Unsupported("no float64 on this device")
    assert refusal.reason == str(refusal) == "no float64 on this device"
    assert not isinstance(refusal, SpecError)


def test_a3_a_refusal_names_the_clause() -> None:
    with pytest.raises(SpecError) as refused:
        ref.fit_grid(np.ones((2, 12)), bits=4, granularity="group", group_size=5)
    assert refused.value.clause == "Q-2"
    assert str(refused.value) == "[Q-2] group size 5 does not divide axis length 12"
