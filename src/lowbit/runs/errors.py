"""The one error of the recipes: a message for the person who ran the command, never a traceback."""

from __future__ import annotations

__all__ = ["RecipeError"]


class RecipeError(Exception):
    """A recipe cannot go on; the message names what is wrong (tensor, module, file, option) and what to do.

    The command line prints it and exits with status 2. What was finished before it stays usable: the same command
    continues from there.
    """
