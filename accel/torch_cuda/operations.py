"""The operations: whatever the chapters export, in one place for the face and for configured objects."""

# ruff: noqa: F403

from torch import Tensor as _Tensor

from lowbit.accel.common.door import guard as _guard

from .adapter import *
from .binary_coding import *
from .choices import *
from .codebook import *
from .coreset import *
from .diagnostics import *
from .distill import *
from .divergence import *
from .dora import *
from .eigenspace import *
from .gptq import *
from .learned_step import *
from .loftq import *
from .low_rank import *
from .lut import *
from .lut_search import *
from .mixed_precision import *
from .moments import *
from .oscillation import *
from .packing import *
from .philox import *
from .qk_reparam import *
from .rank_budget import *
from .rotation import *
from .rounding import *
from .scale_tuning import *
from .sparsity import *
from .statsq import *
from .ternary import *
from .uniform import *

_guard(globals(), _Tensor, "torch.Tensor")
