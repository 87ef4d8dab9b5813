"""Time one guided step of Sana-0.6B on a card: engines, diffusers, torch.compile, onnxruntime's CUDA provider.

    python bench/gpu_steps.py            on a GPU: 512² and 1024², batch 2; prints a table, writes JSON
    python bench/gpu_steps.py --dry-run  anywhere: one narrow block on the CPU, to see that all of it runs

All contenders have the same random weights, on whose values speed does not depend. A time is the median of whole calls:
for sessions with the copies to the card and back, for PyTorch with tensors that lie there already. What cannot run here
is listed with the reason. The floor is what the step's operations, or reading its weights once, would take at the
rates that `gpu_kernels.py` measured on this card.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from diffusers import SanaTransformer2DModel
from numpy.typing import NDArray
from sana_calibration.quantise import quantise
from sana_reference.checkpoint.parts import transformer_in_folder
from sana_reference.config import SanaConfig
from sana_runtime.engine_shapes import engine_signature
from sana_runtime.errors import SanaError
from sana_runtime.session import Device, Session, SessionOptions, open_session
from sana_runtime.signature import Signature

from sana_export.export import export_parts
from sana_export.precision import Precision
from sana_export.saving import save_graph

Arrays = dict[str, NDArray[Any]]
Run = Callable[[], NDArray[Any]]

BATCH, TOKENS, COMPRESSION, LATENT = 2, 300, 32, 32
FULL = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "sample_size": 32,
}
TINY = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 48,
    "sample_size": 4,
}
OPERATIONS = {512: 0.631e12, 1024: 2.243e12}  # of a step with two branches, counted on diffusers' module
WEIGHT_BYTES = 1.182e9  # in fp16
TOLERANCE = 0.1  # int8 against fp16, of the largest number, with random weights; a wrong engine is off by its size
NOT_HERE = (SanaError, ImportError, RuntimeError)


@dataclass(frozen=True)
class Setting:
    """What is run on."""

    dry: bool
    folder: Path

    @property
    def torch_device(self) -> str:
        """PyTorch's name of it."""
        return "cpu" if self.dry else "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """What diffusers computes in."""
        return torch.float32 if self.dry else torch.float16

    @property
    def precision(self) -> Precision:
        """What the graphs compute in."""
        return Precision.FP32 if self.dry else Precision.FP16

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels along a side."""
        return (128,) if self.dry else (512, 1024)

    @property
    def runs(self) -> int:
        """How often each is timed."""
        return 2 if self.dry else 30


@dataclass(frozen=True)
class Folder:
    """diffusers' folder as something to export."""

    path: Path

    @property
    def config(self) -> SanaConfig:
        """What stands in it."""
        return transformer_in_folder(self.path, None).config

    def transformer(self, dtype: torch.dtype) -> Any:
        """The transformer, read now."""
        return transformer_in_folder(self.path, None).build(dtype)


@dataclass(frozen=True)
class Graphs:
    """Our graphs of the model, and what they take."""

    caption: Path
    transformer: Path
    int8: Path
    signature: Signature


def prepare(setting: Setting) -> tuple[SanaTransformer2DModel, Graphs]:
    """diffusers' module with random weights, and our graphs of it."""
    torch.manual_seed(0)
    model = SanaTransformer2DModel(**(TINY if setting.dry else FULL)).eval().to(setting.dtype)
    model.save_pretrained(setting.folder / "diffusers")
    source = Folder(setting.folder / "diffusers")
    parts = export_parts(source, setting.folder / "graphs", setting.precision, parts=("caption", "transformer"))
    rounded = ir.load(parts["transformer"].graph)
    quantise(rounded)
    (setting.folder / "int8").mkdir()
    save_graph(rounded, setting.folder / "int8" / "transformer.onnx")
    graphs = Graphs(
        parts["caption"].graph,
        parts["transformer"].graph,
        setting.folder / "int8" / "transformer.onnx",
        parts["transformer"].signature,
    )
    return model.to(setting.torch_device), graphs


def feeds(model: SanaTransformer2DModel, graphs: Graphs, side: int) -> tuple[dict[str, Any], Arrays]:
    """The same inputs for diffusers and for our graphs."""
    generator = np.random.default_rng(0)
    grid = side // COMPRESSION
    latent = generator.standard_normal((BATCH, LATENT, grid, grid)).astype(np.float32)
    text = generator.standard_normal((BATCH, TOKENS, model.config["caption_channels"])).astype(np.float32)
    timestep, mask = np.full(BATCH, 500, np.float32), np.ones((BATCH, TOKENS), np.bool_)
    theirs = {"hidden_states": latent, "encoder_hidden_states": text, "timestep": timestep}
    tensors = {name: torch.from_numpy(array).to(model.device, model.dtype) for name, array in theirs.items()}
    caption = open_session(graphs.caption, Device.ONNXRUNTIME, SessionOptions())
    kv = caption.run({"text": text})["text_kv"]
    ours = {"latent": latent, "timestep": timestep, "text_kv": kv, "text_mask": mask}
    return {**tensors, "encoder_attention_mask": torch.ones(BATCH, TOKENS, device=model.device)}, ours


def diffusers_step(call: Callable[..., Any], tensors: dict[str, Any]) -> Run:
    """One run of diffusers' module."""

    @torch.no_grad()
    def run() -> NDArray[Any]:
        velocity = call(**tensors, return_dict=False)[0]
        if velocity.is_cuda:
            torch.cuda.synchronize()
        answer: NDArray[Any] = velocity.float().cpu().numpy()
        return answer

    return run


def engine(graph: Path, graphs: Graphs, setting: Setting, *, fused: bool = False) -> Session:
    """The session of a graph's engine, built for this very card; `fused`: with the plugin for the Mix-FFN's middle."""
    from sana_runtime.cuda_driver import CudaDriver
    from sana_runtime.engine_library import library_for
    from sana_runtime.engine_session import EngineSession

    from sana_export.engines.build import build_engine
    from sana_export.engines.job import EngineJob

    driver = CudaDriver()
    output = setting.folder / f"{graph.parent.name}{'-fused' if fused else ''}.engine"
    profiles = engine_signature(graphs.signature).profiles()
    built = build_engine(EngineJob("transformer", graph, output, profiles, (driver.capability,), fused_mix_ffn=fused))
    return EngineSession(built.path.read_bytes(), library_for(Device.RTX), driver)


def contenders(
    model: SanaTransformer2DModel, graphs: Graphs, setting: Setting
) -> dict[str, Callable[[dict[str, Any], Arrays], Run]]:
    """Ways to compute a step, by name; each is opened when it is first run."""

    def session(opened: Callable[[], Session]) -> Callable[[dict[str, Any], Arrays], Run]:
        held: list[Session] = []

        def prepared(_: dict[str, Any], ours: Arrays) -> Run:
            held[:] = held or [opened()]
            return lambda: held[0].run(ours)["velocity"]

        return prepared

    provider = Device.ONNXRUNTIME if setting.dry else Device.CUDA
    compiled = torch.compile(model, backend="eager" if setting.dry else "inductor")
    return {
        "diffusers": lambda theirs, _: diffusers_step(model, theirs),
        "torch.compile": lambda theirs, _: diffusers_step(compiled, theirs),
        f"onnxruntime {provider.value}": session(lambda: open_session(graphs.transformer, provider, SessionOptions())),
        "onnxruntime int8": session(lambda: open_session(graphs.int8, provider, SessionOptions())),
        "rtx float": session(lambda: engine(graphs.transformer, graphs, setting)),
        "rtx int8": session(lambda: engine(graphs.int8, graphs, setting)),
        "rtx int8 fused": session(lambda: engine(graphs.int8, graphs, setting, fused=True)),
    }


def timed(run: Run, setting: Setting) -> tuple[float, NDArray[Any]]:
    """Milliseconds of a call, and its answer; the first calls compile and are not counted."""
    for _ in range(3):
        answer = run()
    times = []
    for _ in range(setting.runs):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times), answer


def floor(side: int, rates: dict[str, float]) -> float | None:
    """Milliseconds that a step of the full model takes at least in fp16, by the measured rates."""
    if side not in OPERATIONS or not rates:
        return None
    return 1000 * max(OPERATIONS[side] / rates["fp16"], WEIGHT_BYTES / rates["copy"])


def race(setting: Setting, rates: dict[str, float]) -> dict[str, Any]:
    """Every contender at every size."""
    model, graphs = prepare(setting)
    ways, results = contenders(model, graphs, setting), {}
    for side in setting.sides:
        theirs, ours = feeds(model, graphs, side)
        row: dict[str, Any] = {"floor_ms": floor(side, rates)}
        expected: NDArray[Any] | None = None
        for name, prepared in ways.items():
            try:
                milliseconds, answer = timed(prepared(theirs, ours), setting)
            except NOT_HERE as error:
                row[name] = {"not_run": " ".join(str(error).split())[:300]}
            else:
                expected = answer if expected is None else expected
                off = float(np.abs(answer - expected).max() / np.abs(expected).max())
                row[name] = {"ms": milliseconds, "difference": off, "right": off <= TOLERANCE}
            print(f"{side}² {name:22} {row[name]}", flush=True)
        results[str(side)] = row
    return results


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="one narrow block on the CPU")
    parser.add_argument("--output", type=Path, default=Path("out/gpu-steps.json"))
    parser.add_argument("--kernels", type=Path, default=Path("out/gpu-kernels.json"), help="what gpu_kernels.py wrote")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA device; run with --dry-run to see that everything works")
    known = options.kernels.is_file() and not options.dry_run
    rates = json.loads(options.kernels.read_text())["ceilings"] if known else {}
    with tempfile.TemporaryDirectory() as folder:
        results = race(Setting(options.dry_run, Path(folder)), rates)
    card = "dry run on the CPU: no figure means anything" if options.dry_run else torch.cuda.get_device_name()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"device": card, "steps": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
