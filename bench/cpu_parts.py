"""Time one part on the CPU: diffusers, plain engines on diffusers' graph, and ours, in turn, on the same weights.

    python bench/cpu_parts.py step   [--model sana-600m] [--depth 28] [--size 512] [--threads 2] [--rounds 5] …
    python bench/cpu_parts.py decode [--size 512] …
    python bench/cpu_parts.py step --only "diffusers fp32" optimum ours --to cpu-step-optimum
    python bench/text_encoding.py …                                          the third part has a page of its own

A step is one run of a preset's transformer for a prompt of 20 words and its negative, as guidance needs it; Sprint's
models are told the guidance and run for the prompt alone. diffusers pads texts to 300 tokens, ours takes the 26 that
are there, and 6 that count for nothing. Weights are random, speed does not depend on them, and the answers are
compared. `--depth` takes fewer blocks than there are. Graphs are made once, in --folder. Writes
docs/measurements/cpu-step.json, cpu-step-MODEL.json for another than Sana-0.6B, and cpu-decode.json. What optimum-intel
needs is told in `cpu_optimum.py`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sana_reference.config import PRESETS, SanaConfig
from sana_runtime.conditioning import ROWS_AT_ONCE
from sana_runtime.signature import Signature, signatures

sys.path.insert(0, str(Path(__file__).parent))
import cpu_optimum
import limits
from cpu_race import Contender, Run, only, race, report

from sana_export.export import sizes_of

TOKENS, PADDED = (26, 2), 300  # states of the prompt and of its empty negative, BOS included
ROWS = max(TOKENS) + -max(TOKENS) % ROWS_AT_ONCE  # that the pipeline gives to the transformer
GUIDANCE = 4.5
TRANSFORMER, AUTOENCODER, OURS, INT8, NAIVE = "diffusers", "autoencoder", "fp32", "int8", "naive"  # folders


@dataclass(frozen=True)
class Job:
    """What is compared, and where its graphs lie."""

    folder: Path
    side: int  # of the latent
    threads: int
    model: SanaConfig  # with as many blocks as take part
    peers: Path = Path("out/bench/optimum")

    @property
    def batch(self) -> int:
        """With and without the prompt, unless the model is itself told the guidance."""
        return 1 if self.model.guidance_embedding else 2

    @property
    def signature(self) -> Signature:
        """What our transformer takes."""
        return signatures(sizes_of(self.model))["transformer"]

    def latent(self, batch: int) -> Any:
        """The same noise for everybody."""
        return np.random.default_rng(0).standard_normal((batch, 32, self.side, self.side)).astype(np.float32)

    def text(self, rows: int) -> tuple[Any, Any]:
        """Text states (batch, rows, D) and their mask; beyond the tokens there is padding."""
        shape = (self.batch, PADDED, self.model.text_dim)
        states = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        mask = np.array([[i < count for i in range(rows)] for count in TOKENS[: self.batch]])
        return states[:, :rows], mask

    def timed(self, guidance: float) -> dict[str, Any]:
        """A time halfway and, for the models that are told it, the guidance."""
        halfway = np.full(self.batch, 500.0 if self.model.integer_timesteps else 0.5, np.float32)
        told = {"guidance": np.full(self.batch, guidance, np.float32)} if self.model.guidance_embedding else {}
        return {"timestep": halfway, **told}

    def theirs(self) -> dict[str, Any]:
        """What diffusers' transformer takes, in fp32; it is told a tenth of the guidance."""
        text, mask = self.text(PADDED)
        return {
            "hidden_states": self.latent(self.batch),
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask.astype(np.int64),
            **self.timed(GUIDANCE / 10),
        }


def named(plain: str, model: SanaConfig) -> str:
    """A name for what is of this model: the plain one for Sana-0.6B, which most is of."""
    return plain if model.name == limits.MODEL else f"{plain}-{model.name}"


def diffusers_step(job: Job, dtype: str, compiled: bool = False) -> Run:
    """diffusers' own module, as it is or through torch.compile."""
    import torch
    from diffusers import SanaTransformer2DModel

    torch.set_num_threads(job.threads)
    kind = getattr(torch, dtype)
    model = SanaTransformer2DModel.from_pretrained(job.folder / TRANSFORMER, torch_dtype=kind).eval()
    if compiled:
        model.compile()
    feeds = {name: torch.from_numpy(array) for name, array in job.theirs().items()}
    feeds = {name: tensor if name == "timestep" else tensor.to(kind) for name, tensor in feeds.items()}

    @torch.no_grad()
    def run() -> Any:
        return model(**feeds, return_dict=False)[0].float().numpy()

    return run


def naive_step(job: Job, engine: str) -> Run:
    """diffusers' module as it exports, at this one size, in onnxruntime as it comes or in OpenVINO with f32 or bf16."""
    feeds, graph = job.theirs(), job.folder / NAIVE / f"{job.side}.onnx"
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
    return cpu_optimum.optimum_step(job.theirs(), job.folder / f"optimum-{form}", job.peers, precision, fixed)


def our_step(job: Job, part: str, half: bool = False, rows: int = ROWS, engine: str = "cpu") -> Run:
    """Our transformer part in our session, text keys and values from our caption part."""
    from sana_runtime.session import Device, SessionOptions, open_session

    text, mask = job.text(rows)
    caption = open_session(job.folder / OURS / "caption.onnx", Device.CPU, SessionOptions(threads=job.threads))
    text_kv = caption.run({"text": text})["text_kv"]
    options = SessionOptions(half_products=half, threads=job.threads, signature=job.signature)
    session = open_session(job.folder / part / "transformer.onnx", Device(engine), options)
    feeds = {"latent": job.latent(job.batch), "text_kv": text_kv, "text_mask": mask, **job.timed(GUIDANCE)}
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
        "ours int8, onnxruntime": partial(our_step, job, INT8, False, ROWS, "onnxruntime"),
    }
    alone = limits.contenders(job.model, job.batch * job.side**2, job.threads)
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


def our_decode(job: Job, half: bool, int8: bool = False, engine: str = "cpu") -> Run:
    """Our decoder part in our session, its residual convolutions in INT8 or not."""
    from sana_runtime.session import Device, SessionOptions, open_session

    options = SessionOptions(half_products=half, int8_convolutions=int8, threads=job.threads)
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
        "ours int8": partial(our_decode, job, True, True),
        "ours fp32, onnxruntime": partial(our_decode, job, False, engine="onnxruntime"),
    }
    return [Contender(name, load) for name, load in ways.items()]


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("step", "decode"))
    parser.add_argument("--model", choices=PRESETS, default=limits.MODEL)
    parser.add_argument("--depth", type=int, help="blocks that take part; all, unless told otherwise")
    for name, usual in (("--size", 512), ("--threads", 2), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--only", nargs="*", help="contenders, by name or by the beginning of several")
    parser.add_argument("--folder", type=Path, default=Path("out/bench"))
    parser.add_argument("--optimum", type=Path, default=Job.peers, help="folder of optimum-intel's packages")
    parser.add_argument("--to", help="name of the results, without .json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Prepare, race, print and write."""
    from cpu_graphs import prepare_decode, prepare_step  # imports much, and contenders' processes read this file, too

    chosen = options(arguments)
    model = limits.preset(chosen.depth, chosen.model)
    folder = chosen.folder / named(f"depth{model.depth}", model)
    job = Job(folder, chosen.size // 32, chosen.threads, model, chosen.optimum)
    everybody = {"step": step_contenders, "decode": decode_contenders}[chosen.part](job)
    racing = only(everybody, chosen.only)
    if chosen.part == "step":
        prepare_step(job, naive=any("diffusers' graph" in each.name for each in racing))
        forms = {each.load.args[1] for each in racing if each.name.startswith("optimum")}  # type: ignore[attr-defined]
        cpu_optimum.prepare(job.folder, job.peers, sorted(forms))
    else:
        prepare_decode(job.folder)
    what = {"part": chosen.part, "model": model.name, "size": chosen.size}
    facts = {**what, "depth": model.depth, "of_depth": PRESETS[model.name].depth, "threads": job.threads}
    results = race(racing, chosen.rounds, job.threads)
    print(report(chosen.to or named(f"cpu-{chosen.part}", model), results, facts))


if __name__ == "__main__":
    main(sys.argv[1:])
