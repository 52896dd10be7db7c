"""Fast backends of the specification. Each is loaded by name, ``lowbit.load("numba")``, and imported only then."""
