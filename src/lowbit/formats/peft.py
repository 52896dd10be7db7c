"""PEFT adapter directories, written so that every consumer computes the same sum, and read as plain factors.

The effective update is ``W + s·B·A``, and consumers disagree about ``s`` when ranks differ between layers: PEFT takes
``alpha_pattern / rank_pattern`` per layer, vLLM one global ``lora_alpha / r``, GPTQModel 1. Written here: every scale
is folded into B, ``lora_alpha = r`` = the largest rank, and ``alpha_pattern == rank_pattern``, so all three get 1. Only
keys that old releases know are written, because some refuse unknown ones.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lowbit.runs.files import make_folder, write_bytes

from .dtypes import FLOATS
from .errors import AdapterError, CheckpointError
from .files import read_json, refuse_strangers
from .keys import Rule, absent, applied, harmless, only, require_known, require_types
from .patterns import matches
from .safetensors_file import SafetensorsFile, write_tensors
from .stacks import flatten, parameter_of, unflatten

__all__ = [
    "BASE_HASH_KEY",
    "CONFIG",
    "UNBOUND",
    "WEIGHTS",
    "Adapter",
    "adapter_files",
    "adapter_metadata",
    "read_adapter",
    "require_base",
    "write_adapter",
]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE_HASH_KEY = "lowbit.base_hash"
"""Metadata entry of the weights file: fingerprint of the compressed base that the adapter was solved for."""

UNBOUND = "not bound to a base by a fingerprint of its weights"
"""What is said of an adapter without one."""

_PREFIX = "base_model.model."
_MORE = "is more than a low-rank sum; merge it into the model first"
_BASE = "changes the weights of the base when the adapter is loaded; save it again as plain LoRA with PEFT"
_NO_SUM = (
    "modules_to_save", "use_dora", "lora_bias", "trainable_token_indices", "use_qalora",
    "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "layer_replication",
    "megatron_config", "enable_lora",
)  # fmt: skip

RULES: dict[str, Rule] = {
    # which modules, and the factor before B A
    "r": applied("stated_rank", int),
    "lora_alpha": applied("scaling", int, float),
    "use_rslora": applied("scaling", bool),
    "rank_pattern": applied("stated_rank", dict),
    "alpha_pattern": applied("scaling", dict),
    "target_modules": applied("targeted", list, str),
    "target_parameters": applied("parameter_of", list),
    "exclude_modules": applied("targeted", list, str),
    "layers_to_transform": applied("targeted", list, int),
    "layers_pattern": applied("targeted", list, str),
    # another sum, other modules, or another base
    "peft_type": applied("read_adapter", str),
    "bias": only(_MORE, "none", None),
    "init_lora_weights": only(_BASE, True, False, "gaussian", "eva", "orthogonal", "mica", None),
    **dict.fromkeys(_NO_SUM, absent(_MORE)),
    # nothing
    "fan_in_fan_out": harmless("how the base keeps its weight; the factors have one layout"),
    **dict.fromkeys(
        ("lora_dropout", "velora_config", "merge_weights", "inference_mode"), harmless("of training alone")
    ),
    **dict.fromkeys(
        ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
        harmless("of use with another key alone, which has its own rule"),
    ),
    "ensure_weight_tying": harmless("of embeddings alone, whose factors are refused"),
    "megatron_core": harmless("of use with megatron_config alone"),
    "runtime_config": harmless("where a computation runs, not which"),
    **dict.fromkeys(
        ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        harmless("about the adapter; a base is known by its weights"),
    ),
}
"""What becomes of the keys of ``adapter_config.json``."""


class Adapter(NamedTuple):
    """An adapter as plain factors: add ``B @ A`` to the weight of each module."""

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Module path → B (m, r) with the scale folded in, A (r, k); parameter of experts → (e, m, r) and (e, r, k)."""
    base_hash: str | None  # fingerprint of the base, None if the writer left none
    config: dict[str, Any]  # adapter_config.json


def write_adapter(
    folder: str | Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    base_model: str,
    base_hash: str,
    task_type: str = "CAUSAL_LM",
    fan_in_fan_out: bool = False,
    by_parameter: Collection[str] = (),
) -> None:
    """Write an adapter directory: weights first, then the configuration, each file whole or not at all.

    Args:
        folder: made if it does not exist.
        factors: full module path → (B (m, r), A (r, k)), float32, float16 or bfloat16; ranks may differ. Of a stack
            of experts the full name of the parameter → (B (experts, m, r), A (experts, r, k)).
        base_model: written as ``base_model_name_or_path``.
        base_hash: fingerprint of the compressed base (:func:`lowbit.formats.checkpoint.weights_hash`).
        task_type: PEFT's task.
        fan_in_fan_out: True when the wrapped layers keep weights as (in, out), as GPT-2's Conv1D does.
        by_parameter: modules whose weight is named in place of themselves (:func:`lowbit.formats.stacks.flatten`).

    Raises:
        AdapterError: no module, or factors whose shapes or types do not fit.
        RecipeError: the system refuses to write.
    """
    path = Path(folder)
    tensors, config = adapter_files(
        factors,
        base_model=base_model,
        task_type=task_type,
        fan_in_fan_out=fan_in_fan_out,
        by_parameter=by_parameter,
    )
    make_folder(path)
    write_tensors(path / WEIGHTS, tensors, metadata=adapter_metadata(base_hash))
    write_bytes(path / CONFIG, config)


def adapter_metadata(base_hash: str) -> dict[str, str]:
    """String pairs in the header of the weights file."""
    return {"format": "pt", BASE_HASH_KEY: base_hash}


def adapter_files(
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    base_model: str,
    task_type: str = "CAUSAL_LM",
    fan_in_fan_out: bool = False,
    by_parameter: Collection[str] = (),
) -> tuple[dict[str, torch.Tensor], bytes]:
    """Tensors of an adapter by their stored names, and its configuration; see :func:`write_adapter`.

    No value is looked at: of factors on the meta device it says what the files will be.
    """
    if not factors:
        raise AdapterError("an adapter needs at least one module")
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (b, a) in sorted(factors.items()):
        if b.ndim != a.ndim or b.ndim not in (2, 3) or b.shape[-1] != a.shape[-2] or not b.shape[-1]:
            raise AdapterError(f"{name}: B {tuple(b.shape)} and A {tuple(a.shape)} are not (m, r) and (r, k)")
        if b.dtype not in FLOATS.values() or a.dtype not in FLOATS.values():
            raise AdapterError(f"{name}: factors of type {b.dtype}, {a.dtype}; float32, float16 or bfloat16 are stored")
        ranks[name] = int(b.shape[-1])
    plain, modules, parameters = flatten(factors, by_parameter)
    for name, (b, a) in plain.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = b
    r = max(ranks.values())
    pattern = {name: rank for name, rank in ranks.items() if rank != r}
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "target_modules": modules,
        **({"target_parameters": parameters} if parameters else {}),
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "bias": "none",
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    return tensors, (json.dumps(config, indent=2) + "\n").encode()


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA directory.

    Raises:
        AdapterError: missing, not JSON, beside a link that leaves the directory, or values of other types than PEFT's.
    """
    if not os.path.lexists(folder / CONFIG):
        raise AdapterError(f"{folder}: no {CONFIG}, so this is not an adapter directory")
    try:
        refuse_strangers(folder)
        config = read_json(folder / CONFIG)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    require_types(config, RULES, source=str(folder / CONFIG), error=AdapterError)
    for key in ("r", "lora_alpha"):
        for value in (config.get(key), *(config.get(_PATTERNS[key]) or {}).values()):
            if value is not None and not (_is_number(value) and 0 <= value <= _LARGEST):
                raise AdapterError(f"{folder / CONFIG}: {key} or {_PATTERNS[key]} holds {value!r:.80}, not a number")
    targets = config.get("target_modules")
    if isinstance(targets, list) and not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{folder / CONFIG}: target_modules holds something other than names")
    return config


_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
_LARGEST = 1 << 24


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _matches(pattern: str, text: str) -> bool:
    """Whether a regular expression out of the file matches all of ``text``."""
    try:
        return matches(pattern, text, whole=True)
    except CheckpointError as error:
        raise AdapterError(f"{CONFIG}: {error}") from error


def pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's look-up: the first key that, as a regular expression, matches the end of the module path."""
    for key, value in (pattern or {}).items():
        if _matches(rf"(.*\.)?({key})", module):
            return value
    return default


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor s that PEFT applies to ``B @ A`` of this module.

    Raises:
        AdapterError: no ``lora_alpha`` to compute it from, or one that is not a number.
    """
    alpha = pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise AdapterError(
            f"{CONFIG}: lora_alpha of {module} is {'missing' if alpha is None else repr(alpha)}, and its factors are "
            "scaled by lora_alpha / r: write the number that the adapter was trained with"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def stated_rank(config: Mapping[str, Any], module: str) -> Any:
    """The rank that the configuration gives this module."""
    return pattern_value(config.get("rank_pattern"), module, config.get("r"))


def targeted(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT puts factors on this module; those of any other it does not load."""

    def named(value: Any) -> bool:
        if isinstance(value, str):
            return _matches(value, module)
        return any(module == name or module.endswith(f".{name}") for name in value or ())

    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if config.get("exclude_modules") and named(config["exclude_modules"]):
        return False
    if targets == "all-linear":
        return True
    if isinstance(targets, str) or layers in (None, []) or not named(targets):
        return named(targets)
    patterns = config.get("layers_pattern") or [r".*\.[^.]*"]
    steps = module.split(".")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for place, step in enumerate(steps):  # the first number behind a list of layers is the layer
            if step.isdecimal() and place and _matches(rf"(.*\.)?({pattern})", ".".join(steps[:place])):
                return int(step) in ([layers] if isinstance(layers, int) else layers)
    return False


def target_of(config: Mapping[str, Any], module: str) -> str | None:
    """The module, or the parameter of a stack that its factors change; None where PEFT leaves them out.

    Raises:
        AdapterError: a parameter that cannot be told from its fellows.
    """
    parameters = config.get("target_parameters") or []
    if targeted(config, module) or f"{module}.weight" in parameters:
        return module
    return parameter_of(module, parameters) if parameters else None


def module_names(keys: Iterable[str]) -> dict[str, str]:
    """LoRA tensor name → module path, for names ending in ``lora_A.weight`` or ``lora_B.weight``."""
    found = {}
    for key in keys:
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_[AB](?:\.default)?\.weight", key)
        if match:
            found[key] = match[1]
    return found


def read_adapter(folder: str | Path) -> Adapter:
    """Read a LoRA directory of any writer, with alpha, rank, rsLoRA and patterns folded into B.

    Raises:
        AdapterError: not an adapter, damaged, with parts that are not a plain low-rank sum (DoRA magnitudes,
            embeddings, trained biases, fully trained modules), with a setting that :data:`RULES` does not know, or
            with factors that PEFT would not load.
    """
    path = Path(folder)
    config = read_config(path)
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise AdapterError(f"{path}: a {config['peft_type']} adapter; only LoRA is a low-rank sum")
    require_known(
        config,
        RULES,
        source=str(path),
        error=AdapterError,
        advice="; merge the adapter into the model, or save it again with a PEFT that this version knows",
    )
    if not (path / WEIGHTS).is_file():
        pickle = (path / "adapter_model.bin").is_file()
        reason = "only adapter_model.bin, a pickle, which lowbit does not open" if pickle else f"no {WEIGHTS}"
        raise AdapterError(f"{path}: {reason}")
    try:
        file = SafetensorsFile(path / WEIGHTS)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    modules = module_names(file.entries)
    other = sorted(set(file.entries) - set(modules))
    if other:
        raise AdapterError(f"{path / WEIGHTS}: tensor {other[0]} is not a factor of a linear layer")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, module in modules.items():
        pair, part = pairs.setdefault(module, {}), "A" if ".lora_A." in key else "B"
        if part in pair:
            raise AdapterError(f"{path / WEIGHTS}: module {module} has two factors lora_{part}")
        pair[part] = file.read(key)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, pair in sorted(pairs.items()):
        if len(pair) != 2:
            raise AdapterError(f"{path / WEIGHTS}: module {module} has lora_{next(iter(pair))} alone")
        a, b = pair["A"], pair["B"]
        if (
            a.ndim != 2
            or b.ndim != 2
            or b.shape[1] != a.shape[0]
            or not a.shape[0]
            or not (a.is_floating_point() and b.is_floating_point())
        ):
            raise AdapterError(
                f"{path / WEIGHTS}: module {module}: B {tuple(b.shape)} {b.dtype} and A {tuple(a.shape)} {a.dtype} are "
                "no factors of one rank"
            )
        name, rank = target_of(config, module), int(a.shape[0])
        if name is None:
            raise AdapterError(
                f"{path / WEIGHTS}: factors of {module}, which {CONFIG} does not target, so that PEFT would leave them "
                "out: add it to target_modules, or remove the factors"
            )
        stated = stated_rank(config, name)
        if name != module:
            b, a = unflatten(name, stated, b, a)
        elif stated != rank:
            raise AdapterError(
                f"{path / WEIGHTS}: factors of {module} have rank {rank}, but r and rank_pattern say {stated}"
            )
        factor = scaling(config, name, stated)
        factors[name] = (b if factor == 1.0 else b.to(torch.float32) * factor, a)
    return Adapter(factors, file.metadata.get(BASE_HASH_KEY), config)


def require_base(adapter: Adapter, base_hash: str, *, adapter_path: str | Path, base_path: str | Path) -> None:
    """Refuse an adapter that was solved for another compressed base; one without a fingerprint passes.

    Raises:
        AdapterError: naming both directories and fingerprints.
    """
    if adapter.base_hash is not None and adapter.base_hash != base_hash:
        raise AdapterError(
            f"adapter {adapter_path} was made for the base {adapter.base_hash[:16]}, "
            f"but {base_path} is {base_hash[:16]}; use the directory it was made with"
        )
