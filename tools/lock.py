"""Whether constraints.txt resolves, from the package index alone, everywhere lowbit says it runs.

``make lock-check`` runs this. On every Python and platform all extras are resolved under the constraints, from wheels,
with uv, which sees neither the configuration of pip nor local wheels. Whatever a resolution names must be pinned,
and whatever is pinned must be named by one.

With ``--lowest FILE`` (``make lowest``) everything is resolved to the floors of pyproject.toml: each must be the
version that comes out, and what the specification, the kit and Numba need goes into the file, to be installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

__all__ = ["PLATFORMS", "PYTHONS", "lowest", "main", "normal", "pins", "report", "unreachable"]

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


def resolve(python: str, platform: str, *wishes: str) -> tuple[Pins, str]:
    """What the project needs there, or nothing and the reason."""
    options = ["--quiet", "--no-config", "--no-annotate", "--no-header", "--only-binary=:all:", *wishes]
    command = ["pip", "compile", *options, "--python-version", python, "--python-platform", PLATFORMS[platform]]
    environment = {k: v for k, v in os.environ.items() if k != "UV_FIND_LINKS"} | {"MACOSX_DEPLOYMENT_TARGET": MACOS}
    run = subprocess.run(
        [os.environ.get("UV", "uv"), *command, "pyproject.toml"],
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


def unreachable(requirements: Iterable[str], found: Pins) -> list[str]:
    """Floors of requirements ``name>=version`` that are not what the lowest resolution chose."""

    def number(version: str) -> str:
        return re.sub(r"(\.0)+$", "", version)

    complaints = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
        if match and number(chosen := found[normal(match[1])]) != number(match[2]):
            complaints.append(f"{match[0]}: the lowest that resolves is {chosen}")
    return complaints


def lowest(file: Path) -> int:
    """Exit status 0 when the floors of pyproject.toml resolve; core, numba and conformance go to ``file``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    place = (PYTHONS[0], "linux-x86_64", "--resolution=lowest-direct")
    everything, reason = resolve(*place, "--all-extras")
    tried, reason = resolve(*place, "--extra=numba", "--extra=conformance") if everything else ({}, reason)
    complaints = unreachable(floors, everything) if everything else []
    complaints += unreachable(project["dependencies"], tried) if tried else [reason]
    file.write_text("".join(f"{name}=={version}\n" for name, version in tried.items()), encoding="utf-8")
    print("\n".join(complaints) or f"the {len(set(floors))} floors of pyproject.toml resolve as they stand")
    return int(bool(complaints))


def main() -> int:
    """Exit status 0 when constraints.txt pins exactly what resolves everywhere."""
    if sys.argv[1:2] == ["--lowest"]:
        return lowest(Path(sys.argv[2]))
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    places = list(product(PYTHONS, PLATFORMS))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda place: resolve(*place, "--all-extras", "--constraints=constraints.txt"), places))
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
