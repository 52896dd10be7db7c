"""Second files of clauses: cases beside those that were frozen first, on what they leave open."""

from __future__ import annotations

import numpy as np

from .. import compare, laws, rules, strategies
from .inputs import (
    NARROW,
    SPEC,
    U32,
    Case,
    Options,
    Table,
    call,
    clear,
    eighths,
    generator,
    recorded,
    settled,
    suite,
)

__all__ = ["build"]


def build() -> dict[str, tuple[str, list[Case]]]:
    """Clause → (operation, cases)."""
    table: Table = {}
    for chapter in (_numbers, _quantizers, _training, _compression, _tables, _scores):
        chapter(table)
    return {clause: (cases[0]["op"], cases) for clause, cases in table.items()}


def _numbers(table: Table) -> None:
    recorded(table, "R-1", "test_rounding_passes_large_and_non_finite_values_through", ("integers already, NaN", {}))
    far = np.array([np.inf, -np.inf, 3.5, -1e30, 1e30, -0.0], np.float32)
    found = SPEC.round_clip(far, low=-8, high=7)
    table["R-2"] = [call("round_clip", "far beyond", [far], {"low": -8, "high": 7}, [rules.exact("", found)])]
    address = np.array([[0, 0, 0, 0], [1, 2, 3, 7]], np.int64)
    table["P-3"] = [
        call(
            "philox_integers",
            f"bound {b}",
            [address],
            {"seed": 5, "bound": b},
            [rules.exact("", SPEC.philox_integers(address, seed=5, bound=b))],
        )
        for b in (1, 3, 2**31 - 1, 2**31)
    ]
    table["H-1"] = [
        call("hadamard_matrix", "order 24", [], {"order": 24}, [rules.exact("", SPEC.hadamard_matrix(order=24))])
    ]


def _quantizers(table: Table) -> None:
    x = np.array([[1, 2.5, 7, 3], [-1, -4, -2, -9], [0.5, 0.25, 0, 6]], np.float32)
    options: Options = {"bits": 4, "include_zero": False}
    found = SPEC.fit_grid(x, **options)
    ratio = -x.min(axis=1, keepdims=True).astype(np.float64) / found.scale
    table["Q-2"] = [
        call(
            "fit_grid",
            "ranges without zero",
            [x],
            options,
            [
                rules.forward("scale", found.scale, (np.abs(x.min(axis=1)) + np.abs(x.max(axis=1)))[:, None] / 15, 4),
                rules.codes("zero_point", found.zero_point, ratio, 10),
            ],
        )
    ]
    table["Q-2a"] = []
    for scheme in strategies.SCHEMES[1:]:
        options = {"bits": 4, "scheme": scheme}
        found = SPEC.fit_grid(x, **options)
        table["Q-2a"].append(
            call(
                "fit_grid",
                f"values on one side of zero, {scheme}",
                [x],
                options,
                [rules.forward("scale", found.scale, found.scale, 4), rules.exact("zero_point", found.zero_point)],
            )
        )
    recorded(
        table, "Q-8", "test_constant_groups_fall_back_to_a_range_with_zero", ("constant groups", {"dtype": NARROW})
    )
    table["Q-6"] = []
    for bits, length in ((3, 35), (7, 9), (8, 5)):
        codes = generator("Q-6").integers(0, 2**bits, (2, length)).astype(np.int32)
        words = SPEC.pack(codes, bits=bits)
        table["Q-6"].append(
            call(
                "unpack",
                f"{length} codes of {bits} bits",
                [words],
                {"bits": bits, "length": length},
                [rules.exact("", codes)],
            )
        )
    recorded(
        table,
        "N-1",
        "test_normal_float",
        *((f"{b} bits, offset {o}", {"bits": b, "offset": o}) for b, o in ((3, 0.75), (4, 0.99))),
    )
    blocks = strategies.BlockInput(
        eighths("N-4", 2, 5), np.array([0.3, 0, 1.7], np.float32), np.array([-1, -0.3, 0, 0.7], np.float32), 4
    )
    recorded(table, "N-4", "test_values_of_codes", ("scales of both signs and 0", {"case": blocks}))
    half: Options = {"granularity": "row", "threshold": 0.5}
    w = settled(
        "T-2",
        lambda r: r.integers(-24, 25, (3, 8)).astype(np.float32) / np.float32(7),
        lambda v: np.sign(SPEC.twn(v, **half)),
    )
    found = SPEC.twn(w, **half)
    table["T-2"] = [call("twn", "threshold 0.5", [w], half, [rules.forward("", found, np.abs(found), 8 + 4)])]
    near_clip = suite("ternary").FakeQuantInput(np.array([0.5, -0.0, 3], np.float32), {})
    recorded(table, "T-5", "test_gradients_pass_inside", ("next to clips that no format holds", {"case": near_clip}))
    make = strategies.LearnedStepInput
    v = eighths("S-1", 3, 8)
    v[1] = np.abs(v[1])
    both = (
        ("signed", make(v, v, v[0], None, {"bits": 3, "signed": True, "axis": 0, "epsilon": 0.0})),
        ("unsigned", make(v, v, v[0], None, {"bits": 4, "signed": False, "axis": None, "epsilon": 0.0})),
    )
    recorded(
        table,
        "S-1",
        "test_first_steps",
        *(
            (f"{rule}, {about}", {"case": case, "rule": rule})
            for about, case in both
            for rule in ("mean", "mean-doubled", "deviation", "min-max")
        ),
    )
    halves = np.stack([np.arange(-9, 9)] * 3)
    recorded(
        table,
        "S-2a",
        "test_ties",
        *(
            (f"a step of 0.75, signed {s}", {"x": halves, "dtype": NARROW, "bits": 3, "signed": s})
            for s in (True, False)
        ),
    )
    recorded(
        table,
        "S-4a",
        "test_the_ends_are_inside",
        *((f"a quarter beyond, signed {s}", {"dtype": NARROW, "bits": 3, "signed": s}) for s in (True, False)),
    )


def _training(table: Table) -> None:
    rows = np.array([[8, -8, 0.5, -0.5, 1, -1, 0, 2]], np.float32)
    slope = eighths("O-3", 1, 8)
    table["O-3"] = [call("statsq_grad", "clipped weights", [rows, slope], {"bits": 2}, [rules.exact("", slope)])]
    codes = np.array([3, -2, 0, 1], np.int32)
    start = SPEC.start_oscillation(codes)
    table["O-4"] = [
        call("start_oscillation", "codes", [codes], {}, [rules.exact(f, getattr(start, f)) for f in start._fields])
    ]
    states = [
        (1, 0, -1, 8, 5, True),
        (0, 1, 1, 0, 3, True),
        (2, 1, -1, 3, 7, False),
        (-1, 0, 1, 4, 1, False),
        (0, 0, 0, 0, 6, True),
    ]
    recorded(
        table,
        "O-4a",
        "test_targets",
        *(
            (f"{f}, {t}", {"state": states, "freeze_to": f, "targets": t})
            for f in ("average", "current")
            for t in ("held", "rewritten")
        ),
    )
    narrow = np.array([[1, -1, 1, -1], [2, 2, -2, -2]], np.float32)
    recorded(
        table,
        "O-6a",
        "test_ends_of_the_range",
        *(
            (f"two codes of eight, {t}, range {w}", {"w": narrow, "bits": 3, "width": w, "thresholds": t})
            for t in ("all", "occupied")
            for w in (0.0, 0.5)
        ),
    )
    planes = strategies.BinaryInput(
        generator("B-8").integers(0, 8, (2, 35)).astype(np.int32),
        eighths("B-8", 2, 1, 3),
        np.array([[0.5], [-1]], np.float32),
        eighths("B-8", 2, 35),
        eighths("B-8", 1, 35),
    )
    recorded(
        table,
        "B-8",
        "test_planes",
        ("and back", {"case": planes}),
        ("and back, no offset", {"case": planes._replace(offset=None)}),
    )
    recorded(table, "U-4", "test_a_scale_without_gradient_stays", ("0 / 0", {"dtype": NARROW, "step": 1}))
    recorded(table, "M-2", "test_misfits_and_points_above_the_hull", ("misfits", {"dtype": NARROW}), skip=("error",))


def _compression(table: Table) -> None:
    tokens = generator("G-2").integers(-3, 4, (24, 8)).astype(np.float64)
    h = (tokens.T @ tokens + 4 * np.eye(8)).astype(np.float32)
    blocked: Options = {"bits": 3, "block_size": 3}
    w = settled(
        "G-2",
        lambda r: (r.integers(-350, 351, (3, 8)) / 128).astype(np.float32),
        lambda v: SPEC.gptq(v, h, **blocked).codes,
    )
    table["G-2"] = [
        call("gptq", "blocks of 3 columns", [w, h], blocked, [clear("codes", SPEC.gptq(w, h, **blocked).codes)])
    ]
    table["G-5"] = []
    power = np.diag(np.ldexp(1.0, [0, 5, 2, 7, 1, 6, 3, 4])).astype(np.float32)
    for about, c, keep in (("2:4, strong correlation", h, 2), ("1:4, inputs of different power", power, 1)):
        options: Options = {"keep": keep, "of": 4}
        w = settled(
            "G-5",
            lambda r: (r.integers(-350, 351, (3, 8)) / 128).astype(np.float32),
            lambda v, c, options: SPEC.sparsegpt(v, c, **options).mask,
            c,
            options,
        )
        table["G-5"].append(
            call("sparsegpt", about, [w, c], options, [rules.exact("mask", SPEC.sparsegpt(w, c, **options).mask)])
        )
    table["G-6a"] = []
    signs = np.array([[1, -1, -1, 1, 1, 1, -1, 1], [2, -2, 1, -1, -1, 2, 1, -2]], np.float32)
    for keep in (1, 2, 3):
        options = {"keep": keep, "of": 4}
        white = np.ones(8, np.float32)
        found = SPEC.wanda(signs, white, **options)
        table["G-6a"].append(
            call("wanda", f"equal scores, {keep}:4", [signs, white], options, [rules.exact("mask", found.mask)])
        )
    leaves = [SPEC.moment_leaf(eighths(f"C-2{i}", 3, 2), index=i)[0] for i in (1, 2, 3)]
    merged = SPEC.moment_merge(leaves[:1], leaves[1:2])
    expect = [rules.exact(f"{i}.{f}", getattr(n, f)) for i, n in enumerate(merged) for f in n._fields]
    table["C-2"] = [call("moment_merge", "neighbours that are not siblings", [leaves[:1], leaves[1:2]], {}, expect)]
    d = generator("E-5a").integers(-9, 10, (4, 8)).astype(np.float32)
    eigen, best = suite("eigenspace"), laws.optimum(d, h, 2)
    size = eigen.gap(d, h, 2, U32) / compare.gamma(1, U32)
    table["E-5a"] = [
        call(
            "eora_certified",
            "the objective told",
            [d, h],
            {"rank": 2, "tolerance": 0.125},
            [
                rules.certificate("objective", 1.125 * best, size, 1),
                rules.certificate("objective", best, size, 1, least=True),
            ],
        )
    ]
    _purchases(table)
    problem = strategies.DoraProblem(
        eighths("D-4w", 3, 6),
        eighths("D-4b", 3, 2),
        eighths("D-4a", 2, 6),
        np.array([-1.5, 0, 2], np.float32),
        -0.5,
    )
    recorded(
        table,
        "D-4",
        "test_weight",
        *((f"negative magnitudes, {s}", {"problem": problem, "layout": s}) for s in ("linear", "transposed")),
    )
    x = np.array([[7, -3, 1, 0.5], [-14, 2, 6, 14], [0, -0.0, 0, 0], [3, 3.5, -3.5, 0]], np.float32)
    table["H-9"] = []
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
        table["H-9"].append(
            call(
                "quantize_activations",
                about,
                [given],
                options,
                [
                    rules.forward("scale", found.scale, found.scale, 6),
                    clear("zero_point", found.zero_point),
                    rules.codes("codes", found.codes, ratio, 1),
                    rules.forward("values", found.values, np.abs(found.values), 2),
                ],
            )
        )


def _purchases(table: Table) -> None:
    spectra = np.array([[5, 4, 2, 1], [5, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0], [5, 0, 0, 0]], np.float32)
    importance, sensitivity = np.array([1, 1, 2, 1, 0.5], np.float32), np.array([3, 3, 1, 0, 1.5], np.float32)
    cost, low, high = (np.array(v, np.int32) for v in ([5, 5, 7, 2, 1], [0, 0, 1, 0, 0], [4, 4, 4, 4, 3]))
    problem = strategies.RankProblem(spectra, importance, cost, low, high, 31, 2)
    for clause, op, arrays in (
        ("K-5a", "allocate_greedy", [spectra, importance, cost, low, high]),
        ("K-6b", "allocate_threshold", [spectra, cost, low, high]),
        ("K-7a", "allocate_proportional", [sensitivity, cost, low, high]),
    ):
        table[clause] = []
        for budget in range(8, 60):
            stopped, filled = (getattr(SPEC, op)(*arrays, budget=budget, leftover=rest) for rest in ("stop", "fill"))
            if len(table[clause]) < 6 and not np.array_equal(stopped, filled):
                for rest, found in (("stop", stopped), ("fill", filled)):
                    options: Options = {"budget": budget, "leftover": rest}
                    table[clause].append(
                        call(op, f"budget {budget}, {rest}", arrays, options, [rules.exact("", found)])
                    )
    steep = problem._replace(
        spectra=np.ldexp(np.float32(1), -9 * np.arange(4)).astype(np.float32) * np.ones((5, 1), np.float32)
    )
    recorded(
        table,
        "K-8",
        "test_allocation_objective",
        *(
            (
                f"small tails, highest {h}",
                {"problem": steep._replace(low=np.full(5, 2, np.int32), high=np.full(5, 3, np.int32)), "high": h},
            )
            for h in (False, True)
        ),
    )
    recorded(table, "K-8a", "test_allocation_bound", ("units of two", {"problem": problem}))
    table["K-10"] = []
    kept, now = np.array([[4, 1], [1, 0], [3, 2], [0, 0], [4, 4]], np.float32), np.array([2, 2, 2, 0, 1], np.int32)
    for hysteresis in (0.0, 0.5, 1.0, 3.0):
        options = {"budget": 36, "step": 2, "hysteresis": hysteresis}
        arrays = [kept, spectra, importance, cost, low, high, now]
        found = SPEC.reallocate_ranks(*arrays, **options)
        table["K-10"].append(
            call("reallocate_ranks", f"hysteresis {hysteresis}", arrays, options, [rules.exact("", found)])
        )


def _tables(table: Table) -> None:
    lut = suite("lut")
    ties = np.array([1, -1, 3, -3, 5]) / 128
    lines = lut.Table(np.array([-2.0, 0.31640625, 0.31640625, 1.125]), ties, 7 * ties[::-1])
    recorded(
        table,
        "L-4",
        "test_fixed_point",
        *((f"halves of the unit, {f} bits", {"table": lines, "fraction_bits": f}) for f in (6, 0)),
    )
    wide = lut.Table(np.array([0.0]), np.array([300.5, -300.25]), np.array([-7.5, 0.125]))
    table["L-5"] = []
    for bits in (None, 8):
        options: Options = {"fraction_bits": 2, "bits": bits}
        found = SPEC.round_table(wide, **options)
        expect = [rules.exact(f, np.asarray(getattr(found, f))) for f in ("slopes", "intercepts", "saturated")]
        table["L-5"].append(
            call("round_table", f"slopes of hundreds, {bits} bits", [rules.LookupTable(*wide[:3])], options, expect)
        )
    down = lut.Table(np.array([-1.4375, -0.0625, 0.3125, 1.4375]), 2 * ties, 4 * ties)
    recorded(
        table,
        "L-6",
        "test_scales",
        *((f"{b} bits", {"table": down, "scale_bits": b, "fraction_bits": 7}) for b in (0, 2, 3)),
    )
    steep = lut.integer_table((-100, 0, 100), (300, -299, 7, 298), (-30000, 5, 0, 29999), 3, 5)
    q = np.array([-128, -127, -101, -100, -1, 0, 1, 100, 101, 127], np.int8)
    large = np.array([[-(2**22), -40000, 40000, 2**22]], np.int32)
    table["L-9"] = [
        call(
            "evaluate_codes",
            f"{codes.dtype.name}, tie {tie}",
            [codes, rules.LookupTable(*steep)],
            {"tie": tie},
            [rules.exact("", SPEC.evaluate_codes(codes, steep, tie=tie))],
        )
        for codes in (q, large)
        for tie in ("left", "right")
    ]
    odd = lut.integer_table((-3,), (-2, 5), (40, 9), 1, 2)
    logits = np.array([[0, -300, -9999, 5], [9, 9, 9, 9]], np.int32)
    table["L-16"], table["L-17"] = [], []
    for one in (logits, logits[:1, :1], logits[1:]):
        for exp, div in ((lut.EXP, lut.RECIPROCAL), (odd, odd)):
            found = SPEC.table_softmax(one, exp, div, out_bits=7)
            table["L-16"].append(
                call(
                    "table_softmax",
                    "far logits, one alone, tables that no one would deploy",
                    [one, rules.LookupTable(*exp), rules.LookupTable(*div)],
                    {"out_bits": 7},
                    [rules.exact("", found)],
                )
            )
    for one in (np.array([[1, 2, 2], [0, 0, 1], [-7, 100, 101]], np.int32), np.array([[3, 3, 4, 4, 5]], np.int32)):
        found = SPEC.table_layer_norm(one, lut.RSQRT, out_bits=5)
        table["L-17"].append(
            call(
                "table_layer_norm",
                "means that are no codes",
                [one, rules.LookupTable(*lut.RSQRT)],
                {"out_bits": 5},
                [rules.exact("", found)],
            )
        )
    values = np.array([0, -1, -1, 2, 0, 3, -2, -2]) / 2
    level = lut.integer_table((0,), (0, 3), (0, 0), 0, 0)
    report = SPEC.verify_table(level, values, low=-4)
    table["L-19"] = [
        call(
            "verify_table",
            "level pieces and zeros",
            [rules.LookupTable(*level), values],
            {"low": -4},
            [rules.exact(f, np.array(getattr(report, f))) for f in ("turns", "signs", "worst")],
        )
    ]


def _scores(table: Table) -> None:
    coreset = suite("coreset")
    recorded(table, "X-1", "test_large_logits", *((f"logits of {t}", {"dtype": NARROW, "top": t}) for t in (90, 30000)))
    x, t = np.array([[2, 0, -1], [1, 3, 2]], np.float32), np.array([[0, 2, -1], [1, 3, 1]], np.float32)
    recorded(
        table,
        "X-3",
        coreset.mix,
        *(
            (f"{s} at 10 of 40", {"case": (x, t, np.array([1, 2], np.int32)), "schedule": s, "epoch": 10, "epochs": 40})
            for s in ("quadratic", "sqrt", "half", "error-vector", "disagreement")
        ),
    )
    cross = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1], [1, 0], [-1, 0], [0, 0]], np.float32)
    square = np.array([[2, 1], [-2, -1], [1, 2], [-1, -2], [2, -2], [-2, 2], [0, 1], [0, -1]], np.float32)
    table["X-10a"], table["X-11a"] = [], []
    for about, points in (("points twice", cross), ("a lattice", square)):
        first, n = np.array([3], np.int32), len(points)
        found = SPEC.k_center(points, first, count=n - 1)
        table["X-10a"].append(
            call("k_center", f"all of {about}", [points, first], {"count": n - 1}, [rules.exact("", found)])
        )
        found = SPEC.herding(points, count=n)
        table["X-11a"].append(call("herding", f"all of {about}", [points], {"count": n}, [rules.exact("", found)]))
