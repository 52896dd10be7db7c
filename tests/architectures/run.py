"""One architecture end to end: compressed by lowbit, then computed by plain transformers on the files written."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from lowbit.formats.checkpoint import open_checkpoint
from lowbit.formats.peft import read_adapter
from lowbit.formats.stacks import flatten
from lowbit.models.inventory import Inventory
from lowbit.models.policy import Reason, Unsupported, causal_class
from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions, parse_options

from .sizes import small_config

LENGTH, WINDOWS = 24, 3
TOLERANCE = 1e-5
"""Relative difference of two perplexities: both are float32 sums of some hundred terms in another order."""

TEXT = "\n".join(
    f"Line {n}: the quick brown fox jumps over {n * n % 97} lazy dogs, and rests a little." for n in range(40)
)


@dataclass
class Outcome:
    """What became of one architecture."""

    kind: str
    name: str | None = None  # of the class
    reason: Reason | None = None  # of the refusal
    message: str = ""  # of the refusal
    perplexity: dict[str, tuple[float, float]] = field(default_factory=dict)  # version → by lowbit, by transformers
    packed: bool = False
    layers: int = 0  # compressed ones
    share: float = 0.0  # of the parameters of the model in them
    peft: str = ""  # why PEFT does not take the adapter

    @property
    def equal(self) -> bool:
        """Whether all three perplexities are those of plain transformers."""
        return len(self.perplexity) == 3 and all(
            math.isclose(ours, theirs, rel_tol=TOLERANCE) for ours, theirs in self.perplexity.values()
        )

    def record(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self) | {"reason": self.reason.name if self.reason else None, "equal": self.equal}


def byte_tokenizer() -> Any:
    """One token per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<pad>"
    )


def save_small(folder: Path, config: Any, *, dtype: Any = None) -> None:
    """A model with random weights and a tokenizer, in the layout that the hub has."""
    cls = causal_class(config, "")
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=dtype or torch.float32)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(0, 0.25 if "embed" in name else 0.12)
        for module in model.modules():  # some classes clear this row when they are loaded
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                torch.nn.init.zeros_(module.weight.narrow(0, module.padding_idx, 1))
    model.config.dtype = dtype or torch.float32
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@torch.no_grad()
def plain_perplexity(model: Any, ids: list[int] | None = None) -> float:
    """By the definition, with the model's own forward."""
    tokens: list[int] = ids or list(byte_tokenizer()(TEXT)["input_ids"])
    rows = torch.tensor(tokens[: LENGTH * WINDOWS]).reshape(WINDOWS, LENGTH)
    total = 0.0
    for row in rows:
        logits = model(input_ids=row[None], use_cache=False).logits[0].float()
        total += float(torch.nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum").double())
    return math.exp(total / (WINDOWS * (LENGTH - 1)))


def try_architecture(kind: str, folder: Path) -> Outcome:
    """Compress a small model of ``kind`` and compare three perplexities, in ``folder``."""
    base, out, text = folder / "base", folder / "out", folder / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    config = small_config(kind)
    outcome = Outcome(kind)
    try:
        causal_class(config, kind)
        save_small(base, config)
        record = compress(parse_options(CompressOptions, **compress_options(base, out, text))).record
    except Unsupported as error:
        outcome.reason, outcome.message = error.reason, str(error).replace(str(base), kind)
        return outcome
    except ImportError as error:  # a part of another package, which transformers asks for when it builds the model
        outcome.reason, outcome.message = Reason.NOT_BUILT, " ".join(str(error).split())[:200]
        return outcome
    outcome.name = record["model"]["architecture"]
    outcome.layers = len(record["modules"])
    outcome.share = sum(math.prod(module["shape"]) for module in record["modules"]) / record["model"]["parameters"]
    outcome.packed = record["loads_with"]["format"] != "dense"
    cls: Any = getattr(transformers, record["model"]["architecture"])
    theirs = {"base": plain_perplexity(cls.from_pretrained(base))}
    unpacked = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if outcome.packed else {}
    model = cls.from_pretrained(out, **unpacked)
    theirs["compressed"] = plain_perplexity(model)
    theirs["compensated"] = plain_perplexity(_adapted(model, out / "adapter", outcome))
    outcome.perplexity = {name: (record["perplexity"][name], value) for name, value in theirs.items()}
    return outcome


def compress_options(base: Path, out: Path, text: Path) -> dict[str, Any]:
    """Groups and ranks as large as the smallest layer allows: sizes are small and differ from type to type."""
    inventory = Inventory(open_checkpoint(base), torch.float32, torch.float32)
    shapes = [linear.shape for linears in inventory.linears for linear in linears]
    group = math.gcd(16, *(columns for _, columns in shapes))
    return {
        "model": str(base),
        "out": out,
        "calibration": str(text),
        "samples": 2,
        "length": LENGTH,
        "bits": 4,
        "quantizer": "rtn",
        "symmetric": True,
        "clip_search": False,
        "group_size": group if group > 1 else 0,
        "rank": min(4, *(min(shape) for shape in shapes)) if shapes else 1,
        "backend": "numba",
        "evaluate": str(text),
        "evaluate_length": LENGTH,
        "evaluate_tokens": LENGTH * WINDOWS,
    }


def _adapted(model: Any, adapter: Path, outcome: Outcome) -> Any:
    """The model with its adapter: by PEFT, or where PEFT does not take all of it, with B A added to the weights."""
    from peft import PeftModel

    factors = read_adapter(adapter).factors
    own = dict(model.named_parameters())
    before = {name: own[name if name in own else f"{name}.weight"] for name in factors}
    wrapped = flatten(factors, ())[0]
    try:
        adapted: Any = PeftModel.from_pretrained(model, adapter)
        parts = {name: part for name, part in adapted.base_model.model.named_modules() if hasattr(part, "lora_A")}
        left = [
            n for n in wrapped if n not in parts or not torch.equal(parts[n].lora_B["default"].weight, wrapped[n][0])
        ]
        if not left:
            return adapted
        outcome.peft = f"PEFT does not apply it to {left[0]} and {len(left) - 1} more"
        model = adapted.unload()
    except ValueError as error:
        outcome.peft = " ".join(str(error).split())[:200]
    for name, (b, a) in factors.items():
        product = (b @ a).to(before[name].dtype)
        with torch.no_grad():
            before[name] += product.mT if before[name].shape != product.shape else product
    return model
