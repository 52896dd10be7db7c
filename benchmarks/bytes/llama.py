"""llama.cpp's quantizer on the grid-free copies, with and without an importance matrix of this project's statistics.

The library is built from the source package of llama-cpp-python:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36     (needs scikit-build-core), unpack, then
    cmake -S vendor/llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_CURL=OFF \\
      -DLLAMA_BUILD_{COMMON,TESTS,EXAMPLES,TOOLS,SERVER,MTMD,UI}=OFF && ninja -C build llama     →  --lib build/bin

Bytes are those of a file's tensors: the tokenizer that a GGUF file also holds lies beside the others' files. The files
are measured as they are, this project reads them.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from study import CALIBRATION, MODELS, TEXTS, announce, announced, arguments, original

from lowbit.compression.arrays import Arrays
from lowbit.compression.moments import collect_moments
from lowbit.data.text import load_rows
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.models.decoder import Decoder
from lowbit.models.machine import thread_count
from lowbit.runs.clock import Clock

TYPES = ("IQ4_NL", "IQ3_S", "Q4_1", "Q4_0", "IQ2_XXS", "Q2_K", "Q4_K_M", "Q3_K_M", "Q5_K_M")
SMALL_EMBEDDING = "IQ4_NL"
"""llama.cpp keeps a tied embedding in 8.5 bits; the sizes of the study are reached by asking for this one."""


def f32(options: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """The copy as a GGUF file of float32, with the metadata of the file it came from; and llama.cpp's names."""
    folder = original(options)
    out, source = folder.parent / "original.gguf", open_checkpoint(folder)
    config = source.config
    arch = gguf.GGUFReader(folder.parent / MODELS[options.model].file).fields["general.architecture"].contents()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    names = {name: str(table.get_name(name, try_suffixes=(".weight",))) for name in source.names()}
    if out.exists():
        return out, names
    writer = gguf.GGUFWriter(out.with_suffix(".part"), arch)
    for name, other in names.items():
        w = source.read(name).float().numpy()
        if arch == "gemma3" and name.endswith("norm.weight"):
            w = w + np.float32(1)
        for layer, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if arch == "llama" and name.endswith(f"{layer}.weight"):  # halves of a head, interleaved
                w = w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        writer.add_tensor(other, np.ascontiguousarray(w))
    given = gguf.GGUFReader(folder.parent / MODELS[options.model].file)
    for field in given.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture", "general.file_type", "quantize.")):
            continue
        kind, sub = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.with_suffix(".part").rename(out)
    return out, names


def importance(options: argparse.Namespace, names: dict[str, str]) -> dict[str, npt.NDArray[np.float32]]:
    """Mean squared input of every column of every linear layer: the diagonals of C, under llama.cpp's names."""
    path = options.work / options.model / "diagonals.npz"
    if not path.exists():
        decoder = Decoder(open_checkpoint(original(options)), dtype="float32")
        arrays, clock = Arrays.load("torch", device="cpu", threads=1), Clock()
        rows = load_rows(
            str(options.data / TEXTS["wikitext2"].file), decoder.inventory.checkpoint.tokenizer(), **CALIBRATION
        )
        found: dict[str, Any] = {}
        with thread_count(1):
            with decoder.weights.outer(head=False):
                samples = decoder.embed(list(rows.ids))
            for index in range(len(decoder.inventory.blocks)):
                with decoder.weights.block(index):
                    moments = collect_moments(decoder, index, samples, arrays, clock)
                    decoder.advance(index, samples)
                for name, leader in moments.groups.items():
                    c = arrays.take(arrays.backend.moment_total(moments.nodes[leader]).matrix)
                    full = decoder.inventory.path(index, name) + ".weight"
                    found[full] = c.diagonal().float().numpy().copy()
        np.savez(path, **found)
    with np.load(path) as stored:
        return {names[name]: np.ascontiguousarray(stored[name]) for name in stored.files}


class _Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Params(ctypes.Structure):
    """``llama_model_quantize_params`` of that version."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("threads", "ftype", "output", "embedding")),
        *((name, ctypes.c_bool) for name in ("requantize", "head", "copy", "pure", "split", "dry")),
        *((name, ctypes.c_void_p) for name in ("imatrix", "kv", "types", "prune")),
        ("buffer", ctypes.c_size_t),
    ]


class Quantizer:
    """``llama_model_quantize`` of a library folder."""

    def __init__(self, folder: Path) -> None:
        for name in ("libggml-base.so", "libggml-cpu.so", "libggml.so"):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
        self._lib = ctypes.CDLL(str(folder / "libllama.so"))
        self._lib.llama_model_quantize_default_params.restype = _Params
        self._lib.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Params)]
        self._lib.llama_model_quantize.restype = ctypes.c_uint32
        self._lib.llama_backend_init()

    def __call__(self, source: Path, out: Path, kind: str, embedding: str | None, weights: dict[str, Any]) -> bool:
        """Whether the library made ``out``."""
        params = self._lib.llama_model_quantize_default_params()
        params.threads, params.ftype = 1, int(gguf.LlamaFileType[f"MOSTLY_{kind}"])
        if embedding is not None:
            params.embedding = int(gguf.GGMLQuantizationType[embedding])
        table = (_Importance * (len(weights) + 1))()
        for row, (name, values) in zip(table, weights.items(), strict=False):
            row.name, row.data, row.size = name.encode(), values.ctypes.data, values.size
        if weights:
            params.imatrix = ctypes.cast(table, ctypes.c_void_p)
        status: int = self._lib.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
        return status == 0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--lib", type=Path, required=True, help="folder of libllama.so")
    parser.add_argument("--types", nargs="*", default=TYPES)
    options = parser.parse_args()
    source, names = f32(options)
    weights, quantizer = importance(options, names), Quantizer(options.lib)
    (source.parent / "llama").mkdir(exist_ok=True)
    for kind in options.types:
        for matrix, embedding in ((True, SMALL_EMBEDDING), (True, None), (False, SMALL_EMBEDDING)):
            label = f"{'im-' if matrix else ''}{kind}{'' if embedding is None else f'+{embedding}'}"
            out = source.parent / "llama" / f"{label}.gguf"
            if announced(options, f"llama-{label}"):
                continue
            if not quantizer(source, out, kind, embedding, weights if matrix else {}):
                print(f"{label}: refused by the library", flush=True)
                continue
            reader = gguf.GGUFReader(out)
            announce(
                options,
                f"llama-{label}",
                family="llama.cpp" + (", importance matrix" if matrix else ""),
                path=f"llama/{out.name}",
                bytes=out.stat().st_size - reader.data_offset,
                type=kind,
                embedding_type=embedding or "default",
            )


if __name__ == "__main__":
    main()
