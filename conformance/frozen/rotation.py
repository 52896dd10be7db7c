"""Vectors of chapter H: rotation."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowbit.reference.types import DecoderBlock

from .. import rules
from ..hexfloat import decode
from .inputs import NARROW, SPEC, Array, Table, clear, eighths, generator, suite

TOKENS = np.array(
    [[7, 0, 0, 0, 0], [0.1] * 5, [0.1, -0.1, 0.1, -0.1, -0.1], [0, -0.0, 0, 0, 0], [-64, 1, -2, 0.5, 3]], np.float32
)


def build(table: Table) -> None:
    general = _transforms(table)
    _orthogonal(table)
    _rotated(table)
    _activations(table, general)


def _transforms(table: Table) -> Array:
    """Of Hadamard matrices; returns tokens that were drawn after those that are transformed."""
    for n in (1, 2, 8, 12, 20, 28, 36, 52, 92, 24):
        table.exactly("H-1", f"order {n}", [], order=n)
    random = np.random.default_rng(20240301)
    for n, options in ((16, {}), (12, {}), (12, {"transpose": True}), (40, {}), (36, {"block_size": 12})):
        x = random.standard_normal((3, n)).astype(np.float32)
        total = np.abs(x.astype(np.float64)).sum(axis=1, keepdims=True)
        expect = [rules.forward("", SPEC.hadamard_transform(x, **options), total, n + 4)]
        table.call("H-2", f"{n} features", [x], *expect, **options)
    for p in (0, 1, 2):
        table.recorded("H-2a", "test_transform_of_integers_is_exact", f"order {4**p}", power=p, seed=3, dtype=NARROW)
    order = generator("H-2b")
    signs = SPEC.hadamard_matrix(order=4)[order.permutation(4)] * np.array([1, -1, -1, 1])
    x = eighths("H-2b", 3, 8)
    x[1] = [0, 0, 512, 0, 0, 0, 0, -0.0]
    for t in (False, True):
        about = f"a table that is not symmetric, transpose {t}"
        table.recorded("H-2b", "test_transform_with_a_table", about, case=(x, signs.astype(np.float32)), transpose=t)
    for n, i in ((4, 0), (12, 0), (12, 1)):
        table.exactly("H-3", f"order {n}", [], order=n, seed=7, index=i)
    return random.standard_normal((3, 8)).astype(np.float32)


def _orthogonal(table: Table) -> None:
    z = generator("H-4").integers(-9, 10, (4, 4)).astype(np.float32)
    twice = z.copy()
    twice[:, 3] = twice[:, 0]
    for about, given in (
        ("general", z),
        ("a negative diagonal", np.diag([-1, 2, -3, 4]).astype(np.float32)),
        ("singular", twice),
    ):
        table.call("H-4", about, [given], rules.triangular("", given.astype(np.float64)))
    for n, seed, index in ((3, 7, 0), (5, 2**64 - 1, 2**32 - 1)):
        counters = np.zeros((n, -(-n // 4), 4), np.int64)
        counters[..., 0], counters[..., 3] = index, suite("rotation").Purpose.HAAR
        counters[..., 1], counters[..., 2] = np.indices(counters.shape[:2])
        normal = SPEC.philox_normal(counters, seed=seed).reshape(n, -1)[:, :n]
        about = f"order {n}, seed {seed}"
        table.call("H-4a", about, [], rules.triangular("", normal, 26), order=n, seed=seed, index=index)


def _rotated(table: Table) -> None:
    w, gain = eighths("H-5", 3, 5), np.array([0.3, -0.7, 0, -0.0, 1.9], np.float32)
    found = SPEC.fuse_norm(w, gain)
    table.call("H-5", "gains of both signs and 0", [w, gain], rules.forward("", found, np.abs(found), 1))

    three = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]], np.float32) / np.float32(3)
    four = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [-1, -1, 1, 1], [1, -1, -1, 1]], np.float32) / np.float32(2)
    pair = np.array([[[0.6, -0.8], [0.8, 0.6]], [[0.28, 0.96], [-0.96, 0.28]]], np.float32)
    rotation = suite("rotation").RotationProblem
    for clause, test in (("H-6", "test_rotate_inputs"), ("H-6a", "test_rotate_outputs")):
        about = "one rotation for every block"
        table.recorded(clause, test, about, narrow=True, case=rotation(eighths("H-6", 2, 6), three, 1))
        about = "two rotations, each twice"
        table.recorded(clause, test, about, narrow=True, case=rotation(eighths("H-6", 2, 8), pair, 2))
    # two heads of values, four of queries; a transform of order 12, which is not symmetric
    shapes = ((4,), (8, 4), (4, 4), (4, 4), (4, 8), (4,), (12, 4), (12, 4), (4, 12), (4,), (4,), (4,))
    block: Any = DecoderBlock(*(eighths(f"H-7{i}", *shape) for i, shape in enumerate(shapes)))
    bare = block._replace(
        gate=block.gate[:4], up=block.up[:4], down=block.down[:, :4].copy(), v_bias=None, o_bias=None, down_bias=None
    )
    case = suite("rotation").BlockProblem(block, four, pair)
    table.recorded("H-7", "test_rotate_block", "two queries per head, R2 per head", narrow=True, case=case, online=True)
    table.recorded(
        "H-7",
        "test_rotate_block",
        "no biases, no R2",
        narrow=True,
        case=suite("rotation").BlockProblem(bare, four, None),
        online=False,
    )
    for head, centre in ((None, False), (None, True), (eighths("H-7h", 3, 4), True)):
        table.recorded(
            "H-7a",
            "test_rotate_ends",
            f"tied {head is None}, centred {centre}",
            narrow=True,
            case=(eighths("H-7e", 3, 4) + np.float32(2), np.array([1, 0.5, 0, -2], np.float32), head, four),
            centre=centre,
        )


def _activations(table: Table, x: Array) -> None:
    table.recorded("H-8", "test_outlier_measures", "one-hot, level, flat, zero, an outlier", narrow=True, x=TOKENS)
    x[2] = 0
    found = SPEC.quantize_activations(x, bits=4)
    expect = [
        rules.forward("scale", found.scale, found.scale, 4),
        rules.exact("zero_point", found.zero_point),
        rules.codes("codes", found.codes, x.astype(np.float64) / found.scale, 4 + 2),
    ]
    table.call("H-9", "symmetric, the last token all zero", [x], *expect, bits=4)
    x = np.array([[7, -3, 1, 0.5], [-14, 2, 6, 14], [0, -0.0, 0, 0], [3, 3.5, -3.5, 0]], np.float32)
    for about, given, options in (
        ("half of the range", x, {"bits": 4, "clip_ratio": 0.5}),
        ("groups of two", np.where(np.arange(4) % 2 == 0, 7, x / 2).astype(np.float32), {"bits": 4, "group_size": 2}),
        (
            "asymmetric",
            np.concatenate([x / 4, [[-5.0]] * 4, [[10.0]] * 4], axis=1).astype(np.float32),
            {"bits": 4, "scheme": "asymmetric"},
        ),
    ):  # scales are exact
        found = SPEC.quantize_activations(given, **options)
        width = given.shape[1] // found.scale.shape[-1]
        ratio = given.astype(np.float64) / np.repeat(found.scale, width, axis=-1)
        expect = [
            rules.forward("scale", found.scale, found.scale, 6),
            clear("zero_point", found.zero_point),
            rules.codes("codes", found.codes, ratio, 1),
            rules.forward("values", found.values, np.abs(found.values), 2),
        ]
        table.call("H-9", about, [given], *expect, **options)
    about = "a token 2^-5 times as large"
    table.recorded(
        "H-9a", "test_activations_are_equivariant_token_by_token", about, skip=("scale",), x=TOKENS, power=-8, bits=4
    )
    for one in table["H-9a"]:
        one["expect"].append(rules.exact("values.5", np.zeros(5)))
    common = generator("H-10").standard_normal((4, 8)).astype(np.float32)
    for about, x in (("normal", common), ("an outlier", TOKENS)):
        for norm in (2.4, 1.0):
            table.recorded("H-10", "test_activation_clip", f"{about}, norm {norm}", x=x, bits=2, norm=norm, grid=10)
    for one in table["H-10"]:
        errors = decode(one["expect"][0]["value"])
        slack = 2 * float(decode(one["expect"][0]["magnitude"]))
        one["expect"].append(rules.candidate("ratio", np.array([1 - i / 10 for i in range(5)]), errors, slack, 1))
