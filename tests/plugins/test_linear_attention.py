"""ReLU linear attention in Triton against float64, forward and backward, in every type, shape and extreme."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from sana_plugins.linear_attention import HEAD_DIMS, attend, packed_relu_linear_attention, relu_linear_attention
from sana_plugins.splits import split_tokens

FORWARD = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
BACKWARD = {torch.float64: 1e-12, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# bf16 keeps 8 bits, and the interpreter cuts the others off where a GPU rounds: up to 2⁻⁷ instead of 2⁻⁸.

SMALL = {"batch": (1, 2), "heads": (1, 3), "tokens": (1, 40)}


def random_qkv(shape, dtype, seed, device="cpu", scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(shape, generator=generator) * scale).to(dtype).to(device) for _ in range(3))


@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (1, 129, 2, 32), (2, 300, 1, 16), (1, 200, 1, 64)])
def test_the_output_is_that_of_float64(device, exact_attention, error, shape, dtype):
    q, k, v = random_qkv(shape, dtype, 0, device)
    out = relu_linear_attention(q, k, v)
    assert out.dtype == dtype
    assert error(out, exact_attention(q, k, v)) <= FORWARD[dtype]


@pytest.mark.parametrize("dtype", BACKWARD)
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (1, 70, 2, 32), (2, 150, 1, 16), (1, 40, 1, 64)])
def test_gradients_are_those_of_float64_autograd(device, exact_attention, error, shape, dtype):
    inputs = [x.requires_grad_() for x in random_qkv(shape, dtype, 1, device)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype).to(device)
    relu_linear_attention(*inputs).backward(weight)
    exact_attention(*exact).backward(weight.double())
    for mine, theirs in zip(inputs, exact, strict=True):
        if theirs.grad.norm() > 1e-9:  # with one token the weights are 1, whatever q and k are
            assert error(mine.grad, theirs.grad) <= BACKWARD[dtype]


def test_gradcheck_agrees_with_finite_differences(device):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 3, 1, 16), torch.float64, 3, device))
    assert torch.autograd.gradcheck(relu_linear_attention, (q, k, v), fast_mode=True)
    q, k, v = (x.requires_grad_() for x in random_qkv((2, 5, 2, 16), torch.float64, 4, device))
    assert torch.autograd.gradcheck(relu_linear_attention, (q, k, v), fast_mode=True)


@settings(max_examples=130, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_any_small_shape_agrees_with_float64(device, exact_attention, error, data, dtype):
    batch, heads, tokens = (data.draw(st.integers(*SMALL[name]), label=name) for name in ("batch", "heads", "tokens"))
    width, seed = data.draw(st.sampled_from(HEAD_DIMS)), data.draw(st.integers(0, 99))
    q, k, v = random_qkv((batch, tokens, heads, width), dtype, seed, device, data.draw(st.sampled_from([0.01, 1, 30])))
    assert error(relu_linear_attention(q, k, v), exact_attention(q, k, v)) <= FORWARD[dtype]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.integers(2, 40),
    width=st.sampled_from(HEAD_DIMS),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_small_gradient_agrees_with_float64(device, exact_attention, error, tokens, width, dtype, seed):
    inputs = [x.requires_grad_() for x in random_qkv((1, tokens, 1, width), dtype, seed, device)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    relu_linear_attention(*inputs).sum().backward()
    exact_attention(*exact).sum().backward()
    limit = max(x.grad.norm() for x in exact)
    for mine, theirs in zip(inputs, exact, strict=True):
        assert float((mine.grad.double() - theirs.grad).norm() / limit) <= 2 * BACKWARD[dtype]


def test_the_packed_tensor_is_read_in_place_with_the_same_bits(device, monkeypatch):
    qkv = torch.cat(random_qkv((2, 20, 32), torch.float16, 5, device), dim=-1)
    separate = (part.contiguous().view(2, 20, 1, 32) for part in qkv.chunk(3, dim=-1))
    expected = relu_linear_attention(*separate).flatten(2)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("a third of qkv was copied"))
    assert torch.equal(packed_relu_linear_attention(qkv, 1), expected)


def test_two_runs_give_the_same_bits(device):
    q, k, v = random_qkv((1, 300, 2, 32), torch.float16, 6, device)
    first, second = attend(q, k, v), attend(q, k, v)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("tokens", [1, 128, 129, 1000, 1024, 16384, 16385, 100_000])
def test_splits_cover_every_token_once_and_are_few(tokens):
    chunk, splits = split_tokens(tokens)
    assert (splits - 1) * chunk < tokens <= splits * chunk
    assert 1 <= splits <= 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_without_a_positive_part_gets_zero_not_nan(device, dtype):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 9, 1, 32), dtype, 7, device))
    with torch.no_grad():
        q[0, 4] = -q[0, 4].abs()
    out = relu_linear_attention(q, k, v)
    out.float().sum().backward()
    assert torch.equal(out[0, 4], torch.zeros_like(out[0, 4]))
    assert torch.equal(q.grad[0, 4], torch.zeros_like(q.grad[0, 4]))
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_all_zero_keys_give_zero_everywhere(device):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 9, 1, 32), torch.float16, 8, device))
    out = relu_linear_attention(q, k * 0, v)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out))
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_activations_of_ten_thousand_do_not_overflow_fp16(device, exact_attention, error):
    q, k, v = random_qkv((1, 300, 1, 32), torch.float16, 9, device, scale=1e4)
    out = relu_linear_attention(q, k, v.clamp(-60000, 60000))
    assert torch.isfinite(out).all()
    assert error(out, exact_attention(q, k, v.clamp(-60000, 60000))) <= FORWARD[torch.float16]


def test_relu_passes_no_gradient_at_exactly_zero_as_in_torch(device):
    q, k, v = random_qkv((1, 6, 1, 32), torch.float32, 10, device)
    q[..., ::2], k[..., 1::2] = 0, 0
    q[..., 0], k[..., 0] = 1, 1
    inputs = [x.requires_grad_() for x in (q, k, v)]
    relu_linear_attention(*inputs).square().sum().backward()
    assert not q.grad[q == 0].any() and not k.grad[k == 0].any()
    assert q.grad[q > 0].any() and k.grad[k > 0].any()


@pytest.mark.parametrize(
    ("shape", "dtype", "says"),
    [
        ((1, 4, 1, 24), torch.float32, "head_dim 24"),
        ((1, 4, 32), torch.float32, "one shape"),
        ((1, 0, 1, 32), torch.float32, "at least one token"),
        ((1, 4, 1, 32), torch.int8, "floating-point"),
    ],
)
def test_what_no_kernel_computes_is_refused_with_the_remedy(shape, dtype, says):
    q = torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=says):
        attend(q, q, q)


def test_the_operator_obeys_the_rules_that_tracing_relies_on(device):
    q, k, v = (x.requires_grad_() for x in random_qkv((1, 5, 1, 16), torch.float32, 11, device))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.sana.relu_linear_attention_with_state, (q, k, v), test_utils=checks)
