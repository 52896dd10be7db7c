"""Opening a model by name: a local directory, a GGUF file or a hub id, read one tensor at a time.

Any model can be opened, encoders and vision models too; what may be compressed is not decided here.

Weights come from safetensors or GGUF only. Pickles are refused, because opening one can run any code, and so is
code shipped with a model. A directory compressed by lowbit (or by any tool that writes compressed-tensors
``pack-quantized``) opens like a dense model: reading the weight of a packed module gives the dequantized weight.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lowbit._hints import hint
from lowbit.runs.files import digest

from .configs import load_config
from .errors import CheckpointError, UnreadError
from .files import Identity, read_json, refuse_strangers, sha256
from .limits import require_plain
from .packed import PackedWeight, open_packed
from .packed.compressed_tensors import PACKED, TRANSPOSED_KEY
from .safetensors_file import SafetensorsFile, TensorEntry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "SafetensorsCheckpoint", "open_checkpoint", "weights_hash"]

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "tekken.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
"""What a model directory holds beside its configuration and its weights."""

_TEMPLATES = "additional_chat_templates"  # a folder with more than the one chat template

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*"]  # second copies of the weights in other layouts


class Checkpoint(Protocol):
    """A model on disk, whatever its format.

    Attributes:
        kind: ``"safetensors"`` or ``"gguf"``.
        source: what the caller asked for.
        config: the model's configuration, without any quantization entry.
        quantization: the configuration's quantization entry, or None for a dense model.
    """

    kind: str
    source: str
    config: PretrainedConfig
    quantization: dict[str, Any] | None

    def names(self) -> list[str]:
        """Names of the tensors in Hugging Face terms, in the order of the files."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of what :meth:`read` returns."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Type of what :meth:`read` returns; float32 for GGUF, the type of the scales for a packed module."""
        ...

    def natural_dtype(self, name: str) -> torch.dtype:
        """Type that is enough to store the tensor again: :meth:`dtype`, but of a GGUF tensor the type in its file.

        A quantized GGUF tensor has 8 bits or fewer of its own: bfloat16 adds an error far below the one it has.
        """
        ...

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor, or rows ``[start, stop)`` of it, in memory of its own."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """File name → SHA-256 of its content, for every file that decides what the model computes."""
        ...

    def weight_bytes(self) -> int:
        """Size of the files that hold the weights."""
        ...

    def unchanged(self) -> None:
        """Refuse to go on if one of these files is another by now than when the model was opened.

        Raises:
            CheckpointError: naming the file.
        """
        ...

    def config_json(self) -> dict[str, Any]:
        """Content of ``config.json`` in the input's own words, with its quantization entry if it has one.

        Of GGUF, which has no such file, in words that transformers 4 and 5 both read.
        """
        ...

    def save_side_files(self, out: Path) -> None:
        """Write the tokenizer and the generation settings into ``out``; not the configuration."""
        ...


def weights_hash(folder: str | Path) -> str:
    """One SHA-256 over the names and contents of a directory's weight files: the identity of a base model.

    Configuration and tokenizer do not enter, so that editing a README or a chat template keeps an adapter valid.
    """
    path = Path(folder)
    files = [path] if path.is_file() else _weight_files(path)
    listing = [[file.name, digest(file)] for file in sorted(files, key=lambda file: file.name)]
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Open a model directory, a ``*.gguf`` file, or a hub id (downloaded once, without any pickle).

    Raises:
        CheckpointError: nothing there, pickles only, missing or damaged files, an architecture that the installed
            transformers does not know, or a quantization that no module of :mod:`lowbit.formats.packed` reads.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            from .gguf import GgufCheckpoint

            return GgufCheckpoint(path, str(source))
        if any(path.match(pattern) for pattern in _PICKLES):
            raise UnreadError(_pickle_message(path))
        hint = f"; pass its directory {path.parent}" if path.suffix == ".safetensors" else ""
        raise CheckpointError(f"{source}: a model is a directory, a .gguf file or a hub id, not this file{hint}")
    if path.is_dir():
        return SafetensorsCheckpoint(path, str(source))
    text = str(source)
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"{source}: no such file or directory")
    return SafetensorsCheckpoint(_download(text), text)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(f"{name}: no such directory, and hub ids need: {hint('hf')}") from error
    try:
        snapshot_download(name, allow_patterns=[f"{_TEMPLATES}/*.jinja"])
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORED))
    except Exception as error:  # the hub client raises a dozen unrelated kinds; the user needs one sentence
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: not a local file or directory, and as a hub id it cannot be downloaded ({reason})"
        ) from error


def _pickle_message(path: Path) -> str:
    return (
        f"{path}: a pickle, which can run any code when it is opened; lowbit reads safetensors and GGUF only. "
        "Load it once where you trust it and save it with save_pretrained(..., safe_serialization=True)"
    )


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():  # transformers takes it whatever an index says, which may be left from other weights
        return [single]
    if index.is_file():
        return [folder / name for name in sorted(set(_read_index(index).values()))]
    found = sorted(path for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors")
    if found:
        return found
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UnreadError(_pickle_message(pickles[0]))
    raise CheckpointError(f"{folder}: no {_SINGLE}, no {_INDEX} and no other *.safetensors file")


def _read_index(index: Path) -> dict[str, str]:
    weight_map = read_json(index, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: not a safetensors index: it needs a weight_map of names to files")
    outside = sorted({name for name in weight_map.values() if Path(name).name != name})
    if outside:
        raise CheckpointError(f"{index}: names a file outside its directory: {outside[0]}")
    return weight_map


class SafetensorsCheckpoint:
    """A directory of safetensors with ``config.json``; see :class:`Checkpoint`.

    Names are those of the files; :class:`~lowbit.formats.layout.Layout` knows which parameters they stand for.
    """

    kind = "safetensors"

    def __init__(self, folder: Path, source: str) -> None:
        self.source = source
        self.folder = folder
        refuse_strangers(folder)
        if not (folder / "config.json").is_file():
            if (folder / "adapter_config.json").is_file():
                raise CheckpointError(
                    f"{source}: an adapter directory, not a model; pass the compressed model, and this as --adapter"
                )
            _weight_files(folder)
            raise CheckpointError(f"{source}: no config.json")
        if (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"{source}: config.json and adapter_config.json in one directory, which transformers loads as the "
                "adapter on its own base; merge the adapter into the model, or move it to a directory of its own"
            )
        refuse_strangers(folder / _TEMPLATES, home=folder)
        beside = [folder / name for name in ("config.json", *SIDE_FILES) if (folder / name).is_file()]
        beside += sorted((folder / _TEMPLATES).glob("*.jinja"))
        if not (folder / _SINGLE).is_file() and (folder / _INDEX).is_file():
            beside.append(folder / _INDEX)
        self._beside = {path: Identity.of(path) for path in beside}
        self._json = read_json(folder / "config.json")
        self.quantization: dict[str, Any] | None = require_plain(self._json, f"{folder / 'config.json'}")
        config = load_config(folder, source)
        self.config: PretrainedConfig = config
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")  # the tensors that are read are dense
        self._files = {path.name: SafetensorsFile(path) for path in self._shards()}
        self._where = self._locate()
        if self.quantization is None and any(name.endswith(PACKED) for name in self._where):
            raise CheckpointError(f"{source}: packed weights, but config.json has no quantization_config")
        self.packed = None if self.quantization is None else open_packed(self.quantization, source)
        self._parts = {} if self.packed is None else self.packed.holds(self._where)
        self._packed = {f"{module}.weight": module for module in self._parts}
        self._transposed = self._transposed_modules()

    def _shards(self) -> list[Path]:
        files = _weight_files(self.folder)
        present = {path.name for path in self.folder.iterdir()}
        for path in files:
            if path.name not in present:
                raise CheckpointError(f"{path}: missing shard; {_INDEX} lists it, so download or copy it again")
        if self.folder / _INDEX not in self._beside:
            for path in files:
                numbered = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.safetensors", path.name)
                if numbered and len(files) < int(numbered[2]):
                    raise CheckpointError(
                        f"{self.folder}: {len(files)} of {int(numbered[2])} shards and no {_INDEX}; download the rest"
                    )
        return files

    def _locate(self) -> dict[str, tuple[SafetensorsFile, str]]:
        """Everything that the files hold, as transformers takes it: the index only says which files there are."""
        found: dict[str, tuple[SafetensorsFile, str]] = {}
        for file in self._files.values():
            for name in file.entries:
                if name in found:
                    raise CheckpointError(
                        f"{self.source}: tensor {name} stands in {found[name][0].path.name} and in {file.path.name}, "
                        "of which readers take different ones; remove the file that does not belong here"
                    )
                found[name] = (file, name)
        if self.folder / _INDEX in self._beside:
            for name, shard in _read_index(self.folder / _INDEX).items():
                if name not in self._files[shard].entries:
                    raise CheckpointError(f"{self.folder / shard}: lacks tensor {name}, which {_INDEX} places there")
        return found

    def _transposed_modules(self) -> frozenset[str]:
        marks = [file.metadata.get(TRANSPOSED_KEY, "") for file in self._files.values()]
        return frozenset(name for mark in marks for name in mark.split(",") if name)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self._where:
            close = difflib.get_close_matches(name, self.names(), n=2)
            hint = f"; it has {' and '.join(close)}" if close else ""
            raise CheckpointError(f"{self.source}: no tensor {name}{hint}")
        file, stored = self._where[name]
        return file.entries[stored]

    def names(self) -> list[str]:
        """See :class:`Checkpoint`; the parts of a packed module appear as one ``….weight``."""
        whole = {part: f"{module}.weight" for module, parts in self._parts.items() for part in parts}
        return list(dict.fromkeys(whole.get(name, name) for name in self._where))

    def shape(self, name: str) -> tuple[int, ...]:
        """See :class:`Checkpoint`."""
        if name in self._packed:
            assert self.packed is not None
            m, k = self.packed.shape(self._packed[name], self.read_stored)
            return (k, m) if self._packed[name] in self._transposed else (m, k)
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """See :class:`Checkpoint`."""
        if self.packed is not None and name in self._packed:
            name = self.packed.scale_of(self._packed[name])
        return self._entry(name).dtype

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor as stored, such as ``….weight_packed``."""
        return self._entry(name).shape

    def read_stored(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor exactly as stored, such as ``….weight_packed``."""
        self._entry(name)
        file, stored = self._where[name]
        return file.read(stored, rows)

    def natural_dtype(self, name: str) -> torch.dtype:
        """See :class:`Checkpoint`."""
        return self.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """See :class:`Checkpoint`; the weight of a packed module is dequantized, bit for bit as transformers does."""
        if name not in self._packed:
            return self.read_stored(name, rows)
        assert self.packed is not None
        module = self._packed[name]
        weight = self.packed.dequantize(module, {part: self.read_stored(part) for part in self._parts[module]})
        if module in self._transposed:
            weight = weight.T.contiguous()
        return weight if rows is None else weight[rows[0] : rows[1]].contiguous()

    def unpack(self, module: str) -> PackedWeight:
        """Codes, scales and zero points of a packed module.

        Raises:
            CheckpointError: a part is missing, or sizes do not fit.
        """
        assert self.packed is not None
        return self.packed.unpack(module, {part: self.read_stored(part) for part in self._parts[module]})

    def packed_modules(self) -> list[str]:
        """Paths of the packed modules, in the order of the files."""
        return list(self._parts)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See :class:`Checkpoint`."""
        from transformers import AutoTokenizer

        try:
            # Without gguf_file its own settings could name one, of any place.
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, gguf_file=None)
        except Exception as error:  # whatever the tokenizer libraries raise, the sentence is the same
            raise CheckpointError(
                f"{self.source}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:300]})"
            ) from error

    def _identities(self) -> dict[Path, Identity]:
        return self._beside | {file.path: file.identity for file in self._files.values()}

    def fingerprint(self) -> dict[str, str]:
        """See :class:`Checkpoint`."""
        files = {path.relative_to(self.folder).as_posix(): (path, one) for path, one in self._identities().items()}
        return {name: sha256(*file) for name, file in sorted(files.items())}

    def weight_bytes(self) -> int:
        """See :class:`Checkpoint`."""
        return sum(file.identity.size for file in self._files.values())

    def unchanged(self) -> None:
        """See :class:`Checkpoint`."""
        for path, identity in self._identities().items():
            identity.require(path)

    def config_json(self) -> dict[str, Any]:
        """See :class:`Checkpoint`."""
        return copy.deepcopy(self._json)

    def save_side_files(self, out: Path) -> None:
        """See :class:`Checkpoint`; the files are copied byte for byte."""
        for path, identity in self._beside.items():
            name = path.relative_to(self.folder)
            travels = str(name) in SIDE_FILES or name.parent.name == _TEMPLATES
            if travels and path.resolve() != (out / name).resolve():
                (out / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, out / name)
                identity.require(path)

    def unread(self) -> list[str]:
        """Weight files that an index names although a single file is read, as transformers reads it."""
        if self.folder / _SINGLE not in self._identities() or not (self.folder / _INDEX).is_file():
            return []
        return sorted({*_read_index(self.folder / _INDEX).values()} - {_SINGLE})
