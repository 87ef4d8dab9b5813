"""The fused attention layer against autograd in float64, and a whole training step of the reference model."""

import copy

import pytest
import torch
from sana_reference.config import PRESETS
from sana_reference.transformer import SanaTransformer
from torch.nn import functional as F

pytest.importorskip("triton")
from sana_plugins.fused_attention import fuse_attention, fused_linear_attention, output_gradient, project_qkv

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# bf16 passes three roundings in a row, each cut off in the interpreter.


def layer_inputs(dtype, device, tokens=40, dim=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((2, tokens, dim), (3 * dim, dim), (dim, dim), (dim,))
    return [(torch.randn(size, generator=generator) / 4).to(dtype).to(device).requires_grad_() for size in sizes]


def plain_layer(attention, x, qkv, out, bias, heads):
    """The layer without fusion, around an oracle's attention."""
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (x @ qkv.T).chunk(3, dim=-1))
    return F.linear(attention(q, k, v).flatten(2), out, bias)


@pytest.mark.parametrize("dtype", LIMIT)
def test_the_layer_and_every_gradient_are_those_of_float64(device, exact_attention, error, dtype):
    inputs = layer_inputs(dtype, device)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = fused_linear_attention(*inputs, 2), plain_layer(exact_attention, *exact, 2)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    y.backward(weight)
    expected.backward(weight.double())
    assert error(y, expected) <= LIMIT[dtype]
    for mine, theirs in zip(inputs, exact, strict=True):
        assert error(mine.grad, theirs.grad) <= LIMIT[dtype]


def test_gradcheck_agrees_with_finite_differences(device):
    inputs = layer_inputs(torch.float64, device, tokens=3, dim=16)
    assert torch.autograd.gradcheck(lambda *xs: fused_linear_attention(*xs, 1), inputs, fast_mode=True)


def test_the_projection_ends_with_the_relu_of_q_and_k_but_not_of_v(device):
    x, qkv, _, _ = layer_inputs(torch.float32, device, tokens=70, dim=48)
    expected = x @ qkv.T
    expected[..., :96] = expected[..., :96].relu()
    torch.testing.assert_close(project_qkv(x, qkv), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "width"), [(3, 16), (5, 32), (3, 64)])
def test_the_output_gradient_ends_with_its_product_with_the_output_by_head(device, heads, width):
    torch.manual_seed(2)
    grad = torch.randn(2, 9, heads * width, device=device)
    weight = torch.randn(heads * width, heads * width, device=device)
    attended = torch.randn(2, 9, heads, width, device=device)
    gradient, delta = output_gradient(grad, weight, attended)
    expected = (grad @ weight).view_as(attended)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(delta, (expected * attended).sum(-1), rtol=1e-4, atol=1e-3)


def train_one_step(model, seed=3):
    """The flow-matching loss of one noisy batch; gradients are left in the model."""
    config, device = model.config, model.patch.weight.device
    generator = torch.Generator().manual_seed(seed)
    latent, noise = (torch.randn(2, config.latent_channels, 3, 4, generator=generator).to(device) for _ in range(2))
    text = torch.randn(2, 5, config.text_dim, generator=generator).to(device)
    time = torch.tensor([200.0, 700.0], device=device)
    level = (time / 1000).view(2, 1, 1, 1)
    noisy = (1 - level) * latent + level * noise
    velocity = model(noisy, time, model.caption(text), torch.ones(2, 5, device=device))
    loss = (velocity - (noise - latent)).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("how", ["switch", "fused"])
def test_a_training_step_has_the_same_loss_and_every_gradient(device, error, how):
    torch.manual_seed(4)
    plain = SanaTransformer(PRESETS["tiny"]).to(device)
    triton = copy.deepcopy(plain)
    if how == "switch":
        triton.use_attention("triton")
    else:
        assert fuse_attention(triton) == PRESETS["tiny"].depth
    expected, loss = train_one_step(plain), train_one_step(triton)
    assert error(loss, expected) <= 1e-5
    gradients = dict(plain.named_parameters())
    assert dict(triton.named_parameters()).keys() == gradients.keys()
    for name, parameter in triton.named_parameters():
        assert error(parameter.grad, gradients[name].grad) <= 1e-4, name


def test_a_model_that_normalises_q_and_k_is_refused():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Module()])
    model.blocks[0].attention = torch.nn.Module()
    model.blocks[0].attention.norm_q = model.blocks[0].attention.norm_k = torch.nn.LayerNorm(8)
    with pytest.raises(ValueError, match="triton"):
        fuse_attention(model)


def test_operands_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="give"):
        project_qkv(torch.zeros(1, 2, 16), torch.zeros(48, 32))
