"""optimum-intel's OpenVINO Sana as a contender of `cpu_parts.py`: its own export, its own INT8, run by its own class.

    pip install --no-deps --target out/bench/optimum -r bench/cpu_optimum.txt      once: it wants older libraries
    python bench/cpu_optimum.py PEERS PIPELINE TARGET WAY                         makes one form; cpu_parts.py calls it

It exports a whole pipeline, so the transformer that is compared is put between nano's other parts and a text encoder of
one layer. Its forms: float, which OpenVINO runs in bf16 where the processor can unless told f32; INT8 weights; INT8
weights with INT8 convolutions ("hybrid"); both sides of every product in INT8 with one step size a tensor ("static").
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import Run

PIPELINE = "pipeline"
PROMPTS = ["a small wooden house beside a quiet lake at sunrise"]  # one prompt is 20 steps to calibrate with
SAMPLES = 4
SIZE = 16  # side of the latent that the pipeline is told it was trained for: else it would calibrate at 1024²
LIST = Path(__file__).with_suffix(".txt")


def enter(peers: Path) -> None:
    """Let this process import optimum-intel and what it wants, without anybody's telemetry."""
    if not peers.is_dir():
        raise FileNotFoundError(f"no {peers}: pip install --no-deps --target {peers} -r bench/{LIST.name}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(peers.resolve()))
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def prepare(folder: Path, peers: Path, forms: Sequence[str]) -> None:
    """Make what is missing for a race of steps."""
    if forms and not (folder / PIPELINE).exists() and peers.is_dir():
        write_pipeline(folder / "diffusers", folder / PIPELINE)
    convert(folder / PIPELINE, folder, peers, forms)


def convert(pipeline: Path, folder: Path, peers: Path, forms: Sequence[str]) -> None:
    """Write the forms that are missing, each in a process of its own."""
    for form in forms:
        target = folder / f"optimum-{form}"
        if not target.exists() and peers.is_dir():
            subprocess.run([sys.executable, __file__, str(peers), str(pipeline), str(target), form], check=True)


def write_pipeline(transformer: Path, folder: Path) -> None:
    """A pipeline in diffusers' form around this transformer."""
    import torch
    from sana_reference.checkpoint.load import NANO
    from transformers import Gemma2Config, Gemma2Model

    scratch = folder.with_name(f"{folder.name}-unfinished")
    shutil.copytree(NANO, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer", "text_encoder"))
    config = json.loads((transformer / "config.json").read_text())
    sprint = config["guidance_embeds"]
    smaller = {} if sprint else {"sample_size": SIZE}  # Sprint's pipeline refuses others than 1024²
    (scratch / "transformer").mkdir(exist_ok=True)
    (scratch / "transformer" / "config.json").write_text(json.dumps({**config, **smaller}))
    for file in transformer.glob("*.safetensors*"):
        (scratch / "transformer" / file.name).hardlink_to(file)
    vocabulary = json.loads((NANO / "text_encoder" / "config.json").read_text())["vocab_size"]
    sizes = {"vocab_size": vocabulary, "hidden_size": config["caption_channels"], "intermediate_size": 256}
    torch.manual_seed(0)
    Gemma2Model(Gemma2Config(num_hidden_layers=1, **sizes)).save_pretrained(scratch / "text_encoder")
    if sprint:
        _make_sprint(scratch)
    scratch.rename(folder)


def _make_sprint(pipeline: Path) -> None:
    """Say whose transformer it is: one that is told the guidance, and takes two steps."""
    from diffusers import SCMScheduler

    index = json.loads((pipeline / "model_index.json").read_text())
    index |= {"_class_name": "SanaSprintPipeline", "scheduler": ["diffusers", "SCMScheduler"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    SCMScheduler().save_pretrained(pipeline / "scheduler")


def export(pipeline: Path, target: Path, form: str) -> None:
    """Write the pipeline as optimum-intel exports it, rounded by nncf if the form says so."""
    from optimum.intel import OVPipelineForText2Image, OVQuantizationConfig, OVWeightQuantizationConfig

    rounding = {
        "float": {"load_in_8bit": False},
        "weights": {"quantization_config": OVWeightQuantizationConfig(bits=8)},
        "hybrid": {
            "quantization_config": OVWeightQuantizationConfig(
                bits=8, quant_method="hybrid", dataset=PROMPTS, num_samples=SAMPLES
            )
        },
        "static": {"quantization_config": OVQuantizationConfig(bits=8, dataset=PROMPTS, num_samples=SAMPLES)},
    }[form]
    made = OVPipelineForText2Image.from_pretrained(pipeline, export=True, compile=False, **rounding)
    scratch = target.with_name(f"{target.name}-unfinished")
    made.save_pretrained(scratch)
    scratch.rename(target)


def optimum_step(feeds: dict[str, Any], folder: Path, peers: Path, precision: str, fixed: bool) -> Run:
    """A step through its class; `fixed` calls its `reshape`, which fixes all sizes but the text's.

    It takes two branches for granted, which Sprint does not have: there the batch stays free.
    """
    enter(peers)
    import torch
    from optimum.intel import OVPipelineForText2Image

    settings = {"INFERENCE_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    pipeline = OVPipelineForText2Image.from_pretrained(folder, compile=False, ov_config=settings)
    if fixed:
        height, width = (side * pipeline.vae_scale_factor for side in feeds["hidden_states"].shape[2:])
        pipeline.reshape(-1 if "guidance" in feeds else 1, height, width, 1)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    transformer = pipeline.transformer
    return lambda: transformer(**tensors, return_dict=False)[0].numpy().copy()


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    export(*map(Path, sys.argv[2:4]), sys.argv[4])
