"""Time every Triton kernel and a whole 0.6B block against eager PyTorch and torch.compile, beside the card's ceilings.

    python bench/gpu_kernels.py            on a GPU: 512² to 4096², batch 2, fp16; prints a table, writes JSON
    python bench/gpu_kernels.py --dry-run  anywhere: tiny sizes through Triton's interpreter, to see that all of it runs

Each figure is the median of single runs between which the cache is flushed. Bytes are what must move if each operand is
read once and each result written once, so that the achieved bandwidth cannot exceed the measured one unless the cache
helps. Before anything is timed its result is compared with eager's.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ARGUMENTS = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ARGUMENTS.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, interpreted")
ARGUMENTS.add_argument("--output", type=Path, default=Path("out/gpu-kernels.json"))
OPTIONS = ARGUMENTS.parse_args()
if OPTIONS.dry_run:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton asks when it is first imported

import torch  # noqa: E402
from sana_plugins.fused_attention import FusedLinearAttention  # noqa: E402
from sana_plugins.int8_product import int8_linear  # noqa: E402
from sana_plugins.linear_attention import packed_relu_linear_attention, split_packed  # noqa: E402
from sana_plugins.mix_feed_forward import gated_depthwise, gated_depthwise_int8  # noqa: E402
from sana_reference.attention import LinearAttention, mask_bias, relu_linear_attention  # noqa: E402
from sana_reference.config import PRESETS, SanaConfig  # noqa: E402
from sana_reference.feed_forward import MixFeedForward  # noqa: E402
from sana_reference.transformer import Block  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

Call = Callable[[], Tensor]
BATCH = 2
TOLERANCE = 2e-2  # fp16 through several roundings; a wrong kernel is off by its whole size


@dataclass(frozen=True)
class Setting:
    """What is run on: where, in what type, on which model, at which grid of tokens, how often."""

    device: str
    dtype: torch.dtype
    config: SanaConfig
    side: int
    runs: int

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.side * self.side

    def random(self, *shape: int) -> Tensor:
        """Random values of this type on this device."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Case:
    """One computation in PyTorch and in Triton, how both are run, and the work that cannot be avoided."""

    name: str
    eager: Call
    triton: Call
    run: Callable[[Call], Call]
    compulsory_bytes: int
    operations: int
    kind: str = "fp16"


@dataclass(frozen=True)
class Figures:
    """What one case took."""

    name: str
    side: int
    milliseconds: dict[str, float]
    relative_error: float
    bandwidth_share: float
    rate_share: float


def attention_cases(setting: Setting) -> Iterator[Case]:
    """Linear attention on a packed tensor, forward and both ways."""
    config, heads = setting.config, setting.config.heads
    qkv = setting.random(BATCH, setting.tokens, 3 * config.dim).requires_grad_()
    grad = setting.random(BATCH, setting.tokens, config.dim)
    size = BATCH * setting.tokens * config.dim * setting.dtype.itemsize
    work = 4 * BATCH * setting.tokens * config.dim * config.head_dim

    def eager() -> Tensor:
        return relu_linear_attention(*split_packed(qkv, heads)).flatten(2)

    def triton() -> Tensor:
        return packed_relu_linear_attention(qkv, heads)

    yield Case("attention forward", eager, triton, without_gradients, 4 * size, work)
    yield Case("attention forward and backward", eager, triton, both_ways((qkv,), grad), 8 * size, 3 * work)


def layer_cases(setting: Setting) -> Iterator[Case]:
    """The attention layer with its projections, both ways."""
    dim = setting.config.dim
    layer = LinearAttention(setting.config).to(setting.device, setting.dtype)
    fused = FusedLinearAttention(layer.qkv, layer.out, layer.heads)
    x = (setting.random(BATCH, setting.tokens, dim)).requires_grad_()
    grad = setting.random(BATCH, setting.tokens, dim)
    rows = BATCH * setting.tokens
    size, weights = rows * dim * setting.dtype.itemsize, 4 * dim * dim * setting.dtype.itemsize
    run = both_ways((x, *layer.parameters()), grad)
    calls = lambda: layer(x), lambda: fused(x)
    yield Case("attention layer forward and backward", *calls, run, 4 * size + 2 * weights, 3 * 8 * rows * dim * dim)


def feed_forward_cases(setting: Setting) -> Iterator[Case]:
    """The Mix-FFN's middle, to floats and to int8."""
    layer = MixFeedForward(setting.config).to(setting.device, setting.dtype)
    wide = 2 * setting.config.hidden
    x = setting.random(BATCH, setting.side, setting.side, wide)
    weight, bias = layer.depthwise.weight, layer.depthwise.bias
    count = x.numel()

    def eager() -> Tensor:
        mixed = layer.depthwise(F.silu(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        value, gate = mixed.chunk(2, dim=-1)
        return value * F.silu(gate)

    def eager_int8() -> Tensor:
        out = eager().float()
        return (out / (out.abs().amax(-1, keepdim=True) / 127)).round().to(torch.int8)

    size = setting.dtype.itemsize
    calls = eager, lambda: gated_depthwise(x, weight, bias)
    yield Case("depthwise gate", *calls, without_gradients, count * size * 3 // 2, 18 * count)
    calls = eager_int8, lambda: gated_depthwise_int8(x, weight, bias)[0]
    yield Case("depthwise gate int8", *calls, without_gradients, count * size + count // 2, 18 * count)


def int8_cases(setting: Setting) -> Iterator[Case]:
    """The expand product in W8A8."""
    rows, deep, wide = BATCH * setting.tokens, setting.config.dim, 2 * setting.config.hidden
    x, weight = (torch.randint(-127, 128, (n, deep), dtype=torch.int8, device=setting.device) for n in (rows, wide))
    scales = [torch.rand(n, device=setting.device) / 1000 for n in (rows, wide)]
    bias = setting.random(wide)

    def eager() -> Tensor:
        total = torch._int_mm(x, weight.t()).float() * scales[0][:, None] * scales[1]
        return (total + bias).to(setting.dtype)

    def triton() -> Tensor:
        return int8_linear((x, scales[0]), (weight, scales[1]), bias, dtype=setting.dtype)

    moved = rows * deep + wide * deep + rows * wide * setting.dtype.itemsize
    yield Case("W8A8 expand", eager, triton, without_gradients, moved, 2 * rows * deep * wide, "int8")


class FusedFeedForward(nn.Module):
    """The Mix-FFN with its middle in Triton; forward only."""

    def __init__(self, layer: MixFeedForward) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Transform (B, height · width, C) tokens."""
        wide = self.layer.expand(x).reshape(-1, height, width, self.layer.expand.out_features)
        middle = gated_depthwise(wide, self.layer.depthwise.weight, self.layer.depthwise.bias)
        return self.layer.contract(middle.flatten(1, 2))


def block_cases(setting: Setting) -> Iterator[Case]:
    """A whole block, forward as in inference and both ways as in training."""
    config, rows = setting.config, BATCH * setting.tokens
    plain, fused, serving = (Block(config).to(setting.device, setting.dtype) for _ in range(3))
    for block in (fused, serving):
        block.load_state_dict(plain.state_dict())
        attention = block.attention
        block.attention = FusedLinearAttention(attention.qkv, attention.out, attention.heads)
    serving.feed_forward = FusedFeedForward(serving.feed_forward)
    x = setting.random(BATCH, setting.tokens, config.dim).requires_grad_()
    grad, modulation = torch.randn_like(x), setting.random(BATCH, 6, config.dim)
    text = (setting.random(BATCH, 300, config.dim), setting.random(BATCH, 300, config.dim))
    bias = mask_bias(torch.ones(BATCH, 300, device=setting.device))

    def call(block: Block) -> Call:
        return lambda: block(x, modulation, (*text, bias), (setting.side, setting.side))

    weights = sum(p.numel() for p in plain.parameters())
    work, size = 2 * rows * weights, x.numel() * setting.dtype.itemsize
    moved = weights * setting.dtype.itemsize + 2 * size
    yield Case("block forward", call(plain), call(serving), without_gradients, moved, work)
    run = both_ways((x, *plain.parameters(), *fused.parameters()), grad)
    yield Case("block forward and backward", call(plain), call(fused), run, 2 * moved, 3 * work)


def without_gradients(call: Call) -> Call:
    """`call` as in inference."""
    return torch.no_grad()(call)


def both_ways(leaves: tuple[Tensor, ...], grad: Tensor) -> Callable[[Call], Call]:
    """How to run a call and its backward; the result is the gradient of the first leaf, which depends on all else."""

    def around(call: Call) -> Call:
        def run() -> Tensor:
            for leaf in leaves:
                leaf.grad = None
            call().backward(grad)
            return leaves[0].grad

        return run

    return around


CASES = (attention_cases, layer_cases, feed_forward_cases, int8_cases, block_cases)


def milliseconds(call: Call, setting: Setting) -> float:
    """The median time of one run, the cache flushed before each."""
    if setting.device == "cpu":
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)
    flush = torch.empty(1 << 28, dtype=torch.int8, device=setting.device)
    for _ in range(5):
        call()
    times = []
    for _ in range(setting.runs):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def ceilings(setting: Setting) -> dict[str, float]:
    """What this card reaches at best: copied bytes a second, and fp16 and int8 operations a second."""
    tiny = setting.device == "cpu"
    side = 64 if tiny else 8192
    source = torch.empty(1 << (16 if tiny else 30), dtype=torch.int8, device=setting.device)
    target = torch.empty_like(source)
    a, b = setting.random(side, side), setting.random(side, side)
    x, y = (torch.randint(-9, 9, (side, side), dtype=torch.int8, device=setting.device) for _ in range(2))
    return {
        "copy": 2 * source.numel() / milliseconds(lambda: target.copy_(source), setting) * 1000,
        "fp16": 2 * side**3 / milliseconds(lambda: a @ b, setting) * 1000,
        "int8": 2 * side**3 / milliseconds(lambda: torch._int_mm(x, y.t()), setting) * 1000,
    }


def measure(case: Case, setting: Setting, limits: dict[str, float]) -> Figures:
    """Check the case, then time it eagerly, compiled and in Triton."""
    torch.compiler.reset()
    compiled = torch.compile(case.eager, backend="eager" if setting.device == "cpu" else "inductor")
    calls = {"eager": case.run(case.eager), "compiled": case.run(compiled), "triton": case.run(case.triton)}
    expected, actual = (calls[name]().detach().float().clone() for name in ("eager", "triton"))
    error = float((actual - expected).norm() / expected.norm())
    if not error <= TOLERANCE:
        raise SystemExit(f"{case.name} at {setting.side}²: Triton is off by {error:.1e}, so its time is worth nothing")
    taken = {name: milliseconds(call, setting) for name, call in calls.items()}
    seconds = taken["triton"] / 1000
    return Figures(
        case.name,
        setting.side * 32,
        taken,
        error,
        case.compulsory_bytes / seconds / limits["copy"],
        case.operations / seconds / limits[case.kind],
    )


def line(figures: Figures) -> str:
    """One row of the table."""
    eager, compiled, triton = (figures.milliseconds[name] for name in ("eager", "compiled", "triton"))
    times = f"{eager:10.3f}{compiled:10.3f}{triton:10.3f}{eager / triton:8.2f}x{compiled / triton:8.2f}x"
    shares = f"{figures.bandwidth_share:8.0%}{figures.rate_share:8.0%}{figures.relative_error:10.1e}"
    return f"{figures.name:38}{figures.side:6}²{times}{shares}"


def settings() -> list[Setting]:
    """The sizes to run: four on a GPU, one tiny in a dry run."""
    if OPTIONS.dry_run:
        return [Setting("cpu", torch.float32, replace(PRESETS["tiny"], name="dry-run"), 3, 1)]
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; run with --dry-run to see that everything works")
    return [Setting("cuda", torch.float16, PRESETS["sana-600m"], side, 30) for side in (16, 32, 64, 128)]


def main() -> None:
    """Measure, print, write."""
    sizes = settings()
    limits = ceilings(sizes[0])
    name = "dry run, interpreted: no figure means anything" if OPTIONS.dry_run else torch.cuda.get_device_name()
    rates = ", ".join(f"{kind} {value / 1e12:.2f}" for kind, value in limits.items())
    print(f"{name}\nmeasured ceilings in TB/s and TOP/s: {rates}; times in ms")
    heads = ("eager", "compiled", "triton", "/eager", "/comp.", "bytes", "rate", "error")
    print(
        " " * 45 + "".join(f"{head:>{width}}" for head, width in zip(heads, (10, 10, 10, 9, 9, 8, 8, 10), strict=True))
    )
    figures = []
    for setting in sizes:
        for cases in CASES:
            for case in cases(setting):
                figures.append(measure(case, setting, limits))
                print(line(figures[-1]), flush=True)
    OPTIONS.output.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "device": name,
        "torch": torch.__version__,
        "ceilings": limits,
        "cases": [asdict(each) for each in figures],
    }
    OPTIONS.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
