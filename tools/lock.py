"""Whether constraints.txt resolves, from the package index alone, everywhere lowbit says it runs.

``make lock-check`` runs this. For every Python and platform, every extra is resolved under the constraints, wheels only,
with uv, which sees neither pip's configuration nor wheels on the local disk. Whatever a resolution names must be pinned,
and whatever is pinned must be named by one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

__all__ = ["PLATFORMS", "PYTHONS", "main", "normal", "pins", "report"]

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "linux-x86_64": "x86_64-unknown-linux-gnu",
    "linux-aarch64": "aarch64-unknown-linux-gnu",
    "windows-x86_64": "x86_64-pc-windows-msvc",
    "macos-arm64": "aarch64-apple-darwin",
}
MACOS = "14.0"  # the oldest that torch has wheels for

Pins = dict[str, str]


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> Pins:
    """Name to version of a file of lines ``name==version`` and comments.

    Raises:
        ValueError: a line of another form, or a name that stands twice.
    """
    found: Pins = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line)
        if match is None:
            raise ValueError(f"not a pin: {line!r}")
        name = normal(match[1])
        if name in found:
            raise ValueError(f"pinned twice: {name}")
        found[name] = match[2]
    return found


def resolve(python: str, platform: str) -> tuple[Pins, str]:
    """What all extras need there, or nothing and the reason."""
    options = ["--quiet", "--no-config", "--no-annotate", "--no-header", "--only-binary=:all:", "--all-extras"]
    command = ["pip", "compile", *options, "--python-version", python, "--python-platform", PLATFORMS[platform]]
    environment = {k: v for k, v in os.environ.items() if k != "UV_FIND_LINKS"} | {"MACOSX_DEPLOYMENT_TARGET": MACOS}
    run = subprocess.run(
        [os.environ.get("UV", "uv"), *command, "--constraints", "constraints.txt", "pyproject.toml"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    return (pins(run.stdout), "") if run.returncode == 0 else ({}, run.stderr.strip())


def report(pinned: Pins, resolved: dict[str, Pins]) -> tuple[list[str], list[str]]:
    """Lines that say what was resolved where, and complaints.

    Args:
        pinned: the constraints.
        resolved: a resolution for each place.
    """

    def shorten(places: Iterable[str]) -> str:
        left = {p.split()[1] for p in resolved} - {p.split()[1] for p in places}
        return f"   not on {', '.join(sorted(left))}" if left else ""

    lines, complaints = [], []
    for name in sorted({n for found in resolved.values() for n in found}):
        versions = sorted({found[name] for found in resolved.values() if name in found})
        lines.append(f"{name}=={' or '.join(versions)}{shorten(p for p, found in resolved.items() if name in found)}")
        if versions != [pinned.get(name)]:
            complaints.append(f"{name}: resolved to {', '.join(versions)}, pinned to {pinned.get(name, 'nothing')}")
    named = {n for found in resolved.values() for n in found}
    complaints += [f"{name}: pinned, and needed nowhere" for name in sorted(set(pinned) - named)]
    return lines, complaints


def main() -> int:
    """Exit status 0 when constraints.txt pins exactly what resolves everywhere."""
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    places = list(product(PYTHONS, PLATFORMS))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda place: resolve(*place), places))
    resolved: dict[str, Pins] = {}
    complaints: list[str] = []
    for (python, platform), (found, reason) in zip(places, answers, strict=True):
        print(f"Python {python} on {platform}: {f'{len(found)} distributions' if found else 'no resolution'}")
        resolved[f"{python} {platform}"] = found
        complaints += [f"Python {python} on {platform}: {reason}"] if reason else []
    lines, more = report(pinned, resolved)
    print("\n".join(["", *lines, ""]))
    complaints += more
    print("\n".join(complaints) or "constraints.txt pins exactly this", file=sys.stderr if complaints else sys.stdout)
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
