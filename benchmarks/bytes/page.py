"""Writes ``docs/results/bytes.md`` from the records; what has no records has no section.

python benchmarks/bytes/page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from study import MODELS, RECORDS, SIZES, TEXTS

from lowbit.models.likelihood import Mean
from lowbit.recipes.compare import Difference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "bytes.md"
WINDOWS = 16
TEXT = """# Quality at equal bytes

Which model is the nearest to its original in so many bytes? KL(original ‖ model) in nats per token and perplexity, of
16 windows of 1024 tokens; ± is the standard error over windows, t that of a paired test over the same windows, positive
where the first of two is nearer. Written by `benchmarks/bytes/page.py` from `benchmarks/results/bytes/`.

**The original is a grid-free copy.** The files that these models come in hold 4 or 5 bits in groups of 32, which
flatters every quantizer with such groups. Random diagonal scales between norms and the layers behind them, v and o, up
and down take a model off that grid and leave its function as it was, to the rounding of bfloat16.

**Everything is counted.** Sizes are bits per weight of all weights, embedding, scales, zeros, factors and norms
included; tokenizers are not counted, nor is the one inside a GGUF file. Everyone is calibrated on the first 16 × 1024
tokens of the WikiText-2 validation text. Passes are float32.

**Embeddings.** A fifth of SmolLM2 and three fifths of Gemma are the embedding, so no small file keeps it in 16 bits.
Uniform settings, and peers that pack no embedding, have this project's packed one, rounded to nearest in groups of 64
and as wide as the size leaves room for; what fills less than 95 % of every size is left out. llama.cpp packs its own,
in 8.5 bits or, where that is said, as IQ4_NL. It has no file of these widths, no multiples of 256, below 3.9 bits.

**Who stands here.** *Uniform*: one setting for all layers, groups of 64, factors in 8 bits. *im-*: llama.cpp with an
importance matrix, the diagonals of this project's second moments. AutoRound's steps are stated; its own best recipe
takes 1000, with 512 samples of 2048 tokens.

<!-- skip: hours, and packages of its own -->
```sh
python benchmarks/bytes/originals.py --work W --data D --model smollm2
python benchmarks/bytes/uniform.py --work W --data D --model smollm2
python benchmarks/bytes/llama.py --work W --data D --model smollm2 --lib LLAMA/bin
PEERS/bin/python benchmarks/bytes/peers.py --work W --data D --model smollm2 nf4 hqq4 hqq3 torchao4 autoround3-200
python benchmarks/bytes/decide.py --work W --data D --model smollm2
python benchmarks/bytes/measure.py --work W --data D --model smollm2
python benchmarks/bytes/page.py
```

`D` is a folder with `wikitext2-valid.txt` and `c4-300.json`. Every script goes on where it was stopped.
"""

Record = dict[str, Any]


def mean(record: Record) -> str:
    """KL with its standard error."""
    value, error = Mean.of(np.array(record["kl"]))
    return f"{value:.4f} ± {error:.4f}"


def kl(record: Record) -> float:
    return float(np.mean(record["kl"]))


def against(ours: npt.NDArray[np.float64], theirs: Record) -> str:
    """How far below another's KL ours is, with the paired t over windows."""
    found = Difference.of(ours, np.array(theirs["kl"]))
    share = 1 - float(ours.mean()) / kl(theirs)
    told = f"{share:.0%} below" if share >= 0 else f"{-share:.0%} above"
    return f"{told}, t = {0 if found.t is None else -found.t:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def best(records: Sequence[Record], size: float) -> Record | None:
    """The nearest to the original of those that are no larger than a size."""
    return min((record for record in records if record["bytes"] <= size), key=kl, default=None)


def between(records: Sequence[Record], size: float) -> npt.NDArray[np.float64] | None:
    """KL of every window at a size between two of the records: its logarithm is taken as linear in bytes."""
    below = max((r for r in records if r["bytes"] <= size), key=lambda r: r["bytes"], default=None)
    above = min((r for r in records if r["bytes"] >= size), key=lambda r: r["bytes"], default=None)
    if below is None or above is None:
        return None
    span = above["bytes"] - below["bytes"]
    share = (size - below["bytes"]) / span if span else 0.0
    low, high = (np.log(np.array(record["kl"])) for record in (below, above))
    exact: npt.NDArray[np.float64] = np.exp(low + share * (high - low))
    return exact


def label(record: Record) -> str:
    """What a record is of, as a reader says it."""
    family, embedding = record["family"], record.get("embedding")
    if family.startswith("uniform"):
        rank = f", rank {record['rank']}" if record["rank"] else ""
        text = f"{family.removeprefix('uniform ').upper()} {record['bits']} bits{rank}"
    elif family.startswith("llama.cpp"):
        own = "" if record["embedding_type"] == "default" else f", embedding {record['embedding_type']}"
        text = f"{'im-' if 'matrix' in family else ''}{record['type']}{own}"
    else:
        steps = f", {record['steps']} steps" if "steps" in record else ""
        text = f"{family} {record.get('version', '')} {record['bits']} bits{steps}"
    return text + (f", embedding {embedding} bits" if embedding else "")


def section(records: Sequence[Record], values: int) -> Iterator[str]:
    """The tables of one model and text."""
    uniform = [r for r in records if r["family"].startswith("uniform")]
    decided = [r for r in records if r["family"] == "decision"]
    named = ("given", "original", "decision", "random")
    peers = [r for r in records if r not in uniform and r["family"] not in named]

    def sizes(record: Record) -> list[str]:
        return [f"{8 * record['bytes'] / values:.2f}", f"{record['bytes'] / 1e6:.1f}"]

    rows = []
    for size in SIZES:
        room = size * values / 8
        ours = next((r for r in decided if r["name"] == f"decision-{size:g}"), None)
        for record in (best(uniform, room), ours):
            if record is not None:
                name = label(record) if record is not ours else "**decision**"
                other = best(uniform, room)
                told = against(np.array(record["kl"]), other) if record is ours and other is not None else ""
                rows.append([f"{size:g}", name, *sizes(record), mean(record), f"{record['perplexity']:.2f}", told])
    if rows:
        head = ["size", "best uniform setting" + (", decision" if decided else ""), "bits", "MB", "KL", "perplexity"]
        yield f"Of {len(uniform)} uniform results that have been measured, the best that is no larger than each size:\n"
        yield from table([*head, "decision against uniform" if decided else ""], rows)
    rows = []
    for record in sorted(peers, key=lambda r: r["bytes"]):
        exact = next((r for r in decided if r["name"] == f"decision-at-{record['name']}"), None)
        near = np.array(exact["kl"]) if exact else between(decided, record["bytes"])
        told = "" if near is None else against(near, record) + ("" if exact else " (between sizes)")
        alike = best(uniform, record["bytes"])
        own = "" if alike is None else against(np.array(alike["kl"]), record)
        rows.append([label(record), *sizes(record), mean(record), f"{record['perplexity']:.2f}", own, told])
    if rows:
        head = ["peer", "bits", "MB", "KL", "perplexity", "best uniform of at most its bytes"]
        yield from table([*head, "decision at its bytes" if decided else ""], rows)
    chance = [r for r in records if r["family"] == "random"]
    if len(chance) > 2:
        predicted, measured = [r["kl_predicted"] for r in chance], [kl(r) for r in chance]
        order = stats.spearmanr(predicted, measured).statistic
        ratios = np.array(measured) / np.array(predicted)
        yield (
            f"{len(chance)} settings by chance, all of {chance[0]['bytes'] / 1e6:.1f} MB: predicted and measured KL "
            f"have the rank correlation {order:.2f}; measured is {ratios.min():.2f} to {ratios.max():.2f} times the "
            "predicted one.\n"
        )


def main() -> None:
    lines = [TEXT]
    for key, model in MODELS.items():
        path = RECORDS / f"{key}.jsonl"
        every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        for name, text in TEXTS.items():
            records = [r for r in every if r["text"] == name and r["windows"] == WINDOWS]
            whole = next((r for r in records if r["family"] == "original"), None)
            if whole is None:
                continue
            given = next((r for r in records if r["family"] == "given"), None)
            near = "" if given is None else f"; the file that it was made from is {mean(given)} nats away from it"
            lines += [
                f"## {model.title}, {text.title}\n",
                f"The grid-free original has a perplexity of {whole['perplexity']:.2f}{near}.\n",
                *section(records, whole["bytes"] // 2),
            ]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
