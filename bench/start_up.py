"""How long a command line takes to say what it can do, and a program to import the runtime.

    python bench/start_up.py [--rounds 7]

Every start is a process of its own, ways in turn, files in the system's cache; Python alone is the floor. Writes
docs/measurements/start-up.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine

WAYS = {
    "python alone": (sys.executable, "-c", "pass"),
    "import sana_runtime": (sys.executable, "-c", "import sana_runtime"),
    "sana-export --help": (str(Path(sys.executable).with_name("sana-export")), "--help"),
}


def seconds(command: Sequence[str]) -> float:
    """Wall clock of one process."""
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args(arguments).rounds
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(1 + rounds):
        for way, command in WAYS.items():
            runs[way].append(round(seconds(command), 4))
    found = {way: {"wall_seconds": median(each[1:]), "runs": each[1:]} for way, each in runs.items()}
    (RESULTS / "start-up.json").write_text(json.dumps({"machine": machine(), "ways": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
