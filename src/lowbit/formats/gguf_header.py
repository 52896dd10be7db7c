"""The header of a GGUF file, walked once before any library reads it: every count fits into the bytes that are left.

The file is little-endian: magic, version, number of tensors, number of metadata entries; the entries, each a key, a
type and a value; the tensors, each a name, lengths of its axes, a type and an offset; then, aligned, the values. A
count of 2^60 in any of these places costs a reader its memory or its day.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from .errors import CheckpointError
from .files import Identity, opened
from .limits import require_sizes

__all__ = ["check_header"]

_MAGIC = b"GGUF"
_HEAD = struct.Struct("<4sIQQ")
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by its type
_INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}
_STRING, _ARRAY = 8, 9
_AXES = 4
_NAME = 1 << 16  # bytes of a key or a name; llama.cpp allows fewer


class _Walk:
    """A place in the file that only moves forward, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.place = 0

    def skip(self, size: int) -> int:
        """Where the next ``size`` bytes begin."""
        start = self.place
        if size > len(self._data) - start:
            raise ValueError(f"{size} bytes at byte {start}, {len(self._data) - start} are left")
        self.place += size
        return start

    def number(self, layout: str) -> int:
        """The next number."""
        return int(struct.unpack_from(layout, self._data, self.skip(struct.calcsize(layout)))[0])

    def text(self, limit: int) -> bytes:
        """The next string, of at most ``limit`` bytes."""
        size = self.number("<Q")
        if size > limit:
            raise ValueError(f"a name of {size} bytes at byte {self.place}")
        start = self.skip(size)
        return self._data[start : start + size]

    def value(self, kind: int) -> None:
        """Passes one metadata value."""
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY:
            self._array()
        else:
            raise ValueError(f"a value of the unknown type {kind} at byte {self.place}")

    def _array(self) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind in _SIZES:
            self.skip(count * _SIZES[kind])
        elif kind != _STRING:
            raise ValueError(f"an array of the type {kind} at byte {self.place}")
        elif 8 * count > len(self._data) - self.place:
            raise ValueError(f"{count} strings at byte {self.place}, {len(self._data) - self.place} bytes are left")
        else:
            for _ in range(count):
                self.skip(self.number("<Q"))


def check_header(path: Path) -> Identity:
    """Walk the header of a GGUF file.

    Returns:
        The identity of the file that was read.

    Raises:
        CheckpointError: not a GGUF file, truncated, a count larger than the file, a name twice, or sizes
            out of all proportion.
    """
    with opened(path) as file:
        identity = Identity.of(file.fileno())
        try:
            if not file.read(_HEAD.size).startswith(_MAGIC):
                raise ValueError("GGUF magic invalid")
            if identity.size < _HEAD.size:
                raise ValueError(f"{identity.size} bytes do not hold a header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(_Walk(data), data, path)
        except CheckpointError:
            raise
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path}: truncated or not a GGUF file ({error}); download it again") from error
    return identity


def _check(walk: _Walk, data: mmap.mmap, path: Path) -> None:
    _, version, tensors, entries = _HEAD.unpack_from(data)
    walk.skip(_HEAD.size)
    if version & 0xFFFF == 0:  # the other byte order: the reader says so
        return
    left = len(data) - _HEAD.size
    if entries * 13 + tensors * 24 > left:  # the least that an entry and a tensor take
        raise ValueError(f"{tensors} tensors and {entries} metadata entries in {left} bytes")
    for count, what in ((entries, "key"), (tensors, "tensor")):
        names = set[bytes]()
        for _ in range(count):
            name = walk.text(_NAME)
            if name in names:
                raise ValueError(f"the {what} {name[:80].decode(errors='replace')!r} stands twice")
            names.add(name)
            if what == "key":
                kind = walk.number("<I")
                start = walk.place
                walk.value(kind)
                if layout := _INTEGERS.get(kind):
                    require_sizes(struct.unpack_from(layout, data, start)[0], str(path), name.decode(errors="replace"))
                continue
            axes = walk.number("<I")
            if axes > _AXES:
                raise ValueError(f"a tensor of {axes} axes at byte {walk.place}")
            for _ in range(axes):
                if walk.number("<Q") > 8 * len(data):
                    raise ValueError(f"an axis longer than the file at byte {walk.place}")
            walk.skip(12)
