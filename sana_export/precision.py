"""Which element type each part computes in."""

from enum import Enum

from sana_runtime.signature import PARTS

__all__ = ["Precision", "dtype_of", "opset_of", "text_kv_dtype"]


class Precision(str, Enum):
    """The float precisions that parts are exported in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.BF16: "bfloat16"}

# Gemma-2 overflows in float16, and so may DC-AE: they take the other 16-bit type.
NEVER_FP16 = ("text_encoder", "decoder", "encoder")


def dtype_of(part: str, precision: Precision) -> str:
    """The type of a part's weights and matrix products; norms, softmax and linear attention are float32 in all."""
    assert part in PARTS, part
    return NAMES[Precision.BF16 if precision is Precision.FP16 and part in NEVER_FP16 else precision]


def text_kv_dtype(precision: Precision) -> str:
    """The type of the keys and values between `caption` and `transformer`: numpy has no bfloat16."""
    return "float16" if precision is Precision.FP16 else "float32"


def opset_of(dtype: str) -> int:
    """The lowest operator set that has everything we need in this type: convolutions know bfloat16 since 22."""
    return 22 if dtype == "bfloat16" else 20
