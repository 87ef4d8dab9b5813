"""Our operators as plugins of the library that is handed in: TensorRT-RTX or TensorRT, whose interfaces agree.

TensorRT-RTX documents no plugins, but its parser takes those of this kind; an operator's own body in the model, or the
graph without the operator, stays the way without them.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sana_plugins.tensorrt.attention import ATTENTION
from sana_plugins.tensorrt.mix_ffn import GATED_DEPTHWISE
from sana_plugins.tensorrt.operators import ELEMENT, Memory, Operator
from sana_plugins.tensorrt.shipped import PluginError, shipped

__all__ = ["NAMESPACE", "OPERATORS", "VERSION", "register"]

NAMESPACE, VERSION = "sana", "1"
OPERATORS = (ATTENTION, GATED_DEPTHWISE)
ELEMENTS = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
BYTES = {"HALF": 2, "BF16": 2, "FLOAT": 4}
FIELD = "element_type"  # the one thing a plan holds of a plugin: the library's number of its inputs' type

_registered: dict[str, Any] = {}  # registries do not own what Python hands them
_alive: list[Any] = []  # nor do engines: a plugin that Python frees is used afterwards all the same


def register(trt: Any, *, parsing: bool = True) -> None:
    """Make the plugins known to `trt`, the module `tensorrt_rtx` or `tensorrt`; once more changes nothing.

    `parsing` also prepares the ONNX parser, which otherwise ends the process at the first plugin; to load an engine
    that is built already it is not needed.
    """
    shipped()  # an engine that is built without its programs would fail on the card
    if parsing:
        _name_the_library(trt)
    if trt.__name__ in _registered:
        return
    _registered[trt.__name__] = [_registered_creator(trt, operator) for operator in OPERATORS]


def _registered_creator(trt: Any, operator: Operator) -> Any:
    creator = _creator(trt, operator)
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise PluginError(
            f"{trt.__name__} {trt.__version__} does not register the plugin {operator.name}; build with --no-plugin"
        )
    return creator


class _Plugin:
    """What a plugin does; the library's interfaces are mixed in by `_creator`."""

    trt: Any
    interfaces: tuple[Any, ...]
    operator: Operator

    def __init__(self, element_type: int | None = None) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.plugin_namespace, self.plugin_name, self.plugin_version = NAMESPACE, self.operator.name, VERSION
        self.num_outputs = len(self.operator.outputs)
        self.element_type = element_type
        _alive.append(self)

    def clone(self) -> "_Plugin":
        return type(self)(self.element_type)

    def get_capability_interface(self, _kind: Any) -> "_Plugin":
        return self

    def get_output_data_types(self, inputs: list[Any]) -> list[Any]:
        return [self._type_of(output, inputs[0]) for output in self.operator.outputs]

    def get_output_shapes(self, inputs: list[Any], _shapes: list[Any], builder: Any) -> list[Any]:
        known = [list(dims) for dims in inputs]
        return [self.trt.DimsExprs(dims) for dims in self.operator.shapes(known, _Expressions(self.trt, builder))]

    def supports_format_combination(self, position: int, tensors: list[Any], inputs: int) -> bool:
        """Every tensor lies in one piece; inputs have one type of those with kernels."""
        here, first = tensors[position].desc, tensors[0].desc
        kind = ELEMENT if position < inputs else self.operator.outputs[position - inputs]
        return bool(
            here.format == self.trt.TensorFormat.LINEAR
            and first.type.name in ELEMENTS
            and here.type == self._type_of(kind, first.type)
            and self.operator.fits(position, tuple(here.dims), inputs)
        )

    def configure_plugin(self, inputs: list[Any], _outputs: list[Any]) -> None:
        self.element_type = inputs[0].desc.type.value

    def get_workspace_size(self, inputs: list[Any], _outputs: list[Any]) -> int:
        return self.operator.workspace(tuple(inputs[0].max))

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, _tactic: int) -> None:
        """There is one."""

    def get_fields_to_serialize(self) -> Any:
        value = np.array([-1 if self.element_type is None else self.element_type], np.int32)
        return self.trt.PluginFieldCollection([self.trt.PluginField(FIELD, value, self.trt.PluginFieldType.INT32)])

    def attach_to_context(self, _context: Any) -> "_Plugin":
        """A copy with its programs loaded, so that nothing is loaded while a CUDA graph is captured."""
        attached = self.clone()
        if self.element_type is not None:
            attached._programs(self.trt.DataType(self.element_type))
        return attached

    def on_shape_change(self, inputs: list[Any], _outputs: list[Any]) -> None:
        self._programs(inputs[0].type)

    def enqueue(self, inputs: list[Any], _outputs: list[Any], *memory: Any) -> None:
        """Every launch; `memory` is the inputs' and outputs' addresses, the workspace and the stream."""
        given, made, workspace, stream = memory
        first, programs = inputs[0], self._programs(inputs[0].type)
        lies = Memory(tuple(given), tuple(made), workspace)
        for launch in self.operator.launches(programs.kernels, tuple(first.dims), BYTES[first.type.name], lies):
            programs.start(launch, stream)

    def _programs(self, element_type: Any) -> Any:
        from sana_plugins.tensorrt.driver import programs  # building needs no driver

        return programs(self.operator.kernels, ELEMENTS[element_type.name])

    def _type_of(self, kind: str, element_type: Any) -> Any:
        return element_type if kind == ELEMENT else getattr(self.trt.DataType, kind)


class _Expressions:
    """Sizes that the library computes when it knows those of the inputs."""

    def __init__(self, trt: Any, builder: Any) -> None:
        self._operations, self._builder = trt.DimensionOperation, builder

    def constant(self, number: int) -> Any:
        return self._builder.constant(number)

    def times(self, a: Any, b: Any) -> Any:
        return self._builder.operation(self._operations.PROD, a, b)

    def part(self, a: Any, count: int) -> Any:
        return self._builder.operation(self._operations.FLOOR_DIV, a, self._builder.constant(count))


class _Creator:
    """Makes plugins for the parser and for engines that are loaded."""

    trt: Any
    interfaces: tuple[Any, ...]
    plugin: type[_Plugin]

    def __init__(self) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = self.plugin.operator.name, NAMESPACE, VERSION
        self.field_names = self.trt.PluginFieldCollection([])

    def create_plugin(self, _name: str, fields: Any, _phase: Any) -> _Plugin:
        held = {field.name: int(np.asarray(field.data).flat[0]) for field in fields if field.name == FIELD}
        return self.plugin(held.get(FIELD))


def _creator(trt: Any, operator: Operator) -> Any:
    """The creator of one plugin for this library: what the two classes do, on its interfaces."""
    parts = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    members = {"trt": trt, "interfaces": parts, "operator": operator}
    plugin = type(operator.name, (_Plugin, *parts), members)
    maker = (trt.IPluginCreatorV3One,)
    members = {"trt": trt, "interfaces": maker, "plugin": plugin}
    return type(f"{operator.name}Creator", (_Creator, *maker), members)()


def _name_the_library(trt: Any) -> None:
    """Give TensorRT-RTX's library the name by which its parser asks for it, which its wheel leaves out.

    Without it the parser throws where nothing can catch, at the first plugin.
    """
    if trt.__name__ != "tensorrt_rtx" or not sys.platform.startswith("linux"):
        return
    folder = Path(importlib.import_module("tensorrt_rtx_libs").__path__[0])
    wanted, present = folder / "libtensorrt_rtx.so", folder / "libtensorrt_rtx.so.1"
    if wanted.exists() or not present.exists():
        return
    try:
        wanted.symlink_to(present.name)
    except FileExistsError:
        return  # another process was quicker
    except OSError as error:
        raise PluginError(
            f"{wanted} is missing and cannot be made ({error.strerror}); make it a link to {present.name}, "
            "or build without the plugin"
        ) from error
