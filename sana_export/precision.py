"""Which element type each part computes in."""

from enum import Enum

from sana_runtime.signature import PARTS

__all__ = ["Precision", "dtype_of", "opset_of", "scheme_of", "stored_as", "text_kv_dtype"]


class Precision(str, Enum):
    """What a bundle can be built in. INT8 is made from parts that were exported in float32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


NAMES = {
    Precision.FP32: "float32",
    Precision.FP16: "float16",
    Precision.BF16: "bfloat16",
    Precision.INT8: "float32",
}

# Gemma-2 overflows in float16, and so may DC-AE: they take the other 16-bit type.
NEVER_FP16 = ("text_encoder", "decoder", "encoder")


def dtype_of(part: str, precision: Precision) -> str:
    """The type of a part's weights and matrix products; norms, softmax and linear attention are float32 in all."""
    assert part in PARTS, part
    return NAMES[Precision.BF16 if precision is Precision.FP16 and part in NEVER_FP16 else precision]


# What stays float in an INT8 bundle runs on every engine: onnxruntime's CPU provider has no bfloat16 products, so it
# computes in float32. Weights need no such width; Gemma's are bfloat16 where they come from.
STORED_IN_INT8_BUNDLES = {"text_encoder": "bfloat16", "decoder": "float16", "encoder": "float16"}


def stored_as(part: str, precision: Precision) -> str:
    """The type of a part's large weights on disk; narrower ones than `dtype_of` are widened where they are read."""
    usual = dtype_of(part, precision)
    return STORED_IN_INT8_BUNDLES.get(part, usual) if precision is Precision.INT8 else usual


def scheme_of(part: str, precision: Precision) -> tuple[str, str]:
    """What the manifest says of a part: the products that an engine may use, and the exact name of the scheme."""
    dtype, stored = dtype_of(part, precision), stored_as(part, precision)
    if stored != dtype:
        return Precision.BF16.value, f"{stored}-weights"
    return next(name.value for name, kind in NAMES.items() if kind == dtype), dtype


def text_kv_dtype(precision: Precision) -> str:
    """The type of the keys and values between `caption` and `transformer`: numpy has no bfloat16."""
    return "float16" if precision is Precision.FP16 else "float32"


def opset_of(dtype: str) -> int:
    """The lowest operator set that has everything we need in this type: convolutions know bfloat16 since 22."""
    return 22 if dtype == "bfloat16" else 20
