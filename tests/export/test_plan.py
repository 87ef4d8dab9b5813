"""The plan of an export is exact about sizes and refuses what cannot fit."""

import re
import shutil
from collections import namedtuple
from dataclasses import replace

import onnx_ir as ir
import pytest
from sana_calibration.products import chosen
from sana_calibration.quantise import quantise
from sana_calibration.weight_only import quantise_weights
from sana_reference.checkpoint import load_checkpoint
from sana_reference.config import AUTOENCODERS, DC_AE_F32C32, PRESETS, TextConfig
from sana_runtime.errors import MemoryLimitError
from sana_runtime.memory_plan import GRAPH, LIBRARIES, Layout, PartMemory, all_loaded, one_at_a_time, working_memory

from sana_export import plan as planning
from sana_export.passes.narrow_weights import widen_weights
from sana_export.plan import Habits, foresee_painting, goes_side_by_side, plan
from sana_export.precision import Precision
from sana_export.tracing.counting import count_products

Described = namedtuple("Described", "config autoencoder_config text_config")
FULL = Described(PRESETS["sana-600m"], DC_AE_F32C32, TextConfig())
BOTH_BLOCKS = replace(AUTOENCODERS["tiny"], attention_stages=1)  # residual blocks and, in the last stage, attention
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
    parts = {part.name: part for part in plan(FULL._replace(config=PRESETS[name])).parts}
    assert parts["caption"].parameters + parts["transformer"].parameters == parameters


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


def small_plan(model, *arguments):
    sizes = Described(model.config, model.autoencoder_config, model.text_config)
    return sizes, plan(sizes, Precision.INT8, *arguments, prefix_tokens=4)


def held(model):
    return sum(tensor.const_value.nbytes for tensor in model.graph.initializers.values())


def test_int8_foresees_the_products_that_calibration_finds_and_their_bytes(export, random_model):
    sizes, planned = small_plan(random_model())
    part = export(random_model(), "int8", ("transformer",))["transformer"]
    model = ir.load(part.graph)
    before, found = held(model), chosen(model)
    assert {each.name: (each.rows, each.columns) for each in found} == count_products(sizes)
    quantise(model)
    wide, narrow = (
        next(part.bytes for part in each.parts if part.name == "transformer")
        for each in (plan(sizes, Precision.FP32, prefix_tokens=4), planned)
    )
    assert narrow == pytest.approx(held(model), rel=0.02)
    assert wide - narrow == pytest.approx(before - held(model), rel=0.02)


def test_the_text_encoder_in_int8_is_foreseen_table_and_all(export, random_model):
    planned = next(each for each in small_plan(random_model())[1].parts if each.name == "text_encoder")
    model = ir.load(export(random_model(), "int8", ("text_encoder",))["text_encoder"].graph)
    widen_weights(model)
    quantise_weights(model)
    assert planned.bytes == pytest.approx(held(model), rel=0.03)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_what_stays_float_in_an_int8_bundle_is_foreseen_in_its_narrow_type(export, random_model, part):
    model = random_model(autoencoder_config=BOTH_BLOCKS)
    planned = next(each for each in small_plan(model)[1].parts if each.name == part)
    written = held(ir.load(export(model, "int8", (part,))[part].graph))
    assert planned.bytes == pytest.approx(written, rel=0.03)


@pytest.fixture
def machine(monkeypatch):
    """Let the plan find so much free memory and so many cores."""

    def found(memory, cores=2):
        monkeypatch.setattr(planning, "available_memory", lambda: memory)
        monkeypatch.setattr(planning, "cores", lambda: cores)

    return found


def test_an_int8_build_of_full_size_takes_the_memory_that_was_promised(machine):
    machine(64 << 30)
    planned = plan(FULL, Precision.INT8)
    assert planned.side_by_side
    assert planned.least_bytes < planned.peak_bytes <= 16e9
    assert planned.bytes < 0.55 * plan(FULL).bytes
    assert [stage.name for stage in planned.stages] == ["golden", "calibration"]


def test_side_by_side_two_parts_are_in_memory_and_the_shorter_side_takes_no_time(machine):
    machine(64 << 30)
    beside = plan(FULL)
    in_turn = replace(beside, side_by_side=False)
    text = next(part for part in in_turn.parts if part.name == "text_encoder")
    assert beside.side_by_side
    assert beside.peak_bytes == text.peak_bytes + max(part.peak_bytes for part in in_turn.parts if part is not text)
    assert 30 < in_turn.seconds - beside.seconds < text.seconds


def test_where_memory_or_cores_are_short_parts_are_exported_in_turn_and_nothing_is_refused(machine, tmp_path):
    machine(64 << 30)
    planned = plan(FULL)
    both, least = planned.peak_bytes, planned.least_bytes
    for found, beside in (((both,), True), ((both, 1), False), ((both - 1,), False), ((least,), False)):
        machine(*found)
        assert goes_side_by_side(FULL, Precision.FP32) == beside
        planned.check(tmp_path, freed=planned.disk_bytes)


def test_another_process_is_started_only_for_large_parts_that_are_still_missing(machine):
    machine(64 << 30)
    model = load_checkpoint("nano")
    assert not goes_side_by_side(model, Precision.FP32)
    assert goes_side_by_side(FULL, Precision.FP32, ("text_encoder", "transformer"))
    assert not goes_side_by_side(FULL, Precision.FP32, ("text_encoder",))
    assert not goes_side_by_side(FULL, Precision.FP32, ("caption", "transformer", "decoder", "encoder"))


def test_the_memory_of_an_export_is_near_what_was_measured():
    """By bench/export_full_size.py: most memory that a process took."""
    measured = {"text_encoder": 6.00e9, "caption": 1.85e9, "transformer": 1.85e9, "decoder": 1.25e9, "encoder": 1.25e9}
    planned = {part.name: part.peak_bytes for part in plan(FULL, Precision.FP16).parts}
    assert planned == pytest.approx(measured, rel=0.1)


def test_every_build_paints_with_the_reference_in_float32():
    for precision in Precision:
        assert plan(FULL, precision).peak_bytes >= 4 * (2_614_341_888 + PREFIX_MEMORY)


def test_the_time_of_calibration_grows_with_the_steps_and_with_guidance():
    def seconds(*habits):
        return plan(FULL, Precision.INT8, Habits(*habits)).stages[-1].seconds

    assert seconds(20, False) < 0.6 * seconds(20, True)
    assert seconds(10, True) < 0.8 * seconds(20, True)


def test_too_little_memory_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: 2 << 30)
    with pytest.raises(MemoryLimitError, match=re.escape("of memory, 2.1 GB are free; close other programs")):
        plan(FULL).check(tmp_path)


def test_too_little_disk_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "available_memory", lambda: None)
    planned = plan(FULL, Precision.BF16)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(2 << 40, 1 << 40, 1 << 40))
    planned.check(tmp_path / "not" / "yet")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(MemoryLimitError, match=re.escape("writes about 14.2 GB, 0.0 MB are free")):
        planned.check(tmp_path / "not" / "yet")
    planned.check(tmp_path, freed=planned.disk_bytes)
