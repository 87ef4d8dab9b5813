"""A module as an ONNX graph whose free sizes are those of its signature."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from sana_runtime.signature import Axis, Signature, TensorSpec
from torch import nn

__all__ = ["forget", "trace"]

# Unlike each other and unlike any width, so that no size of the example can pass for a constant of the model.
EXAMPLE = {"batch": 3, "height": 6, "width": 10, "tokens": 5, "rows": 7, "image_height": 192, "image_width": 320}
NOISY = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")

Dimensions = dict[int, Any]


def trace(module: nn.Module, signature: Signature, opset: int) -> ir.Model:
    """Record what `module` computes. The graph's weights are the module's own memory, not copies."""
    feeds = signature.example_feeds(**EXAMPLE)
    sides = _sides(signature)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(feeds[spec.name]) for spec in signature.inputs),
            dynamo=True,
            dynamic_shapes=tuple(_dimensions(spec, sides) for spec in signature.inputs),
            input_names=[spec.name for spec in signature.inputs],
            output_names=[spec.name for spec in signature.outputs],
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    _declare(model.graph, signature)
    return model


def forget(weights: Iterable[ir.Value]) -> None:
    """Let go of what `weights` hold: the tracer itself holds on to the last graph that it made."""
    for weight in weights:
        weight.const_value = None


def _sides(signature: Signature) -> dict[str, Any]:
    """One symbol for each axis; an axis with a step is a multiple of its symbol."""
    axes = {axis.name: axis for spec in signature.inputs for _, axis in spec.axes()}
    dims = {name: torch.export.Dim(name if axis.multiple == 1 else f"{name}_steps") for name, axis in axes.items()}
    return {name: dim if axes[name].multiple == 1 else axes[name].multiple * dim for name, dim in dims.items()}


def _dimensions(spec: TensorSpec, sides: dict[str, Any]) -> Dimensions:
    return {i: sides[axis.name] for i, axis in spec.axes()}


def _declare(graph: ir.Graph, signature: Signature) -> None:
    """Name the sizes of inputs and outputs as the signature does."""
    for value, spec in zip((*graph.inputs, *graph.outputs), (*signature.inputs, *signature.outputs), strict=True):
        assert value.dtype == ir.DataType[_ir_name(spec.dtype)], f"{signature.part}: {spec.name} is {value.dtype}"
        value.shape = ir.Shape([size.name if isinstance(size, Axis) else size for size in spec.shape])


def _ir_name(dtype: str) -> str:
    return {"float32": "FLOAT", "float16": "FLOAT16"}.get(dtype, dtype.upper())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's remarks about libraries we do not use away from the user."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
