"""The tokenizer that the metadata of a GGUF file describe; nothing beside the file is looked at.

``transformers`` rebuilds the vocabulary. What it leaves out, such as how text is split where it does not know the name
of the split, is added here or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, UnreadError
from .keys import Rule, absent, applied, harmless, only, require_known

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["build_tokenizer"]

_PARTS = {  # key → what the converter of transformers calls it
    "ggml.model": "tokenizer_type",
    "ggml.pre": "pre_tokenizer_type",
    "ggml.tokens": "tokens",
    "ggml.scores": "scores",
    "ggml.token_type": "token_type",
    "ggml.merges": "merges",
}
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SEEN = applied("build_tokenizer")
_CHAT = harmless("of conversations, not of text")
RULES: dict[str, Rule] = {
    **dict.fromkeys((*_PARTS, "chat_template", *(f"ggml.{name}_token_id" for name in _SPECIAL.values())), _SEEN),
    "ggml.model": only("is a kind of tokenizer that is not read", "gpt2", "llama"),
    **dict.fromkeys(("ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_space_prefix"), _SEEN),
    "ggml.remove_extra_whitespaces": only("rewrites the text before it is split", False),
    "ggml.precompiled_charsmap": absent("rewrites the text before it is split"),
    "ggml.add_sep_token": only("is a token that transformers does not add", False),
    "ggml.token_type_count": harmless("of models that tell sentences apart"),
    "huggingface.json": harmless("the same tokenizer in another form"),
    **dict.fromkeys(("chat_templates", "ggml.eot_token_id", "ggml.eom_token_id"), _CHAT),
    **dict.fromkeys(
        (
            f"ggml.{name}_token_id"
            for name in (
                *("cls", "mask", "seperator", "prefix", "suffix", "middle"),
                *(f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")),
            )
        ),
        harmless("a token that ordinary text does not get"),
    ),
}
"""What becomes of the keys below ``tokenizer.``."""

# llama.cpp's names of ways to split text that transformers does not know, by what they do.
_WORDS = ("gpt-2", "gpt2", "phi-2", "roberta-bpe", "mpt", "olmo", "jais", "trillion")
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_SAME = {"stablelm2": "qwen2"}
_BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
# Those whose words are looked up whole before they are merged, and which begin with BOS unless a file says otherwise.
_WHOLE = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")


def build_tokenizer(metadata: Mapping[str, Any], source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, in its fast form.

    Raises:
        UnreadError: a kind of tokenizer, a way to split text, or a key that would be ignored.
        CheckpointError: metadata that describe none.
    """
    from transformers import PreTrainedTokenizerFast

    prefix = "tokenizer."
    stated = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    named = {key: value for key, value in stated.items() if not key.startswith("chat_template.")}
    require_known(named, RULES, source=f"{source}: tokenizer", error=UnreadError)
    try:
        backend = _backend(stated, str(metadata["general.architecture"]), source)
        tokens = stated["ggml.tokens"]
        special = {
            name: tokens[stated[f"ggml.{key}_token_id"]]
            for name, key in _SPECIAL.items()
            if f"ggml.{key}_token_id" in stated
        }
        begins = stated["ggml.model"] == "llama" or stated.get("ggml.pre") in _WHOLE
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=stated.get("chat_template"),
            add_bos_token=bool(stated.get("ggml.add_bos_token", begins)),
            add_eos_token=bool(stated.get("ggml.add_eos_token", False)),
            **special,
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever the tokenizer libraries raise, the sentence is the same
        raise CheckpointError(
            f"{source}: its tokenizer cannot be rebuilt ({' '.join(str(error).split())[:300]})"
        ) from error
    return tokenizer


def _backend(stated: Mapping[str, Any], architecture: str, source: str) -> Tokenizer:
    from tokenizers import Regex, decoders, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

    parts = {name: stated[key] for key, name in _PARTS.items() if key in stated}
    split = stated.get("ggml.pre", "")
    split = parts["pre_tokenizer_type"] = _SAME.get(split, split)
    backend: Tokenizer = convert_gguf_tokenizer(architecture, parts)[0]
    if stated["ggml.model"] == "gpt2":
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if split in _DIGITS:
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        elif split == "bloom":
            runs = pre_tokenizers.Split(Regex(_BLOOM), behavior="isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([runs, bytes_alone])
        elif split not in _WORDS and not isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence):
            raise UnreadError(
                f"{source}: tokenizer.ggml.pre = {split!r} is a way to split text that is not known here; convert the "
                "model with a newer llama.cpp, or open it from its safetensors"
            )
        backend.model.ignore_merges = split in _WHOLE
    elif stated.get("ggml.add_space_prefix", "gemma" not in architecture) != ("gemma" not in architecture):
        if architecture != "llama":
            raise UnreadError(
                f"{source}: tokenizer.ggml.add_space_prefix = {stated['ggml.add_space_prefix']} is not read for "
                f"{architecture}"
            )
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend
