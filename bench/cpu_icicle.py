"""Draw where a step's time goes, module by module, before and after: docs/images/cpu-step.svg.

    python bench/cpu_icicle.py [--depth 28] [--size 512] [--rounds 20] [--threads 1] [--folder out/bench] [--optimum …]

Before is what one gets without work of one's own: diffusers' graph as optimum-intel exports it, sizes free, 300 rows of
text, bf16. After is ours: INT8, compiled for its size, the 26 rows there are. They take turns. Both are counted by
OpenVINO, of each operation the shortest of all rounds, and drawn to one scale: the upper rows are modules, of all
blocks together, the lowest are operations. Writes docs/measurements/cpu-icicle.json, too.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from sana_runtime.openvino_session import ov
from sana_runtime.session import SessionOptions

sys.path.insert(0, str(Path(__file__).parent))
import cpu_optimum
from cpu_graphs import prepare_step
from cpu_parts import INT8, TOKENS, Job
from cpu_profile import Profiled, kind, shortest
from cpu_race import RESULTS, machine, versions
from limits import preset

PLOT = RESULTS.parent / "images" / "cpu-step.svg"
BEFORE, AFTER = "diffusers' graph, sizes free, bf16", "ours, INT8"
MODULES = {  # of diffusers and of ours, as both are called here
    "attn1": "self-attention",
    "attention": "self-attention",
    "attn2": "cross-attention",
    "cross_attention": "cross-attention",
    "ff": "feed-forward",
    "feed_forward": "feed-forward",
    "patch": "patch",
    "time": "time",
    "out": "out",
    "time_embed": "time",
    "modulation": "time",
    "caption_projection": "text",
    "caption_norm": "text",
    "patch_embed": "patch",
    "norm_out": "out",
    "proj_out": "out",
    "velocity": "out",
}
NAMED = re.compile(r"^(?:__module\.model\.)?(?:transformer_)?(blocks\.\d+|[a-z][a-z_]{2,})(?:\.([a-z_]+\d?)\b)?")
COLOURS = {
    "product": "#4c78a8",
    "convolution": "#72b7b2",
    "attention": "#b279a2",
    "element-wise": "#f2b34d",
    "norm": "#9d9d5d",
    "copy": "#e45756",
}
KINDS = {
    "FullyConnected": "product",
    "Convolution": "convolution",
    "MatMul": "attention",
    "Subgraph": "element-wise",
    "Eltwise": "element-wise",
    "Reduce": "element-wise",
    "Math": "element-wise",
    "Convert": "element-wise",
    "MVN": "norm",
    "RMS": "norm",
}  # all others only move numbers
WIDTH, ROW, LEAST = 1160, 22, 1.5  # pixels; a narrower box is not drawn


@dataclass
class Box:
    """A module or an operation, and what is in it."""

    name: str
    milliseconds: float = 0.0
    inside: dict[str, "Box"] = field(default_factory=dict)

    def add(self, path: Sequence[str], milliseconds: float) -> None:
        """Count time for a path from here down."""
        self.milliseconds += milliseconds
        if path:
            self.inside.setdefault(path[0], Box(path[0])).add(path[1:], milliseconds)

    @property
    def told(self) -> Any:
        """As it is written down."""
        if not self.inside:
            return round(self.milliseconds, 3)
        return {"all": round(self.milliseconds, 3), **{name: box.told for name, box in self.inside.items()}}


def tree(name: str, model: Any, times: dict[str, float]) -> Box:
    """Times by module and kind of operation; what has no name of its own belongs to what was computed before it."""
    root, module = Box(name), ("in",)
    for node in model.get_ordered_ops():
        module = place(node) or module
        if spent := times.get(node.get_friendly_name(), 0.0):
            root.add([*module, kind(node)], spent)
    return root


def place(node: Any) -> tuple[str, ...] | None:
    """Block and module of a node, by the operations it was made of."""
    for name in node.get_rt_info()["originalLayersNames"].astype(str).split(","):
        if match := NAMED.match(name.split("/")[0]):
            first, second = match.groups()
            if first.startswith("blocks"):
                return ("all blocks", MODULES.get(second or "", "modulation, norms, residuals"))
            if first in MODULES:
                return (MODULES[first],)
    return None


def before(job: Job) -> Callable[[], ov.InferRequest]:
    """A run of diffusers' graph, as OpenVINO runs it by itself."""
    graph = job.folder / "optimum-float" / "transformer" / "openvino_model.xml"
    settings = {"PERF_COUNT": "YES", "INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": "bf16"}
    compiled = ov.Core().compile_model(graph, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    feeds = job.theirs()
    return lambda: (request.infer(feeds), request)[1]


def after(job: Job) -> Callable[[], ov.InferRequest]:
    """A run of ours, as the pipeline runs it."""
    feeds = job.signature.example_feeds(batch=job.batch, height=job.side, width=job.side, rows=max(TOKENS))
    options = SessionOptions(threads=job.threads, signature=job.signature)
    session = Profiled(job.folder / INT8 / "transformer.onnx", options)
    return lambda: (session.run(feeds), session.request)[1]


def draw(roots: Sequence[Box]) -> str:
    """Both as SVG, one above the other, to one scale."""
    scale = (WIDTH - 20) / max(root.milliseconds for root in roots)
    lines, top = [], 24
    for root in roots:
        title = f"{root.name}: {root.milliseconds:.1f} ms"
        lines.append(f'<text x="10" y="{top - 6}" font-size="14" font-weight="bold">{escape(title)}</text>')
        lines += boxes(root, 10.0, top, scale)
        top += 4 * ROW + 40
    lines += legend(top - 26)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="white"/>', *lines, "</svg>"]) + "\n"


def boxes(box: Box, left: float, top: int, scale: float) -> Iterator[str]:
    """A box and, below it, what is in it, the longest first where they are operations."""
    width = box.milliseconds * scale
    if width < LEAST:
        return
    colour = "#dcdcdc" if box.inside else COLOURS[KINDS.get(box.name.split()[0], "copy")]
    label = f"{box.name}: {box.milliseconds:.2f} ms"
    yield f'<g><title>{escape(label)}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}"'
    yield f' fill="{colour}" stroke="white" stroke-width="0.6"/>'
    if shown := (box.name if len(box.name) * 6 < width - 6 else ""):
        yield f'<text x="{left + 4:.1f}" y="{top + 15}">{escape(shown)}</text>'
    yield "</g>"
    operations = all(not each.inside for each in box.inside.values())
    order = sorted(box.inside.values(), key=lambda each: -each.milliseconds if operations else 0)
    for each in order:
        yield from boxes(each, left, top + ROW, scale)
        left += each.milliseconds * scale


def legend(top: int) -> Iterator[str]:
    """What the colours mean."""
    for i, (name, colour) in enumerate(COLOURS.items()):
        yield f'<rect x="{10 + 130 * i}" y="{top}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{27 + 130 * i}" y="{top + 10}">{name}</text>'


def shares(root: Box) -> dict[str, float]:
    """Of the whole, by what an operation is."""
    found: Counter[str] = Counter()

    def count(box: Box) -> None:
        if not box.inside:
            found[KINDS.get(box.name.split()[0], "copy")] += box.milliseconds  # type: ignore[assignment]
        for each in box.inside.values():
            count(each)

    count(root)
    return {name: round(spent / root.milliseconds, 3) for name, spent in found.most_common()}


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser()
    for name, usual in (("--depth", 28), ("--size", 512), ("--rounds", 20), ("--threads", 1)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--folder", type=Path, default=Path("out/bench"))
    parser.add_argument("--optimum", type=Path, default=Job.peers)
    chosen = parser.parse_args(arguments)
    folder = chosen.folder / f"depth{chosen.depth}"
    job = Job(folder, chosen.size // 32, chosen.threads, preset(chosen.depth), chosen.optimum)
    prepare_step(job)
    cpu_optimum.prepare(job.folder, job.peers, ("float",))
    runs = {BEFORE: before(job), AFTER: after(job)}
    times = shortest(list(runs.values()), chosen.rounds)
    models = [run().get_compiled_model().get_runtime_model() for run in runs.values()]
    roots = [tree(*each) for each in zip(runs, models, times, strict=True)]
    found = {root.name: {"shares": shares(root), "milliseconds": root.told} for root in roots}
    facts = {"depth": chosen.depth, "size": chosen.size, "threads": job.threads}
    document = {**facts, "machine": machine(), "versions": versions(), "ways": found}
    (RESULTS / "cpu-icicle.json").write_text(json.dumps(document, indent=1) + "\n")
    PLOT.write_text(draw(roots))
    print(json.dumps({name: way["shares"] for name, way in found.items()}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
