"""List everything that sana-export needs, with versions and licences, as a CycloneDX bill of materials on stdout.

It walks the requirements of the installed distribution, extras included, as far as they are installed here.
`--licences` prints one line a package instead.
"""

import json
import re
import sys
from collections.abc import Iterator, Set
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

PROJECT = "sana-export"


def required(found: Distribution, extras: Set[str]) -> Iterator[Requirement]:
    """What a distribution asks for with these extras, for any system; of ours all extras count."""
    for line in found.requires or ():
        one = Requirement(line)
        extra = re.search(r"""extra == ["']([^"']+)""", str(one.marker))
        if not extra or plain(found.metadata["Name"]) == PROJECT or plain(extra[1]) in extras:
            yield one


def installed() -> dict[str, Distribution]:
    """Every package that is needed and there, by name."""
    known: dict[str, Distribution] = {}
    wanted: set[tuple[str, frozenset[str]]] = set()
    waiting = [(PROJECT, frozenset[str]())]
    while waiting:
        name, extras = asked = waiting.pop()
        if asked in wanted:
            continue
        wanted.add(asked)
        try:
            known[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another system, or of an extra that is not installed
        waiting += [(plain(one.name), frozenset(map(plain, one.extras))) for one in required(known[name], extras)]
    return dict(sorted(known.items()))


def plain(name: str) -> str:
    """A package's or an extra's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(found: Distribution) -> str:
    """What a package says its licence is: by its identifier, its classifiers, its own words or the file it brings."""
    expression, text = found.metadata["License-Expression"], found.metadata["License"]
    classifiers = [line.rpartition(" :: ")[2] for line in found.metadata.get_all("Classifier", ()) if "License" in line]
    return expression or " AND ".join(sorted(set(classifiers) - {"OSI Approved"})) or first_line(text or brought(found))


def brought(found: Distribution) -> str:
    """The text of the first licence file of a package."""
    names = found.metadata.get_all("License-File", ())
    return next((text for name in names if (text := found.read_text(f"licenses/{name}"))), "")


def first_line(text: str) -> str:
    """Short enough for a bill."""
    return text.strip().splitlines()[0][:80] if text.strip() else ""


def component(name: str, found: Distribution) -> dict[str, Any]:
    """One entry of the bill."""
    told = licence(found)
    licences = [{"license": {"name": told}}] if told else []
    purl = f"pkg:pypi/{name}@{found.version}"
    return {"type": "library", "name": name, "version": found.version, "purl": purl, "licenses": licences}


def main() -> None:
    """Print the bill, or the licences."""
    packages = installed()
    if "--licences" in sys.argv[1:]:
        for name, found in packages.items():
            print(f"{name} {found.version}: {licence(found) or 'unknown'}")
        return
    components = [component(name, found) for name, found in packages.items() if name != PROJECT]
    own = {"type": "application", "name": PROJECT, "version": packages[PROJECT].version}
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": own}}
    print(json.dumps({**bill, "components": components}, indent=1))


if __name__ == "__main__":
    main()
