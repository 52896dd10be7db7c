"""The clauses as tests, a file per chapter; run by ``lowbit conform BACKEND``, or by hand with

pytest --pyargs lowbit.conformance.suite -p lowbit.conformance.plugin --lowbit-backend BACKEND

Every test takes a :class:`~lowbit.conformance.kit.Kit` and states one law. No test holds a tolerance: bounds come from
:mod:`lowbit.conformance.compare`.
"""
