"""Linear attention against attention written out, and where half precision would break it."""

import torch
from sana_reference.attention import relu_linear_attention


def test_linear_attention_equals_attention_written_out() -> None:
    q, k, v = torch.randn(3, 2, 11, 4, 8, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    scores = torch.einsum("bnhd,bmhd->bhnm", q.relu(), k.relu()).double()
    expected = torch.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdim=True), v.double())
    assert (relu_linear_attention(q, k, v) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_linear_attention_of_a_query_that_sees_nothing_is_zero_even_in_fp16() -> None:
    q, k, v = -torch.ones(1, 5, 2, 8), torch.ones(1, 5, 2, 8), torch.ones(1, 5, 2, 8)
    assert torch.equal(relu_linear_attention(q.half(), k.half(), v.half()), torch.zeros(1, 5, 2, 8).half())


def test_linear_attention_sums_beyond_the_range_of_fp16() -> None:
    x = torch.full((1, 4096, 1, 8), 100.0, dtype=torch.float16)
    assert torch.equal(relu_linear_attention(x, x, x), x)
