"""The attention as two quickly deployable plugins of TensorRT: their programs lie in the plan, which runs by itself.

Such a plugin is one launch, so `sana::SumKeyValues` (k, v → state) and `sana::ApplyQueries` (q, state → out) take the
operator's place; `sana_plugins.custom_op.split` writes them into a graph. TensorRT-RTX has no such plugins.

The Python sources of TensorRT 11.4 take both and compute the right launches. Its library cannot be had without NVIDIA's
installer, so no plan was built with them.
"""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from sana_plugins.splits import MOST_SPLITS, SPLIT_BLOCK
from sana_plugins.tensorrt.plugin import ELEMENTS
from sana_plugins.tensorrt.shipped import HEAD_DIM, PluginError, ShippedKernel, kernel_for

__all__ = ["program", "register_quick"]

Function = Callable[..., Any]

ORDER = (0, 1, 3, 4, 5, 6, 7, 2)  # of the kernels' arguments: TensorRT hands over inputs, numbers, outputs


def register_quick(trt: Any, capability: int) -> None:
    """Make both plugins known to `trt`, the module `tensorrt`, for a card of this compute capability (89 for 8.9)."""
    try:
        plugins = importlib.import_module(f"{trt.__name__}.plugin")
        plugins.KernelLaunchParams  # noqa: B018  # older versions compile no programs into plans
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{trt.__name__} has no plugins that live in the plan; use `register`") from error
    _register_sum(trt, plugins, capability)
    _register_apply(plugins, capability)


def program(kernel: ShippedKernel) -> str:
    """The PTX with its parameters in TensorRT's order and without the two that Triton adds and never reads."""
    text = kernel.ptx.decode().rstrip("\0")
    head, rest = text.split(f".entry {kernel.entry}(", 1)
    listed, body = rest.split(")", 1)
    parameters = [each.strip() for each in listed.split(",")]
    surplus = [i for i in range(len(ORDER), len(parameters)) if re.search(rf"_param_{i}\b", body)]
    if len(parameters) != len(ORDER) + 2 or surplus:
        raise PluginError(f"{kernel.file} has other parameters than this version knows; ship the programs again")
    kept = ",\n\t".join(parameters[i] for i in ORDER)
    return f"{head}.entry {kernel.entry}(\n\t{kept}\n){body}"


def _register_sum(trt: Any, plugins: Any, capability: int) -> None:
    def describe(k: Any, v: Any) -> Any:
        batch, tokens, heads, _ = _sizes(k)
        shape = (batch * heads, _splits(plugins, tokens)[1], HEAD_DIM + 1, HEAD_DIM)
        return plugins.from_shape_expr(shape, trt.float32)

    def implement(k: Any, v: Any, outputs: Any, tactic: Any) -> Any:
        batch, tokens, heads, width = _sizes(k)
        kernel = kernel_for("sum_key_values", ELEMENTS[k.dtype.name], capability)
        chunk, splits = _splits(plugins, tokens)
        row = heads * width
        return _launch(plugins, kernel, (batch * heads, splits), (tokens, chunk, heads, row, row))

    _register(plugins, "sana::SumKeyValues", describe, implement)


def _register_apply(plugins: Any, capability: int) -> None:
    def describe(q: Any, state: Any) -> Any:
        return q.like()

    def implement(q: Any, state: Any, outputs: Any, tactic: Any) -> Any:
        batch, tokens, heads, width = _sizes(q)
        kernel = kernel_for("apply_queries", ELEMENTS[q.dtype.name], capability)
        row, (_, splits) = heads * width, _splits(plugins, tokens)
        blocks = plugins.cdiv(tokens, kernel.block)
        return _launch(plugins, kernel, (blocks, batch * heads), (tokens, splits, heads, row, row))

    _register(plugins, "sana::ApplyQueries", describe, implement)


def _register(plugins: Any, name: str, describe: Function, implement: Function) -> None:
    """Hand both functions over; TensorRT reads their annotations, whose types exist only where it is installed."""
    launch = tuple[str, str, plugins.KernelLaunchParams, plugins.SymIntExprs]
    plugins.register(name)(_annotated(describe, plugins.TensorDesc, plugins.TensorDesc))
    plugins.aot_impl(name)(_annotated(implement, plugins.TensorDesc, launch))


def _annotated(function: Function, tensor: Any, returned: Any) -> Function:
    kinds = {"outputs": tuple[tensor], "tactic": int, "return": returned}
    names = (*inspect.signature(function).parameters, "return")
    function.__annotations__ = {name: kinds.get(name, tensor) for name in names}
    return function


def _sizes(tensor: Any) -> tuple[Any, Any, Any, Any]:
    batch, tokens, heads, width = (tensor.shape_expr[i] for i in range(4))
    return batch, tokens, heads, width


def _splits(plugins: Any, tokens: Any) -> tuple[Any, Any]:
    """`split_tokens` of a size that is known only when the engine runs."""
    chunk = plugins.cdiv(plugins.cdiv(tokens, SPLIT_BLOCK), MOST_SPLITS) * SPLIT_BLOCK
    return chunk, plugins.cdiv(tokens, chunk)


def _launch(plugins: Any, kernel: ShippedKernel, grid: tuple[Any, Any], numbers: Sequence[Any]) -> Any:
    """What TensorRT wants to know of a launch."""
    parameters = plugins.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y = grid
    parameters.block_x = kernel.threads
    parameters.shared_mem = kernel.shared
    extra = plugins.SymIntExprs(len(numbers))
    for i, number in enumerate(numbers):
        extra[i] = plugins.SymInt32(number)
    return kernel.entry, program(kernel), parameters, extra
