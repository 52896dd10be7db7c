"""README.md of an output directory: what it is, and the lines of Python that load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["readme"]


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$#@:]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=[Ww])\.")


def _shown(name: Any) -> str:
    """A name from a file as Markdown that shows it: on one line, without markup, links or what a terminal obeys."""
    line = "".join(c if c.isprintable() else " " for c in str(name))
    return _MARKUP.sub(r"\\\g<0>", " ".join(line.split()))


def readme(record: Mapping[str, Any]) -> str:
    """Markdown from the content of ``lowbit.json``: no date and no place, equal runs give equal bytes."""
    options, totals, loads = record["options"], record["totals"], record["loads_with"]
    bits = options["bits"]
    layers = sum(math.prod(module["shape"][:-2]) for module in record["modules"])  # of a stack, one an expert
    group = f"groups of {options['group_size']}" if options["group_size"] else "one scale per row"
    grid = "" if bits == 16 else f" {'symmetric' if options['symmetric'] else 'asymmetric'}, {group},"
    lines = [
        f"# {_shown(options['model'])}, compressed by lowbit",
        "",
        f"{_shown(record['model']['architecture'])}, {record['modules'][0]['method']},{grid} {bits} bits per weight "
        f"of its {layers} linear layers. {totals['bytes_before']:,} bytes before, "
        f"{totals['bytes_after']:,} after ({totals['ratio']:.2f} times smaller, adapter included).",
        "",
        *_perplexities(record["perplexity"]),
        "## Load it",
        "",
        "```python",
        *_code(options, loads),
        "```",
        "",
        *_remark(options, loads),
        *([f"{loads['peft_refuses']}: the one here is for `lowbit`.", ""] if loads["peft_refuses"] else []),
        *(line for remark in record["model"]["remarks"] for line in (f"Note: {remark}.", "")),
        *_needs_adapter(options),
        "`lowbit eval DIR --adapter DIR/adapter --text FILE` measures it from these files. `lowbit.json` holds "
        "everything needed to reproduce it, `report.html` shows it.",
        "",
    ]
    return "\n".join(lines)


def _needs_adapter(options: Mapping[str, Any]) -> list[str]:
    if not options["adapter_aware"]:
        return []
    return [
        "The weights were compressed for use with the adapter: errors were let grow where it removes them. Without it "
        "the model is worse than one made with `--no-adapter-aware`.",
        "",
    ]


def _perplexities(perplexity: Mapping[str, Any] | None) -> list[str]:
    if not perplexity:
        return []
    distances = perplexity.get("against_base") or {}  # records of earlier versions have none
    cells = {
        name: [f"{perplexity[name]:.2f}"]
        for name in ("base", "compressed", "compensated")
        if perplexity[name] is not None
    }
    head = ["model", "perplexity"]
    if distances:
        head += ["KL from the base, nats per token", "same top token"]
        for name, row in cells.items():
            found = distances.get(name)
            row += [f"{found['kl']:.4g}", f"{100 * found['agreement']:.1f} %"] if found else ["", ""]
    rows = [head, ["---"] * len(head), *([name, *row] for name, row in cells.items())]
    measured = f"Measured on {perplexity['tokens']} tokens of {_shown(perplexity['source'])}."
    return [*(f"| {' | '.join(row)} |" for row in rows), "", measured, ""]


def _code(options: Mapping[str, Any], loads: Mapping[str, Any]) -> list[str]:
    adapter = options["compensate"] != "none" and not loads["peft_refuses"]
    dequantize = loads["dequantize"] or (adapter and loads["format"] != "dense")
    names = "AutoModelForCausalLM, AutoTokenizer" + (", CompressedTensorsConfig" if dequantize else "")
    extra = ", quantization_config=CompressedTensorsConfig(dequantize=True)" if dequantize else ""
    return [
        *(["from peft import PeftModel"] if adapter else []),
        f"from transformers import {names}",
        "",
        'folder = "."  # this directory',
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{extra})',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *(['model = PeftModel.from_pretrained(model, f"{folder}/adapter")'] if adapter else []),
    ]


def _remark(options: Mapping[str, Any], loads: Mapping[str, Any]) -> list[str]:
    if loads["format"] == "dense":
        if options["bits"] == 16:
            return [
                "The weights are pruned, not quantized: they are stored dense, zeros like other values, and the files "
                "are as large as before.",
                "",
            ]
        return [
            "Its modules keep their weights as (in, out), a layout that `transformers` cannot load packed, so "
            "the weights are stored dense, already dequantized: their values are those of "
            f"{options['bits']} bits, the size of the files is not.",
            "",
        ]
    if loads["dequantize"] and not options["symmetric"]:
        return [
            "The codes are asymmetric. The default path of `transformers` refuses their packed zero points, hence "
            "`dequantize=True`. Symmetric codes load without it.",
            "",
        ]
    if loads["dequantize"]:
        return [f"{loads['why']}, hence `dequantize=True`.", ""]
    plain = "The codes are symmetric: `transformers` loads them as they are, without a `quantization_config`."
    if options["compensate"] == "none" or loads["peft_refuses"]:
        return [plain, ""]
    return [plain + " PEFT needs the weights unpacked beneath its adapter, hence `dequantize=True` here.", ""]
