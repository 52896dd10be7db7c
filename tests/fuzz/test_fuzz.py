"""Two thousand damaged files for every reader; ``make fuzz`` tries a hundred thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tests.fuzz.judge import Workplace, little_memory
from tests.fuzz.readers import READERS

INPUTS = 2_000


@pytest.mark.parametrize("name", READERS)
def test_a_reader_answers_or_refuses(name: str, tmp_path: Path) -> None:
    workplace = Workplace(READERS[name], tmp_path / "files")

    @settings(
        max_examples=INPUTS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.binary(min_size=8, max_size=48))
    def inputs(data: bytes) -> None:
        fault = workplace.fault(workplace.damaged(data))
        assert fault is None, fault

    with little_memory():
        inputs()
