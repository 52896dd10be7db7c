"""Which tensors of a file every parameter of a model is made of.

Names and layouts in a file are not those of the model's class: a checkpoint may be written from the bare base model,
by an older version of the class, or with one tensor an expert where the class has one for all of them. What stands
for what is decided by ``transformers``, whose conversion mapping and whose operations are used here; this module only
keeps the plan instead of carrying it out for the whole model at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .errors import CheckpointError

__all__ = ["Conversion", "Layout"]

_WEIGHT = ".weight"


class Conversion:
    """One or more parameters of a model out of one or more tensors of a file.

    Attributes:
        first: the parameter, or the first of several.
        makes: all the parameters.
        sources: names in the file, in the order in which they enter.
        plain: one tensor that is one parameter, whatever its name.
    """

    def __init__(self, first: str, transform: Any, model: Any) -> None:
        self.makes: list[str] = []
        self.sources: list[str] = []
        self.plain = transform is None
        self.first = first
        self._transform = transform
        self._model = model
        self._patterns: list[str | None] = []

    def add(self, pattern: str | None, name: str) -> None:
        """One more tensor of the file, which matched ``pattern`` of the transform."""
        self.sources.append(name)
        self._patterns.append(pattern)

    def convert(self, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameter → values, from a reader of the file's tensors.

        Raises:
            CheckpointError: tensors that the operations of transformers refuse.
        """
        if self.plain:
            return {self.first: read(self.sources[0])}
        transform = copy.deepcopy(self._transform)  # it gives its tensors away when it converts
        for pattern, name in zip(self._patterns, self.sources, strict=True):
            transform.add_tensor(self.first, name, pattern, read(name))
        try:
            made = transform.convert(self.first, model=self._model, config=self._model.config)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            several = f" and {len(self.sources) - 1} more" if len(self.sources) > 1 else ""
            raise CheckpointError(
                f"{self.first} cannot be made of tensor {self.sources[0]}{several}: {' '.join(str(error).split())}"
            ) from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class Layout:
    """The plan for ``model``, which may be on the meta device, and a file with tensors of the given ``shapes``.

    Attributes:
        of: parameter or persistent buffer → how it is made; those that the file lacks are absent.
        shapes: the same → the shape that it gets.
        unused: tensors of the file that are part of no parameter.

    Args:
        model: a model of ``transformers``.
        shapes: name in the file → shape of the tensor.
        mapped: False for a reader that already speaks the names and layouts of the class, as that of GGUF does.

    Raises:
        CheckpointError: tensors that do not fit together.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]], *, mapped: bool = True) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        mapping = get_model_conversion_mapping(model) if mapped else []
        self._converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self._renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        self._model = model
        self._known = model.state_dict(keep_vars=True)
        by_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}
        conversions: dict[str, Conversion] = {}
        self.unused: list[str] = []
        for name in sorted(shapes, key=dot_natural_key):
            target, pattern = self.rename(name)
            if target not in self._known:
                self.unused.append(name)
                continue
            if target not in conversions:
                transform = None if pattern is None else by_pattern[pattern]
                conversions[target] = Conversion(target, transform, model)
            elif conversions[target].plain:
                both = f"{conversions[target].sources[0]} and {name}"
                raise CheckpointError(f"{both} are two tensors for one parameter, {target}: remove one of them")
            conversions[target].add(pattern, name)
        self.of: dict[str, Conversion] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for conversion in conversions.values():
            made = conversion.convert(lambda name: torch.empty(shapes[name], device="meta"))
            for name, value in made.items():
                conversion.makes.append(name)
                self.of[name] = conversion
                self.shapes[name] = tuple(value.shape)

    def rename(self, name: str) -> tuple[str, str | None]:
        """The parameter that a tensor of this name belongs to, and the pattern of the operation that makes it."""
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._known)
        if target not in self._known and name in self._known:
            target, pattern = rename_source_key(name, [], [], prefix, self._known)
        return target, pattern

    def home(self, parameter: str, *, packed: bool = False) -> str | None:
        """The name under which new values of a parameter, in the layout of the model, can be stored.

        It is the name in the file where that is one tensor. None if a reader would convert what it finds under
        either name. With ``packed`` the parts of a packed weight can stand in its place too.
        """
        names = (name for name in self.names(parameter) if self.rename(name) == (parameter, None))
        return next((name for name in names if not packed or self._packs(name, parameter)), None)

    def names(self, parameter: str) -> list[str]:
        """The names that new values of a parameter may have: that in the file, if it is one tensor, and its own."""
        conversion = self.of[parameter]
        return [*(conversion.sources if conversion.plain else ()), parameter]

    def _packs(self, name: str, parameter: str) -> bool:
        """Whether transformers' loader of packed weights finds the parts of a weight of this name."""
        from transformers.core_model_loading import Chunk, WeightConverter, rename_source_key
        from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

        parts = CompressedTensorsHfQuantizer.serialized_names["weight"]
        general = WeightConverter(list(parts), _WEIGHT[1:], [Chunk()])  # the names are what matters
        converters, prefix = [*self._converters, general], self._model.base_model_prefix
        stems = {parameter.removesuffix(_WEIGHT), name.removesuffix(_WEIGHT)}
        if not (name.endswith(_WEIGHT) and parameter.endswith(_WEIGHT) and all(stems)):
            return False
        return all(
            rename_source_key(name.removesuffix(_WEIGHT) + "." + part, self._renamings, converters, prefix, self._known)
            == (parameter, part)
            for part in parts
        )

    def merged(self) -> set[str]:
        """Last names of modules whose weights become part of a parameter that is not the weight of a module."""
        sources = (s for c in self._converters if not c.target_patterns[0].endswith(_WEIGHT) for s in c.source_patterns)
        return {source.removesuffix(_WEIGHT).rpartition(".")[2] for source in sources if source.endswith(_WEIGHT)}

    def unloadable(self) -> str | None:
        """Why the loader of packed weights in transformers fails on this class, if it does.

        For every part of a packed weight it adds an input to operations on weights, and then it refuses those with
        several inputs and several outputs.
        """
        for entry in self._converters:
            weights = all(pattern.endswith(_WEIGHT) for pattern in entry.source_patterns)
            many = any(operation.supports_many_to_many for operation in entry.operations)
            if weights and len(entry.target_patterns) > 1 and not many:
                return f"transformers cannot split {entry.source_patterns[0]} when it loads packed weights"
        return None
