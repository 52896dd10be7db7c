"""Everything here needs transformers, PEFT and compressed-tensors."""

from __future__ import annotations

import pytest

for package in ("torch", "transformers", "peft", "compressed_tensors"):
    pytest.importorskip(package)
