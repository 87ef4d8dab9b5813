"""What the kernels' tests share: where they run, and the exact answers in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where kernels run: interpreted on the CPU where there is no GPU, launched on the GPU where there is one."""
    knobs = pytest.importorskip("triton").knobs
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; the interpreter stands in for it")
    if request.param == "cuda" and knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set; unset it to launch kernels on the GPU")
    if request.param == "cpu" and not knobs.runtime.interpret:
        pytest.skip("a GPU is here, so kernels are launched, not interpreted")
    return str(request.param)


@pytest.fixture(scope="session")
def exact_attention() -> Attention:
    """Linear attention as it is written down, in float64, by quadratic attention: every weight is formed."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bnhd,bmhd->bhnm", q.double().relu(), k.double().relu())
        total = weights.sum(-1, keepdim=True) + 1e-15
        return torch.einsum("bhnm,bmhd->bnhd", weights / total, v.double())

    return attention


@pytest.fixture(scope="session")
def exact_gate() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """SiLU, depthwise convolution and gate of channels-last tokens in float64, by PyTorch's own convolution."""

    def gate(x: Tensor, weight: Tensor, bias: Tensor, activated: bool = False) -> Tensor:
        planes = x.double().permute(0, 3, 1, 2)
        planes = planes if activated else F.silu(planes)
        mixed = F.conv2d(planes, weight.double(), bias.double(), padding=1, groups=len(bias)).permute(0, 2, 3, 1)
        value, gates = mixed.chunk(2, dim=-1)
        return value * F.silu(gates)

    return gate


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Norm of the difference over the norm of what was expected."""

    def relative(actual: Tensor, expected: Tensor) -> float:
        difference = (actual.detach().double().cpu() - expected.detach().double().cpu()).norm()
        return float(difference / expected.detach().double().cpu().norm().clamp(min=1e-300))

    return relative
