"""A plausible record of a run, made without running one."""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}


SETTINGS: list[list[Any]] = [
    *([bits, 64, *patch] for bits in (2, 3, 4, 5, 6, 8) for patch in ((0, 16), (8, 8), (32, 8), (32, 16))),
    [16, None, 0, 16],
]
_OUTER = (49152, 576)


def make_plan(*, blocks: int = 30, seed: int = 0) -> dict[str, Any]:
    """A ``lowbit.plan/1`` record of the same model: a bit less is four times the divergence, a rank takes a share."""
    rng = np.random.default_rng(seed)
    modules: list[dict[str, Any]] = []
    places = [(f"model.layers.{b}.{name}", b, shape) for b in range(blocks) for name, shape in SHAPES.items()]
    for name, block, (m, k) in [*places, ("model.embed_tokens", None, _OUTER)]:
        scale = 0.3 * 10 ** rng.uniform(-2, 0) / blocks
        row: dict[str, Any] = {"name": name, "block": block, "shape": [m, k], "bytes": [], "kl": []}
        for bits, group, rank, factor_bits in SETTINGS:
            size = m * k * bits // 8 + (5 * m * k // (2 * group) if group else 0) + rank * (m + k) * factor_bits // 8
            loss = 0.0 if bits == 16 else scale * 4.0 ** (3 - bits) * (0.4 if rank else 1) * (0.7 if rank > 8 else 1)
            fits = rank == 0 or block is not None
            row["bytes"].append(size if fits else None)
            row["kl"].append(loss if fits else None)
        modules.append(row)
    record = make_record(blocks=blocks)
    parts = ("versions", "options", "inputs", "calibration", "machine", "model")
    return {
        "schema": "lowbit.plan/1",
        **{part: record[part] for part in parts},
        "settings": [list(setting) for setting in SETTINGS],
        "modules": modules,
        "fixed_bytes": 61 * 576 * 2 + 40_000,
        "bytes_given": 98_000_000,
        "bytes_16": 269_030_016,
    }


def decide(plan: dict[str, Any], record: dict[str, Any], *, frontier: list[dict[str, Any]] | None) -> dict[str, Any]:
    """``record`` with settings of several kinds that ``plan`` has."""
    chosen = {
        m["name"]: SETTINGS[(1 + 2 * number) % 12 if m["block"] is not None else 20]
        for number, m in enumerate(plan["modules"])
    }
    places = {name: SETTINGS.index(setting) for name, setting in chosen.items()}
    for module in record["modules"]:
        module["bits"], _, module["rank"], _ = chosen[module["name"]]
    kl = sum(module["kl"][places[module["name"]]] for module in plan["modules"])
    size = sum(module["bytes"][places[module["name"]]] for module in plan["modules"]) + plan["fixed_bytes"]
    record["decision"] = {
        "size": 70_000_000,
        "bytes": size,
        "kl_predicted": kl,
        "lower_bound": kl * 0.999,
        "settings": chosen,
    }
    if frontier is not None:
        record["decision"]["frontier"] = frontier
    return record


def make_record(*, blocks: int = 30, rank: int = 32, seed: int = 0, compensate: str = "eora") -> dict[str, Any]:
    """A ``lowbit.compress/1`` record of a model the shape of SmolLM2-135M."""
    rng = np.random.default_rng(seed)
    adapted = compensate != "none"
    modules = []
    for block in range(blocks):
        for number, (name, (m, k)) in enumerate(SHAPES.items()):
            decay = 0.35 + 0.08 * number
            spectrum = 40 * np.arange(1, min(m, k, 256) + 1) ** -decay * (1 + 0.1 * rng.random())
            squares = np.append(spectrum**2, np.full(max(0, min(m, k) - 256), spectrum[-1] ** 2 / 2))
            energy = {
                str(r): float(squares[:r].sum() / squares.sum())
                for r in (1, 2, 4, 8, 16, 32, 64, 128)
                if r <= min(m, k)
            }
            before = 0.16 + 0.05 * np.sin(block / 4 + number) + 0.02 * rng.random() + 0.02 * number
            after = before * np.sqrt(1 - energy["32"])
            norm = 1e4 * (1 + rng.random())
            modules.append(
                {
                    "name": f"model.layers.{block}.{name}",
                    "block": block,
                    "shape": [m, k],
                    "bits": 3,
                    "group_size": 64,
                    "method": "rtn + eora" if adapted else "rtn",
                    "rank": rank if adapted else 0,
                    "sparsity": None,
                    "objective_uncompensated": float(before**2 * norm),
                    "objective_compensated": float(after**2 * norm) if adapted else None,
                    "optimum_lower_bound": float(after**2 * norm * (1 - 1e-9)) if adapted else None,
                    "relative_error_before": float(before),
                    "relative_error_after": float(after) if adapted else None,
                    "weight_norm": float(norm),
                    "certificate": "exact" if adapted else None,
                    "spectrum": [float(v) for v in spectrum],
                    "energy": energy,
                    "bytes": {
                        "packed": m * k * 3 // 8,
                        "scales": 4 * m * k // 64,
                        "zero_points": m * k // 64 * 3 // 8,
                        "adapter": 4 * rank * (m + k) if adapted else 0,
                    },
                }
            )
    parts = {part: sum(m["bytes"][part] for m in modules) for part in ("packed", "scales", "zero_points", "adapter")}
    parts["other"] = 49152 * 576 * 4 + 61 * 576 * 4
    before, after = 134_515_008 * 4, sum(parts.values())
    return {
        "schema": "lowbit.compress/1",
        "versions": {"lowbit": "0.1.0", "spec": 1, "python": "3.11.2", "numpy": "2.4.6", "torch": "2.13.0"},
        "seed": 0,
        "options": {
            "model": "SmolLM2-135M-Instruct.Q4_1.gguf",
            "bits": 3,
            "group_size": 64,
            "symmetric": False,
            "quantizer": "rtn",
            "sparsity": None,
            "compensate": compensate,
            "adapter_aware": False,
            "rank": rank,
            "seed": 0,
        },
        "inputs": {"SmolLM2-135M-Instruct.Q4_1.gguf": "ab" * 32},
        "machine": {"threads": 2, "backend": "torch", "device": "cpu", "forward_device": "cpu", "attention": "sdpa"},
        "model": {
            "architecture": "LlamaForCausalLM",
            "blocks": blocks,
            "parameters": 134_515_008,
            "hidden_size": 576,
            "dtype": "float32",
            "forward_dtype": "float32",
            "kept": [],
            "remarks": [],
        },
        "modules": modules,
        "totals": {
            "bytes": parts,
            "bytes_before": before,
            "bytes_after": after,
            "ratio": before / after,
            "bytes_given": before,
            "bytes_16": 134_515_008 * 2,
            "bytes_shipped": after + 120_000,
            "shipped": parts | {"headers": 120_000},
        },
        "perplexity": {
            "base": 25.44,
            "compressed": 78.69,
            "compensated": 33.8 if adapted else None,
            "tokens": 16368,
            "source": "wikitext2-valid.txt",
            "against_base": {
                "compressed": {"kl": 1.231, "kl_error": 0.041, "agreement": 0.52, "agreement_error": 0.004},
                "compensated": {"kl": 0.3312, "kl_error": 0.012, "agreement": 0.713, "agreement_error": 0.003}
                if adapted
                else None,
            },
        },
        "calibration": {
            "source": "python-docs",
            "samples": 32,
            "length": 1024,
            "tokens": 32768,
            "sha256": "cd" * 32,
            "special_tokens": [],
        },
        "evaluation": {"source": "wikitext2-valid.txt", "windows": 16, "sha256": "ef" * 32, "special_tokens": []},
        "loads_with": {
            "format": "pack-quantized",
            "way": "dequantize",
            "dequantize": True,
            "schemes": 1,
            "transformers": "from_pretrained with CompressedTensorsConfig(dequantize=True)",
            "why": "asymmetric: the default path of transformers refuses packed zero points",
            "peft_refuses": None,
        },
    }
