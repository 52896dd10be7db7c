"""A model that is in memory already, as a checkpoint: nothing is written before the result."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowbit.runs.files import digest

from .errors import CheckpointError
from .safetensors_file import TensorSource, file_size, raw

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["MemoryCheckpoint"]


class MemoryCheckpoint:
    """A model of ``transformers`` with its tokenizer; see :class:`~lowbit.formats.checkpoint.Checkpoint`.

    The model is read and never changed; it must not be changed by others while the checkpoint is in use.

    Raises:
        CheckpointError: an already quantized model, one with an adapter, or weights that are not in memory.
    """

    kind = "memory"
    quantization: dict[str, Any] | None = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.source = str(getattr(model, "name_or_path", "") or type(model).__name__)
        if getattr(model.config, "quantization_config", None) is not None:
            raise CheckpointError(f"{self.source}: already quantized; start from the full-precision model")
        if getattr(model, "peft_config", None):
            raise CheckpointError(
                f"{self.source}: carries an adapter; merge it first (merge_and_unload), or take it off"
            )
        self.config: PretrainedConfig = copy.deepcopy(model.config)
        self.config.architectures = [type(model).__name__]
        self._model = model
        self._tokenizer = tokenizer
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        self._tensors: dict[str, torch.Tensor] = {
            name: tensor for name, tensor in model.state_dict().items() if name not in tied
        }
        for name, tensor in self._tensors.items():
            if tensor.is_meta:
                raise CheckpointError(
                    f"{self.source}: tensor {name} is not in memory; load the model without offloading"
                )

    def names(self) -> list[str]:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`."""
        return list(self._tensors)

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.source}: no tensor {name}")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`."""
        return tuple(self._tensor(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`."""
        return self._tensor(name).dtype

    natural_dtype = dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`; on the CPU, wherever the model is."""
        tensor = self._tensor(name).detach()
        tensor = tensor if rows is None else tensor[rows[0] : rows[1]]
        return tensor.to("cpu", copy=True).contiguous()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`."""
        return self._tokenizer

    def fingerprint(self) -> dict[str, str]:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`; ``tensors`` stands for the weight files."""
        hasher = hashlib.sha256()
        for name in sorted(self._tensors):
            tensor = self.read(name)
            hasher.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
            if tensor.numel():
                hasher.update(raw(tensor))
        found = {"tensors": hasher.hexdigest()}
        with tempfile.TemporaryDirectory() as folder:
            self.save_side_files(Path(folder))
            self.config.save_pretrained(folder)
            return found | {path.name: digest(path) for path in sorted(Path(folder).iterdir())}

    def weight_bytes(self) -> int:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`: of the file that its ``save_pretrained`` writes."""
        return file_size({name: TensorSource.of(tensor) for name, tensor in self._tensors.items()})

    def unchanged(self) -> None:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`; nobody else changes a model in use."""

    def config_json(self) -> dict[str, Any]:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`: what the model's own ``save_pretrained`` writes."""
        found: dict[str, Any] = json.loads(self.config.to_json_string(use_diff=True))
        found.pop("_name_or_path", None)
        return found

    def save_side_files(self, out: Path) -> None:
        """See :class:`~lowbit.formats.checkpoint.Checkpoint`."""
        self._tokenizer.save_pretrained(out)
        if self._model.can_generate():
            copy.deepcopy(self._model.generation_config).save_pretrained(out)
