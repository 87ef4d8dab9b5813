"""Checkpoints of strangers: their settings and files load, or are refused in one line."""

import json
import os
import random
import shutil

import pytest
import torch
from sana_reference.checkpoint import load_checkpoint
from sana_reference.checkpoint.load import NANO
from sana_reference.checkpoint.sources import TensorSource
from sana_runtime.errors import CheckpointError

HUGE = 10**400  # JSON has such numbers, and floats have not
SETTINGS = (
    ("transformer", "mlp_ratio", 1e300),
    ("transformer", "mlp_ratio", 1e12),
    ("transformer", "num_attention_heads", 1 << 20),
    ("transformer", "interpolation_scale", HUGE),
    ("transformer", "x\n\x1b[2J", 1),
    ("scheduler", "flow_shift", HUGE),
    ("vae", "encoder_qkv_multiscales", [[], [], [], [], [], ["x"]]),
    ("vae", "encoder_qkv_multiscales", [[], [], [], [], [], [1 << 40]]),
    ("vae", "encoder_qkv_multiscales", [[], [], [], [], [], {"x": 1}]),
    ("vae", "encoder_block_types", ["EfficientViTBlock"] * 99),
    ("vae", "scaling_factor", HUGE),
    ("text_encoder", "rope_parameters", 1),
    ("text_encoder", "rope_parameters", {"rope_theta": "x"}),
    ("text_encoder", "rope_parameters", {"rope_theta": None}),
    ("text_encoder", "attn_logit_softcapping", HUGE),
)


def one_line(load):
    """Whether it was loaded; anything but a refusal in one short line fails."""
    try:
        load()
    except CheckpointError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 1000
        return False
    return True


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of nano with settings of its own."""
    return shutil.copytree(
        NANO,
        tmp_path / "checkpoint",
        copy_function=lambda a, b: (shutil.copy if a.endswith(".json") else os.symlink)(a, b),
    )


def settings_of(checkpoint):
    """The files of settings, with what they hold."""
    files = [
        *checkpoint.glob("*/config.json"),
        *checkpoint.glob("*/scheduler_config.json"),
        checkpoint / "model_index.json",
    ]
    return {file: json.loads(file.read_text()) for file in files}


@pytest.mark.parametrize(("part", "name", "value"), SETTINGS, ids=lambda value: ascii(value)[:20])
def test_a_setting_beyond_all_reason_is_refused(part, name, value, checkpoint):
    (file,) = checkpoint.glob(f"{part}/*config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    assert not one_line(lambda: load_checkpoint(checkpoint))


def test_mutated_settings_load_or_are_refused(checkpoint, mutated, times, figure):
    count, generator, loaded = times(60, 5000, 50_000), random.Random(71), 0
    settings = settings_of(checkpoint)
    for _ in range(count):
        file = generator.choice(list(settings))
        file.write_text(json.dumps(mutated(settings[file], generator)))
        loaded += one_line(lambda: load_checkpoint(checkpoint))
        file.write_text(json.dumps(settings[file]))
    figure(1, f"{count:,} checkpoints with mutated settings: 0 crashes, {loaded:,} loaded")
    assert len(settings) == 5 and 0 < loaded < count


CONTENTS = {
    "a list for a state": {"state_dict": [1]},
    "a tensor for a state": {"state_dict": torch.ones(3)},
    "a text for a state": {"state_dict": "x"},
    "a sparse tensor": {"x_embedder.proj.weight": torch.ones(3, 3).to_sparse()},
    "a tensor of no memory": {"x_embedder.proj.weight": torch.empty(3, 3, device="meta")},
    "too few dimensions": {"x_embedder.proj.weight": torch.ones(2)},
    "a block of a number without end": {
        "x_embedder.proj.weight": torch.ones(2, 2),
        f"blocks.{'9' * 5000}.x": torch.ones(1),
    },
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_is_refused_that_has(content, tmp_path):
    torch.save(CONTENTS[content], tmp_path / "x.pth")
    assert not one_line(lambda: load_checkpoint(tmp_path / "x.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mutated_files_of_weights_are_read_or_refused(suffix, scrambled, tmp_path, times, figure):
    from safetensors.torch import save_file

    count, generator, loaded = times(100, 5000, 50_000), random.Random(72), 0
    file, tensors = tmp_path / f"x{suffix}", {"a": torch.ones(3, 3), "b": torch.zeros(2)}
    (torch.save if suffix == ".pth" else save_file)(tensors, file)
    original = file.read_bytes()

    def read():
        source = TensorSource((file,))
        for name in source.shapes:
            source.read(name)

    for _ in range(count):
        file.write_bytes(scrambled(original, generator))
        loaded += one_line(read)
    figure(1, f"{count:,} mutated {suffix} files: 0 crashes, {loaded:,} read")
    assert loaded < count


def filled_with_nothing(path):
    """So many bytes that whoever reads them all has no memory left, and not one of them on the disk."""
    path.touch()
    os.truncate(path, 1 << 40)


STRANGE = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terabyte": filled_with_nothing,
}
READ = (
    "model_index.json",
    "transformer/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices as POSIX systems have them")
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", READ)
def test_what_is_no_file_or_no_reasonable_one_is_refused_unread(name, kind, checkpoint):
    """Else a pipe is waited for without end, and the others fill all memory."""
    (checkpoint / name).unlink()
    STRANGE[kind](checkpoint / name)
    assert not one_line(lambda: load_checkpoint(checkpoint))


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX systems have them")
def test_weights_in_one_file_that_is_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    assert not one_line(lambda: load_checkpoint(tmp_path / "x.pth"))
