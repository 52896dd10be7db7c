"""From a string of bytes, which Hypothesis, atheris or a random generator draws, to a damaged copy of a valid file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

__all__ = ["Draw", "lines", "mutate_bytes", "mutate_gguf", "mutate_json", "mutate_safetensors"]

INTEGERS = (0, 1, 2, 3, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = tuple(f"nested {depth} deep" for depth in (60, 400, 900, 5000))
VALUES: tuple[Any, ...] = (
    *DEEP,
    None, True, False, -1, 0, 1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400,
    "", "x", "a" * 300, "\0", "re:(", "re:(.*)*", "(", "(a|aa)*$", "../x", "/dev/zero", "..", "float16", "\ud800", "١",
    [], {}, [None], [[[[]]]], [1, "a"], {"a": {"a": 1}}, {"": None},
)  # fmt: skip


class Draw:
    """Numbers out of a string of bytes; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def below(self, limit: int) -> int:
        """A number in ``0 .. limit - 1``."""
        size = 1 if limit <= 256 else 4
        piece = self._data[self._place : self._place + size]
        self._place += size
        return int.from_bytes(piece, "little") % max(limit, 1)

    def of(self, choices: Any) -> Any:
        """One of several."""
        return choices[self.below(len(choices))]


def mutate_bytes(raw: bytes, draw: Draw) -> bytes:
    """One to four of: a bit, a byte, a number of 1 to 8 bytes, a piece removed, repeated or put elsewhere, a cut."""
    found = bytearray(raw)
    for _ in range(1 + draw.below(4)):
        kind, place = draw.below(8), draw.below(len(found) + 1)
        size = 1 + draw.below(64)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << draw.below(8)
        elif kind == 1 and place < len(found):
            found[place] = draw.below(256)
        elif kind in (2, 3):
            width = draw.of((1, 2, 4, 8, 8))
            number = draw.of(INTEGERS) % (1 << 8 * width)
            found[place : place + width] = number.to_bytes(width, draw.of(("little", "little", "big")))
        elif kind == 4:
            del found[place : place + size]
        elif kind == 5:
            found[place:place] = found[place : place + size]
        elif kind == 6:
            other = draw.below(len(found) + 1)
            found[place : place + size] = found[other : other + size]
        else:
            del found[place:]
    return bytes(found)


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((value, key))
        _places(item, found)
    return found


def _edit(value: Any, draw: Draw) -> Any:
    for _ in range(1 + draw.below(3)):
        places = _places(value, [])
        if not places:
            return copy.deepcopy(draw.of(VALUES))
        container, key = draw.of(places)
        kind = draw.below(8)
        if kind < 4:
            container[key] = copy.deepcopy(draw.of(VALUES))
        elif kind == 4:
            del container[key]
        elif kind == 5:
            other, name = draw.of(places)
            if name in other if isinstance(other, dict) else name < len(other):
                container[key] = copy.deepcopy(other[name])  # no circles
        elif kind == 6:
            container[key] = [container[key]]
        elif isinstance(container[key], (int, float)) and abs(container[key]) < 2**53:
            container[key] = draw.of((-1, 2, 10, 0.5, 10**6)) * container[key]
        elif isinstance(container[key], str):
            container[key] = mutate_bytes(container[key].encode("utf-8", "replace"), draw).decode("utf-8", "replace")
        elif isinstance(container, dict):
            container[draw.of(("weight", "x", "", "format", "type"))] = container[key]
    return value


def mutate_json(raw: bytes, draw: Draw) -> bytes:
    """Values of a JSON text replaced, removed, moved, or, one time in four, its bytes damaged."""
    if draw.below(4) == 3:
        return mutate_bytes(raw, draw)
    text = json.dumps(_edit(json.loads(raw), draw))
    for word in DEEP:
        depth = int(word.split()[1])
        text = text.replace(f'"{word}"', "[" * depth + "]" * depth)
    return text.encode()


def lines(mutate: Callable[[bytes, Draw], bytes]) -> Callable[[bytes, Draw], bytes]:
    """The same for one line of a file."""

    def edit(raw: bytes, draw: Draw) -> bytes:
        found = raw.splitlines(keepends=True)
        number = draw.below(len(found))
        return b"".join([*found[:number], mutate(found[number], draw), b"\n", *found[number + 1 :]])

    return edit


def mutate_safetensors(raw: bytes, draw: Draw) -> bytes:
    """The header as JSON, with a length that fits, or the whole file as bytes."""
    if draw.below(3) == 2:
        return mutate_bytes(raw, draw)
    size = int.from_bytes(raw[:8], "little")
    header = mutate_json(raw[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + raw[8 + size :]


def mutate_gguf(raw: bytes, draw: Draw) -> bytes:
    """Mostly the header: the first kilobytes of a small file."""
    head = len(raw) if draw.below(8) == 7 else 4096
    return mutate_bytes(raw[:head], draw) + raw[head:]
