"""The plan of an export is exact about sizes and refuses what cannot fit."""

import re
import shutil
from collections import namedtuple

import pytest
from sana_reference.config import DC_AE_F32C32, PRESETS, TextConfig
from sana_runtime.errors import MemoryLimitError

from sana_export import plan as planning
from sana_export.plan import plan
from sana_export.precision import Precision

Described = namedtuple("Described", "config autoencoder_config text_config")
FULL = Described(PRESETS["sana-600m"], DC_AE_F32C32, TextConfig())
PREFIX_MEMORY = 26 * 2 * 4 * 207 * 256 + 2304
UP_KERNELS = (
    1024 * 1024 + 1024 * 512 + 512 * 512 + 512 * 256 + 256 * 128
)  # input times output channels of each doubling


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sana-600m", 591_747_872),
        ("sana-1600m", 1_604_462_752),
        ("sana1.5-4800m", 4_721_825_952),
        ("sprint-600m", 593_501_216),
    ],
)
def test_both_parts_of_a_transformer_add_up_to_the_model(name, parameters):
    parts = plan(FULL._replace(config=PRESETS[name]), parts=("caption", "transformer")).parts
    assert sum(part.parameters for part in parts) == parameters


def test_the_other_parts_count_what_the_export_adds():
    counts = {part.name: part.parameters for part in plan(FULL).parts}
    assert counts["encoder"] == 153_027_104
    assert counts["decoder"] == 159_223_171 + (16 - 9) * UP_KERNELS  # four 2×2 kernels for one of 3×3
    assert counts["text_encoder"] == 2_614_341_888 + PREFIX_MEMORY


def test_half_precision_halves_the_bytes_and_never_makes_gemma_or_the_autoencoder_fp16():
    wide, half = plan(FULL), plan(FULL, Precision.FP16)
    assert half.bytes * 2 == wide.bytes
    assert {part.name: part.dtype for part in half.parts} == {
        "text_encoder": "bfloat16",
        "caption": "float16",
        "transformer": "float16",
        "decoder": "bfloat16",
        "encoder": "bfloat16",
    }
    assert all(part.peak_bytes > part.bytes and part.seconds > 0 for part in half.parts)


def test_too_little_memory_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: 2 << 30)
    with pytest.raises(MemoryLimitError, match=re.escape("of memory, 2.1 GB are free; close other programs")):
        plan(FULL).check(tmp_path)


def test_too_little_disk_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: None)
    plan(FULL, parts=("caption",)).check(tmp_path / "not" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(MemoryLimitError, match=re.escape("writes 0.3 GB, 0.0 GB are free")):
        plan(FULL, parts=("caption",)).check(tmp_path / "not" / "yet")
