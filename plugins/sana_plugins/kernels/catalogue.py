"""Which kernels are compiled ahead of time: each row fixes a kernel's element types and compile-time sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sana_plugins.kernels import linear_attention as forward
from sana_plugins.kernels import linear_attention_backward as backward
from sana_plugins.kernels import mix_ffn
from sana_plugins.kernels.int8_product import INT8_LAUNCH, TURING, int8_operand, int8_product
from sana_plugins.kernels.launch import Launch, accumulation, arithmetic
from sana_plugins.kernels.projection import project_relu, projection_gradient, projection_launch

__all__ = ["VARIANTS", "Variant"]

SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Variant:
    """A kernel with everything fixed that is fixed before it runs."""

    kernel: Any
    launch: Launch
    dtype: torch.dtype = torch.float16
    constants: Mapping[str, Any] = field(default_factory=dict)
    pointers: Mapping[str, str] = field(default_factory=dict)
    """Element types of the pointers that do not point at `dtype`."""
    turing: Mapping[str, Any] = field(default_factory=dict)
    """Compile-time parameters that differ on SM75, which multiplies without tensor cores: smaller tiles."""

    @property
    def name(self) -> str:
        """The kernel's name, element type and, for attention, head width."""
        width = self.constants.get("D")
        return f"{self.kernel.__name__}_{self.element}" + (f"_d{width}" if width else "")

    @property
    def element(self) -> str:
        """Triton's name of the element type."""
        return SHORT[self.dtype]

    def constexprs(self, target: int) -> dict[str, Any]:
        """Every compile-time parameter for one target."""
        return {**self.launch.sizes, **self.constants, **(self.turing if target <= TURING else {})}

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of each parameter, in order."""
        return {name: self._type(name) for name in self.kernel.arg_names}

    def _type(self, name: str) -> str:
        if name in self.launch.sizes or name in self.constants:
            return "constexpr"
        return "*" + self.pointers.get(name, SHORT[self.dtype]) if name.endswith("_ptr") else "i32"


TURING_TILES = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16}
STATE = {"state_ptr": "fp32", "grad_state_ptr": "fp32", "delta_ptr": "fp32"}


def attention(dtype: torch.dtype, width: int) -> list[Variant]:
    """The four launches of linear attention for one element type and head width."""
    numbers, products = accumulation(dtype) | {"D": width}, arithmetic(dtype) | {"D": width}
    rows = (
        (forward.sum_key_values, forward.sum_launch(width, dtype), products),
        (forward.apply_queries, forward.apply_launch(width), numbers),
        (backward.query_gradients, backward.query_gradient_launch(width), numbers | {"DELTA_GIVEN": False}),
        (backward.key_value_gradients, backward.key_value_gradient_launch(width), numbers),
    )
    turing = {"BLOCK": 32}
    return [Variant(kernel, launch, dtype, constants, STATE, turing) for kernel, launch, constants in rows]


def projections(dtype: torch.dtype) -> list[Variant]:
    """The projections before and after attention."""
    numbers, launch = arithmetic(dtype), projection_launch(dtype)
    return [
        Variant(project_relu, launch, dtype, numbers, {}, TURING_TILES),
        Variant(projection_gradient, launch, dtype, numbers | {"D": 32}, STATE, TURING_TILES),
    ]


def feed_forward(dtype: torch.dtype) -> Variant:
    """The Mix-FFN's middle to floats."""
    return Variant(mix_ffn.depthwise_gate, mix_ffn.GATE_LAUNCH, dtype, {"ACTIVATED": False})


def feed_forward_int8(dtype: torch.dtype) -> Variant:
    """The Mix-FFN's middle from activated tokens to int8."""
    int8 = {"out_ptr": "i8", "scale_ptr": "fp32"}
    return Variant(mix_ffn.depthwise_gate_int8, mix_ffn.GATE_INT8_LAUNCH, dtype, {"ACTIVATED": True}, int8)


def int8_products(dtype: torch.dtype) -> list[Variant]:
    """The W8A8 product with a bias."""
    pointers = {"x_ptr": "i8", "weight_ptr": "i8", "x_scale_ptr": "fp32", "weight_scale_ptr": "fp32"}
    ends = {"OPERAND": int8_operand(120), "BIAS": True, "GATE": False, "SILU": False}
    turing = {**TURING_TILES, "OPERAND": int8_operand(TURING)}
    return [Variant(int8_product, INT8_LAUNCH, dtype, ends, pointers, turing)]


VARIANTS = (
    *(row for width in (16, 32, 64) for row in attention(torch.float16, width)),
    *(row for dtype in (torch.bfloat16, torch.float32) for row in attention(dtype, 32)),
    *projections(torch.float16),
    feed_forward(torch.float16),
    *(feed_forward_int8(dtype) for dtype in SHORT),
    *int8_products(torch.float16),
)
"""Every kernel in the types a model runs in."""
