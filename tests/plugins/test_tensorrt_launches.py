"""What the TensorRT plugin tells the driver: programs, grids, arguments and workspace, without a GPU."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from sana_plugins.kernels import linear_attention as kernels
from sana_plugins.kernels.launch import accumulation, arithmetic
from sana_plugins.tensorrt.attention import ATTENTION, Sizes, attention_launches, thirds, workspace_bytes
from sana_plugins.tensorrt.mix_ffn import GATED_DEPTHWISE, gate_launches
from sana_plugins.tensorrt.operators import Memory
from sana_plugins.tensorrt.shipped import FOLDER, INDEX, PluginError, kernel_for, shipped

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCES = {"fp16": 2e-3, "bf16": 1e-2, "fp32": 2e-6}  # of the largest output; one rounding of it at the end
ADDRESSES = tuple(0x7F0000000000 + 16 * i for i in range(5))  # q, k, v, state, out
APART = Memory(ADDRESSES[:3], ADDRESSES[4:], ADDRESSES[3])
STUB = Path(__file__).parents[1] / "recording_libcuda.c"
DRIVE = """
from sana_plugins.tensorrt.driver import programs
from sana_plugins.tensorrt.operators import Memory
from sana_plugins.tensorrt.plugin import OPERATORS
attention, middle = OPERATORS
runs = ((attention, (2, 1025, 36, 32), Memory((16, 32, 48), (80,), 64)),
        (middle, (2, 7, 33, 5760), Memory((16, 32, 48), (64, 80))))
for operator, dims, memory in (*runs, *runs):
    loaded = programs(operator.kernels, "fp16")
    for launch in operator.launches(loaded.kernels, dims, 2, memory):
        loaded.start(launch, 0x77)
"""


def programs_of(operator, element, capability):
    return tuple(kernel_for(name, element, capability) for name in operator.kernels)


def both(element, capability):
    return programs_of(ATTENTION, element, capability)


def interpret(launch, memory, dtype):
    """Run one launch through Triton's interpreter, its pointers replaced by the tensors they stand for."""
    summing = launch.kernel.kernel == "sum_key_values"
    numbers = (arithmetic if summing else accumulation)(dtype)
    tensors = [memory[pointer] for pointer in launch.pointers]
    sizes = {"D": 32, "BLOCK": launch.kernel.block, **numbers}
    getattr(kernels, launch.kernel.kernel)[launch.grid](*tensors, *launch.numbers, **sizes)


@pytest.mark.parametrize(("element", "capability"), [("fp16", 75), ("fp16", 89), ("bf16", 86), ("fp32", 120)])
@pytest.mark.parametrize("tokens", [1, 129, 1100])
def test_the_launches_compute_linear_attention(tokens, element, capability, exact_attention):
    if not kernels.triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here; the launches run there, in the engines' own tests")
    dtype, shape = DTYPES[element], (2, tokens, 3, 32)
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    state = torch.full((workspace_bytes(shape) // 4,), torch.nan)
    out = torch.full(shape, torch.nan, dtype=dtype)
    memory = dict(zip(ADDRESSES, (q, k, v, state, out), strict=True))
    for launch in attention_launches(both(element, capability), shape, dtype.itemsize, APART):
        interpret(launch, memory, dtype)
    expected = exact_attention(q, k, v)
    assert (out.double() - expected).abs().max() <= TOLERANCES[element] * expected.abs().max()


@pytest.mark.parametrize(("element", "tokens"), [("fp16", 300), ("fp32", 33)])
def test_a_packed_tensor_is_read_where_it_lies(tokens, element, exact_attention):
    if not kernels.triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here; the launches run there, in the engines' own tests")
    dtype, shape = DTYPES[element], (2, tokens, 3 * 96)
    packed = torch.randn(2, tokens, 288, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    state = torch.full((workspace_bytes(shape) // 4,), torch.nan)
    out = torch.full((2, tokens, 96), torch.nan, dtype=dtype)
    qkv = thirds(4096, Sizes.of(shape), dtype.itemsize)
    views = [packed.view(-1)[(address - 4096) // dtype.itemsize :] for address in qkv]
    memory = dict(zip((*qkv, 16, 32), (*views, state, out), strict=True))
    for launch in attention_launches(both(element, 86), shape, dtype.itemsize, Memory((4096,), (32,), 16)):
        interpret(launch, memory, dtype)
    expected = exact_attention(*(third.reshape(2, tokens, 3, 32) for third in packed.chunk(3, dim=2)))
    assert (out.double() - expected.flatten(2)).abs().max() <= TOLERANCES[element] * expected.abs().max()


def run_on_card(operator, element, inputs, outputs, state=None):
    """What `enqueue` does, on PyTorch's tensors and stream."""
    from sana_plugins.tensorrt.driver import programs

    held = [tensor.data_ptr() for tensor in (*inputs, *outputs)]
    lies = Memory(tuple(held[: len(inputs)]), tuple(held[len(inputs) :]), state.data_ptr() if state is not None else 0)
    loaded = programs(operator.kernels, element)
    for launch in operator.launches(loaded.kernels, tuple(inputs[0].shape), inputs[0].itemsize, lies):
        loaded.start(launch, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


@pytest.fixture
def card():
    """Whether PyTorch has one; skips the test where it has none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; the interpreter stands in for it")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("element", ["fp16", "fp32"])
@pytest.mark.parametrize("packed", [False, True])
def test_on_a_card_the_shipped_programs_compute_linear_attention(packed, element, card, exact_attention):
    dtype, shape = DTYPES[element], (2, 1100, 3, 32)
    together = torch.randn(2, 1100, 288, device=card).to(dtype)
    q, k, v = (third.reshape(shape).contiguous() for third in together.chunk(3, dim=2))
    out = torch.full(shape, torch.nan, dtype=dtype, device=card)
    state = torch.full((workspace_bytes(shape) // 4,), torch.nan, device=card)
    run_on_card(ATTENTION, element, (together,) if packed else (q, k, v), (out,), state)
    expected = exact_attention(q, k, v)
    assert (out.double() - expected).abs().max() <= TOLERANCES[element] * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("element", ["fp16", "fp32"])
def test_on_a_card_the_shipped_program_convolves_gates_and_rounds(element, card, exact_gate):
    shape = (2, 5, 7, 320)
    x, weight, bias = (torch.randn(size, device=card).to(DTYPES[element]) for size in (shape, (320, 1, 3, 3), (320,)))
    codes = torch.full((2, 35, 160), 99, dtype=torch.int8, device=card)
    step = torch.full((2, 35, 1), torch.nan, device=card)
    taps = weight.reshape(320, 9).t().contiguous()
    run_on_card(GATED_DEPTHWISE, element, (x, taps, bias), (codes, step))
    exact = exact_gate(x, weight, bias, True).flatten(1, 2)
    torch.testing.assert_close(step.double(), exact.abs().amax(-1, keepdim=True) / 127, rtol=1e-5, atol=0)
    assert (codes - exact / step).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("largest", [1, 127, 1024, 1025, 4096, 16384])
def test_the_workspace_holds_the_sums_of_every_shorter_sequence(largest):
    for tokens in {*range(1, min(largest, 300)), *range(max(1, largest - 300), largest + 1)}:
        summing, _ = attention_launches(both("fp16", 80), (2, tokens, 3, 32), 2, APART)
        pairs, splits, _ = summing.grid
        assert 4 * pairs * splits * 33 * 32 <= workspace_bytes((2, largest, 3, 32))


@pytest.mark.parametrize("bad", [8, 0])
def test_memory_that_the_kernels_would_misread_is_refused(bad):
    with pytest.raises(PluginError, match="aligned to 16 bytes"):
        attention_launches(both("fp16", 80), (1, 1, 1, 32), 2, Memory((16, bad, 48), (80,), 64))
    with pytest.raises(PluginError, match="aligned to 16 bytes"):
        attention_launches(both("fp16", 80), (1, 1, 1, 32), 2, Memory((16, 32, 48), (80,), bad))
    with pytest.raises(PluginError, match="aligned to 16 bytes"):
        gate_launches(programs_of(GATED_DEPTHWISE, "fp16", 80), (1, 1, 1, 32), 2, Memory((16, 32, 48), (64, bad)))


def test_a_card_gets_the_newest_program_it_can_run_and_turing_no_bfloat16():
    chosen = {capability: kernel_for("apply_queries", "fp16", capability).target for capability in (75, 80, 89, 120)}
    assert chosen == {75: 75, 80: 80, 89: 80, 120: 80}
    with pytest.raises(PluginError, match=r"bf16 has no program for compute capability 7\.5"):
        kernel_for("sum_key_values", "bf16", 75)


@pytest.mark.parametrize(
    ("operator", "dims", "memory"),
    [(ATTENTION, (1, 1, 1, 32), APART), (GATED_DEPTHWISE, (1, 1, 1, 32), Memory(ADDRESSES[:3], ADDRESSES[3:]))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_program_takes_the_arguments_that_are_passed(operator, dims, memory):
    kernels = [kernel for kernel in shipped() if kernel.kernel in operator.kernels]
    assert {(kernel.element, kernel.target) for kernel in kernels} == {
        *((element, 80) for element in DTYPES),
        *((element, 75) for element in ("fp16", "fp32")),
    }
    for kernel in kernels:
        launch = operator.launches((kernel,) * len(operator.kernels), dims, 2, memory)[0]
        kinds = {"c_void_p": ".u64", "c_int": ".u32"}
        ptx = kernel.ptx.decode()
        header = ptx.split(f".entry {kernel.entry}(")[1].split(")")[0]
        widths = [line.split()[1] for line in header.splitlines() if ".param" in line]
        assert widths == [kinds[kind.__name__] for kind in launch.parameters[1]]
        assert f".target sm_{kernel.target}\n" in ptx and f".reqntid {kernel.threads}" in ptx
        assert ptx.endswith("\0")


def test_the_shipped_programs_are_those_of_the_kernels(tmp_path):
    compiler = json.loads((FOLDER / INDEX).read_text())["triton"]
    if compiler != version("triton"):
        pytest.skip(f"shipped programs were compiled by Triton {compiler}, here is {version('triton')}")
    program = (
        "import sys; from pathlib import Path; from sana_plugins.tensorrt.ship import ship; ship(Path(sys.argv[1]))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    subprocess.run([sys.executable, "-c", program, tmp_path / "ptx"], check=True, env=environment)
    for made in (tmp_path / "ptx").iterdir():
        assert made.read_bytes() == (FOLDER / made.name).read_bytes(), (
            f"{made.name} is stale; run `python -m sana_plugins.tensorrt.ship`"
        )
    assert {made.name for made in (tmp_path / "ptx").iterdir()} == {INDEX, *(row.file for row in shipped())}


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """Folder of a CUDA driver that records launches."""
    pytest.importorskip("cuda.bindings")
    if not sys.platform.startswith("linux"):
        pytest.skip("the recording driver is made for Linux")
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", STUB], check=True)
    return folder


def drive(stub, record, capability):
    """Run `DRIVE` on a pretended card; what the driver was asked, a line a call."""
    settings = {"SANA_CAPABILITY": str(capability), "SANA_RECORD": str(record), "LD_LIBRARY_PATH": str(stub)}
    command = [sys.executable, "-c", DRIVE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings)
    return done, record.read_text().splitlines() if record.exists() else []


def test_the_driver_receives_what_the_kernels_expect_and_loads_each_program_once(stub, tmp_path):
    done, lines = drive(stub, tmp_path / "record", 86)
    assert done.returncode == 0, done.stderr
    loads, starts = [[line for line in lines if line.startswith(what)] for what in ("load", "launch")]
    assert [line.split()[:2] for line in loads] == [["load", "sm_80"]] * 3
    # handle, grid, block, shared memory, stream | three addresses | tokens, chunk or splits, heads, strides | nulls
    summing = "launch 0x3000 72 5 1 128 1 1 16640 0x77 0x20 0x30 0x40 1025 256 36 1152 1152 1 1 1"
    applying = "launch 0x4000 9 72 1 128 1 1 8192 0x77 0x10 0x40 0x50 1025 5 36 1152 1152 1 1 1"
    # handle, grid, block, shared memory, stream | five addresses | rows, height, width, h | nulls
    gate = "launch 0x8000 116 1 1 128 1 1 16 0x77 0x10 0x20 0x30 0x40 0x50 462 7 33 2880 1 1 1"
    assert starts == [summing, applying, gate] * 2


def test_turing_gets_its_own_program(stub, tmp_path):
    done, lines = drive(stub, tmp_path / "record", 75)
    assert done.returncode == 0, done.stderr
    loads = [line for line in lines if line.startswith("load")]
    assert [line.split()[:2] for line in loads] == [["load", "sm_75"]] * 3


def test_a_card_older_than_every_program_is_refused_in_one_line(stub, tmp_path):
    done, lines = drive(stub, tmp_path / "record", 61)
    assert "no program for compute capability 6.1; use an engine without the plugin" in done.stderr.splitlines()[-1]
    assert not lines
