"""Time one part on the CPU: diffusers, plain engines on diffusers' graph, and ours, in turn, on the same weights.

    python bench/cpu_parts.py step   [--depth 28] [--size 512] [--threads 2] [--rounds 5] [--only NAME …]
    python bench/cpu_parts.py decode [--size 512] …
    python bench/cpu_parts.py step --only "diffusers fp32" optimum ours --to cpu-step-optimum
    python bench/text_encoding.py …                                          the third part has a page of its own

A step is one run of Sana-0.6B's transformer for a prompt of 20 words and its negative, as guidance needs it: diffusers
pads both to 300 tokens, ours takes the 26 that are there. Weights are random, speed does not depend on them, and the
answers are compared. `--depth` takes fewer of the 28 blocks. Graphs are made once, in --folder. Writes
docs/measurements/cpu-step.json and cpu-decode.json. What optimum-intel needs is told in `cpu_optimum.py`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import cpu_optimum
import limits
from cpu_race import Contender, Run, only, race, report

TEXT_DIM, TOKENS, PADDED = 2304, (26, 2), 300  # states of the prompt and of its empty negative, BOS included
FULL_DEPTH = 28
TRANSFORMER, AUTOENCODER, OURS, INT8, NAIVE = "diffusers", "autoencoder", "fp32", "int8", "naive"  # folders


@dataclass(frozen=True)
class Job:
    """What is compared, and where its graphs lie."""

    folder: Path
    side: int  # of the latent
    threads: int
    depth: int = FULL_DEPTH
    peers: Path = Path("out/bench/optimum")

    def latent(self, batch: int) -> Any:
        """The same noise for everybody."""
        return np.random.default_rng(0).standard_normal((batch, 32, self.side, self.side)).astype(np.float32)

    def text(self, rows: int) -> tuple[Any, Any]:
        """Text states (2, rows, D) and their mask; beyond the tokens there is padding."""
        states = np.random.default_rng(1).standard_normal((2, PADDED, TEXT_DIM)).astype(np.float32)
        mask = np.array([[i < count for i in range(rows)] for count in TOKENS])
        return states[:, :rows], mask


def diffusers_step(job: Job, dtype: str, compiled: bool = False) -> Run:
    """diffusers' own module, as it is or through torch.compile."""
    import torch
    from diffusers import SanaTransformer2DModel

    torch.set_num_threads(job.threads)
    kind = getattr(torch, dtype)
    model = SanaTransformer2DModel.from_pretrained(job.folder / TRANSFORMER, torch_dtype=kind).eval()
    if compiled:
        model.compile()
    text, mask = (torch.from_numpy(array) for array in job.text(PADDED))
    feeds = {
        "hidden_states": torch.from_numpy(job.latent(2)).to(kind),
        "encoder_hidden_states": text.to(kind),
        "encoder_attention_mask": mask.to(kind),
        "timestep": torch.full((2,), 500.0),
    }

    @torch.no_grad()
    def run() -> Any:
        return model(**feeds, return_dict=False)[0].float().numpy()

    return run


def naive_step(job: Job, engine: str) -> Run:
    """diffusers' module as it exports, at this one size, in onnxruntime as it comes or in OpenVINO with f32 or bf16."""
    text, mask = job.text(PADDED)
    values = (job.latent(2), text, np.full(2, 500.0, np.float32), mask.astype(np.float32))
    feeds = dict(zip(("sample", "text", "timestep", "mask"), values, strict=True))
    graph = job.folder / NAIVE / f"{job.side}.onnx"
    if engine == "onnxruntime":
        from sana_runtime.onnxruntime_session import ort  # the door: imported by it, it sends no reports

        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = job.threads, 3
        session = ort.InferenceSession(graph, settings)
        return lambda: session.run(None, feeds)[0]
    from sana_runtime.openvino_session import ov

    properties = {"INFERENCE_NUM_THREADS": job.threads, "INFERENCE_PRECISION_HINT": engine}
    compiled = ov.Core().compile_model(graph, "CPU", properties)
    return lambda: compiled(feeds)[0].copy()


def optimum_step(job: Job, form: str, precision: str = "", fixed: bool = True) -> Run:
    """optimum-intel's transformer, in one of its forms."""
    text, mask = job.text(PADDED)
    feeds = {
        "hidden_states": job.latent(2),
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask.astype(np.int64),
        "timestep": np.full(2, 500.0, np.float32),
    }
    return cpu_optimum.optimum_step(feeds, job.folder / f"optimum-{form}", job.peers, precision, fixed)


def our_step(job: Job, part: str, half: bool = False, rows: int = max(TOKENS), engine: str = "cpu") -> Run:
    """Our transformer part in our session, text keys and values from our caption part."""
    from sana_runtime.session import Device, SessionOptions, open_session
    from sana_runtime.signature import Sizes, signatures

    sizes = Sizes(depth=job.depth, dim=limits.DIM, text_dim=TEXT_DIM)
    known = signatures(sizes)
    text, mask = job.text(rows)
    caption = open_session(job.folder / OURS / "caption.onnx", Device.CPU, SessionOptions(threads=job.threads))
    text_kv = caption.run({"text": text})["text_kv"]
    options = SessionOptions(half_products=half, threads=job.threads, signature=known["transformer"])
    session = open_session(job.folder / part / "transformer.onnx", Device(engine), options)
    feeds = {
        "latent": job.latent(2),
        "timestep": np.full(2, 500, np.float32),
        "text_kv": text_kv,
        "text_mask": mask,
    }
    return lambda: session.run(feeds)["velocity"]


def step_contenders(job: Job) -> list[Contender]:
    """Everybody who computes a step."""
    ways: dict[str, Callable[[], Run]] = {
        "diffusers fp32": partial(diffusers_step, job, "float32"),
        "diffusers bf16": partial(diffusers_step, job, "bfloat16"),
        "diffusers fp32, torch.compile": partial(diffusers_step, job, "float32", True),
        "diffusers bf16, torch.compile": partial(diffusers_step, job, "bfloat16", True),
        "onnxruntime, diffusers' graph": partial(naive_step, job, "onnxruntime"),
        "openvino f32, diffusers' graph": partial(naive_step, job, "f32"),
        "openvino bf16, diffusers' graph": partial(naive_step, job, "bf16"),
        "optimum-intel f32": partial(optimum_step, job, "float", "f32"),
        "optimum-intel as it comes (bf16), any size": partial(optimum_step, job, "float", "", False),
        "optimum-intel bf16": partial(optimum_step, job, "float", "bf16"),
        "optimum-intel int8 weights, bf16": partial(optimum_step, job, "weights", "bf16"),
        "optimum-intel hybrid int8, bf16": partial(optimum_step, job, "hybrid", "bf16"),
        "optimum-intel static int8, bf16": partial(optimum_step, job, "static", "bf16"),
        "ours fp32": partial(our_step, job, OURS),
        "ours bf16": partial(our_step, job, OURS, True),
        "ours int8": partial(our_step, job, INT8),
        "ours int8, bf16 between": partial(our_step, job, INT8, True),
        "ours int8, bf16 between, 300 tokens": partial(our_step, job, INT8, True, PADDED),
        "ours int8, onnxruntime": partial(our_step, job, INT8, False, max(TOKENS), "onnxruntime"),
    }
    alone = limits.contenders(2 * job.side**2, job.depth, job.threads)
    return [*(Contender(name, load) for name, load in ways.items()), *alone]


def diffusers_decode(job: Job, dtype: str) -> Run:
    """diffusers' own module."""
    import torch
    from diffusers import AutoencoderDC

    torch.set_num_threads(job.threads)
    kind = getattr(torch, dtype)
    model = AutoencoderDC.from_pretrained(job.folder / AUTOENCODER, torch_dtype=kind).eval()
    latent = torch.from_numpy(job.latent(1)).to(kind) / model.config.scaling_factor

    @torch.no_grad()
    def run() -> Any:
        pixels = model.decode(latent, return_dict=False)[0].float()
        return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()

    return run


def our_decode(job: Job, half: bool, engine: str = "cpu") -> Run:
    """Our decoder part in our session."""
    from sana_runtime.session import Device, SessionOptions, open_session

    options = SessionOptions(half_products=half, threads=job.threads)
    session = open_session(job.folder / OURS / "decoder.onnx", Device(engine), options)
    feeds = {"latent": job.latent(1)}
    return lambda: session.run(feeds)["image"]


def decode_contenders(job: Job) -> list[Contender]:
    """Everybody who decodes."""
    ways = {
        "diffusers fp32": partial(diffusers_decode, job, "float32"),
        "diffusers bf16": partial(diffusers_decode, job, "bfloat16"),
        "ours fp32": partial(our_decode, job, False),
        "ours bf16": partial(our_decode, job, True),
        "ours fp32, onnxruntime": partial(our_decode, job, False, "onnxruntime"),
    }
    return [Contender(name, load) for name, load in ways.items()]


def main(arguments: Sequence[str]) -> None:
    """Prepare, race, print and write."""
    from cpu_graphs import prepare_decode, prepare_step  # imports much, and contenders' processes read this file, too

    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("step", "decode"))
    for name, usual in (("--depth", FULL_DEPTH), ("--size", 512), ("--threads", 2), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--only", nargs="*", help="contenders, by name or by the beginning of several")
    parser.add_argument("--folder", type=Path, default=Path("out/bench"))
    parser.add_argument("--optimum", type=Path, default=Job.peers, help="folder of optimum-intel's packages")
    parser.add_argument("--to", help="name of the results, without .json")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder / f"depth{chosen.depth}"
    job = Job(folder, chosen.size // 32, chosen.threads, chosen.depth, chosen.optimum)
    everybody = {"step": step_contenders, "decode": decode_contenders}[chosen.part](job)
    racing = only(everybody, chosen.only)
    if chosen.part == "step":
        prepare_step(job.folder, job.depth, job.side, naive=any("diffusers' graph" in each.name for each in racing))
        forms = {each.load.args[1] for each in racing if each.name.startswith("optimum")}  # type: ignore[attr-defined]
        cpu_optimum.prepare(job.folder, job.peers, sorted(forms))
    else:
        prepare_decode(job.folder)
    facts = {"part": chosen.part, "size": chosen.size, "depth": job.depth, "of_depth": FULL_DEPTH}
    results = race(racing, chosen.rounds, job.threads)
    print(report(chosen.to or f"cpu-{chosen.part}", results, {**facts, "threads": job.threads}))


if __name__ == "__main__":
    main(sys.argv[1:])
