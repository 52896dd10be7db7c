"""Quantized linear layers as other tools store them: one file a format, chosen by ``quant_method``.

======================  =====================================================================================
module                  content
======================  =====================================================================================
``protocol``            what a format can do, and a packed weight as it comes out of one
``compressed_tensors``  ``pack-quantized``, which transformers and vLLM load
``settings``            the keys of its configuration: applied, harmless or refused
``packing``             the two layouts of packed codes, vectorised
======================  =====================================================================================

GGUF has no place here: its types are block layouts of one file, without integer codes of one width per layer, and its
reader gives dense tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowbit.formats.errors import CheckpointError, UnreadError

from .compressed_tensors import CompressedTensors
from .protocol import PackedFormat, PackedWeight, WeightScheme

__all__ = ["FORMATS", "PackedFormat", "PackedWeight", "WeightScheme", "open_packed"]

FORMATS = {"compressed-tensors": CompressedTensors}
"""``quant_method`` of a configuration → the format that reads and writes such modules."""


def open_packed(config: Mapping[str, Any], source: str) -> PackedFormat:
    """The format that a ``quantization_config`` names; one without a name is compressed-tensors.

    Raises:
        UnreadError: a method that is not read here, or one whose details are not.
    """
    method = str(config.get("quant_method", "compressed-tensors"))
    if method not in FORMATS:
        raise UnreadError(
            f"{source}: already quantized by {method}, which lowbit does not read; start from the full-precision model"
        )
    try:
        return FORMATS[method](config, source)
    except CheckpointError:
        raise
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{source}: its quantization_config cannot be understood ({reason})") from error
