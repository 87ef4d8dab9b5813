"""Memory that painting really takes against what `sana-export plan` foresees, with one part loaded and with all.

    python bench/painting_memory.py BUNDLE [--size 512x512] [--steps 2]

Each way in a process of its own. What is compared is the most anonymous memory at any time, sampled: mapped weight
files are the system's cache. What is resident, those files' pages and libraries included, is told besides, and how many
bytes of weights painting reads of its largest part, wherever they lie. Linux only. Writes
docs/measurements/painting-memory.json.
"""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from sana_runtime import pipeline as pipeline_module
from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.memory_plan import RARE, all_loaded, of_bundle, one_at_a_time
from sana_runtime.onnx_operators import weights
from sana_runtime.pipeline import Pipeline

SAMPLE_SECONDS = 0.02
WAYS = {"one at a time": one_at_a_time, "all loaded": all_loaded}


def held() -> tuple[int, int]:
    """Bytes of memory that this process holds for itself, and all that are resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found["RssAnon"].split()[0]) << 10, int(found["VmRSS"].split()[0]) << 10


def largest_part(bundle: Bundle) -> int:
    """Bytes of the weights that painting reads of one part, at most; of the table of tokens it reads a few rows."""
    read = {name: [each.bytes for each in weights(bundle.graph(name))] for name in bundle.manifest.parts}
    read["text_encoder"].remove(max(read["text_encoder"]))
    return max(sum(each) for name, each in read.items() if name not in RARE)


def most_while_painting(bundle: Path, size: tuple[int, int], steps: int, *, together: bool) -> list[int]:
    """Paint one picture in this process and watch its memory: the most that it held for itself, and in all."""
    seen, over = [held()], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            seen.append(held())

    vars(pipeline_module)["keeps_all"] = lambda *_: together
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with Pipeline.open(bundle) as pipeline:
            pipeline.generate("a red circle above a blue square", size=size, steps=steps)
            seen.append(held())
    finally:
        over.set()
        watcher.join()
    return [max(kind) for kind in zip(*seen, strict=True)]


def measure_apart(bundle: Path, size: tuple[int, int], steps: int, way: str) -> list[int]:
    """`most_while_painting` in a process of its own."""
    height, width = size
    command = [sys.executable, __file__, str(bundle), "--size", f"{width}x{height}", "--steps", str(steps)]
    done = subprocess.run([*command, "--here", way], stdout=subprocess.PIPE, text=True, check=True)
    figures: list[int] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Print one JSON object a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--here", choices=WAYS)
    chosen = parser.parse_args()
    width, height = map(int, chosen.size.split("x"))
    size = (height, width)
    if chosen.here:
        print(json.dumps(most_while_painting(chosen.bundle, size, chosen.steps, together=chosen.here == "all loaded")))
        return
    bundle = open_bundle(chosen.bundle)
    planned, tokenizer = of_bundle(bundle, size), bundle.manifest.files["tokenizer.json"].size
    facts = {"size": chosen.size, "steps": chosen.steps, "largest_part_bytes": largest_part(bundle)}
    found: dict[str, Any] = {**facts, "ways": {}}
    for way, foresee in WAYS.items():
        measured, resident = measure_apart(chosen.bundle, size, chosen.steps, way)
        foreseen = foresee(planned, tokenizer)
        ratio = measured / foreseen
        found["ways"][way] = {"foreseen": foreseen, "measured": measured, "ratio": ratio, "resident": resident}
        print(json.dumps({"way": way, **found["ways"][way]}))
    from cpu_race import RESULTS  # not at the top: importing it turns keeping compiled models off

    (RESULTS / "painting-memory.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
