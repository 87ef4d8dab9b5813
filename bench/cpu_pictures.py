"""Paint the same pictures, from prompt to pixels, through diffusers, optimum-intel and our bundles, in turn.

    python bench/cpu_pictures.py [FOLDER] [--size 512] [--steps 20] [--rounds 3] [--threads 2] [--only NAME …] [--apart]
    python bench/cpu_pictures.py FOLDER --int8 BUNDLE --apart --rounds 2 --only "diffusers bf16" "ours int8"

FOLDER is a pipeline as diffusers saves it (`full_size_folder.py` writes one), by default nano's. Everybody starts from
the same noise; each round has a prompt of its own, so that nobody paints what it kept from the round before. Bundles
are built once, in --made; an INT8 one that exists already can be given. All stay loaded unless --apart gives every turn
a process of its own, which is what fits into memory at full size: diffusers then holds 7 GB of weights in bf16 and 14
in fp32. A time is then of a process's first picture, of the first prompt, compiling included but not reading weights.
Decibels are of peak signal to noise against the first contender. Writes docs/measurements/cpu-pictures-NAME.json.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import cpu_optimum
from cpu_race import Contender, Result, Run, only, race, race_apart, report

PROMPTS = ("a red circle above a blue square", "three yellow stars", "a green triangle", "two orange squares")
GUIDANCE = 4.5
BUNDLES = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Job:
    """What is painted, and where what paints it lies."""

    folder: Path
    made: Path  # bundles and other forms
    peers: Path
    size: int
    steps: int
    threads: int
    int8: Path | None = None  # an INT8 bundle that exists already

    @property
    def latents(self) -> Any:
        """The noise of all pictures."""
        side = self.size // 32
        return np.random.default_rng(0).standard_normal((1, 32, side, side)).astype(np.float32)

    def bundle(self, precision: str) -> Path:
        """Where a bundle lies, or will."""
        return self.int8 if self.int8 and precision == "int8" else self.made / precision


def diffusers_pictures(job: Job, dtype: str) -> Run:
    """diffusers' own pipeline."""
    import torch
    from diffusers import SanaPipeline

    torch.set_num_threads(job.threads)
    pipeline = SanaPipeline.from_pretrained(job.folder, torch_dtype=getattr(torch, dtype))
    return _in_turn(partial(_paint, job, pipeline, torch.from_numpy(job.latents).to(getattr(torch, dtype))))


def optimum_pictures(job: Job, precision: str) -> Run:
    """optimum-intel's pipeline, its transformer and its autoencoder compiled for this size."""
    cpu_optimum.enter(job.peers)
    import torch
    from optimum.intel import OVSanaPipeline

    settings = {"INFERENCE_NUM_THREADS": str(job.threads), "INFERENCE_PRECISION_HINT": precision}
    pipeline = OVSanaPipeline.from_pretrained(job.made / "optimum-float", compile=False, ov_config=settings)
    pipeline.reshape(1, job.size, job.size, 1)
    pipeline.compile()
    return _in_turn(partial(_paint, job, pipeline, torch.from_numpy(job.latents)))


def _paint(job: Job, pipeline: Any, latents: Any, prompt: str) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    pixels = pipeline(
        prompt,
        height=job.size,
        width=job.size,
        num_inference_steps=job.steps,
        guidance_scale=GUIDANCE,
        latents=latents,
        use_resolution_binning=False,
        output_type="np",
    ).images[0]
    return np.round(pixels * 255).astype(np.uint8)


def our_pictures(job: Job, bundle: str) -> Run:
    """Our pipeline on a bundle."""
    from sana_runtime.pipeline import Pipeline

    pipeline = Pipeline.open(job.bundle(bundle), threads=job.threads)
    usual: dict[str, Any] = {"size": (job.size, job.size), "steps": job.steps, "guidance": GUIDANCE}
    return _in_turn(lambda prompt: pipeline.generate(prompt, latents=job.latents, **usual).pixels)


def _in_turn(paint: Callable[[str], Any]) -> Run:
    """Another prompt each time."""
    numbers = itertools.count()

    def run() -> Any:
        number = next(numbers)
        return paint(f"{PROMPTS[number % len(PROMPTS)]}, number {number}")

    return run


def contenders(job: Job) -> list[Contender]:
    """Everybody who paints."""
    ways = {
        "diffusers fp32": partial(diffusers_pictures, job, "float32"),
        "diffusers bf16": partial(diffusers_pictures, job, "bfloat16"),
        "optimum-intel f32": partial(optimum_pictures, job, "f32"),
        "optimum-intel bf16": partial(optimum_pictures, job, "bf16"),
        **{f"ours {bundle}": partial(our_pictures, job, bundle) for bundle in BUNDLES},
    }
    return [Contender(name, load) for name, load in ways.items()]


def prepare(job: Job, names: Sequence[str]) -> None:
    """Make the bundles that are missing, and optimum-intel's form of the folder."""
    from sana_export.build import build
    from sana_export.precision import Precision

    job.made.mkdir(parents=True, exist_ok=True)
    for bundle in BUNDLES:
        if f"ours {bundle}" in names and not job.bundle(bundle).exists():
            build(job.folder, job.bundle(bundle), Precision(bundle))
    if any(name.startswith("optimum") for name in names):
        cpu_optimum.convert(job.folder.absolute(), job.made, job.peers, ("float",))


def decibels(result: Result, exact: Any) -> float | None:
    """Peak signal to noise; none for equal pictures, or where there is no picture."""
    if result.answer is None or not (error := np.mean((result.answer.astype(np.float64) - exact) ** 2)):
        return None
    return round(float(10 * np.log10(255**2 / error)), 1)


def main(arguments: Sequence[str]) -> None:
    """Prepare, race, print and write."""
    from sana_reference.checkpoint.load import NANO

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?", default=NANO)
    for name, usual in (("--size", 0), ("--steps", 20), ("--rounds", 3), ("--threads", 2)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--only", nargs="*", help="contenders, by name or by the beginning of several")
    parser.add_argument("--apart", action="store_true", help="a process for every turn")
    parser.add_argument("--int8", type=Path, help="an INT8 bundle of FOLDER that need not be built")
    parser.add_argument("--made", type=Path, default=Path("out/bench/pictures"))
    parser.add_argument("--optimum", type=Path, default=Path("out/bench/optimum"))
    chosen = parser.parse_args(arguments)
    name = "nano" if chosen.folder == NANO else chosen.folder.name
    size = chosen.size or (128 if name == "nano" else 512)
    job = Job(chosen.folder, chosen.made / name, chosen.optimum, size, chosen.steps, chosen.threads, chosen.int8)
    racing = only(contenders(job), chosen.only)
    prepare(job, [each.name for each in racing])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results = (race_apart if chosen.apart else race)(racing, chosen.rounds, job.threads)
    quality = {each.name: decibels(each, results[0].answer) for each in results}
    facts = {"model": name, "size": size, "steps": job.steps, "threads": job.threads, "apart": chosen.apart}
    print(report(f"cpu-pictures-{name}", results, {**facts, "psnr": quality}))
    print(quality)


if __name__ == "__main__":
    main(sys.argv[1:])
