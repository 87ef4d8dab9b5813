"""Peak memory of loading a full-size transformer, as a multiple of its weights.

    python bench/load_memory.py [PRESET] [--pickle]

Writes random fp16 weights of the preset (default sana-600m) to a temporary folder, as diffusers does or as an NVlabs
file, loads them in a process of their own, and prints how far that process grew beyond what it needed before.
Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import SanaTransformer2DModel
from sana_reference.config import PRESETS, SanaConfig
from sana_reference.renames.transformer import NVLABS
from sana_reference.transformer import SanaTransformer

LOAD = """
import sys, time, torch
from pathlib import Path
from sana_reference.checkpoint.parts import transformer_in_file, transformer_in_folder

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

path = Path(sys.argv[1])
part = transformer_in_folder(path, None) if path.is_dir() else transformer_in_file(path, None)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before, start = resident("VmRSS"), time.perf_counter()
model = part.build(torch.float16)
seconds = time.perf_counter() - start
weights = sum(p.nbytes for p in model.parameters())
peak = resident("VmHWM") - before
print(f"{part.config.name} from {path.name}: weights {weights / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB, "
      f"{peak / weights:.3f} of the weights, {seconds:.1f} s")
"""


def write_folder(config: SanaConfig, folder: Path) -> Path:
    """The transformer's folder of a pipeline, as diffusers saves it."""
    torch.set_default_dtype(torch.float16)
    model = SanaTransformer2DModel(
        num_attention_heads=config.heads,
        num_layers=config.depth,
        num_cross_attention_heads=config.cross_heads,
        cross_attention_head_dim=config.dim // config.cross_heads,
        cross_attention_dim=config.dim,
        sample_size=config.sample_size,
        interpolation_scale=None if config.position_base is None else config.position_scale,
        guidance_embeds=config.guidance_embedding,
        qk_norm="rms_norm_across_heads" if config.qk_norm else None,
    )
    model.half().save_pretrained(folder / "transformer")
    return folder / "transformer"


def write_pickle(config: SanaConfig, folder: Path) -> Path:
    """An NVlabs file."""
    with torch.device("meta"):
        shapes = SanaTransformer(config).state_dict()
    tensors = {nvlabs_name(name): torch.randn(like.shape, dtype=torch.float16) for name, like in shapes.items()}
    tensors["pos_embed"] = torch.zeros(1, config.sample_size**2, config.dim, dtype=torch.float16)
    torch.save({"state_dict": tensors}, folder / "model.pth")
    return folder / "model.pth"


def nvlabs_name(ours: str) -> str:
    """NVlabs' name of one of our tensors."""
    parts = ours.split(".")
    pattern = ".".join("{i}" if part.isdigit() else part for part in parts)
    return next(row[1] for row in NVLABS if row[0] == pattern).format(i="".join(filter(str.isdigit, parts)))


def main() -> None:
    """Write, load elsewhere, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="sana-600m", choices=PRESETS)
    parser.add_argument("--pickle", action="store_true", help="an NVlabs .pth instead of a diffusers folder")
    arguments = parser.parse_args()
    write = write_pickle if arguments.pickle else write_folder
    with tempfile.TemporaryDirectory() as folder:
        path = write(PRESETS[arguments.preset], Path(folder))
        subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True)


if __name__ == "__main__":
    main()
