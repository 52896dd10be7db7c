"""What calls are written in: their three kinds, and the arrays that ordinary ones share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lowbit.reference.types import MomentNode

Array = npt.NDArray[Any]
f32, i32, nan = np.float32, np.int32, float("nan")


def floats(*shape: int) -> Array:
    """Zeros in float32: nothing, where a length is 0."""
    return np.zeros(shape, f32)


def ones(*shape: int) -> Array:
    """Ones in float32."""
    return np.ones(shape, f32)


def integers(*shape: int) -> Array:
    """Zeros in int32."""
    return np.zeros(shape, i32)


class Call(NamedTuple):
    """An ordinary call of one operation."""

    op: str
    arrays: tuple[Any, ...]  # NumPy, as the positional arguments; a list or tuple where the operation takes a sequence
    options: dict[str, Any]


class Empty(NamedTuple):
    """A call with nothing in it, and what :func:`~lowbit.conformance.calls.seen` finds of its result."""

    op: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    expected: Any


class Wrong(NamedTuple):
    """A call that must be refused."""

    op: str
    arrays: tuple[Any, ...]
    options: dict[str, Any]
    words: tuple[str, ...] = ()  # that the message must contain


class Given:
    """Well-conditioned arrays of one dtype, fresh and the same every time."""

    def __init__(self, dtype: str = "float32") -> None:
        draw = np.random.default_rng(20240229)
        self.dtype = dtype
        self.w, self.d = (draw.standard_normal((4, 8)).astype(dtype) for _ in range(2))
        self.x = draw.standard_normal((20, 8))
        h = (self.x.T @ self.x + 20 * np.eye(8)).astype(dtype)
        self.h: Array = np.asarray(np.triu(h) + np.triu(h, 1).T)  # second moment of the inputs x
        self.b, self.a = draw.standard_normal((4, 2)).astype(dtype), draw.standard_normal((2, 8)).astype(dtype)
        self.scale = (0.1 + draw.random((4, 2))).astype(dtype)
        self.zero = draw.integers(0, 15, (4, 2)).astype(np.int32)
        self.codes = draw.integers(0, 16, (4, 8)).astype(np.int32)
        self.moment = (0.5 + draw.random(8)).astype(dtype)
        self.per_row = (0.5 + draw.random(4)).astype(dtype)
        self.bits = draw.integers(0, 4, (4, 8)).astype(np.int32)
        self.binary = (0.1 + draw.random((4, 2, 2))).astype(dtype)
        self.shift = draw.standard_normal((4, 2)).astype(dtype)
        self.planes = draw.integers(0, 256, (1, 2, 4)).astype(np.int32)

        def node(index: int) -> MomentNode[Array]:
            leaf = draw.integers(-9, 9, (3, 4)).astype(np.float64)
            return MomentNode(0, index, leaf.T @ leaf, np.abs(leaf).sum(axis=0), 3)

        self.nodes = tuple(node(i) for i in (0, 2, 5))
        self.batches = [draw.standard_normal((n, 3, 4)).astype(dtype) for n in (1, 2)]
        self.turn = np.linalg.qr(draw.standard_normal((8, 8)))[0].astype(dtype)
        self.half = np.linalg.qr(draw.standard_normal((2, 2)))[0].astype(dtype)
        self.vector = draw.standard_normal(8).astype(dtype)
        self.addresses = draw.integers(0, 2**32, (5, 4))
        self.pair = tuple(draw.standard_normal((3, 4, 5)).astype(dtype) for _ in range(2))
        self.scores = tuple(draw.standard_normal((3, 2, 4, 4)).astype(dtype) for _ in range(2))
        self.others = (node(1), node(7))
        self.words = np.array([[0x12345678, 0x0BCDEF01], [7, -1]], np.int32)
        self.levels = np.array([-1.0, -0.25, 0.5, 2.0], dtype)


def leaves(value: Any) -> Iterator[Any]:
    """Everything inside nested tuples, lists and named tuples but None."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def each(value: Any, change: Callable[[Array], Any]) -> Any:
    """The same nesting with every array changed."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, list | tuple):
        parts = [each(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
