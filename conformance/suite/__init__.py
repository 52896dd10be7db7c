"""The clauses as tests, a file per chapter; run by ``lowbit conform BACKEND``, or by hand with

pytest --pyargs lowbit.conformance.suite -p lowbit.conformance.plugin --lowbit-backend BACKEND

Every test takes a :class:`~lowbit.conformance.kit.Kit` and states one law. No test holds a tolerance: bounds come from
:mod:`lowbit.conformance.compare`.
"""

MODULES = (
    "test_philox",
    "test_rounding",
    "test_uniform",
    "test_packing",
    "test_codebook",
    "test_ternary",
    "test_learned_step",
    "test_oscillation",
    "test_binary_coding",
    "test_scale_tuning",
    "test_mixed_precision",
    "test_second_order",
    "test_moments",
    "test_low_rank",
    "test_eigenspace",
    "test_rank_budget",
    "test_dora",
    "test_rotation",
    "test_lut",
    "test_lut_search",
    "test_coreset",
    "test_distill",
    "test_diagnostics",
    "test_contract",
)
"""Test modules in reading order."""
