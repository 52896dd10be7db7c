"""README.md of an output directory: what it is, and the lines of Python that load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lowbit.console import size_change

__all__ = ["readme"]


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$#@:]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=[Ww])\.")


def _shown(name: Any) -> str:
    """A name from a file as Markdown that shows it: on one line, without markup, links or what a terminal obeys."""
    line = "".join(c if c.isprintable() else " " for c in str(name))
    return _MARKUP.sub(r"\\\g<0>", " ".join(line.split()))


def readme(record: Mapping[str, Any]) -> str:
    """Markdown from the content of ``lowbit.json``: no date and no place, equal runs give equal bytes."""
    options, totals, loads = record["options"], record["totals"], record["loads_with"]
    given, after = totals["bytes_given"], totals["bytes_shipped"]
    adapted = any(module["rank"] for module in record["modules"])
    layers = sum(math.prod(module["shape"][:-2]) for module in record["modules"])  # of a stack, one an expert
    lines = [
        f"# {_shown(options['model'])}, compressed by lowbit",
        "",
        f"{_shown(record['model']['architecture'])}, {_forms(record)} of its {layers} linear layers. "
        f"{given:,} bytes given ({totals['bytes_16']:,} in 16 bits), {after:,} after "
        f"({size_change(given, after)}, adapter included).",
        "",
        *_perplexities(record["perplexity"]),
        "## Load it",
        "",
        "```python",
        *_code(record, adapter=adapted and not loads["peft_refuses"]),
        "```",
        "",
        *_remark(record, adapter=adapted and not loads["peft_refuses"]),
        *([f"{loads['peft_refuses']}: the one here is for `lowbit`.", ""] if loads["peft_refuses"] else []),
        *(line for remark in record["model"]["remarks"] for line in (f"Note: {remark}.", "")),
        *_packed_factors(record),
        *(_needs_adapter(options) if adapted else []),
        f"`lowbit eval DIR{' --adapter DIR/adapter' if adapted else ''} --text FILE` measures it from these files. "
        "`lowbit.json` holds everything needed to reproduce it, `report.html` shows it.",
        "",
    ]
    return "\n".join(lines)


def _forms(record: Mapping[str, Any]) -> str:
    """What was done to the layers, in a few words."""
    modules, options = record["modules"], record["options"]
    methods = " or ".join(dict.fromkeys(str(module["method"]) for module in modules))
    bits, sizes = (sorted({module[key] or 0 for module in modules}) for key in ("bits", "group_size"))
    if bits == [16]:
        return f"{methods}, 16 bits per weight"
    groups = " and ".join(f"groups of {size}" if size else "one scale per row" for size in sizes)
    scheme = "symmetric" if options["symmetric"] else "asymmetric"
    outer = "".join(f"; {_shown(one['name'])} has {one['bits']}" for one in record.get("outer", ()))
    spread = str(bits[0]) if len(bits) == 1 else f"{bits[0]} to {bits[-1]}"
    return f"{methods}, {scheme}, {groups}, {spread} bits per weight{outer and f' ({outer[2:]})'}"


def _packed_factors(record: Mapping[str, Any]) -> list[str]:
    if not any("adapter_packed" in module["bytes"] for module in record["modules"]):
        return []
    return [
        "The factors of the adapter are stored as codes in `factors/`, which is what ships; `lowbit` reads them there. "
        "`adapter/` holds the same values unpacked, for PEFT, and is not counted.",
        "",
    ]


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


_PLAIN = "The codes are symmetric: `transformers` loads them as they are, without a `quantization_config`."


def _code(record: Mapping[str, Any], *, adapter: bool) -> list[str]:
    loads, architecture = record["loads_with"], record["model"]["architecture"]
    beneath = ['model = PeftModel.from_pretrained(model, f"{folder}/adapter")'] if adapter else []
    peft = ["from peft import PeftModel"] if adapter else []
    tokenizer = "tokenizer = AutoTokenizer.from_pretrained(folder)"
    if loads["way"] == "state_dict":
        return [
            "from lowbit.formats.checkpoint import open_checkpoint",
            *peft,
            f"from transformers import AutoTokenizer, {architecture}",
            "",
            'folder = "."  # this directory',
            "files = open_checkpoint(folder)",
            "state = {name: files.read(name) for name in files.names()}",
            f"model = {architecture}.from_pretrained(",
            '    None, config=files.config, state_dict=state, dtype="auto"',
            ")",
            tokenizer,
            *beneath,
        ]
    several = loads["schemes"] > 1
    dequantize = loads["dequantize"] or (adapter and loads["format"] != "dense" and not several)
    names = "AutoModelForCausalLM, AutoTokenizer" + (", CompressedTensorsConfig" if dequantize else "")
    extra = ", quantization_config=CompressedTensorsConfig(dequantize=True)" if dequantize else ""
    return [
        *peft,
        f"from transformers import {names}",
        "",
        'folder = "."  # this directory',
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto"{extra})',
        tokenizer,
        *(["model.hf_quantizer.compressor.decompress_model(model)"] if adapter and several else []),
        *beneath,
    ]


def _remark(record: Mapping[str, Any], *, adapter: bool) -> list[str]:
    options, loads = record["options"], record["loads_with"]
    if loads["format"] == "dense":
        bits = sorted({module["bits"] for module in record["modules"]})
        if bits == [16]:
            pruned = "pruned, not quantized" if options["sparsity"] else "not quantized"
            return [
                f"The weights are {pruned}: they are stored dense, zeros like other values, and the files are as large "
                "as before.",
                "",
            ]
        return [
            "Its modules keep their weights as (in, out), a layout that `transformers` cannot load packed, so "
            "the weights are stored dense, already dequantized: their values are those of "
            f"{' and '.join(map(str, bits))} bits, the size of the files is not.",
            "",
        ]
    if loads["way"] == "state_dict":
        return [
            f"`transformers` alone does not read these files ({loads['why']}): `lowbit` reads them for it, dense.",
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
    if loads["schemes"] > 1:
        several = f" Not with `dequantize=True`, which reads every module by one of the {loads['schemes']} schemes."
        return [_PLAIN + several + (" PEFT needs the weights unpacked first." if adapter else ""), ""]
    if not adapter:
        return [_PLAIN, ""]
    return [_PLAIN + " PEFT needs the weights unpacked beneath its adapter, hence `dequantize=True` here.", ""]
