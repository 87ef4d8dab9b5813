"""The real engine libraries on machines without a card, and the real cuda-bindings over a stand-in for the driver."""

import os
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from sana_runtime.session import Device

STUB = Path(__file__).parents[1] / "recording_libcuda.c"
_spec = spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
rtx_builds = module_from_spec(_spec)
_spec.loader.exec_module(rtx_builds)

OPEN = """
import sys
from sana_runtime import Pipeline, SanaError
for device in sys.argv[2:]:
    try:
        Pipeline.open(sys.argv[1], device=device)
    except SanaError as error:
        print(error.exit_code, error)
"""
LOAD = """
import sys, pathlib
from sana_runtime.engine_library import library_for
from sana_runtime.errors import BackendError
from sana_runtime.session import Device
library = library_for(Device.RTX)
for plan in (pathlib.Path(sys.argv[1]).read_bytes(), b"no engine" * 100):
    try:
        library.load(plan)
    except BackendError as error:
        print(error)
"""
DRIVE = """
import numpy as np
from sana_runtime.cuda_driver import CudaDriver
from sana_runtime.errors import MemoryLimitError
driver = CudaDriver()
stream, x, y = driver.stream(), np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
address = driver.allocate(x.nbytes)
driver.upload(address, x, stream)
driver.download(y, address, stream)
driver.wait(stream)
graph = driver.capture(lambda: None, stream)
driver.launch(graph, stream)
driver.drop_graph(graph)
driver.free(address)
driver.drop_stream(stream)
try:
    driver.allocate(1 << 22)
except MemoryLimitError as error:
    print(driver.version, driver.capability, (x == y).all(), error)
"""
NO_CARD = "this machine has no NVIDIA driver, and engines run on NVIDIA cards only; install it, or choose --device cpu"


def told(program, *arguments, **settings):
    """What a program prints in a process of its own, line by line."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    return done.stdout.splitlines() or done.stderr.splitlines()[-1:]


@pytest.fixture
def no_card():
    """Skips where there is one."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("an NVIDIA card is here")
    if find_spec("cuda") is None or find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed; pip install sana-export[rtx]")


def test_without_a_card_a_pipeline_does_not_open_and_says_in_one_line_why(no_card, sealed_bundle):
    lines = told(OPEN, sealed_bundle, Device.RTX.value)
    assert lines == [f"5 {NO_CARD}"]


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_its_library_a_device_says_what_to_install(sealed_bundle):
    (line,) = told(OPEN, sealed_bundle, Device.TENSORRT.value)
    assert line.startswith('5 tensorrt: TensorRT is not installed; pip install "sana-export[tensorrt]"')


def test_a_real_engine_without_a_card_is_refused_in_one_line(no_card, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "relu.onnx")
    job = rtx_builds.Job(str(tmp_path / "relu.onnx"), "SM89", {}, str(tmp_path / "relu.engine"))
    assert rtx_builds.build_all([job])[0].engine_bytes
    real, damaged = told(LOAD, tmp_path / "relu.engine")
    assert real.startswith("TensorRT-RTX refuses the engine (") and "CUDA" in real and "--device cpu" in real
    assert damaged == "the engine is damaged; build it again with `sana-export engine`"


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """Folder of a CUDA driver whose card is this process."""
    if find_spec("cuda") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs cuda-bindings and Linux")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", STUB], check=True)
    return folder


@pytest.mark.parametrize(
    ("cuda", "capability", "answer"),
    [
        ("13010", "89", "(13, 1) 89 True the card's memory is full: it could not give 4 MB; try a smaller size"),
        ("12040", "89", "the NVIDIA driver here is made for CUDA 12.4 and engines need 13.0; update the driver"),
        ("13000", "0", "the NVIDIA driver finds no card here; look at CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_driver_is_spoken_to_as_cuda_bindings_want_it(stub, tmp_path, cuda, capability, answer):
    record = tmp_path / "record"
    settings = {"SANA_CUDA": cuda, "SANA_CAPABILITY": capability, "SANA_RECORD": str(record)}
    (line,) = told(DRIVE, LD_LIBRARY_PATH=str(stub), **settings)
    assert answer in line
    if record.exists():
        acts = ["wait", "begin", "end", "drop graph", "start", "drop ready", "free", "drop stream"]
        assert record.read_text().splitlines() == acts
