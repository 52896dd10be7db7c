"""What becomes of the keys of a compressed-tensors ``quantization_config``: weights alone are read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.formats.errors import UnreadError
from lowbit.formats.keys import Rule, absent, applied, harmless, only, require_known, require_types

__all__ = ["require_weights_alone"]

_MORE = "quantizes more than weights; lowbit would compute another model than the one that is served"
_STORED = harmless("the stored tensors say it")
_NOTE = harmless("how the file came about, or how a loader is to run it")

_CONFIG: dict[str, Rule] = {
    "quant_method": applied("open_packed", str),
    "format": applied("CompressedTensors", str),
    "config_groups": applied("CompressedTensors", dict),
    "ignore": applied("check_directory", list),
    "kv_cache_scheme": absent(_MORE),
    "transform_config": absent("rotates activations while the model runs, which lowbit does not"),
    "sparsity_config": only("is a layout of sparse weights that lowbit does not read", "dense"),
    "moe_sparsity_config": absent("is a layout of sparse weights that lowbit does not read"),
    "quantization_status": _STORED,
    **dict.fromkeys(
        ("version", "global_compression_ratio", "run_compressed", "dequantize", "use_optimized_inference"), _NOTE
    ),
}
_GROUP: dict[str, Rule] = {
    "targets": applied("CompressedTensors.scheme", list),
    "weights": applied("CompressedTensors", dict),
    "format": applied("CompressedTensors", str),
    "input_activations": absent(_MORE),
    "output_activations": absent(_MORE),
}
_WEIGHTS: dict[str, Rule] = {
    "num_bits": only("is no width of codes", *range(1, 9)),
    "type": applied("CompressedTensors", str),
    "symmetric": applied("CompressedTensors.unpack", bool),
    "group_size": applied("CompressedTensors.scheme", int),
    "strategy": only("is not read, only 'group' and 'channel'", "group", "channel", None),
    "block_structure": absent("is not read, only groups of columns"),
    "dynamic": only("has no fixed scales to read", False, None),
    **dict.fromkeys(("actorder", "scale_dtype", "zp_dtype"), _STORED),
    **dict.fromkeys(("observer", "observer_kwargs"), _NOTE),
}


def require_weights_alone(config: Mapping[str, Any], source: str) -> None:
    """Refuse what would make the model that is served another than its dequantized weights.

    Raises:
        UnreadError: activations, caches, transforms, sparse layouts, or a key that nobody has looked at.
    """
    place = f"{source}: quantization_config"
    sparsity = config.get("sparsity_config") or {}
    stated = {**config, "sparsity_config": sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity}
    _require(stated, _CONFIG, place)
    for name, group in (config.get("config_groups") or {}).items():
        if not isinstance(group, dict):
            raise UnreadError(f"{place}: config_groups.{name} is no scheme but {str(group)[:80]!r}")
        if group.get("targets", ()) is None or "num_bits" not in (group.get("weights") or {"num_bits": 0}):
            raise UnreadError(f"{place}: config_groups.{name} lacks targets, or num_bits of its weights")
        _require(group, _GROUP, f"{place}: config_groups.{name}")
        _require(group.get("weights") or {}, _WEIGHTS, f"{place}: config_groups.{name}.weights")


def _require(settings: Mapping[str, Any], rules: Mapping[str, Rule], place: str) -> None:
    require_types(settings, rules, source=place, error=UnreadError)
    require_known(settings, rules, source=place, error=UnreadError)
