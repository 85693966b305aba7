"""Print the installed version of each package that retailkit needs, as constraints for pip and uv."""

from __future__ import annotations

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HEAD = "# Versions that were tested on {where}, without builds and indexes. `make constraints` writes this file."
EXTRAS = ("offline", "dev")


def declared() -> list[Requirement]:
    """Return what pyproject.toml asks for, the extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in EXTRAS)]
    return [Requirement(line) for group in groups for line in group]


def needed() -> dict[str, str]:
    """Return all that is needed on this machine, directly or not: names and installed versions, in order."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(asked, "") for asked in declared()]
    while waiting:
        asked, wanted = waiting.pop()
        if asked.marker and not asked.marker.evaluate({"extra": wanted}):
            continue
        name = canonicalize_name(asked.name)
        found[name] = Version(metadata.version(name)).public
        for extra in ("", *asked.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(Requirement(line), extra) for line in metadata.requires(name) or []]
    return dict(sorted(found.items()))


def where() -> str:
    """Return the Python and the system that a list of versions belongs to."""
    return f"Python {'.'.join(platform.python_version_tuple()[:2])}, {platform.system()}"


if __name__ == "__main__":
    print(HEAD.format(where=where()))
    print("\n".join(f"{name}=={version}" for name, version in needed().items()))
