"""The Mix-FFN's middle in Triton against PyTorch's convolution in float64, as floats and as int8 tokens."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

pytest.importorskip("triton")
from sana_plugins import mix_feed_forward
from sana_plugins.kernels.launch import Launch
from sana_plugins.mix_feed_forward import gated_depthwise, gated_depthwise_int8

LIMIT = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 8e-3}


def operands(shape, dtype, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    wide = shape[-1]
    sizes = (shape, (wide, 1, 3, 3), (wide,))
    return [torch.randn(size, generator=generator).to(dtype).to(device) for size in sizes]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("activated", [False, True])
def test_the_gate_is_that_of_float64(device, exact_gate, error, dtype, activated):
    x, weight, bias = operands((2, 3, 2, 140), dtype, 0, device)
    out = gated_depthwise(x, weight, bias, activated=activated)
    assert out.dtype == dtype and out.shape == (2, 3, 2, 70)
    assert error(out, exact_gate(x, weight, bias, activated)) <= LIMIT[dtype]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    grid=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)),
    hidden=st.integers(1, 20),
    dtype=st.sampled_from(list(LIMIT)),
    seed=st.integers(0, 99),
)
def test_any_small_picture_agrees_with_float64(device, exact_gate, error, grid, hidden, dtype, seed):
    with pytest.MonkeyPatch.context() as patch:  # tiles that do not divide these sizes, and few of them
        patch.setattr(mix_feed_forward, "GATE_LAUNCH", Launch({"BLOCK_T": 32, "BLOCK_C": 16}))
        x, weight, bias = operands((*grid, 2 * hidden), dtype, seed, device)
        assert error(gated_depthwise(x, weight, bias), exact_gate(x, weight, bias)) <= LIMIT[dtype]


def check_rounding(values, scale, exact):
    """The scale is the token's largest magnitude over 127, and each value is the nearest of the steps it makes."""
    torch.testing.assert_close(scale.double(), exact.abs().amax(-1) / 127, rtol=1e-5, atol=1e-30)
    steps = exact / scale.double()[..., None]
    assert (values.double() - steps).abs().max() <= 0.5 + 1e-3
    assert values.abs().max() <= 127 and (values.abs().amax(-1)[exact.abs().amax(-1) > 0] == 127).all()


def test_int8_tokens_are_rounded_to_the_nearest_step_of_their_own_scale(device, exact_gate):
    x, weight, bias = operands((1, 2, 3, 140), torch.float16, 1, device)
    x[0, 1, 1] *= 50  # one loud token must not take its neighbours' resolution
    values, scale = gated_depthwise_int8(x, weight, bias)
    assert values.dtype == torch.int8 and scale.shape == (1, 2, 3)
    check_rounding(values.cpu(), scale.cpu(), exact_gate(x, weight, bias).cpu())


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(height=st.integers(1, 4), width=st.integers(1, 4), hidden=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_small_picture_is_rounded_to_its_nearest_steps(device, exact_gate, height, width, hidden, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix_feed_forward, "GATE_INT8_LAUNCH", Launch({"BLOCK_T": 16, "BLOCK_C": 16}))
        x, weight, bias = operands((1, height, width, 2 * hidden), torch.float32, seed, device)
        values, scale = gated_depthwise_int8(x, weight, bias, activated=True)
    check_rounding(values.cpu(), scale.cpu(), exact_gate(x, weight, bias, True).cpu())


def test_a_token_of_zeros_becomes_zeros_with_a_usable_scale(device):
    x, weight, bias = operands((1, 1, 2, 32), torch.float16, 2, device)
    values, scale = gated_depthwise_int8(x * 0, weight, bias * 0)
    assert not values.any()
    assert (scale > 0).all() and torch.isfinite(scale).all()


def test_very_negative_inputs_give_numbers(device, exact_gate, error):
    x, weight, bias = operands((1, 1, 2, 32), torch.float32, 3, device)
    x = x.abs() * -1e4
    assert error(gated_depthwise(x, weight, bias), exact_gate(x, weight, bias)) <= 1e-5


def test_operands_that_do_not_fit_are_refused_with_the_shapes_to_give():
    x, weight, bias = operands((1, 2, 2, 32), torch.float32, 4)
    with pytest.raises(ValueError, match="give"):
        gated_depthwise(x[0], weight, bias)
    with pytest.raises(ValueError, match="give"):
        gated_depthwise(x, weight[:, :, :2], bias)


def test_it_stands_in_for_the_reference_feed_forward(device, error):
    from sana_reference.config import PRESETS
    from sana_reference.feed_forward import MixFeedForward

    torch.manual_seed(0)
    layer = MixFeedForward(PRESETS["tiny"]).to(device)
    x = torch.randn(1, 6, PRESETS["tiny"].dim, device=device)
    with torch.no_grad():
        wide = layer.expand(x).reshape(1, 2, 3, -1)
        fused = gated_depthwise(wide, layer.depthwise.weight, layer.depthwise.bias)
        values, scale = gated_depthwise_int8(F.silu(wide), layer.depthwise.weight, layer.depthwise.bias, activated=True)
        expected = layer(x, 2, 3)
    assert error(layer.contract(fused).flatten(1, 2), expected) <= 1e-5
    assert error(layer.contract(values * scale[..., None]).flatten(1, 2), expected) <= 2e-2
