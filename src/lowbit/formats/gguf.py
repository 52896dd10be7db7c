"""Any dense GGUF model of llama.cpp as a Hugging Face checkpoint, one dequantized tensor at a time.

The file's tensors are matched to parameters through the name table of the ``gguf`` package, dequantized with its
NumPy code, and what llama.cpp's converter did to their values is undone. The configuration and the tokenizer come from
the file's metadata, which are parsed once; nothing beside the file is read. Only the header stays in memory;
tensors are read with ordinary file reads, a few rows at a time.

Left out on purpose: mixtures of experts, state-space models and encoder-decoders, whose tensors do not correspond one
to one to parameters; they are refused by name.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lowbit._hints import hint

from .configs import build_config, decoder_class, empty_model, not_a_decoder, portable_json
from .errors import CheckpointError, UnreadError
from .files import sha256
from .gguf_config import ROPE_TENSORS, model_settings
from .gguf_header import check_header
from .gguf_tokenizer import build_tokenizer
from .limits import building

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["ARCHITECTURES", "GgufCheckpoint"]

F32 = npt.NDArray[np.float32]

_CHUNK = 1 << 23  # elements dequantized at once: bounds the scratch of the quantization types' NumPy code


class _Tensor(NamedTuple):
    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # as NumPy sees it, slowest axis first
    start: int  # first byte in the file
    nbytes: int


# ---- what converters did to values, undone -------------------------------------------------------------------------


def _interleave_halves(w: F32, heads: int) -> F32:
    """Rows of each head from llama.cpp's order (x0, x_{d/2}, x1, ...) back to halves (x0, x1, ..., x_{d/2}, ...)."""
    half = w.shape[0] // heads // 2
    return w.reshape(heads, half, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _undo_llama(name: str, w: F32, config: Any) -> F32:
    if ".attn_q." in name:
        return _interleave_halves(w, config.num_attention_heads)
    if ".attn_k." in name:
        return _interleave_halves(w, config.num_key_value_heads)
    return w


def _undo_gpt2(name: str, w: F32, config: Any) -> F32:
    """GPT-2's Conv1D keeps (in, out); the converter wrote (out, in)."""
    del config
    turned = (".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight")
    return w.T if name.endswith(turned) else w


def _undo_offset_norm(name: str, w: F32, config: Any) -> F32:
    """Norms that compute x·(1 + w): the converter stored 1 + w."""
    del config
    return w - np.float32(1) if name.endswith("norm.weight") else w


def _undo_bloom(name: str, w: F32, config: Any) -> F32:
    """BLOOM interleaves q, k and v per head; the converter wrote all q, all k, all v."""
    if ".attn_qkv." not in name:
        return w
    heads = config.n_head
    return np.ascontiguousarray(w.reshape(3, heads, -1, *w.shape[1:]).swapaxes(0, 1)).reshape(w.shape)


def _as_is(name: str, w: F32, config: Any) -> F32:
    del name, config
    return w


ARCHITECTURES: dict[str, Callable[[str, F32, Any], F32]] = {
    "llama": _undo_llama,
    "gpt2": _undo_gpt2,
    "gemma2": _undo_offset_norm,
    "gemma3": _undo_offset_norm,
    "nemotron": _undo_offset_norm,
    "bloom": _undo_bloom,
    "phi3": _as_is,
    "qwen2": _as_is,
    "qwen3": _as_is,
    "stablelm": _as_is,
    "starcoder2": _as_is,
}
"""``general.architecture`` values that are read, and how the converter's change of values is undone."""


class _File:
    """Header and tensors of one file, under the names and in the layout of llama.cpp."""

    def __init__(self, path: Path, source: str) -> None:
        try:
            import gguf
        except ImportError as error:
            raise CheckpointError(f"{source}: GGUF files need: {hint('hf')}") from error
        self.source = source
        self.path = path
        self.identity = check_header(path)
        try:
            reader = gguf.GGUFReader(path)
            self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
            self.architecture = str(self.metadata["general.architecture"])
            swapped = reader.byte_order == "S"
            self.tensors = {
                tensor.name: _Tensor(
                    tensor.tensor_type,
                    tuple(int(n) for n in reversed(tensor.shape.tolist())),
                    int(tensor.data_offset),
                    int(tensor.n_bytes),
                )
                for tensor in reader.tensors
            }
        except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
            raise CheckpointError(
                f"{source}: truncated or not a GGUF file ({' '.join(str(error).split())}); download it again"
            ) from error
        if swapped:
            raise CheckpointError(f"{source}: written for the other byte order; convert it with llama.cpp's tools")
        size = path.stat().st_size
        for name, tensor in self.tensors.items():
            if tensor.start + tensor.nbytes > size:
                raise CheckpointError(
                    f"{source}: truncated: tensor {name} ends at byte {tensor.start + tensor.nbytes}, "
                    f"the file has {size}; download it again"
                )

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensors[name].shape

    def dequantize(self, stored: str) -> F32:
        """One tensor, read and dequantized a few rows at a time."""
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        tensor = self.tensors[stored]
        rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
        out = np.empty((rows, columns), np.float32)
        per_row = tensor.nbytes // rows if rows else 0
        step = max(1, _CHUNK // max(columns, 1))
        with self.path.open("rb") as file:
            self.identity.require(self.path, file.fileno())
            file.seek(tensor.start)
            for first in range(0, rows, step):
                last = min(first + step, rows)
                raw = np.frombuffer(file.read((last - first) * per_row), np.uint8)
                if raw.size != (last - first) * per_row:
                    raise CheckpointError(f"{self.source}: truncated while tensor {stored} was read")
                try:
                    byte_shape = quant_shape_to_byte_shape((last - first, columns), tensor.kind)
                    out[first:last] = dequantize(raw.reshape(byte_shape), tensor.kind)
                except (NotImplementedError, KeyError, ValueError) as error:
                    raise CheckpointError(
                        f"{self.source}: tensor {stored} has type {tensor.kind.name}, which the gguf package does not "
                        "dequantize"
                    ) from error
        return out.reshape(tensor.shape)


class GgufCheckpoint:
    """A GGUF file; see :class:`~lowbit.formats.checkpoint.Checkpoint`.

    Raises:
        UnreadError: an architecture outside :data:`ARCHITECTURES`, or metadata that would be ignored.
        CheckpointError: damaged file, a parameter without a tensor or a tensor without a parameter (either would be
            another model), or a quantization type without NumPy code.
    """

    kind = "gguf"
    quantization: dict[str, Any] | None = None

    def __init__(self, path: Path, source: str) -> None:
        self.source = source
        self._file = file = _File(path, source)
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        config = build_config(model_settings(file.metadata, shapes, file.dequantize, source), source)
        cls = decoder_class(config)
        if cls is None:
            raise UnreadError(f"{source}: {not_a_decoder(config)}")
        config.architectures = [cls.__name__]
        self.config: PretrainedConfig = config
        self._names, self._shapes = self._match(cls)

    def _match(self, cls: Any) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """Parameter name → tensor name, and parameter name → shape."""
        import gguf

        arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == self._file.architecture)
        table = gguf.get_tensor_name_map(arch, int(self.config.num_hidden_layers))
        with building(self._file):
            model = empty_model(cls, self.config, self.source)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        names: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, parameter in model.state_dict().items():
            module, _, suffix = name.rpartition(".")
            short = module.removeprefix(cls.base_model_prefix + ".")  # some tables name modules of the base model
            base = table.get_name(module) or table.get_name(short)
            stored = f"{base}.{suffix}"
            if base is None or stored not in self._file.tensors:
                if name in tied:
                    continue
                raise CheckpointError(f"{self.source}: no tensor for parameter {name} of {cls.__name__}")
            if math.prod(self._file.tensors[stored].shape) != parameter.numel():
                raise CheckpointError(
                    f"{self.source}: tensor {stored} has shape {self._file.tensors[stored].shape}, "
                    f"parameter {name} has {tuple(parameter.shape)}"
                )
            names[name] = stored
            shapes[name] = tuple(parameter.shape)
        unused = sorted(set(self._file.tensors) - set(names.values()) - set(ROPE_TENSORS))
        if unused:
            raise CheckpointError(f"{self.source}: tensor {unused[0]} belongs to no parameter of {cls.__name__}")
        return names, shapes

    def names(self) -> list[str]:
        """See :class:`Checkpoint`: parameter names of the model class; a tied output head is absent."""
        return list(self._names)

    def _stored(self, name: str) -> str:
        if name not in self._names:
            raise CheckpointError(f"{self.source}: no tensor {name}")
        return self._names[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """See :class:`Checkpoint`."""
        self._stored(name)
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """Always float32: dequantized."""
        self._stored(name)
        return torch.float32

    def natural_dtype(self, name: str) -> torch.dtype:
        """See :class:`Checkpoint`."""
        kind: str = self._file.tensors[self._stored(name)].kind.name
        return {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16}.get(kind, torch.bfloat16)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """See :class:`Checkpoint`."""
        stored = self._stored(name)
        weight = ARCHITECTURES[self._file.architecture](stored, self._file.dequantize(stored), self.config)
        tensor = torch.from_numpy(np.ascontiguousarray(weight)).reshape(self._shapes[name])
        return tensor if rows is None else tensor[rows[0] : rows[1]].clone()

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return build_tokenizer(self._file.metadata, self.source)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See :class:`Checkpoint`; built from the file's metadata alone, once."""
        return self._tokenizer

    def fingerprint(self) -> dict[str, str]:
        """See :class:`Checkpoint`: the one file."""
        return {self._file.path.name: sha256(self._file.path, self._file.identity)}

    def weight_bytes(self) -> int:
        """See :class:`Checkpoint`: the one file, which holds the tokenizer too."""
        return self._file.identity.size

    def unchanged(self) -> None:
        """See :class:`Checkpoint`."""
        self._file.identity.require(self._file.path)

    def config_json(self) -> dict[str, Any]:
        """See :class:`Checkpoint`."""
        return portable_json(self.config)

    def save_side_files(self, out: Path) -> None:
        """See :class:`Checkpoint`; the tokenizer in its fast form, and the special tokens as generation settings."""
        self._tokenizer.save_pretrained(out)
        written = out / "tokenizer_config.json"
        # The name that transformers 4 knows as well.
        known = json.loads(written.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        written.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        ids = {key: getattr(self.config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings = {key: value for key, value in ids.items() if value is not None}
        (out / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
