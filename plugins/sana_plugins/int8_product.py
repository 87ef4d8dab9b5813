"""The W8A8 linear layer on GPU tensors: int8 tokens and weights in, floats out."""

import torch
from torch import Tensor

from sana_plugins.kernels.int8_product import INT8_LAUNCH, int8_operand, int8_product
from sana_plugins.kernels.launch import start
from sana_plugins.splits import ceil_div

__all__ = ["Int8Matrix", "int8_linear"]

Int8Matrix = tuple[Tensor, Tensor]
"""Int8 values and the fp32 scale of each of their rows."""

OUTPUT_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def int8_linear(
    x: Int8Matrix,
    weight: Int8Matrix,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    activated: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """x · weightᵀ + bias, through SiLU if `activated`, times `gate`: (…, K) and (N, K) to (…, N).

    `gate` (pictures, N) multiplies every token of its picture: the transformer's adaptive gate. Sums are int32, scales
    and everything after them fp32. A weight stored as (K, N) is passed transposed; it is not copied.
    """
    (tokens, token_scale), (matrix, channel_scale) = x, weight
    _check(x, weight, dtype)
    lead, (wide, deep) = tokens.shape[:-1], matrix.shape
    out = torch.empty(*lead, wide, dtype=dtype, device=tokens.device)
    each = 1 if gate is None else _tokens_per_picture(lead.numel(), wide, gate)
    optional = (out if bias is None else bias.contiguous(), out if gate is None else gate.contiguous())
    tensors = (tokens.contiguous(), matrix, token_scale.contiguous(), channel_scale.contiguous(), *optional, out)
    sizes = (lead.numel(), wide, deep, matrix.stride(1), matrix.stride(0), each)
    grid = (ceil_div(sizes[0], INT8_LAUNCH.sizes["BLOCK_M"]) * ceil_div(wide, INT8_LAUNCH.sizes["BLOCK_N"]),)
    ends = {
        "OPERAND": int8_operand(_capability(tokens)),
        "BIAS": bias is not None,
        "GATE": gate is not None,
        "SILU": activated,
    }
    start(int8_product, grid, (*tensors, *sizes), INT8_LAUNCH, **ends)
    return out


def _check(x: Int8Matrix, weight: Int8Matrix, dtype: torch.dtype) -> None:
    """Refuse what the kernel does not compute."""
    (tokens, token_scale), (matrix, channel_scale) = x, weight
    if tokens.dtype != torch.int8 or matrix.dtype != torch.int8 or tokens.shape[-1] != matrix.shape[-1]:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} {tokens.dtype} do not meet weights {tuple(matrix.shape)} {matrix.dtype}; "
            "give int8 (…, K) and (N, K)"
        )
    if token_scale.shape != tokens.shape[:-1] or channel_scale.shape != matrix.shape[:1]:
        raise ValueError(
            f"scales {tuple(token_scale.shape)} and {tuple(channel_scale.shape)} do not fit; "
            "give one for each token and one for each output channel"
        )
    if not token_scale.dtype == channel_scale.dtype == torch.float32:
        raise ValueError(f"scales are {token_scale.dtype} and {channel_scale.dtype}; give fp32: fp16 loses small ones")
    if dtype not in OUTPUT_TYPES:
        raise ValueError(f"output type {dtype} is not one of fp16, bf16 and fp32")


def _tokens_per_picture(tokens: int, wide: int, gate: Tensor) -> int:
    """How many rows of x share a row of the gate."""
    if gate.dim() != 2 or gate.shape[1] != wide or tokens % gate.shape[0]:
        raise ValueError(f"a gate {tuple(gate.shape)} does not fit {tokens} tokens; give (pictures, {wide})")
    return tokens // gate.shape[0]


def _capability(tensor: Tensor) -> int:
    """The compute capability of the tensor's GPU, 75 for 7.5; the interpreter counts as the newest."""
    if not tensor.is_cuda:
        return 120
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
