"""Export models of full size with random weights: seconds and peak memory of each, into docs/measurements/export.json.

    python bench/export_full_size.py [CASE …]

Each case runs in a process of its own, so that its peak is its own. Weights are made in memory in the precision that is
exported, so the peak holds one copy of them as it does when a checkpoint is read; reading one is not in the time.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import DC_AE_F32C32, PRESETS, SanaConfig, TextConfig
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from torch import nn

from sana_export.export import export_parts
from sana_export.precision import Precision

RESULTS = Path(__file__).parents[1] / "docs" / "measurements" / "export.json"
TABLE = RESULTS.with_suffix(".md")
PREFIX = tuple(range(2, 209))  # as many tokens as BOS and Sana's instruction have, less the one that may merge
TITLE = """# Exporting models of full size

Random weights, two shared CPU cores; `python bench/export_full_size.py` repeats it. The time is from weights in memory
to files on disk; the peak is of the whole process, weights included. Where time and CPU time differ, others were busy
on the machine.
"""
Module = TypeVar("Module", bound=nn.Module)

CASES = {
    "sana-600m fp16": ("sana-600m", "fp16", ("caption", "transformer")),
    "sana-1600m fp16": ("sana-1600m", "fp16", ("caption", "transformer")),
    "dc-ae fp32": ("sana-600m", "fp32", ("decoder", "encoder")),
    "dc-ae bf16": ("sana-600m", "bf16", ("decoder", "encoder")),
    "gemma-2-2b bf16": ("sana-600m", "bf16", ("text_encoder",)),
}


@dataclass(frozen=True)
class Result:
    """What one export cost."""

    case: str
    parts: list[str]
    parameters: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    weight_bytes: int
    graph_bytes: int


class RandomSource:
    """Full-size networks with random weights; notes when the weights were ready, which is when an export begins."""

    def __init__(self, config: SanaConfig) -> None:
        self.config = config
        self.parameters = 0
        self.ready = (0.0, 0.0)

    def transformer(self, dtype: torch.dtype) -> SanaTransformer:
        """The transformer."""
        return self._fill(partial(SanaTransformer, self.config), dtype)

    def autoencoder(self, dtype: torch.dtype) -> Autoencoder:
        """DC-AE."""
        return self._fill(partial(Autoencoder, DC_AE_F32C32), dtype)

    def text_encoder(self, dtype: torch.dtype) -> TextEncoder:
        """Gemma-2-2b."""
        return self._fill(partial(TextEncoder, TextConfig()), dtype)

    def _fill(self, architecture: Callable[[], Module], dtype: torch.dtype) -> Module:
        with torch.device("meta"):
            module = architecture().to(dtype)
        module.to_empty(device="cpu").requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            for piece in parameter.view(-1).split(1 << 20):
                piece.copy_(torch.randn(len(piece), generator=generator))
            parameter.mul_(parameter[0].numel() ** -0.5)
        self.parameters = sum(parameter.numel() for parameter in module.parameters())
        self.ready = time.monotonic(), time.process_time()
        return module.eval()


def measure(case: str) -> Result:
    """Run one case in this process."""
    preset, precision, parts = CASES[case]
    source = RandomSource(PRESETS[preset])
    with tempfile.TemporaryDirectory() as folder:
        exported = export_parts(source, Path(folder), Precision(precision), parts=parts, prefix=PREFIX).values()
        seconds, cpu_seconds = time.monotonic() - source.ready[0], time.process_time() - source.ready[1]
        return Result(
            case=case,
            parts=list(parts),
            parameters=source.parameters,
            seconds=round(seconds, 1),
            cpu_seconds=round(cpu_seconds, 1),
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
            weight_bytes=sum(file.stat().st_size for part in exported for file in part.files if file != part.graph),
            graph_bytes=sum(part.graph.stat().st_size for part in exported),
        )


def measure_apart(case: str) -> dict[str, Any]:
    """Run one case in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--here", case], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(results: dict[str, Any]) -> str:
    """The results for people."""
    rows = [
        f"| {name} | {row['parameters'] / 1e6:,.0f} M | {', '.join(row['parts'])} | {row['seconds']:.0f} s "
        f"| {row['cpu_seconds']:.0f} s | {row['peak_bytes'] / 1e9:.2f} GB | {row['weight_bytes'] / 1e9:.2f} GB |"
        for name, row in results.items()
    ]
    head = "| case | parameters | parts | time | of it on the CPU | peak memory | weights written |"
    return "\n".join((TITLE, head, "| --- " * 7 + "|", *rows, ""))


def main(cases: list[str]) -> None:
    """Measure `cases`, or all; results of others are kept."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for case in cases or CASES:
        results[case] = measure_apart(case)
        print(f"{case}: {results[case]}", file=sys.stderr)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        TABLE.write_text(table(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(asdict(measure(sys.argv[2]))))
    else:
        main(sys.argv[1:])
