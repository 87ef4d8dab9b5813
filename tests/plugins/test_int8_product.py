"""The W8A8 product in Triton against exact integers."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

pytest.importorskip("triton")
from sana_plugins import int8_product
from sana_plugins.int8_product import int8_linear

LIMIT = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}


def operands(lead, wide, deep, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (*lead, deep), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (wide, deep), generator=generator, dtype=torch.int8)
    scales = torch.rand(lead, generator=generator) / 100, torch.rand(wide, generator=generator) / 100
    return (x.to(device), scales[0].to(device)), (weight.to(device), scales[1].to(device))


def exact(x, weight):
    """The product of what the integers stand for, in float64."""
    return (x[0].double() * x[1].double()[..., None]) @ (weight[0].double() * weight[1].double()[:, None]).T


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("size", [(130, 140, 70), (1, 1, 1), (3, 129, 200)])
def test_the_product_is_that_of_exact_integers(device, error, dtype, size):
    rows, wide, deep = size
    x, weight = operands((rows,), wide, deep, 0, device)
    out = int8_linear(x, weight, dtype=dtype)
    assert out.dtype == dtype
    assert error(out, exact(x, weight)) <= LIMIT[dtype]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 20), st.integers(1, 80)),
    ends=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from(list(LIMIT)),
    seed=st.integers(0, 99),
)
def test_any_small_size_with_any_ends_agrees_with_float64(device, error, size, ends, dtype, seed):
    pictures, tokens, wide, deep = size
    with_bias, with_gate, activated = ends
    x, weight = operands((pictures, tokens), wide, deep, seed, device)
    bias = torch.randn(wide).to(dtype).to(device) if with_bias else None
    gate = torch.randn(pictures, wide).to(dtype).to(device) if with_gate else None
    expected = exact(x, weight) + (0 if bias is None else bias.double())
    expected = F.silu(expected) if activated else expected
    expected = expected if gate is None else expected * gate.double()[:, None]
    out = int8_linear(x, weight, bias, gate=gate, activated=activated, dtype=dtype)
    assert error(out, expected) <= LIMIT[dtype]


def test_sums_beyond_fp16_survive_to_an_fp16_output(device, error):
    x = torch.full((2, 300), 127, dtype=torch.int8, device=device), torch.full((2,), 1e-3, device=device)
    weight = torch.full((4, 300), 127, dtype=torch.int8, device=device), torch.full((4,), 1e-3, device=device)
    assert 127 * 127 * 300 > 65504
    out = int8_linear(x, weight, dtype=torch.float16)
    assert error(out, exact(x, weight)) <= LIMIT[torch.float16]


def test_a_weight_stored_the_other_way_round_is_read_in_place(device, monkeypatch):
    x, weight = operands((5,), 6, 40, 1, device)
    expected = int8_linear(x, weight)
    turned = weight[0].t().contiguous().t()
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda tensor: tensor)
    assert torch.equal(int8_linear(x, (turned, weight[1])), expected)


def test_turing_multiplies_as_fp16_and_loses_nothing(device, monkeypatch):
    deep = 2100  # all products at their largest: an fp32 sum of them would not be exact
    x = torch.full((2, deep), 127, dtype=torch.int8, device=device), torch.ones(2, device=device)
    weight = torch.full((3, deep), 127, dtype=torch.int8, device=device), torch.ones(3, device=device)
    x[0][0, ::2], weight[0][1, 1] = 126, -127
    monkeypatch.setattr(int8_product, "_capability", lambda _: 75)
    out = int8_linear(x, weight, dtype=torch.float32)
    assert torch.equal(out.double(), exact(x, weight).float().double())


@pytest.mark.parametrize("case", ["float tokens", "wrong depth", "half scales", "missing scales", "gate", "output"])
def test_what_does_not_fit_is_refused(case):
    (x, scale), (weight, channel) = operands((4,), 6, 40, 2)
    calls = {
        "float tokens": lambda: int8_linear((x.float(), scale), (weight, channel)),
        "wrong depth": lambda: int8_linear((x[:, :8], scale), (weight, channel)),
        "half scales": lambda: int8_linear((x, scale.half()), (weight, channel)),
        "missing scales": lambda: int8_linear((x, scale[:1]), (weight, channel)),
        "gate": lambda: int8_linear((x, scale), (weight, channel), gate=torch.ones(3, 6)),
        "output": lambda: int8_linear((x, scale), (weight, channel), dtype=torch.int8),
    }
    with pytest.raises(ValueError, match=r"give|is not one of"):
        calls[case]()
