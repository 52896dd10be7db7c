"""Notes of a release: its section of CHANGELOG.md, in the groups of Keep a Changelog and in their order.

``python tools/release_notes.py 0.1.0`` prints them, or says what is wrong with the section or the version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["GROUPS", "main", "notes"]

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("Removed", "Changed", "Deprecated", "Security", "Added", "Fixed")
"""What breaks comes first."""


def notes(changelog: str, version: str) -> str:
    """The section ``## [version]`` or ``## [version] - date``, its groups ordered.

    Raises:
        ValueError: no such section, an unknown group or one that stands twice, or a group without an entry.
    """
    heads = re.split(r"^## \[(.+?)\].*\n", changelog, flags=re.MULTILINE)
    sections = dict(zip(heads[1::2], heads[2::2], strict=True))
    if version not in sections:
        raise ValueError(f"CHANGELOG.md has no section for {version}; it has {', '.join(sections)}")
    opening, *rest = re.split(r"^### (.+)\n", sections[version], flags=re.MULTILINE)
    names, bodies = rest[::2], [body.strip() for body in rest[1::2]]
    if unknown := [n for n in names if n not in GROUPS]:
        raise ValueError(f"group {unknown[0]!r} is none of {', '.join(GROUPS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a group stands twice: {', '.join(names)}")
    if empty := [n for n, body in zip(names, bodies, strict=True) if not body.startswith("- ")]:
        raise ValueError(f"group {empty[0]!r} has no entry")
    groups = sorted(zip(names, bodies, strict=True), key=lambda group: GROUPS.index(group[0]))
    return "\n\n".join(filter(None, [opening.strip(), *(f"### {name}\n\n{body}" for name, body in groups)])) + "\n"


def main(words: list[str]) -> int:
    """Print the notes of a version, which must be that of the package; exit status 1 when something is wrong."""
    (version,) = words
    source = (ROOT / "src" / "lowbit" / "_version.py").read_text(encoding="utf-8")
    try:
        if f'__version__ = "{version}"' not in source:
            raise ValueError(f"{version} is not the version in src/lowbit/_version.py")
        print(notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
