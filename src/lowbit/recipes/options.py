"""Options of the recipes, checked before any work: every refusal names the field, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lowbit.runs.errors import RecipeError

__all__ = ["CompressOptions", "EvalOptions", "parse_options"]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# Options that say where things are or how a run is watched: changing them does not change one byte of the result.
_PLACES = ("model", "out", "calibration", "evaluate", "threads")


class CompressOptions(BaseModel):
    """Everything that :func:`lowbit.recipes.compress.compress` can be told.

    ``bits=16`` keeps the weights dense: with ``sparsity`` that prunes only. ``group_size`` 0 or None means one scale
    per output row. ``rank`` is ignored with ``compensate="none"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, description="local directory, hub id or GGUF file")
    out: Path = Field(description="output directory")
    bits: Literal[2, 3, 4, 8, 16] = 3
    group_size: int | None = Field(default=64, ge=0, description="columns per scale; 0 or none: one scale per row")
    symmetric: bool = False
    quantizer: Literal["rtn", "gptq"] = "rtn"
    act_order: bool | None = Field(
        default=None, description="GPTQ: columns by falling Hessian diagonal; none: with static groups"
    )
    static_groups: bool = Field(default=True, description="GPTQ: all group scales from the original weights")
    clip_search: bool | None = Field(
        default=None, description="search the clipping ratio of every group; none: where EoRA follows"
    )
    adapter_aware: bool | None = Field(
        default=None, description="GPTQ and pruning spare what the adapter restores; none: where EoRA follows"
    )
    damping: float | None = Field(
        default=None, ge=0, le=1, description="GPTQ: share of the mean Hessian diagonal; none: 0.01, 0.1 adapter-aware"
    )
    sparsity: Literal["2:4"] | None = None
    pruner: Literal["sparsegpt", "wanda"] = "sparsegpt"
    compensate: Literal["eora", "svd", "act-svd", "none"] = "eora"
    rank: int = Field(default=32, ge=1)
    rounds: int = Field(default=1, ge=1, le=100, description="alternations of quantizing and compensating")
    adapter_bits: Literal[3, 4, 8] | None = None
    calibration: str = Field(default="python-docs", min_length=1)
    text_field: str = Field(default="text", min_length=1, description="field of JSONL, JSON and parquet records")
    samples: int = Field(default=32, ge=1)
    length: int = Field(default=1024, ge=2)
    sampling: Literal["first", "random"] = "first"
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    backend: str = Field(default="torch", min_length=1)
    dtype: Dtype = "auto"
    threads: int | None = Field(default=None, ge=1)
    spectrum: bool = Field(default=True, description="record the error spectrum of every module up to 1024 wide")
    evaluate: str | None = Field(default=None, description="text to measure the perplexity on, before and after")
    evaluate_tokens: int | None = Field(default=16384, ge=2)
    evaluate_skip: int = Field(default=0, description="tokens to skip first; negative: count from the end")
    evaluate_length: int = Field(default=1024, ge=2)

    @field_validator("group_size")
    @classmethod
    def _whole_row(cls, value: int | None) -> int | None:
        return value or None

    @field_validator("out", mode="before")
    @classmethod
    def _out_named(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("name an output directory")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> CompressOptions:
        if self.bits == 16 and self.sparsity is None:
            raise ValueError("bits 16 keeps the weights dense: choose fewer bits or add sparsity 2:4")
        if self.bits == 16 and self.quantizer == "gptq":
            raise ValueError("quantizer gptq needs bits 2, 3, 4 or 8; bits 16 only prunes")
        if self.act_order and self.quantizer != "gptq":
            raise ValueError("act_order belongs to quantizer gptq")
        if self.act_order and self._joint:
            raise ValueError("act_order is not available for joint SparseGPT pruning and quantization")
        if self.act_order and not self.static_groups:
            raise ValueError("act_order needs static_groups: otherwise the groups are not runs of columns")
        if self._joint and self.clip_search:
            raise ValueError("clip_search is not available for joint SparseGPT pruning and quantization")
        if self.adapter_aware and self.compensate != "eora":
            raise ValueError("adapter_aware needs the adapter of compensate eora")
        if self.adapter_aware and not self._weighs:
            raise ValueError("adapter_aware concerns quantizer gptq and sparsity: rtn alone weighs no errors")
        if self.adapter_bits and self.compensate == "none":
            raise ValueError("adapter_bits needs a compensation")
        if self.rounds > 1 and self.compensate == "none":
            raise ValueError("rounds above 1 alternate with a compensation: choose eora, svd or act-svd")
        return self

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
        fields = self.model_dump(mode="json", exclude=set(_PLACES))
        fields["evaluate"] = self.evaluate is not None
        fields["act_order"] = self.orders
        fields["clip_search"] = self.clips
        fields["adapter_aware"] = self.aware
        fields["damping"] = self.damps
        return fields


class EvalOptions(BaseModel):
    """What :func:`lowbit.recipes.evaluate.evaluate` measures: perplexity over windows of ``length`` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="model directory, compressed directory, hub id or GGUF file")
    text: str = Field(min_length=1, description="text, JSONL, JSON or parquet file, hub dataset or python-docs")
    text_field: str = Field(default="text", min_length=1)
    adapter: Path | None = None
    skip_tokens: int = 0
    tokens: int | None = Field(default=None, ge=2, description="at most this many; none: all that are there")
    length: int = Field(default=1024, ge=2)
    dtype: Dtype = "auto"
    device: str = "cpu"
    threads: int | None = Field(default=None, ge=1)


Model = TypeVar("Model", bound=BaseModel)


def parse_options(kind: type[Model], /, **fields: Any) -> Model:
    """Build ``kind`` from keyword arguments; a wrong one raises :class:`RecipeError` with one line per problem."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise RecipeError("\n".join(_line(problem) for problem in error.errors())) from None


def _line(problem: Any) -> str:
    """One problem in plain words: ``--group-size: Input should be ... (got -1)``."""
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    place = ".".join(str(part) for part in problem["loc"])
    if not place:
        return message
    if problem["type"] == "extra_forbidden":
        return f"unknown option {place}"
    if problem["type"] == "missing":
        return f"option {place} is required"
    return f"option {place}: {message}, got {problem['input']!r}"
