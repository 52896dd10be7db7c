"""Kernels against torch, chapter by chapter, in Triton's interpreter: sizes beside the blocks, halves, views, nothing.

Run as a script with the letters of chapters and TRITON_INTERPRET=1. What decides codes is compared exactly; sums and
exponentials are compared with float64, at a few roundings of the largest value for every doubling of their length.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import lowbit
from lowbit.accel.torch_cuda.distill import WIDEST_MAP
from lowbit.reference.errors import SpecError
from lowbit.reference.types import IntegerTable

plain: Any = lowbit.load("torch", kernels="torch")
kernels: Any = lowbit.load("torch", kernels="triton")
generator = torch.Generator().manual_seed(20230612)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LONG = ((torch.float32, "tensor"), (torch.bfloat16, "row"))
U = 2.0**-24


def normal(*shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=generator)


def whole(low: int, high: int, *shape: int) -> Tensor:
    """Integers in low … high − 1, int32."""
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)


def views(x: Tensor) -> Iterator[Tensor]:
    """The same values contiguous; of a few also as a transpose of a transpose, and with gaps in memory."""
    yield x
    if x.ndim > 1 and x.dtype != torch.float16 and x.numel() < 1000:
        yield x.mT.contiguous().mT
        yield torch.stack((x, -x), -1)[..., 0]


def near(found: Tensor, wanted: Tensor, n: int, what: Any, size: float = 0.0) -> None:
    """float32 of the shape wanted, off by a few roundings of the largest value for every doubling of n.

    ``size`` is that of the terms of a sum, where they may cancel.
    """
    assert found.dtype == torch.float32, what
    assert found.shape == wanted.shape, what
    if wanted.numel():
        off = float((found.double() - wanted.double()).abs().max())
        allowed = (8 + 4 * math.log2(max(n, 1))) * U * max(float(wanted.double().abs().max()), size, U)
        assert off <= allowed, (what, off, allowed)


def same(found: Tensor, wanted: Tensor, what: Any) -> None:
    """Equal, and of one dtype."""
    assert found.dtype == wanted.dtype, what
    assert torch.equal(found, wanted), what


def refused(op: str, *arrays: Any, words: str, **options: Any) -> None:
    """The refusal that torch has for it, to the letter."""
    messages = []
    for backend in (plain, kernels):
        try:
            getattr(backend, op)(*arrays, **options)
        except SpecError as error:
            messages.append(str(error))
    assert len(messages) == 2, f"{op} took what it must refuse"
    assert messages[0] == messages[1], messages
    assert words in messages[0], messages


def bad_inputs(x: Tensor) -> Iterator[Tensor]:
    """The last entry is NaN or infinite; in a long row one of both."""
    for value in (math.nan, math.inf, -math.inf) if x.numel() < 1000 else (-math.inf,):
        y = x.clone()
        y.view(-1)[-1] = value
        yield y


def ternary() -> None:
    """T: groups within a tile and over several programs."""
    shapes = ((3, 40), (1, 1), (2, 5, 7), (2, 9001), (0, 4), (3, 0), ())
    for shape, dtype, granularity in itertools.product(shapes, DTYPES, ("tensor", "row", "matrix")):
        if shape == (2, 9001) and (dtype, granularity) not in LONG:
            continue
        if len(shape) < {"tensor": 0, "row": 1, "matrix": 2}[granularity]:
            continue
        for x in views(normal(*shape).to(dtype)):
            for clip in (None, 0.75):
                shared: dict[str, Any] = {"granularity": granularity, "clip": clip}
                n = x.numel()
                found, wanted = kernels.twn_code(x, **shared), plain.twn_code(x, **shared)
                same(found.codes, wanted.codes, (shape, dtype, shared))
                near(found.scale, wanted.scale, n, "scale")
                near(kernels.twn(x, **shared), plain.twn(x.double(), **shared), n, "twn")
                for outermost in ("published", "bounded"):
                    options = {**shared, "bits": 3, "outermost": outermost}
                    near(kernels.clamped_uniform(x, **options), plain.clamped_uniform(x, **options), n, options)
                for scheme, bits in (("symmetric", 2), ("asymmetric", 8)):
                    options = {**shared, "bits": bits, "scheme": scheme, "epsilon": 1e-3}
                    near(kernels.min_max(x, **options), plain.min_max(x, **options), 1, options)
                grad = normal(*shape).to(dtype)
                same(kernels.straight_through(grad, x, clip=clip), plain.straight_through(grad, x, clip=clip), clip)
    ties = torch.tensor([127.0, *(torch.arange(-20, 21) / 2).tolist()])
    same(kernels.min_max(ties), plain.min_max(ties), "ties")
    for n in (8, 5000):
        x = normal(2, n)
        for bad in bad_inputs(x):
            for clip in (None, 0.5):
                for op in ("twn_code", "twn", "clamped_uniform", "min_max"):
                    refused(op, bad, clip=clip, granularity="row", words="[A-4] x holds")
                refused("straight_through", bad, x, clip=clip, words="[A-4] grad holds")
                refused("straight_through", x, bad, clip=clip, words="[A-4] x holds")
        refused("min_max", x * 1e37, words="overflows torch.float32")


def learned_step() -> None:
    """S: a step to everything, to rows, to columns, to a middle axis."""
    cases = (
        ((3, 40), None), ((3, 40), 0), ((3, 40), -1), ((2, 5, 7), 1), ((70, 200), -1), ((70, 200), 0),
        ((2, 5000), None), ((2, 3, 65), 1), ((4, 300, 3), 1), ((0, 4), None), ((), None), ((130, 1), 0),
    )  # fmt: skip
    for ((shape, axis), dtype), shifted in itertools.product(itertools.product(cases, DTYPES), (False, True)):
        n = 1 if axis is None else shape[axis]
        step = (torch.rand(2 * n, generator=generator) + 0.25)[::2]
        offset = normal(n, 2)[:, 0] if shifted else None
        for x in views(2 * normal(*shape).to(dtype)):
            grad = normal(*shape).to(dtype)
            for signed, bits in ((True, 3), (False, 2), (True, 8)):
                options: dict[str, Any] = {"bits": bits, "signed": signed, "axis": axis, "epsilon": 1e-5}
                for op in ("lsq_code", "lsq"):
                    what = (op, shape, dtype, options)
                    same(
                        getattr(kernels, op)(x, step, offset, **options),
                        getattr(plain, op)(x, step, offset, **options),
                        what,
                    )
                options["count"] = "unscaled"
                found = kernels.lsq_gradient(grad, x, step, offset, **options)
                wanted = plain.lsq_gradient(grad, x, step, offset, **options)
                same(found.x, wanted.x, options)
                again = kernels.lsq_gradient(grad, x, step, offset, **options)
                size = float(grad.double().abs().sum())
                for name in ("step", "offset") if shifted else ("step",):
                    near(getattr(found, name), getattr(wanted, name), x.numel(), (name, shape, axis), size)
                    same(getattr(found, name), getattr(again, name), "a second time")
                assert shifted or found.offset is None
    x, step = normal(3, 70), torch.ones(1)
    found, wanted = (b.lsq_gradient(x, x, step, bits=4, count="elements").step for b in (kernels, plain))
    near(
        found, wanted, x.numel(), "the step's gradient with its factor", float(x.abs().sum()) / math.sqrt(x.numel() * 7)
    )
    ties = (torch.arange(-40, 40) / 2 * 0.75).reshape(4, 20)
    same(
        kernels.lsq_code(ties, torch.tensor([0.75]), bits=4), plain.lsq_code(ties, torch.tensor([0.75]), bits=4), "ties"
    )
    for bad in bad_inputs(x):
        for op in ("lsq_code", "lsq"):
            refused(op, bad, step, bits=4, words="[A-4] x holds")
        refused("lsq_gradient", bad, x, step, bits=4, words="[A-4] grad holds")
        refused("lsq_gradient", x, bad, step, bits=4, words="[A-4] x holds")


def oscillation() -> None:
    """O: rows of every length, stacks, and twelve steps of the tracker."""
    for shape, dtype in itertools.product(((3, 40), (1, 1), (2, 5, 7), (3, 9001), (70, 33), (0, 4), (4, 0)), DTYPES):
        weight, grad = normal(*shape).to(dtype), normal(*shape).to(dtype)
        n = weight.numel()
        for w, bits in itertools.product(views(weight), (1, 4, 8) if n < 1000 else (3,)):
            found, wanted = kernels.statsq(w, bits=bits), plain.statsq(w, bits=bits)
            near(found.scale, wanted.scale, n, "scale")
            steps = w.double() / found.scale.double() * 2 ** (bits - 1)
            clear = (steps - steps.round()).abs() > n * U * steps.abs()  # of a threshold, a sum of another order off
            same(found.codes[clear], wanted.codes[clear], (shape, dtype, bits))
            half = (found.codes.double() + 0.5) / 2 ** (bits - 1)
            near(found.values, half * found.scale.double(), 1, "values")
            for path in ("straight-through", "scale"):
                options: dict[str, Any] = {"bits": bits, "path": path}
                near(kernels.statsq_grad(w, grad, **options), plain.statsq_grad(w, grad, **options), 64 * n, options)
    row = torch.tensor([[4.0, -4, 4, -4, 2, -2, 0, 12]])  # α = 8: every weight on a threshold
    same(kernels.statsq(row, bits=3).codes, plain.statsq(row, bits=3).codes, "thresholds")
    for n in (8, 9001):
        w = normal(2, n)
        for bad in bad_inputs(w):
            refused("statsq", bad, bits=2, words="[A-4] w holds")
            for path in ("straight-through", "scale"):
                refused("statsq_grad", bad, w, bits=2, path=path, words="[A-4] w holds")
                refused("statsq_grad", w, bad, bits=2, path=path, words="[A-4] grad holds")
    for shape in ((5, 7), (2049,), (), (0, 3)):
        states = [plain.start_oscillation(whole(-3, 4, *shape))] * 2
        for step in range(12):
            codes = whole(-3, 4, *shape)
            options = {"momentum": 0.3, "threshold": 0.55, "freeze_to": ("average", "current")[step % 2]}
            options["targets"] = "rewritten" if step % 3 == 0 else "held"
            states = [b.track_oscillation(codes, *s, **options) for b, s in zip((kernels, plain), states, strict=True)]
            for name in states[0]._fields:
                same(getattr(states[0], name), getattr(states[1], name), (name, step))
    state = plain.start_oscillation(whole(-3, 4, 40))
    for name in ("frequency", "average"):
        for bad in bad_inputs(state.frequency):
            refused("track_oscillation", state.codes, *state._replace(**{name: bad}), words=f"[A-4] {name} holds")
    wrong = state._replace(direction=state.direction + 2)
    refused("track_oscillation", state.codes, *wrong, words="direction must hold -1, 0 and 1, got 2 to 2")


def tables() -> None:
    """L: tables of one piece and of many, codes of every width."""
    for n in (1, 2, 8, 33):
        slopes, intercepts = (whole(-999, 999, n, 2)[:, 0] for _ in range(2))
        table = IntegerTable(whole(-100, 100, n - 1).sort().values, slopes, intercepts, 3, 6)
        for shape, dtype in itertools.product(
            ((), (7,), (5000,), (3, 0)), (torch.int8, torch.int32, torch.int64, torch.uint8, torch.int16)
        ):
            q = whole(0 if dtype == torch.uint8 else -128, 128, *shape).to(dtype)
            for tie in ("left", "right"):
                same(
                    kernels.evaluate_codes(q, table, tie=tie), plain.evaluate_codes(q, table, tie=tie), (n, dtype, tie)
                )
            for entries in (whole(-9, 9, 256), normal(256), normal(256).double(), whole(-9, 9, 256).to(torch.int8)):
                same(kernels.lookup_codes(q, entries), plain.lookup_codes(q, entries), (shape, dtype, entries.dtype))
        every = torch.arange(-128, 128).to(torch.int8).reshape(16, 16)
        for q in views(every):
            for tie in ("left", "right"):
                same(kernels.evaluate_codes(q, table, tie=tie), plain.evaluate_codes(q, table, tie=tie), "all codes")


def maps() -> None:
    """W: maps of one key and of many, sentences of every length, padding that holds NaN."""
    for (b, h, n), dtype in itertools.product(((1, 1, 1), (2, 3, 5), (3, 2, 40), (1, 1, 200), (2, 0, 4)), DTYPES):
        student, teacher = 4 * normal(b, h, n, n).to(dtype), 4 * normal(b, h, n, n).to(dtype)
        lengths = whole(1, n + 1, b, 2)[:, 0]
        for (s, t), floor in itertools.product(zip(views(student), views(teacher), strict=True), (1e-8, 0.01)):
            found = kernels.attention_map_loss(s, t, lengths, floor=floor)
            wanted = plain.attention_map_loss(s.double(), t.double(), lengths, floor=floor)
            assert abs(found.loss - wanted.loss) <= 64 * U * (abs(wanted.loss) + 1), (found.loss, wanted.loss)
            near(found.gradient, wanted.gradient, 64 * n, (b, h, n, dtype, floor))
            inside = torch.arange(n) < lengths[:, None]
            valid = (inside[:, :, None] & inside[:, None]).unsqueeze(1).expand(b, h, n, n)
            assert not bool(found.gradient[~valid].any()), "the gradient of padding is not 0"
            spoiled = [torch.where(valid, x, torch.full_like(x, math.nan)) for x in (s, t)]
            again = kernels.attention_map_loss(*spoiled, lengths, floor=floor)
            assert again.loss == found.loss, "padding was read"
            same(again.gradient, found.gradient, "padding was read")
    x, lengths = normal(2, 2, 5, 5), torch.tensor([5, 5])
    for bad in bad_inputs(x):
        refused("attention_map_loss", bad, x, lengths, words="[A-4] student holds")
        refused("attention_map_loss", x, bad, lengths, words="[A-4] teacher holds")
    assert kernels.supports("attention_map_loss", width=WIDEST_MAP) is True
    assert kernels.supports("attention_map_loss", width=WIDEST_MAP + 1).startswith("a row of 16385 keys")


def coresets() -> None:
    """X: one class, few, a tile of them, more."""
    for (n, classes), dtype in itertools.product(((1, 1), (5, 10), (3, 1000), (2, 4097), (2, 9000), (0, 5)), DTYPES):
        logits, reference = (3 * normal(n, classes).to(dtype) for _ in range(2))
        labels = whole(0, classes, n, 2)[:, 0]
        for x, t in zip(views(logits), views(reference), strict=True):
            X, T = x.double(), t.double()
            found = kernels.error_vector_score(x, labels)
            near(found, plain.error_vector_score(X, labels), 64 * classes, (n, classes, dtype))
            gap = kernels.disagreement_score(x, t)
            near(gap, plain.disagreement_score(X, T), 64 * classes, (n, classes, dtype))
            same(kernels.disagreement_score(x, x), torch.zeros(n), "a model and itself")
            ends = [kernels.acs_score(x, t, labels, epoch=e, epochs=3) for e in (0, 3)]
            same(ends[0], found, "the first epoch")
            same(ends[1], gap, "the last epoch")
            options = {"epoch": 1, "epochs": 3}
            mixed = kernels.acs_score(x, t, labels, **options)
            near(mixed, plain.acs_score(X, T, labels, **options), 64 * classes, (n, classes, dtype))
            if n:
                same(kernels.acs_score(x[-1:], t[-1:], labels[-1:], **options), mixed[-1:], "one row by itself")
    confident = torch.tensor([[60.0, 0, 0], [0, 0, 60]])
    own = torch.tensor([0, 2])
    found, wanted = (
        b.error_vector_score(confident.to(d), own) for b, d in ((kernels, torch.float32), (plain, torch.float64))
    )
    assert bool(((found.double() - wanted).abs() <= 1e3 * U * wanted).all()), "a share near 0 is lost"
    for classes in (8, 9000):
        x, labels = normal(2, classes), whole(0, classes, 2)
        for bad in bad_inputs(x):
            refused("error_vector_score", bad, labels, words="[A-4] logits holds")
            for pair, name in (((bad, x), "[A-4] logits holds"), ((x, bad), "[A-4] reference holds")):
                refused("disagreement_score", *pair, words=name)
                for epoch in (0, 1, 2):
                    refused("acs_score", *pair, labels, epoch=epoch, epochs=2, words=name)


CHAPTERS: dict[str, Callable[[], None]] = {
    "T": ternary,
    "S": learned_step,
    "O": oscillation,
    "L": tables,
    "W": maps,
    "X": coresets,
}

if __name__ == "__main__":
    for chapter in sys.argv[1:]:
        CHAPTERS[chapter]()
    print(f"compared {len(sys.argv) - 1}")
