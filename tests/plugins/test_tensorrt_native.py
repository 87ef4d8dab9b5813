"""The C++ plugin compiles, over a stub of TensorRT's headers, and starts what the Python plugin starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sana_plugins.tensorrt.attention import ATTENTION, attention_launches, workspace_bytes
from sana_plugins.tensorrt.operators import Memory
from sana_plugins.tensorrt.shipped import kernel_for

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
STUB = HERE / "stub_tensorrt"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder of the plugin, a program that drives it, and a CUDA driver that records launches."""
    if not sys.platform.startswith("linux") or not all(map(shutil.which, ("cmake", "g++", "gcc"))):
        pytest.skip("needs Linux, cmake and a C++ compiler")
    folder, headers = tmp_path_factory.mktemp("native"), STUB / "include"
    configure = ["cmake", "-S", ROOT / "plugins/native", "-B", folder, f"-DTENSORRT_ROOT={STUB}"]
    subprocess.run([*configure, f"-DCUDA_INCLUDE={headers}"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
    driver = ["g++", "-std=c++17", "-I", headers, HERE / "drive_native.cpp", "-o", folder / "drive", "-ldl"]
    subprocess.run(driver, check=True)
    record = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", HERE.parent / "recording_libcuda.c"]
    subprocess.run(record, check=True)
    return folder


def drive(folder, tmp_path, capability, q="0x10", form="apart"):
    """Build, serialise, read and run the plugin once: what it said, and what the driver was asked."""
    record = tmp_path / "record"
    settings = {"SANA_CAPABILITY": str(capability), "SANA_RECORD": str(record), "LD_LIBRARY_PATH": str(folder)}
    command = [folder / "drive", folder / "libsana_plugin.so", q, form]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    return done, record.read_text().splitlines() if record.exists() else []


def line_of(launch, handle):
    """A launch as the recording driver writes it."""
    parts = [handle, *launch.grid, launch.kernel.threads, 1, 1, launch.kernel.shared, "0x77"]
    return " ".join(map(str, ["launch", *parts, *map(hex, launch.pointers), *launch.numbers, 1, 1, 1]))


@pytest.mark.parametrize(("capability", "form"), [(75, "apart"), (86, "apart"), (86, "packed"), (120, "packed")])
def test_it_starts_what_the_python_plugin_starts(capability, form, built, tmp_path):
    done, lines = drive(built, tmp_path, capability, form=form)
    assert done.returncode == 0, done.stdout
    kernels = tuple(kernel_for(name, "fp16", capability) for name in ATTENTION.kernels)
    dims = (2, 1025, 3 * 1152) if form == "packed" else (2, 1025, 36, 32)
    inputs = (0x10,) if form == "packed" else (0x10, 0x20, 0x30)
    expected = attention_launches(kernels, dims, 2, Memory(inputs, (0x50,), 0x40))
    assert lines[:2] == [f"load sm_{kernel.target} {len(kernel.ptx) - 1}" for kernel in kernels]
    assert lines[2:] == [line_of(*pair) for pair in zip(expected, ("0x3000", "0x4000"), strict=True)]


@pytest.mark.parametrize("form", ["apart", "packed"])
def test_it_names_itself_refuses_other_heads_and_reads_its_own_field(form, built, tmp_path):
    done, _ = drive(built, tmp_path, 86, form=form)
    named, formats, workspace, fields = done.stdout.splitlines()
    assert named == "1 sana ReluLinearAttention 1"
    assert formats == "1 0"  # heads 32 wide are taken, heads 64 wide are not
    assert int(workspace) == workspace_bytes((2, 4096, 36, 32))
    assert fields == "1 element_type 1"  # fp16, by the library's number


@pytest.mark.parametrize(
    ("capability", "q", "complaint"),
    [(61, "0x10", "no program for this element type and card"), (86, "0x8", "not aligned to 16 bytes")],
)
def test_what_it_cannot_do_it_logs(capability, q, complaint, built, tmp_path):
    done, lines = drive(built, tmp_path, capability, q)
    assert done.returncode != 0 and complaint in done.stdout.splitlines()[-1]
    assert not any(line.startswith("launch") for line in lines)


def test_only_the_two_entry_points_are_its_own(built):
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", built / "libsana_plugin.so"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {line.split()[2] for line in symbols if line.split()[1] == "T"} == {"getCreators", "setLoggerFinder"}
