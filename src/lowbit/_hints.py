"""What to type when a package is missing, whether lowbit came from an index, a file, a repository or a clone."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

__all__ = ["hint"]


def hint(extra: str) -> str:
    """The command that installs an extra: ``pip install 'lowbit[hf]'``, in a clone ``pip install -e '.[hf]'``."""
    origin = _origin()
    url = str(origin.get("url", ""))
    if origin.get("dir_info", {}).get("editable"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        folder = Path(url2pathname(urlsplit(url).path))
        here = os.path.relpath(folder) if Path.cwd().is_relative_to(folder) else str(folder)
        return f"pip install -e '{here}[{extra}]'"
    if url:
        kind = origin.get("vcs_info", {}).get("vcs")
        return f"pip install 'lowbit[{extra}] @ {kind + '+' if kind else ''}{url}'"
    return f"pip install 'lowbit[{extra}]'"


def _origin() -> dict[str, dict[str, str]]:
    """Where this installation came from (PEP 610); empty when that was an index, or nothing is installed."""
    for distribution in metadata.distributions(name="lowbit"):  # a clone's own egg-info may come first, without it
        text = distribution.read_text("direct_url.json")
        if text:
            found: dict[str, dict[str, str]] = json.loads(text)
            return found
    return {}
