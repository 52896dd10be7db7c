"""Will it load? A directory against what each consumer reads, with the reason for every refusal.

The rules come from the consumers' own code, read for the versions named in the project's notes; transformers alone is
asked. A *failure* is a refusal or a silently wrong result; a *note* is a condition to meet, or what nobody has tried.
What lowbit does not read itself gets no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import SafetensorsCheckpoint, open_checkpoint
from .configs import decoder_class, empty_model, not_a_decoder
from .consumers import peft_refusal, unpacked_alone
from .errors import CheckpointError, UnreadError
from .factors import holds_factors
from .keys import unmet
from .layout import Layout
from .limits import building
from .packed import PackedFormat, WeightScheme
from .packed.packing import dense_words, padded_words
from .patterns import matches
from .peft import (
    BASE_HASH_KEY,
    CONFIG,
    RULES,
    UNBOUND,
    WEIGHTS,
    module_names,
    read_config,
    scaling,
    stated_rank,
    target_of,
)
from .safetensors_file import SafetensorsFile

__all__ = ["CONSUMERS", "Verdict", "check_directory", "record", "report_lines"]

CONSUMERS = ("peft", "transformers", "vllm", "llama.cpp", "gptqmodel")

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that --max-lora-rank takes
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers that vLLM joins into one


@dataclass
class Verdict:
    """What one consumer makes of a directory."""

    consumer: str
    passed: bool = True
    reasons: list[str] = field(default_factory=list)  # why not
    notes: list[str] = field(default_factory=list)  # conditions and facts

    def fail(self, reason: str) -> None:
        """Record a refusal."""
        self.passed = False
        self.reasons.append(reason)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def check_directory(folder: str | Path, consumers: Sequence[str] = CONSUMERS) -> tuple[str, list[Verdict]]:
    """Check an adapter or a model directory.

    Args:
        folder: a directory with ``adapter_config.json`` or ``config.json``.
        consumers: names out of :data:`CONSUMERS`.

    Returns:
        ``"adapter"`` or ``"model"``, and one verdict per consumer in the order asked.

    Raises:
        CheckpointError: neither kind of directory, or an unknown consumer.
        UnreadError: a format or an architecture that lowbit does not read, so that it cannot judge who does.
    """
    unknown = [name for name in consumers if name not in CONSUMERS]
    if unknown:
        raise CheckpointError(f"unknown consumer {unknown[0]!r}; known: {', '.join(CONSUMERS)}")
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(
            f"{folder}: {'a file, and check reads directories' if path.exists() else 'no such directory'}"
        )
    if (path / CONFIG).is_file():
        return "adapter", _check_adapter(path, consumers)
    if holds_factors(path):
        raise UnreadError(f"{folder}: packed factors, which lowbit alone reads; PEFT reads the adapter/ beside them")
    if (path / "config.json").is_file():
        return "model", _check_model(path, consumers)
    raise CheckpointError(f"{folder}: neither {CONFIG} nor config.json: not an adapter, not a model")


# ---- adapters -------------------------------------------------------------------------------------------------------


@dataclass
class _Adapter:
    config: dict[str, Any]
    ranks: dict[str, int]  # module → rank of its factors
    odd: list[str]  # tensors that are no factors of a linear layer
    halves: list[str]  # modules with one factor, or factors that do not fit
    scales: dict[str, float]  # module → what PEFT multiplies with
    stacks: frozenset[str]  # those of ranks that are parameters of experts
    unloaded: str | None  # what PEFT leaves out on the model that it lies in; None where that was not tried
    unbound: bool  # whether it says nothing of the weights that it was made for


def _check_adapter(folder: Path, consumers: Sequence[str]) -> list[Verdict]:
    try:
        adapter = _read_adapter(folder)
    except CheckpointError as error:
        return [Verdict(name, passed=False, reasons=[str(error)]) for name in consumers]
    rules: dict[str, Callable[[_Adapter, Verdict], None]] = {
        "peft": _peft,
        "transformers": _peft,
        "vllm": _vllm_adapter,
        "llama.cpp": _llama_cpp_adapter,
        "gptqmodel": _gptqmodel_adapter,
    }
    verdicts = []
    for name in consumers:
        verdict = Verdict(name)
        for module in adapter.halves:
            verdict.fail(f"module {module}: its factors lora_A and lora_B do not fit together")
        if not adapter.ranks:
            verdict.fail("no factors of any linear layer")
        try:
            rules[name](adapter, verdict)
        except CheckpointError as error:  # a pattern of the configuration that cannot be matched
            verdict.fail(str(error))
        verdicts.append(verdict)
    return verdicts


def _read_adapter(folder: Path) -> _Adapter:
    config = read_config(folder)
    file = SafetensorsFile(folder / WEIGHTS)
    names = module_names(file.entries)
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, module in names.items():
        pairs.setdefault(module, {})["A" if ".lora_A." in key else "B"] = file.entries[key].shape
    halves = [m for m, p in pairs.items() if [len(s) for s in p.values()] != [2, 2] or not p["B"][1] == p["A"][0] > 0]
    ranks = {module: pair["A"][0] for module, pair in pairs.items() if module not in halves}
    for module, rows in list(ranks.items()):  # a stack has as many times its rank as it has experts
        name = target_of(config, module)
        if name not in (module, None) and rows % (rank := stated_rank(config, str(name)) or rows) == 0:
            del ranks[module]
            ranks[str(name)] = rank
    return _Adapter(
        config=config,
        ranks=ranks,
        odd=sorted(set(file.entries) - set(names)),
        halves=halves,
        scales={module: scaling(config, module, rank) for module, rank in ranks.items()},
        stacks=frozenset(ranks) - frozenset(pairs),
        unloaded=_unloaded(folder),
        unbound=BASE_HASH_KEY not in file.metadata,
    )


def _unloaded(folder: Path) -> str | None:
    """What PEFT leaves out of an adapter on the model around it, None where it was not tried."""
    try:
        base = open_checkpoint(folder.resolve().parent)
        if (cls := decoder_class(base.config)) is None:
            return None
        with building(base):
            model = empty_model(cls, base.config, base.source)
    except CheckpointError:
        return None
    return peft_refusal(model, folder)


def _peft(adapter: _Adapter, verdict: Verdict) -> None:
    if str(adapter.config.get("peft_type", "")).upper() != "LORA":
        verdict.fail(f"peft_type is {adapter.config.get('peft_type')!r}, not 'LORA'")
    for module, rank in adapter.ranks.items():
        if module not in adapter.stacks and target_of(adapter.config, module) is None:
            verdict.fail(f"module {module} has factors but is not in target_modules: they would be ignored")
        stated = stated_rank(adapter.config, module)
        if stated != rank:
            verdict.fail(f"module {module} has rank {rank}, but r and rank_pattern say {stated}")
    if adapter.unbound:
        verdict.notes.append(f"{UNBOUND}: it fits any base of these shapes")
    if adapter.unloaded:
        verdict.fail(adapter.unloaded)
    if adapter.unloaded is None:
        verdict.notes.append(
            "not tried whether PEFT finds a place for every factor: the adapter lies in no model, or it names modules "
            "by patterns"
        )
    if verdict.consumer == "transformers":
        verdict.notes.append("through the peft package: model.load_adapter")


def _not_applied(adapter: _Adapter, verdict: Verdict, but: Sequence[str]) -> None:
    """What only PEFT knows: the others read a few keys and leave the rest, which is silently wrong."""
    unlooked = unmet(adapter.config, RULES)
    if adapter.config.get("target_parameters"):
        unlooked["target_parameters"] = "target_parameters names weights that are no modules"
    for key, sentence in unlooked.items():
        if key not in but:
            verdict.fail(f"{sentence.partition(';')[0]}; {verdict.consumer} does not look at {key}")


def _vllm_adapter(adapter: _Adapter, verdict: Verdict) -> None:
    config = adapter.config
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            verdict.fail(f"{key} is missing, which vLLM requires")
    _not_applied(adapter, verdict, but=("use_dora", "modules_to_save", "bias"))
    if config.get("use_dora"):
        verdict.fail("use_dora is refused: merge the adapter, or refit it as LoRA")
    if config.get("modules_to_save"):
        verdict.fail(f"modules_to_save = {config['modules_to_save']!r} is refused")
    if config.get("bias", "none") != "none":
        verdict.fail(f"bias = {config['bias']!r} is refused")
    for name in adapter.odd:
        if not name.endswith(("lora_embedding_A", "lora_embedding_B")):
            verdict.fail(f"tensor {name} is refused as an unsupported LoRA weight")
    r, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(r, int) and r > 0 and alpha is not None:
        own = float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)
        wrong = {m: s for m, s in adapter.scales.items() if not math.isclose(s, own)}
        if wrong:
            module = min(wrong)
            verdict.fail(
                f"vLLM ignores rank_pattern and alpha_pattern and scales every layer by {own:g}, while {module} needs "
                f"{wrong[module]:g}: {len(wrong)} layers would be silently wrong; fold the scales into lora_B"
            )
        need = next((limit for limit in _VLLM_RANKS if limit >= r), None)
        if need is None:
            verdict.fail(f"r = {r} is above {_VLLM_RANKS[-1]}, the largest --max-lora-rank")
        else:
            verdict.notes.append(f"serve with --enable-lora --max-lora-rank {need}")


def _llama_cpp_adapter(adapter: _Adapter, verdict: Verdict) -> None:
    if adapter.config.get("use_dora"):
        verdict.fail("DoRA has no GGUF form")
    if adapter.config.get("fan_in_fan_out"):
        verdict.fail(
            "its converter turns the factors of GPT-2 round as it does the weights: they must be transposed first"
        )
    _not_applied(adapter, verdict, but=("use_dora", "alora_invocation_tokens"))
    for name in adapter.odd:
        verdict.fail(f"tensor {name}: the converter stops at anything but lora_A and lora_B")
    alpha = adapter.config.get("lora_alpha")
    if alpha is None:
        verdict.fail("lora_alpha is missing, which its converter requires")
    elif alpha:
        wrong = {m: s for m, s in adapter.scales.items() if not math.isclose(alpha / adapter.ranks[m], s)}
        if wrong:
            module = min(wrong)
            verdict.fail(
                f"llama.cpp scales by lora_alpha over each tensor's own rank, {alpha / adapter.ranks[module]:g} for "
                f"{module}, which needs {wrong[module]:g}: pad all ranks to one, or write adapter.lora.alpha = 0"
            )
    verdict.notes.append("convert with convert_lora_to_gguf.py")


def _gptqmodel_adapter(adapter: _Adapter, verdict: Verdict) -> None:
    wrong = {m: s for m, s in adapter.scales.items() if not math.isclose(s, 1.0)}
    if wrong:
        module = min(wrong)
        verdict.fail(
            f"GPTQModel adds the product unscaled, while {module} needs {wrong[module]:g}: fold the scales into lora_B"
        )
    _not_applied(adapter, verdict, but=())
    for name in adapter.odd:
        verdict.fail(f"tensor {name} is not applied")


# ---- models ---------------------------------------------------------------------------------------------------------


def _check_model(folder: Path, consumers: Sequence[str]) -> list[Verdict]:
    try:
        checkpoint = open_checkpoint(folder)
    except UnreadError as error:
        raise UnreadError(
            f"{error}. That is a limit of lowbit: other programs may load it, and it cannot say which"
        ) from error
    except CheckpointError as error:
        return [Verdict(name, passed=False, reasons=[str(error)]) for name in consumers]
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    cls = decoder_class(checkpoint.config)
    if cls is None:
        raise UnreadError(
            f"{checkpoint.source}: {not_a_decoder(checkpoint.config)}, and lowbit knows of no others who loads them"
        )
    try:
        problems = _file_problems(checkpoint, cls)
    except CheckpointError as error:
        return [Verdict(name, passed=False, reasons=[str(error)]) for name in consumers]
    verdicts = []
    for name in consumers:
        verdict = Verdict(name)
        if name == "llama.cpp":
            verdict.fail("reads GGUF only: convert the model with convert_hf_to_gguf.py")
        elif name == "gptqmodel" and checkpoint.quantization:
            verdict.fail("does not read compressed-tensors checkpoints")
        else:
            for problem in problems:
                verdict.fail(problem)
            if name == "vllm" and (unread := checkpoint.unread()):
                verdict.fail(
                    f"vLLM takes {', '.join(unread)}, which the index names, and transformers model.safetensors: "
                    "remove what does not belong here"
                )
            if checkpoint.quantization:
                _packed_rules(checkpoint, cls, verdict)
        verdicts.append(verdict)
    return verdicts


def _file_problems(checkpoint: SafetensorsCheckpoint, cls: type[Any]) -> list[str]:
    """What every reader would stumble over: absent, surplus and misshapen tensors, and targets left dense."""
    import torch

    with building(checkpoint):
        model = empty_model(cls, checkpoint.config, checkpoint.source)
    expected = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    try:
        layout = Layout(model, {name: checkpoint.shape(name) for name in checkpoint.names()})
    except CheckpointError as error:
        return [str(error)]
    problems = [f"no tensor {name}" for name in sorted(set(expected) - set(layout.of) - tied)]
    for name, shape in sorted(layout.shapes.items()):
        if shape != tuple(expected[name].shape):
            problems.append(f"tensor {name} has shape {shape}, the model {tuple(expected[name].shape)}")
    if checkpoint.quantization and checkpoint.packed is not None:
        ignore = [str(entry) for entry in checkpoint.quantization.get("ignore") or []]
        packed = {layout.rename(f"{module}.weight")[0]: module for module in checkpoint.packed_modules()}
        for name, module in model.named_modules():
            if not isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                continue
            reached = checkpoint.packed.reaches(name, [cls.__name__ for cls in type(module).__mro__])
            if reached and f"{name}.weight" not in packed and not _ignored(name, ignore):
                problems.append(f"module {name} is a quantization target but is stored dense: add it to ignore")
            elif not reached and f"{name}.weight" in packed:
                problems.append(f"module {name} is packed but no target: loaders would make up its weight")
        for name, stored in sorted(packed.items()):
            if _ignored(name.removesuffix(".weight"), ignore):
                problems.append(f"module {stored} is packed but listed in ignore")
            problems += _module_problems(checkpoint, checkpoint.packed, stored)
    return problems


def _ignored(module: str, ignore: Sequence[str]) -> bool:
    return any(entry == module or (entry.startswith("re:") and matches(entry[3:], module)) for entry in ignore)


def _module_problems(checkpoint: SafetensorsCheckpoint, packed_format: PackedFormat, module: str) -> list[str]:
    try:
        bits, scheme, group = packed_format.scheme(module)
        m, k = (int(n) for n in checkpoint.read_stored(f"{module}.weight_shape"))
        groups = checkpoint.stored_shape(f"{module}.weight_scale")
        packed = checkpoint.stored_shape(f"{module}.weight_packed")
        zeros = checkpoint.stored_shape(f"{module}.weight_zero_point") if scheme == "asymmetric" else None
    except CheckpointError as error:
        return [str(error)]
    problems = []
    if group is not None and k % group:
        problems.append(f"module {module}: groups of {group} do not divide {k} columns")
    if groups[:2] != (m, k // group if group else 1):
        problems.append(f"module {module}: weight_scale {groups} does not fit ({m}, {k}) in groups of {group}")
    if packed != (m, dense_words(k, bits)):
        old = packed == (m, padded_words(k, bits))
        why = "is in the old layout of 32 // bits codes per word" if old else "has the wrong size"
        problems.append(f"module {module}: weight_packed {packed} {why}; {bits} bits take {(m, dense_words(k, bits))}")
    if zeros is not None and zeros != (dense_words(m, bits), groups[1]):
        problems.append(f"module {module}: weight_zero_point {zeros} should be {(dense_words(m, bits), groups[1])}")
    return problems


def _packed_rules(checkpoint: SafetensorsCheckpoint, cls: type[Any], verdict: Verdict) -> None:
    assert checkpoint.quantization is not None
    assert checkpoint.packed is not None
    modules = checkpoint.packed_modules()
    schemes = [checkpoint.packed.scheme(module) for module in modules]
    asymmetric = any(scheme.scheme == "asymmetric" for scheme in schemes)
    bits = sorted({scheme.bits for scheme in schemes})
    orders = {
        str((group.get("weights") or {}).get("actorder"))
        for group in (checkpoint.quantization.get("config_groups") or {}).values()
    }
    if orders & {"group", "dynamic", "True"}:
        verdict.fail("actorder 'group' was removed from compressed-tensors: quantize with static groups")
    if verdict.consumer in ("transformers", "peft"):
        why = "asymmetric codes" if asymmetric else unpacked_alone(cls, checkpoint.config, modules)
        _transformers_ways(verdict, why, {checkpoint.packed.scheme(m) for m in modules if not _of_expert(m)})
    if verdict.consumer == "vllm":
        _vllm_model(checkpoint, checkpoint.packed, modules, verdict)
        if set(bits) - {4, 8}:
            codes = f"{'asymmetric ' if asymmetric else ''}codes of {', '.join(map(str, bits))} bits"
            verdict.notes.append(f"{codes} need a vLLM whose Humming kernels take them; 4 and 8 bits are in any")
        verdict.notes.append("read in vLLM's code, run by nobody here")


def _of_expert(module: str) -> bool:
    """Whether transformers reads a module as a part of its experts, by the scheme of those."""
    return ".experts." in module


def _transformers_ways(verdict: Verdict, why: str | None, schemes: Collection[WeightScheme]) -> None:
    """Which of the two ways of loading holds, if ``why`` keeps modules from being loaded packed."""
    several = f"dequantize=True reads every module by one scheme, and there are {len(schemes)}"
    if why is None and len(schemes) > 1:
        verdict.notes.append(f"from_pretrained as it is, for {several}")
        if verdict.consumer == "peft":
            verdict.notes.append("then model.hf_quantizer.compressor.decompress_model(model), and the adapter")
        return
    if why is not None and len(schemes) > 1:
        verdict.fail(f"{why}, and {several}: read it with lowbit, or store what is concerned dense")
        return
    if why is not None:
        verdict.notes.append(
            f"{why}: from_pretrained(..., quantization_config=CompressedTensorsConfig(dequantize=True))"
        )
    if verdict.consumer == "peft":
        verdict.notes.append("as the base of an adapter, loaded through transformers, dequantized")


def _vllm_model(
    checkpoint: SafetensorsCheckpoint, packed_format: PackedFormat, modules: Sequence[str], verdict: Verdict
) -> None:
    packed = {module: packed_format.scheme(module) for module in modules}
    for module in modules:
        parent, _, last = module.rpartition(".")
        for family in (family for family in _FUSED if last == family[0]):
            parts = [f"{parent}.{part}" for part in family]
            missing = [part for part in parts if part not in packed and f"{part}.weight" in checkpoint.names()]
            if missing:
                verdict.fail(f"vLLM joins {', '.join(family)} of {parent}: pack all of them or none")
            elif len({packed[part] for part in parts if part in packed}) > 1:
                verdict.fail(f"vLLM joins {', '.join(family)} of {parent}: give them one number of bits and groups")
    tied = getattr(checkpoint.config, "tie_word_embeddings", False)
    for module in (module for module in modules if "embed" in module.rpartition(".")[2]):
        if packed[module].scheme == "asymmetric":
            verdict.fail(f"vLLM reads {module} without its zero points: quantize it symmetrically")
        if tied:
            verdict.fail(f"vLLM has no head that reads {module} packed: untie the two, or store it dense")
        verdict.notes.append(f"{module} needs a vLLM that reads packed embeddings in models of this class")


def report_lines(folder: str | Path, kind: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Plain text, one consumer per paragraph."""
    lines = [f"{folder}: {kind}"]
    for verdict in verdicts:
        lines.append(f"  {verdict.consumer:<13} {'pass' if verdict.passed else 'FAIL'}")
        lines += [f"                - {reason}" for reason in verdict.reasons[:5]]
        if len(verdict.reasons) > 5:
            lines.append(f"                - and {len(verdict.reasons) - 5} more")
        lines += [f"                  {note}" for note in verdict.notes]
    return lines


def record(folder: str | Path, kind: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The JSON record of the ``check`` command."""
    return {
        "schema": "lowbit.check/1",
        "path": str(folder),
        "kind": kind,
        "passed": all(verdict.passed for verdict in verdicts),
        "consumers": [verdict.as_dict() for verdict in verdicts],
    }
