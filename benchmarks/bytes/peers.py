"""Other quantizers for linear layers, each run in an environment of its own: nothing of this project is imported.

    python -m venv env && env/bin/pip install torch==2.13.0 transformers hqq==0.2.8.post1 bitsandbytes==0.50.2 \\
      torchao==0.18.0       (auto-round==0.16.1 and gptqmodel==7.7.0 each alone)
    env/bin/python benchmarks/bytes/peers.py --work W --data D --model smollm2 hqq4 nf4 ...

Each leaves a dense directory of the values that its codes stand for, in float32, and the bytes of those codes, scales
and zeros: tensors as the package holds them, scales counted in 16 bits. None of them packs an embedding: each is
measured with that of this project, as the uniform settings are.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from study import CALIBRATION, GROUP, TEXTS, announce, announced, arguments, original

_HALF = 2  # bytes of a scale


def hqq(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """HQQ's own solver; codes as it packs them, a scale and a zero for each group."""
    quantizer = importlib.import_module("hqq.core.quantize").Quantizer
    codes, told = quantizer.quantize(w, nbits=bits, group_size=GROUP, axis=1, device="cpu", compute_dtype=torch.float32)
    size = codes.nbytes + _HALF * (told["scale"].numel() + told["zero"].numel())
    return quantizer.dequantize(codes, told).float(), size


def nf4(w: torch.Tensor, _: int) -> tuple[torch.Tensor, int]:
    """bitsandbytes' NF4 in blocks of 64, scales quantized again."""
    functional = importlib.import_module("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(w, blocksize=GROUP, compress_statistics=True, quant_type="nf4")
    size = codes.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.state2.code.nbytes + 4
    return functional.dequantize_4bit(codes, state), size


def torchao(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, int]:
    """IntxWeightOnly, asymmetric; codes counted packed, zero points in 8 bits as it holds them."""
    quantization = importlib.import_module("torchao.quantization")
    primitives = importlib.import_module("torchao.quantization.quant_primitives")
    layer = torch.nn.Sequential(torch.nn.Linear(w.shape[1], w.shape[0], bias=False))
    layer[0].weight = torch.nn.Parameter(w.clone())
    config = quantization.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=importlib.import_module("torchao.quantization.granularity").PerGroup(GROUP),
        mapping_type=primitives.MappingType.ASYMMETRIC,
    )
    quantization.quantize_(layer, config)
    stored: Any = layer[0].weight
    return stored.dequantize().detach(), w.numel() * bits // 8 + stored.scale.numel() * (_HALF + 1)


LAYERWISE: dict[str, tuple[str, Callable[[torch.Tensor, int], tuple[torch.Tensor, int]], int]] = {
    "nf4": ("bitsandbytes", nf4, 4),
    "hqq4": ("hqq", hqq, 4),
    "hqq3": ("hqq", hqq, 3),
    "hqq2": ("hqq", hqq, 2),
    "torchao4": ("torchao", torchao, 4),
    "torchao3": ("torchao", torchao, 3),
}


def layerwise(options: argparse.Namespace, name: str) -> None:
    """A peer that needs nothing but the weight."""
    package, quantize, bits = LAYERWISE[name]
    made = {
        key: quantize(w.float(), bits)
        for key, w in load_file(original(options) / "model.safetensors").items()
        if key.endswith("_proj.weight")
    }
    leave(
        options, name, {key: w for key, (w, _) in made.items()}, sum(size for _, size in made.values()), package, bits
    )


def leave(
    options: argparse.Namespace, name: str, made: dict[str, Any], size: int, package: str, bits: int, **told: Any
) -> None:
    """A dense directory with the weights that were made, in ``size`` bytes, and its announcement."""
    source = original(options)
    out = source.parent / "peers" / name
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out)
    tensors = load_file(source / "model.safetensors")
    total = size + sum(w.nbytes for key, w in tensors.items() if key not in made)
    tensors |= {key: w.float().contiguous() for key, w in made.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    told |= {"family": package, "version": metadata.version(package), "bits": bits}
    announce(options, f"peer-{name}", path=f"peers/{name}", bytes=total, embeddings="fit", **told)


def calibration(options: argparse.Namespace, tokenizer: Any) -> list[torch.Tensor]:
    """The rows that everyone is calibrated on, BOS first where the tokenizer adds one."""
    text = (options.data / TEXTS["wikitext2"].file).read_text(encoding="utf-8")
    count, length = CALIBRATION["samples"], CALIBRATION["length"]
    lead = tokenizer("a").input_ids[: -len(tokenizer("a", add_special_tokens=False).input_ids)]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    own = length - len(lead)
    return [torch.tensor([lead + ids[row * own : (row + 1) * own]]) for row in range(count)]


def autoround(options: argparse.Namespace, bits: int, steps: int) -> None:
    """AutoRound, asymmetric: rounding learned from the outputs of each block."""
    transformers, auto_round = importlib.import_module("transformers"), importlib.import_module("auto_round")
    folder = original(options)
    name = f"autoround{bits}-{steps}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = calibration(options, tokenizer)
    started = time.perf_counter()
    rounding = auto_round.AutoRound(
        model,
        tokenizer,
        bits=bits,
        group_size=GROUP,
        sym=False,
        iters=steps,
        seqlen=CALIBRATION["length"],
        nsamples=len(rows),
        batch_size=4,
        dataset=[{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows],
        device_map="cpu",
        enable_torch_compile=False,
    )
    model, _ = rounding.quantize()
    made = {key: w for key, w in model.state_dict().items() if key.endswith("_proj.weight")}
    values = sum(w.numel() for w in made.values())
    size = values * bits // 8 + values // GROUP * (8 * _HALF + bits) // 8
    seconds = round(time.perf_counter() - started)
    leave(options, name, made, size, "auto-round", bits, steps=steps, seconds=seconds)


def gptqmodel(options: argparse.Namespace, bits: int) -> None:
    """GPTQModel, asymmetric. Where there are two cores it needs ``GPTQMODEL_CPU_WORKERS=2``."""
    transformers, package = importlib.import_module("transformers"), importlib.import_module("gptqmodel")
    folder = original(options)
    config = package.QuantizeConfig(bits=bits, group_size=GROUP, sym=False)
    model = package.GPTQModel.load(str(folder), config, device="cpu")
    rows = calibration(options, transformers.AutoTokenizer.from_pretrained(folder))
    model.quantize([{"input_ids": row[0].tolist(), "attention_mask": [1] * row.numel()} for row in rows], batch_size=1)
    layers = {name: layer for name, layer in model.model.named_modules() if hasattr(layer, "dequantize_weight")}
    made = {f"{name}.weight": layer.dequantize_weight().T for name, layer in layers.items()}
    size = sum(part.nbytes for layer in layers.values() for part in layer.buffers())
    leave(options, f"gptqmodel{bits}", made, size, "gptqmodel", bits)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("peers", nargs="+", help=f"{', '.join(LAYERWISE)} autoround<BITS>-<STEPS> or gptqmodel<BITS>")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.peers:
        if announced(options, f"peer-{name}"):
            continue
        if name in LAYERWISE:
            layerwise(options, name)
        elif name.startswith("gptqmodel"):
            gptqmodel(options, int(name.removeprefix("gptqmodel")))
        else:
            bits, _, steps = name.removeprefix("autoround").partition("-")
            autoround(options, int(bits), int(steps))


if __name__ == "__main__":
    main()
