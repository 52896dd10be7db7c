"""Divergence and likelihood of every variant that was announced, window by window, against the grid-free original.

One line of JSON for each variant and text is appended to ``benchmarks/results/bytes/<model>.jsonl``; what stands there
is not run again. Passes are float32; a pass takes a few variants, so that the original is not run for each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from originals import EMBEDDING, EMBEDDING_BITS
from study import RECORDS, SIZES, TEXTS, arguments, original, variants, with_embedding

from lowbit.data.text import load_rows
from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.packed.compressed_tensors import dequantize_module
from lowbit.formats.safetensors_file import SafetensorsFile
from lowbit.models.adapters import adapter_factors, split_factors
from lowbit.models.decoder import Decoder
from lowbit.models.likelihood import Variant, stream_likelihood
from lowbit.models.machine import thread_count

_LENGTH = 1024
FILLED = 0.95
"""Share of a size that a variant at least fills to be measured for it: in less, more could have been kept."""


def wanted(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be measured: a variant once for every embedding that it is to have."""
    source = open_checkpoint(original(options))
    rows, width = source.shape(EMBEDDING)
    for variant in variants(options):
        if variant.pop("embeddings", None) is None:
            yield variant
            continue
        own = variant["bytes"]
        total = {bits: with_embedding(options, own, bits, 2 * rows * width) for bits in EMBEDDING_BITS}
        for bits in fitting(total, source.weight_bytes() // 2):
            yield variant | {
                "name": f"{variant['name']}+e{bits}", "embedding": bits, "own_bytes": own, "bytes": total[bits]
            }  # fmt: skip


def fitting(total: Mapping[int, int], values: int) -> list[int]:
    """For every size of the study the widest embedding that it has room for, if that about fills it."""
    found = set()
    for size in SIZES:
        room = size * values / 8
        widths = [bits for bits, needed in total.items() if FILLED * room <= needed <= room]
        found |= {max(widths)} if widths else set()
    return sorted(found)


def as_variant(options: argparse.Namespace, told: Mapping[str, Any]) -> Variant:
    """A model ready to be measured."""
    folder: Path = options.work / options.model
    path = folder / told["path"]
    decoder = Decoder(open_checkpoint(path), dtype="float32")
    adapter = folder / told["adapter"] if told.get("adapter") else None
    factors = split_factors(decoder.inventory, adapter_factors(path, adapter), str(path))
    outer = None if told.get("embedding") is None else packed_embedding(decoder, folder, told["embedding"])
    return Variant(told["name"], decoder, lambda index: (None, factors[index]), outer)


def packed_embedding(decoder: Decoder, folder: Path, bits: int) -> Callable[[str], torch.Tensor]:
    """What lies outside the blocks, with the embedding out of the packed file."""
    file = SafetensorsFile(folder / "embedding" / f"{bits}.safetensors")

    def read(name: str) -> torch.Tensor:
        if name != EMBEDDING:
            return decoder.weights.read(name)
        parts = {entry.removeprefix("embedding."): file.read(entry) for entry in file.entries}
        return dequantize_module(parts, bits=bits, scheme="asymmetric")

    return read


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--windows", type=int, default=16, help="of each text")
    parser.add_argument("--texts", nargs="*", choices=tuple(TEXTS), default=list(TEXTS))
    parser.add_argument("--batch", type=int, default=4, help="variants in one pass")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    path: Path = options.records / f"{options.model}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    done = {(record["text"], record["name"]) for record in known if record["windows"] == options.windows}
    source = open_checkpoint(original(options))
    base = Variant("original", Decoder(source, dtype="float32"), lambda _: (None, None))
    told = [variant for variant in wanted(options) if variant["name"].startswith(options.only)]
    for key in options.texts:
        text = TEXTS[key]
        rows = load_rows(
            str(options.data / text.file), source.tokenizer(), samples=options.windows, length=_LENGTH, skip=text.skip
        )
        left = [variant for variant in told if (key, variant["name"]) not in done]
        for start in range(0, len(left), options.batch):
            batch = left[start : start + options.batch]
            with thread_count(1):
                found = stream_likelihood(
                    rows.ids,
                    [base, *(as_variant(options, variant) for variant in batch)],
                    given=rows.given,
                    reference=base.name,
                )
            first = {"name": "original", "family": "original", "bytes": source.weight_bytes()}
            for variant in [first, *batch] if (key, "original") not in done else batch:
                likelihood = found[variant["name"]]
                line = {
                    "text": key,
                    "windows": options.windows,
                    **{name: value for name, value in variant.items() if name not in ("path", "adapter")},
                    "tokens": likelihood.tokens,
                    "perplexity": likelihood.perplexity,
                    "nll": likelihood.per_token(likelihood.losses).tolist(),
                }
                if likelihood.divergences is not None and likelihood.agreements is not None:
                    line |= {
                        "kl": likelihood.per_token(likelihood.divergences).tolist(),
                        "agreement": likelihood.per_token(likelihood.agreements).tolist(),
                    }
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                done.add((key, variant["name"]))
                print(key, variant["name"], variant["bytes"], round(likelihood.perplexity, 3), flush=True)


if __name__ == "__main__":
    main()
