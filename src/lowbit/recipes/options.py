"""Options of the recipes, checked before any work: every refusal names the field, the value and what is allowed.

The fields of a class here are the one definition of its options: the command line, ``--config FILE`` and
``--print-config`` are made from them (:mod:`lowbit.cli`), and so is the call in Python. Nothing but the standard
library is needed to read them, so ``--help`` is never a matter of what is installed.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from lowbit.runs.errors import RecipeError

__all__ = [
    "Checked",
    "CompareOptions",
    "CompressOptions",
    "DecisionOptions",
    "EvalOptions",
    "Option",
    "PlanOptions",
    "TextOptions",
    "Told",
    "option_table",
    "parse_options",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_PLACE = "Model directory, compressed directory, hub id or GGUF file."
_ADAPTER = "PEFT directory, or packed factors, made for this base."
_FIELD = "Field or column of records in which the text is."
_CHAT = "Make texts of lists of messages, with the model's chat template."
_SPECIAL = "Begin every row as the tokenizer begins a text (auto: BOS where it adds one), or with nothing."

# Options that say where things are or how a run is watched: changing them does not change one byte of the result.
_PLACES = ("model", "out", "calibration", "evaluate", "plan", "threads", "dry_run")


class Told(NamedTuple):
    """What the annotation of a field says beside its type."""

    help: str
    least: int | None = None  # smallest number; 1 for a text that must not be empty
    most: int | None = None
    metavar: str | None = None  # in place of the type's own, on the command line
    unset: str | None = None  # what None means, where it is the default


class Option(NamedTuple):
    """One field of a class of options."""

    name: str
    kind: Any  # the type without None: str, int, float, bool, Path or a Literal
    optional: bool  # None is allowed
    default: Any  # dataclasses.MISSING when it must be given
    told: Told

    @property
    def choices(self) -> tuple[Any, ...]:
        """Allowed values of a Literal, otherwise nothing."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    def convert(self, value: Any) -> Any:
        """The value in the field's type.

        Raises:
            ValueError: it cannot be, or lies outside what is allowed; the message says what should be given.
        """
        if value is None and self.optional:
            return None
        if self.choices:
            folded = value.lower() if isinstance(value, str) else value
            for choice in self.choices:
                if folded == choice and type(value) is type(choice):
                    return choice
            *others, last = map(repr, self.choices)
            raise ValueError(f"input should be {', '.join(others)}{' or ' if others else ''}{last}")
        value = _CONVERSIONS[self.kind](value)
        least, most = self.told.least, self.told.most
        if isinstance(value, str):
            if least and not value:
                raise ValueError("input should not be empty")
        elif least is not None and not value >= least:
            raise ValueError(f"input should be greater than or equal to {least}")
        elif most is not None and not value <= most:
            raise ValueError(f"input should be less than or equal to {most}")
        return value


def _whole(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise ValueError("input should be a valid integer, unable to parse string as an integer") from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError("input should be a valid integer")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("input should be a valid number")
    try:
        return float(value)
    except ValueError:
        raise ValueError("input should be a valid number, unable to parse string as a number") from None


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("input should be a valid boolean")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("input should be a valid string")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise ValueError("input should be a path")
    if not str(value).strip():
        raise ValueError("name a directory")
    return Path(value)


_CONVERSIONS: dict[Any, Any] = {int: _whole, float: _number, bool: _truth, str: _text, Path: _path}


def option_table(kind: type[Checked]) -> Mapping[str, Option]:
    """The options of a class by name, in the order of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    table = {}
    for field in fields(kind):  # type: ignore[arg-type]
        inner, told = get_args(hints[field.name])
        members = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
        real = [member for member in members if member is not type(None)]
        table[field.name] = Option(field.name, real[0], len(real) < len(members), field.default, told)
    return table


class Checked:
    """Base of the options: values are converted and checked when an object is made."""

    def __post_init__(self) -> None:
        values, problems = _check(type(self), vars(self))
        if problems:
            raise RecipeError("\n".join(problems))
        for name, value in values.items():
            object.__setattr__(self, name, value)
        problem = self._contradiction()
        if problem:
            raise RecipeError(problem)

    def _contradiction(self) -> str | None:
        """What two options that are right in themselves say against each other."""
        return None


def _check(kind: type[Checked], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Converted values of the fields that are given, and one line per problem."""
    table = option_table(kind)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, option in table.items():
        if name in given:
            try:
                values[name] = option.convert(given[name])
            except ValueError as error:
                problems.append(f"option {name}: {error}, got {given[name]!r}")
        elif option.default is MISSING:
            problems.append(f"option {name} is required")
    return values, problems + [f"unknown option {name}" for name in given if name not in table]


Options = TypeVar("Options", bound=Checked)


def parse_options(kind: type[Options], /, **given: Any) -> Options:
    """Build ``kind`` from keyword arguments; wrong ones raise :class:`RecipeError` with one line per problem."""
    values, problems = _check(kind, given)
    if problems:
        raise RecipeError("\n".join(problems))
    return kind(**values)


@dataclass(frozen=True, kw_only=True)
class DecisionOptions(Checked):
    """What bits and ranks of all modules are decided for, and what is not to be decided.

    Raises:
        RecipeError: a value outside what is allowed, or options that contradict each other.
    """

    size: Annotated[
        str | None,
        Told("Decide bits and ranks of every module, so that all files are at most this large: 70MB.", least=1),
    ] = None
    bits_per_weight: Annotated[
        float | None, Told("The same by bits per weight of the model, everything included.", least=1, most=16)
    ] = None
    max_kl: Annotated[
        float | None, Told("The smallest files whose predicted KL to the original, per token, is this.", least=0)
    ] = None
    plan: Annotated[Path | None, Told("Directory of a plan to decide from; made on the way if not said.")] = None
    keep: Annotated[
        str | None, Told("Modules that stay as they are: names or patterns with *, separated by commas.", least=1)
    ] = None
    bits_of: Annotated[
        str | None, Told("Bits that are not to be decided: PATTERN=N, separated by commas.", least=1)
    ] = None

    def _contradiction(self) -> str | None:
        if sum(value is not None for value in (self.size, self.bits_per_weight, self.max_kl)) > 1:
            return "size, bits_per_weight and max_kl ask for the same thing: give one of them"
        if not self.decides and (self.plan or self.keep or self.bits_of):
            return "plan, keep and bits_of belong to a decision: give size, bits_per_weight or max_kl as well"
        return None

    @property
    def decides(self) -> bool:
        """Whether bits and ranks are decided module by module."""
        return self.size is not None or self.bits_per_weight is not None or self.max_kl is not None

    @property
    def kept(self) -> list[str]:
        """Patterns of modules that stay as they are."""
        return [word.strip() for word in (self.keep or "").split(",") if word.strip()]

    @property
    def pinned(self) -> list[tuple[str, int]]:
        """Patterns of modules, and the bits that those get.

        Raises:
            RecipeError: not of the form PATTERN=N.
        """
        found = []
        for word in filter(None, (word.strip() for word in (self.bits_of or "").split(","))):
            pattern, equals, bits = word.rpartition("=")
            if not equals or not pattern or not bits.strip().isdigit():
                raise RecipeError(f"option bits_of: {word!r} is not of the form PATTERN=N")
            found.append((pattern.strip(), int(bits)))
        return found


@dataclass(frozen=True, kw_only=True)
class CompressOptions(DecisionOptions):
    """Everything that :func:`lowbit.recipes.compress.compress` can be told.

    ``bits=16`` keeps the weights dense: with ``sparsity`` that prunes only. ``group_size`` 0, -1 or None means one
    scale per output row. ``rank`` is ignored with ``compensate="none"``.

    Raises:
        RecipeError: a value outside what is allowed, or options that contradict each other.
    """

    model: Annotated[str, Told("Local directory, hub id or GGUF file.", least=1)]
    out: Annotated[Path, Told("Output directory.")]
    bits: Annotated[Literal[2, 3, 4, 5, 6, 8, 16], Told("Bits of a code; 16 only prunes.")] = 3
    group_size: Annotated[int | None, Told("Columns per scale; 0 or -1 for one scale per row.", least=-1)] = 64
    symmetric: Annotated[bool, Told("Symmetric codes: transformers loads them as they are.")] = False
    quantizer: Annotated[
        Literal["rtn", "gptq"] | None,
        Told("How weights are rounded; rtn, or gptq where bits are decided, if not said.", unset="auto"),
    ] = None
    act_order: Annotated[
        bool | None, Told("GPTQ: columns by falling importance; with static groups if not said.", unset="auto")
    ] = None
    static_groups: Annotated[bool, Told("GPTQ: all group scales from the original weights.")] = True
    clip_search: Annotated[
        bool | None, Told("Search the clipping ratio of every group; where EoRA follows if not said.", unset="auto")
    ] = None
    adapter_aware: Annotated[
        bool | None,
        Told("GPTQ and pruning spare what the adapter restores; where EoRA follows if not said.", unset="auto"),
    ] = None
    damping: Annotated[
        float | None,
        Told(
            "GPTQ: share of the mean Hessian diagonal; 0.01, or 0.1 where it knows the adapter, if not said.",
            least=0,
            most=1,
            unset="auto",
        ),
    ] = None
    sparsity: Annotated[Literal["2:4"] | None, Told("Two of four weights become zero; alone, it shrinks no file.")] = (
        None
    )
    pruner: Annotated[Literal["sparsegpt", "wanda"], Told("Which two.")] = "sparsegpt"
    compensate: Annotated[Literal["eora", "svd", "act-svd", "none"], Told("How the adapter is solved for.")] = "eora"
    rank: Annotated[int, Told("Rank of the adapter.", least=1)] = 32
    rounds: Annotated[int, Told("Alternations of quantizing and compensating.", least=1, most=100)] = 1
    adapter_bits: Annotated[Literal[3, 4, 8] | None, Told("Quantize the adapter.")] = None
    calibration: Annotated[
        str, Told("Text, JSONL, CSV, parquet or arrow file, hub dataset, or python-docs.", least=1, metavar="SOURCE")
    ] = "python-docs"
    text_field: Annotated[str, Told(_FIELD, least=1)] = "text"
    chat_template: Annotated[bool, Told(_CHAT)] = False
    special_tokens: Annotated[Literal["auto", "none"], Told(_SPECIAL)] = "auto"
    samples: Annotated[int, Told("Calibration samples.", least=1)] = 32
    length: Annotated[int, Told("Tokens per sample.", least=2)] = 1024
    sampling: Annotated[Literal["first", "random"], Told("Which samples of the text.")] = "first"
    seed: Annotated[int, Told("Seed of every draw.", least=0)] = 0
    device: Annotated[str, Told("Torch device: cpu, cuda, cuda:1 ...", least=1)] = "cpu"
    backend: Annotated[str, Told("torch, numba, reference or an import path.", least=1)] = "torch"
    dtype: Annotated[Dtype, Told("Type of forward passes and of what is stored; auto is the model's own.")] = "auto"
    threads: Annotated[int | None, Told("CPU threads; all by default.", least=1)] = None
    spectrum: Annotated[bool, Told("Record the error spectrum of every layer up to 1024 wide.")] = True
    evaluate: Annotated[str | None, Told("Text to measure perplexity on.", least=1, metavar="SOURCE")] = None
    evaluate_tokens: Annotated[int | None, Told("Tokens to measure on.", least=2)] = 16384
    evaluate_skip: Annotated[int, Told("Tokens to skip first; negative counts from the end.")] = 0
    evaluate_length: Annotated[int, Told("Tokens per window.", least=2)] = 1024
    dry_run: Annotated[bool, Told("Say what it will take in time, memory and bytes, and do nothing else.")] = False

    def __post_init__(self) -> None:
        if self.quantizer is None:
            object.__setattr__(self, "quantizer", "gptq" if self.decides else "rtn")
        super().__post_init__()
        object.__setattr__(self, "group_size", None if self.group_size in (0, -1) else self.group_size)

    def _contradiction(self) -> str | None:
        if problem := super()._contradiction():
            return problem
        if self.decides and self.sparsity:
            return "sparsity is not decided: leave it out, or give bits and rank in place of a size"
        for name, option in option_table(CompressOptions).items():
            if self.decides and name in ("bits", "rank", "adapter_bits") and getattr(self, name) != option.default:
                return f"{name} is what a size decides: leave it out, or pin it for some modules with bits_of and keep"
        if self.bits == 16 and self.sparsity is None:
            return "bits 16 keeps the weights dense: choose fewer bits or add sparsity 2:4"
        if self.bits == 16 and self.quantizer == "gptq":
            return "quantizer gptq needs bits 2, 3, 4, 5, 6 or 8; bits 16 only prunes"
        if self.act_order and self.quantizer != "gptq":
            return "act_order belongs to quantizer gptq"
        if self.act_order and self._joint:
            return "act_order is not available for joint SparseGPT pruning and quantization"
        if self.act_order and not self.static_groups:
            return "act_order needs static_groups: otherwise the groups are not runs of columns"
        if self._joint and self.clip_search:
            return "clip_search is not available for joint SparseGPT pruning and quantization"
        if self.adapter_aware and self.compensate != "eora":
            return "adapter_aware needs the adapter of compensate eora"
        if self.adapter_aware and not self._weighs:
            return "adapter_aware concerns quantizer gptq and sparsity: rtn alone weighs no errors"
        if self.adapter_bits and self.compensate == "none":
            return "adapter_bits needs a compensation"
        if self.rounds > 1 and self.compensate == "none":
            return "rounds above 1 alternate with a compensation: choose eora, svd or act-svd"
        return None

    @property
    def _joint(self) -> bool:
        """Pruned and quantized in one pass, by SparseGPT."""
        return self.sparsity is not None and self.quantizer == "gptq" and self.pruner == "sparsegpt"

    @property
    def orders(self) -> bool:
        """Whether GPTQ takes columns by falling diagonal: with static groups that costs a reader nothing."""
        if self.act_order is None:
            return self.quantizer == "gptq" and self.static_groups and not self._joint
        return self.act_order

    @property
    def clips(self) -> bool:
        """Whether clipping ratios are searched.

        Left open, they are where EoRA follows: a finer grid for the many pays when the few large weights that it
        clips are restored, and is a loss when they are not.
        """
        if self.clip_search is None:
            return self.compensate == "eora" and self.bits < 16 and not self._joint
        return self.clip_search

    @property
    def _weighs(self) -> bool:
        """Whether the second moment of the inputs takes part in the compression itself."""
        return self.quantizer == "gptq" or self.sparsity is not None

    @property
    def aware(self) -> bool:
        """Whether the compression is told which directions of the inputs the adapter will restore.

        Left open, it is where EoRA follows a compression that weighs errors: without, GPTQ keeps its errors small just
        where the adapter would have removed them.
        """
        if self.adapter_aware is None:
            return self.compensate == "eora" and self._weighs
        return self.adapter_aware

    @property
    def adapter_damps(self) -> float:
        """Damping where the adapter itself is quantized, with the whole second moment."""
        return 0.01 if self.damping is None else self.damping

    @property
    def damps(self) -> float:
        """Damping of Hessians: the published 0.01, and ten times that without the directions of most energy.

        The mean diagonal of what an adapter leaves is far smaller, and noise of the calibration text a larger share.
        """
        return 0.1 if self.damping is None and self.aware else self.adapter_damps

    @property
    def scheme(self) -> Literal["asymmetric", "symmetric-full"]:
        """Grid of the stored codes; symmetric means the compressed-tensors convention, scale = 2 amax / (2^b - 1)."""
        return "symmetric-full" if self.symmetric else "asymmetric"

    def signature(self) -> dict[str, Any]:
        """Every option that decides the result, JSON-ready: without places, which are told apart by content.

        The number of threads that ran is part of the plan in any case."""
        return {name: value for name, value in asdict(self).items() if name not in _PLACES} | {
            "evaluate": self.evaluate is not None,
            "act_order": self.orders,
            "clip_search": self.clips,
            "adapter_aware": self.aware,
            "damping": self.damps,
        }


@dataclass(frozen=True, kw_only=True)
class PlanOptions(CompressOptions):
    """What :func:`lowbit.recipes.plan.plan` can be told: of a compression, what concerns its statistics and decision.

    Raises:
        RecipeError: a value outside what is allowed, or options that contradict each other.
    """

    @property
    def decides(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class TextOptions(Checked):
    """A text to measure models on, in windows of ``length`` tokens, and how they are run.

    Raises:
        RecipeError: a value outside what is allowed.
    """

    text: Annotated[
        str, Told("Text, JSONL, CSV, parquet or arrow file, hub dataset, or python-docs.", least=1, metavar="SOURCE")
    ]
    text_field: Annotated[str, Told(_FIELD, least=1)] = "text"
    chat_template: Annotated[bool, Told(_CHAT)] = False
    special_tokens: Annotated[Literal["auto", "none"], Told(_SPECIAL)] = "auto"
    skip_tokens: Annotated[int, Told("Tokens to skip first; negative counts from the end.")] = 0
    tokens: Annotated[int | None, Told("At most this many tokens.", least=2)] = None
    length: Annotated[int, Told("Tokens per window.", least=2)] = 1024
    dtype: Annotated[Dtype, Told("Type of forward passes; auto is the model's own.")] = "auto"
    device: Annotated[str, Told("Torch device: cpu, cuda, cuda:1 ...", least=1)] = "cpu"
    threads: Annotated[int | None, Told("CPU threads; all by default.", least=1)] = None


@dataclass(frozen=True, kw_only=True)
class EvalOptions(TextOptions):
    """What :func:`lowbit.recipes.evaluate.evaluate` measures: perplexity, and the distance from another model.

    Raises:
        RecipeError: a value outside what is allowed.
    """

    path: Annotated[str, Told(_PLACE, least=1)]
    adapter: Annotated[Path | None, Told(_ADAPTER)] = None
    against: Annotated[str | None, Told("Original to measure the distance from.", least=1, metavar="MODEL")] = None


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TextOptions):
    """What :func:`lowbit.recipes.compare.compare` measures: two models, window by window, against their original.

    Raises:
        RecipeError: a value outside what is allowed.
    """

    a: Annotated[str, Told(_PLACE, least=1)]
    b: Annotated[str, Told("The other one.", least=1)]
    against: Annotated[str, Told("Original that both are measured against.", least=1, metavar="MODEL")]
    adapter_a: Annotated[Path | None, Told("PEFT directory, or packed factors, made for A.")] = None
    adapter_b: Annotated[Path | None, Told("PEFT directory, or packed factors, made for B.")] = None
