"""List everything that sana-export needs, with versions and licences, as a CycloneDX bill of materials on stdout.

It walks the requirements of the installed distribution, extras included, as far as they are installed here.
`--licences` prints one line a package instead.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

PROJECT = "sana-export"


def required(found: Distribution) -> Iterator[str]:
    """Names of the packages that a distribution asks for, whatever the conditions."""
    for line in found.requires or ():
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
        if match and (found.metadata["Name"] == PROJECT or "extra ==" not in line):
            yield re.sub(r"[-_.]+", "-", match[0]).lower()


def installed() -> dict[str, Distribution]:
    """Every package that is needed and there, by name."""
    known: dict[str, Distribution] = {}
    waiting = [PROJECT]
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        try:
            known[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another system, or of an extra that is not installed
        waiting += required(known[name])
    return dict(sorted(known.items()))


def licence(found: Distribution) -> str:
    """What a package says its licence is: by its identifier, its classifiers or its own words."""
    expression, text = found.metadata["License-Expression"], found.metadata["License"]
    classifiers = [line.rpartition(" :: ")[2] for line in found.metadata.get_all("Classifier", ()) if "License" in line]
    short = text.strip().splitlines()[0][:80] if text and text.strip() else ""
    return expression or " AND ".join(sorted(set(classifiers) - {"OSI Approved"})) or short


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
