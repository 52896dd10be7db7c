"""Modules, losses and optimizers of the Torch backend; :mod:`lowbit.nn` is their face and their only importer."""
