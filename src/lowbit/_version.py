"""Versions of the package and of the specification, where everything below the root package can read them."""

__version__ = "0.1.0"
SPEC_VERSION = 1
"""Version of the specification: golden vectors and clause ids are frozen per version."""
