"""``python -m tests.mutants FOLDER`` writes frozen vectors anew, with the mistakes that every case catches."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from lowbit.conformance import frozen

from . import MUTANTS

warnings.simplefilter("ignore")  # wrong code divides by zero
for path in frozen.write(Path(sys.argv[1]), MUTANTS):
    print(path)
