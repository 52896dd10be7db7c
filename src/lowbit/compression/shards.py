"""What a finished step left: a weight file, an adapter that waits for the end, a journal line that vouches for both."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lowbit.formats.factors import FactorForm, factor_parts, unpack_factors
from lowbit.formats.layout import Conversion
from lowbit.formats.safetensors_file import SafetensorsFile, TensorSource, write_tensors
from lowbit.models.decoder import Decoder
from lowbit.models.weights import Reader, stored_as
from lowbit.reference.errors import SpecError
from lowbit.runs.errors import RecipeError
from lowbit.runs.events import Note, OnEvent
from lowbit.runs.folder import RunFolder
from lowbit.runs.journal import Journal

from .arrays import Arrays
from .contents import Kept, form_of, kept, stored_name
from .layer import Solution, part_bytes
from .method import Method
from .quantize import OUTER_ROWS, quantize_outer
from .readback import read_block, read_outer
from .setting import DENSE

__all__ = ["Shards"]

_ROWS_VALUES = 1 << 22  # values of an embedding that are dense in memory at once


class Shards:
    """The stored form of a model, step by step.

    File 0 holds what lies outside the blocks, 1.. the blocks. The numbers that later steps compute with are read back
    from here, so they are the numbers stored.

    Attributes:
        journal: one line per finished step: the outer tensors, each block, the evaluation.
    """

    def __init__(self, folder: RunFolder, journal: Journal, decoder: Decoder, method: Method) -> None:
        self.journal = journal
        self._folder = folder
        self._decoder = decoder
        self._inventory = decoder.inventory
        self._blocks = len(decoder.inventory.blocks)
        self._method = method

    def name(self, number: int) -> str:
        """File name of shard ``number``."""
        return f"model-{number + 1:05d}-of-{self._blocks + 1:05d}.safetensors"

    def _patch_file(self, index: int) -> Path:
        return self._folder.work / f"adapter-{index:05d}.safetensors"

    # ---- the journal ---------------------------------------------------------------------------------------------

    def verify(self, tell: OnEvent) -> None:
        """Forget every step from the first whose files are gone or changed."""

        def step(number: int) -> str:
            return "outer" if number == 0 else "evaluated" if number > self._blocks else str(number - 1)

        damaged = self.journal.drop_unverified(self._folder.out, step)
        if damaged is not None:
            tell(Note(f"file of step {damaged} is missing or damaged: continuing from there"))

    @property
    def finished(self) -> int:
        """Number of finished blocks."""
        return min(max(0, len(self.journal.lines) - 1), self._blocks)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Journal lines of the shards, in their order."""
        return self.journal.lines[: self._blocks + 1]

    @property
    def packed(self) -> set[str]:
        """Full names of the modules that are stored as codes, or were to be and are stored dense for their readers."""
        outer = {module["name"] for module in self.outer_modules}
        modules = (module for line in self.lines[1:] for module in line["modules"])
        return outer | {module["name"] for module in modules if module["bits"] < DENSE}

    @property
    def perplexity(self) -> dict[str, Any] | None:
        """What an earlier attempt measured when all blocks were done."""
        later = self.journal.lines[self._blocks + 1 :]
        return next((dict(line["perplexity"]) for line in later if line.get("step") == "evaluated"), None)

    # ---- written -------------------------------------------------------------------------------------------------

    def write_outer(self, arrays: Arrays, moment: Callable[[str], torch.Tensor | None] = lambda _: None) -> None:
        """Embeddings, final norm and head, as codes where the method says so, otherwise untouched but for their type.

        Nothing if they are there already.

        Args:
            arrays: of the backend that computes codes.
            moment: name of a module → what the errors of its rows are weighed with, (k, k), if that is known.

        Raises:
            RecipeError: a value of theirs, or of the norms and biases of any block, does not fit the type.
        """
        if self.journal.lines:
            return
        for conversion in (
            c for block in self._inventory.inner for c in block if c.plain
        ):  # found now, not hours later
            for small in self._kept(conversion, conversion.makes).values():
                if len(small.shape) < 2:
                    small.read()
        tensors: dict[str, TensorSource] = {}
        coded = {f"{name}.weight": name for name in self._method.outer(self._inventory)}
        modules = []
        for conversion in self._inventory.outer:
            if (name := coded.get(conversion.first)) is None:
                found = self._kept(conversion, conversion.makes)
                if conversion.plain:
                    found = {home: _by_rows(self._decoder, conversion, one) for home, one in found.items()}
                tensors |= found
                continue
            parts = _coded(self._decoder, self._method.of(name), arrays, name, moment(name))
            stem = self._inventory.home(conversion.first, packed=True).removesuffix(".weight")
            tensors |= {f"{stem}.{part}": TensorSource.of(tensor) for part, tensor in parts.items()}
            modules.append(_outer_entry(name, self._method.of(name), parts))
        files = {self.name(0): self._write(0, tensors)}
        told = {"modules": modules} if modules else {}
        self.journal.append({"step": "outer", "files": files, **_contents(tensors), **told})

    def _kept(self, conversion: Conversion, parameters: Sequence[str]) -> dict[str, TensorSource]:
        """What :func:`~lowbit.compression.contents.kept` says is stored, with readers of the values."""
        inventory, weights = self._inventory, self._decoder.weights

        def reader(one: Kept) -> Callable[[], torch.Tensor]:
            read: Reader = weights.source if one.source else weights.read
            if one.name in inventory.unbounded:
                return lambda: read(one.name).to(one.place.dtype)
            return lambda: stored_as(one.place.dtype, read(one.name), f"tensor {one.name}")

        found = kept(inventory, self._method, conversion, parameters)
        return {home: TensorSource(*one.place, reader(one)) for home, one in found.items()}

    def write_block(self, index: int, solutions: Mapping[str, Solution]) -> None:
        """A finished block: ``solutions`` by the path of the layer inside it; the rest is kept but for its type."""
        inventory = self._inventory
        tensors: dict[str, TensorSource] = {}
        patches: dict[str, TensorSource] = {}
        solved = set()
        layers = {linear.name: linear for linear in inventory.linears[index]}
        for path, solution in solutions.items():
            name, linear = inventory.path(index, path), layers[path]
            solved.add(inventory.path(index, linear.parameter))
            for key, tensor in solution.tensors.items():
                tensors[stored_name(inventory, name, linear, key)] = TensorSource.of(tensor)
            patches |= {f"{name}.{key}": TensorSource.of(part) for key, part in solution.parts.items()}
        left_dense = []
        for conversion in inventory.inner[index]:
            left = [name for name in conversion.makes if name not in solved]
            left_dense += [
                {"name": name, "shape": list(shape), "share": round(math.prod(shape) / inventory.values(), 6)}
                for name in left
                if len(shape := inventory.layout.shapes[name]) > 1
            ]
            if left:
                tensors |= self._kept(conversion, left)
        files = {self.name(index + 1): self._write(index + 1, tensors)}
        if patches:
            beside = self._patch_file(index)
            files[f"{beside.parent.name}/{beside.name}"] = write_tensors(beside, patches)
        modules = [solutions[linear.name].measures for linear in inventory.linears[index] if linear.name in solutions]
        self.journal.append(
            {"step": index, "files": files, **_contents(tensors), "kept": left_dense, "modules": modules}
        )

    def _write(self, number: int, tensors: Mapping[str, TensorSource]) -> str:
        return write_tensors(self._folder.out / self.name(number), tensors, scratch=self._folder.work)

    # ---- read back -----------------------------------------------------------------------------------------------

    @property
    def outer_modules(self) -> list[dict[str, Any]]:
        """Entries of the record for the modules outside the blocks that are stored as codes."""
        return [module for line in self.lines[:1] for module in line.get("modules", ())]

    @property
    def outer(self) -> Reader | None:
        """Reader of what lies outside the blocks as it was stored; None where that is the checkpoint's own."""
        return self._outer if self.outer_modules else None

    def _outer(self, name: str) -> torch.Tensor:
        return read_outer(self._decoder, self._method, self._folder.out / self.name(0), name)

    def block(self, index: int) -> tuple[Reader, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Reader of the dense weights of a finished block, and the factors stored beside it."""
        file = SafetensorsFile(self._folder.out / self.name(index + 1))
        return functools.partial(read_block, self._decoder, self._method, file, index), self.factors(index)

    def factors(self, index: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """B and A of every layer of a finished block, by full name; empty without a compensation."""
        return {name: unpack_factors(parts, form) for name, (form, parts) in self.stored_factors(index).items()}

    def stored_factors(self, index: int) -> dict[str, tuple[FactorForm, dict[str, torch.Tensor]]]:
        """The same as they are stored: form and tensors of every layer."""
        inventory, line = self._inventory, self.lines[index + 1]
        forms = {
            module["name"]: form_of(self._method.of(module["name"]), inventory.named[module["name"]])
            for module in line["modules"]
            if module["rank"]
        }
        if not forms:
            return {}
        file = SafetensorsFile(self._patch_file(index))
        return {
            name: (form, {key: file.read(f"{name}.{key}") for key in factor_parts(form, self._method.storage)})
            for name, form in forms.items()
        }

    def files(self) -> dict[str, str]:
        """sha256 in hex of every shard, by name."""
        return {self.name(number): line["files"][self.name(number)] for number, line in enumerate(self.lines)}

    def file_bytes(self) -> int:
        """Size of all shards on disk, headers included."""
        return sum((self._folder.out / name).stat().st_size for name in self.files())

    def weight_map(self) -> dict[str, str]:
        """Stored tensor → file."""
        return {name: self.name(number) for number, line in enumerate(self.lines) for name in line["names"]}


def _by_rows(decoder: Decoder, conversion: Conversion, whole: TensorSource) -> TensorSource:
    """A tensor that is kept, read a few rows at a time as it is written."""
    if len(whole.shape) < 2:
        return whole
    step = max(1, _ROWS_VALUES // max(1, math.prod(whole.shape[1:])))
    free = conversion.sources[0] in decoder.inventory.unbounded

    def rows() -> Iterator[torch.Tensor]:
        start = 0
        for piece in decoder.weights.rows(conversion.first, step):
            what = f"tensor {conversion.sources[0]}"
            yield piece.to(whole.dtype) if free else stored_as(whole.dtype, piece, what, row=start)
            start += len(piece)

    return whole._replace(rows=rows)


def _coded(
    decoder: Decoder, own: Method, arrays: Arrays, name: str, moment: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """An embedding or a head as codes, a few rows of it dense in memory at a time."""
    step = max(1, _ROWS_VALUES // decoder.inventory.outer_modules[name][1] // OUTER_ROWS) * OUTER_ROWS
    try:
        return quantize_outer(own, arrays, decoder.weights.rows(f"{name}.weight", step), moment)
    except (SpecError, RecipeError) as error:
        raise RecipeError(f"{name}: {error}") from error


def _outer_entry(name: str, own: Method, parts: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "name": name,
        "shape": parts["weight_shape"].tolist(),
        "bits": own.bits,
        "group_size": own.group_size,
        "bytes": part_bytes(parts),
    }


def _contents(tensors: Mapping[str, TensorSource]) -> dict[str, Any]:
    return {"names": sorted(tensors), "bytes": sum(source.nbytes for source in tensors.values())}
