"""Kernels compile to PTX for GPUs that are not here; the interpreter and the compiler need processes of their own."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
from sana_plugins.kernels.catalogue import VARIANTS
from sana_plugins.kernels.compilation import compile_kernels
from sana_plugins.linear_attention import attend
from triton import knobs

PROGRAM = """
import json, sys
from dataclasses import asdict
from sana_plugins.kernels.catalogue import VARIANTS
from sana_plugins.kernels.compilation import compile_kernels, measure
rows = {row.name: row for row in VARIANTS}
kernels = [compile_kernels([target], [rows[name]])[0] for name, target in json.loads(sys.argv[1])]
print(json.dumps([asdict(kernel) | {"resources": asdict(measure(kernel))} for kernel in kernels]))
"""
SHARED_LIMIT = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
FORWARD = ("sum_key_values_fp16_d32", "apply_queries_fp16_d32")
BACKWARD = ("query_gradients_fp16_d32", "key_value_gradients_fp16_d32")
OTHERS = ("projection_gradient_fp16_d32", "depthwise_gate_int8_fp16", "int8_product_fp16")
WANTED = [(name, target) for name in FORWARD for target in SHARED_LIMIT]
WANTED += [(name, 86) for name in BACKWARD + OTHERS] + [("int8_product_fp16", 75)]


def compiled(wanted, cache):
    """Compile in a process where kernels are not interpreted, with a cache of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(wanted)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return compiled(WANTED, tmp_path_factory.mktemp("triton"))


def test_attention_compiles_for_all_six_targets_and_the_rest_where_asked(kernels):
    assert [(row["name"], row["target"]) for row in kernels] == WANTED
    for row in kernels:
        assert f".visible .entry {row['entry']}(" in row["ptx"]
        assert f".target sm_{row['target']}" in row["ptx"]


def test_ptx_is_of_a_version_that_two_year_old_drivers_read(kernels):
    for row in kernels:
        assert f".version {'8.7' if row['target'] == 120 else '8.0'}" in row["ptx"]


def test_nothing_spills_and_shared_memory_fits_the_card(kernels):
    for row in kernels:
        assert row["resources"]["spill_stores"] == row["resources"]["spill_loads"] == 0, (row["name"], row["target"])
        assert row["shared"] <= SHARED_LIMIT[row["target"]]


def test_the_listed_arguments_are_those_of_the_ptx_and_two_null_pointers(kernels):
    for row in kernels:
        header = row["ptx"].split(f".entry {row['entry']}(")[1].split(")")[0]
        kinds = [line.split()[1] for line in header.splitlines() if ".param" in line]
        listed = [".u64" if kind.startswith("*") else ".u32" for _, kind in row["arguments"]]
        assert kinds == [*listed, ".u64", ".u64"]


def test_ptx_names_no_file_of_this_machine_and_is_the_same_each_time(kernels, tmp_path):
    again = compiled([(FORWARD[1], 86)], tmp_path)
    (first,) = (row for row in kernels if row["name"] == FORWARD[1] and row["target"] == 86)
    assert again == [first]
    assert "/" not in first["ptx"].replace("//", "")


def test_turing_multiplies_int8_as_fp16(kernels):
    (row,) = (row for row in kernels if row["name"] == "int8_product_fp16" and row["target"] == 75)
    assert row["constants"]["OPERAND"] == "fp16"


def test_a_target_that_is_none_is_refused():
    with pytest.raises(ValueError, match="choose from 75"):
        compile_kernels([61], VARIANTS[:1])


def test_compiling_under_the_interpreter_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="unset it before importing triton"):
        compile_kernels([80], VARIANTS[:1])


def test_a_cpu_tensor_without_the_interpreter_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        attend(*[torch.ones(1, 1, 1, 32)] * 3)
