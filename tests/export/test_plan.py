"""The plan of an export is exact about sizes and refuses what cannot fit."""

import re
import shutil
from collections import namedtuple

import pytest
from sana_reference.config import DC_AE_F32C32, PRESETS, TextConfig
from sana_runtime.errors import MemoryLimitError
from sana_runtime.memory_plan import GRAPH, LIBRARIES, Layout, PartMemory, all_loaded, one_at_a_time, working_memory

from sana_export import plan as planning
from sana_export.plan import foresee_painting, plan
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
    assert [part.parameters for part in half.parts] == [part.parameters for part in wide.parts]
    exact = 4 * 1001 * 256  # the table of times is fp32 in both
    assert (half.bytes - exact) * 2 == wide.bytes - exact
    assert {part.name: part.dtype for part in half.parts} == {
        "text_encoder": "bfloat16",
        "caption": "float16",
        "transformer": "float16",
        "decoder": "bfloat16",
        "encoder": "bfloat16",
    }
    assert all(part.peak_bytes > part.bytes and part.seconds > 0 for part in half.parts)


def test_the_table_of_tokens_is_no_memory_because_few_of_its_rows_are_read():
    parts = {part.name: part for part in foresee_painting(FULL, Precision.BF16, (512, 512))}
    text = next(part for part in plan(FULL, Precision.BF16).parts if part.name == "text_encoder")
    assert parts["text_encoder"].weights == text.bytes - 2 * 256_000 * 2304


def test_memory_grows_with_the_picture_until_it_is_decoded_in_tiles():
    small, large, larger = (
        {part.name: part.working for part in foresee_painting(FULL, Precision.BF16, (side, side))}
        for side in (512, 1024, 2048)
    )
    assert large["transformer"] == 4 * small["transformer"]
    assert larger["transformer"] == 4 * large["transformer"]
    assert large["decoder"] == 4 * small["decoder"] == larger["decoder"]


def test_painting_with_one_part_at_a_time_takes_the_largest_and_the_libraries():
    parts = (PartMemory("caption", 5, 1), PartMemory("transformer", 10, 3), PartMemory("encoder", 7, 7))
    assert one_at_a_time(parts, tokenizer=100) == LIBRARIES + 700 + GRAPH + 14
    assert all_loaded(parts, tokenizer=100) == LIBRARIES + 700 + 2 * GRAPH + 19


# Memory of its own that a process took for parts of full size: OpenVINO 2026.4, random weights, guidance.
MEASURED = [
    (("transformer", "fp32", 5760, Layout((512, 512), 2)), 183_665_664, 273_000_000),  # two blocks of Sana-0.6B
    (("transformer", "fp32", 5760, Layout((1024, 1024), 2)), 183_665_664, 489_000_000),
    (("transformer", "int8", 5760, Layout((512, 512), 2)), 76_256_000, 176_000_000),
    (("decoder", "bf16", 128, Layout((256, 256), 1)), 346_356_480, 498_000_000),  # DC-AE
    (("decoder", "bf16", 128, Layout((512, 512), 1)), 346_356_480, 851_000_000),
    (("decoder", "fp32", 128, Layout((256, 256), 1)), 692_712_960, 964_000_000),
]


@pytest.mark.parametrize(("part", "weights", "measured"), MEASURED)
def test_the_plan_of_memory_is_near_what_was_measured(part, weights, measured):
    assert weights + working_memory(*part) == pytest.approx(measured, rel=0.15)


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
