"""Write the lock of the test environment: `python bench/trust_lock.py > requirements-dev.lock`, or `make lock`.

It holds every package that the `dev` extra needs, in the version that is installed here, where the tests have passed,
with the digest of the archive that pip takes for it. pip resolves and fetches again, so what is written is what an
index offers today and not what was once installed. Digests are those of one Python on one system; the first line says
which.
"""

import json
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROJECT = "sana-export"
TOOLS = ("setuptools",)  # builds what comes as source
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input")
ABOUT = """# For {place}; written by `make lock`, never by hand. `make locked` installs it, and no archive else.
# torch is its build for the CPU, of the index that PyTorch keeps for those."""


def place() -> str:
    """The Python and the system that the archives are for."""
    return f"{platform.python_implementation()} {sys.version_info[0]}.{sys.version_info[1]}, {sysconfig.get_platform()}"


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> str:
    """A constraint for every package that is installed here."""
    found = {plain(each.metadata["Name"]): each.version for each in distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name != PROJECT)


def resolved() -> list[dict[str, Any]]:
    """What pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        pins, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        pins.write_text(installed())
        wanted = ("--editable", f"{ROOT}[dev]", *TOOLS)
        command = (*PIP, "--dry-run", "--ignore-installed", "--report", str(report), "-c", str(pins), *wanted)
        subprocess.run(command, check=True, stdout=sys.stderr)
        entries: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return [entry for entry in entries if plain(entry["metadata"]["name"]) != PROJECT]


def line(entry: dict[str, Any]) -> str:
    """One package: name, version, digest."""
    told, digests = entry["metadata"], entry["download_info"]["archive_info"]["hashes"]
    return f"{plain(told['name'])}=={told['version']} --hash=sha256:{digests['sha256']}"


def main() -> None:
    """Print the lock."""
    lines = sorted(line(entry) for entry in resolved())
    print(ABOUT.format(place=place()), *lines, sep="\n")


if __name__ == "__main__":
    main()
