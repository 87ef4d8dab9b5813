"""`sana::ReluLinearAttention` for the library that is handed in: TensorRT-RTX or TensorRT, whose interfaces agree.

TensorRT-RTX documents no plugins, but its parser takes those of this kind; the operator's own body in the model stays
the way without them. The plugin takes q, k and v, or the one tensor that they lie in side by side, which spares the
engine three copies.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sana_plugins.tensorrt.launches import Sizes, launches, thirds, workspace_bytes
from sana_plugins.tensorrt.shipped import HEAD_DIM, PluginError, shipped

__all__ = ["NAME", "NAMESPACE", "VERSION", "register"]

NAMESPACE, NAME, VERSION = "sana", "ReluLinearAttention", "1"
ELEMENTS = {"HALF": "fp16", "BF16": "bf16", "FLOAT": "fp32"}
BYTES = {"HALF": 2, "BF16": 2, "FLOAT": 4}
FIELD = "element_type"  # the one thing a plan holds of the plugin: the library's number of the element type

_registered: dict[str, Any] = {}  # registries do not own what Python hands them
_alive: list[Any] = []  # nor do engines: a plugin that Python frees is used afterwards all the same


def register(trt: Any, *, parsing: bool = True) -> None:
    """Make the plugin known to `trt`, the module `tensorrt_rtx` or `tensorrt`; once more changes nothing.

    `parsing` also prepares the ONNX parser, which otherwise ends the process at the first plugin; to load an engine
    that is built already it is not needed.
    """
    shipped()  # an engine that is built without its programs would fail on the card
    if parsing:
        _name_the_library(trt)
    if trt.__name__ in _registered:
        return
    creator = _creator(trt)
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise PluginError(f"{trt.__name__} {trt.__version__} does not register the attention plugin; build without it")
    _registered[trt.__name__] = creator


class _Attention:
    """What the plugin does; the library's interfaces are mixed in by `_creator`."""

    trt: Any
    interfaces: tuple[Any, ...]

    def __init__(self, element_type: int | None = None) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.plugin_namespace, self.plugin_name, self.plugin_version = NAMESPACE, NAME, VERSION
        self.num_outputs = 1
        self.element_type = element_type
        _alive.append(self)

    def clone(self) -> "_Attention":
        return type(self)(self.element_type)

    def get_capability_interface(self, _kind: Any) -> "_Attention":
        return self

    def get_output_data_types(self, inputs: list[Any]) -> list[Any]:
        return [inputs[0]]

    def get_output_shapes(self, inputs: list[Any], _shapes: list[Any], builder: Any) -> list[Any]:
        shape = self.trt.DimsExprs(inputs[0])
        if len(inputs) == 1:
            third = self.trt.DimensionOperation.FLOOR_DIV
            shape[2] = builder.operation(third, inputs[0][2], builder.constant(3))
        return [shape]

    def supports_format_combination(self, position: int, tensors: list[Any], inputs: int) -> bool:
        """All have one type and lie in one piece, and heads are of the width that has kernels."""
        here, first = tensors[position].desc, tensors[0].desc
        rank, multiple = (3, (3 if position == 0 else 1) * HEAD_DIM) if inputs == 1 else (4, HEAD_DIM)
        return bool(
            here.format == self.trt.TensorFormat.LINEAR
            and here.type == first.type
            and here.type.name in ELEMENTS
            and len(here.dims) == rank
            and (here.dims[-1] == -1 or (here.dims[-1] % multiple == 0 and (rank == 3 or here.dims[-1] == HEAD_DIM)))
        )

    def configure_plugin(self, inputs: list[Any], _outputs: list[Any]) -> None:
        self.element_type = inputs[0].desc.type.value

    def get_workspace_size(self, inputs: list[Any], _outputs: list[Any]) -> int:
        most = Sizes.of(tuple(inputs[0].max))
        return workspace_bytes(most.batch, most.tokens, most.heads)

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, _tactic: int) -> None:
        """There is one."""

    def get_fields_to_serialize(self) -> Any:
        value = np.array([-1 if self.element_type is None else self.element_type], np.int32)
        return self.trt.PluginFieldCollection([self.trt.PluginField(FIELD, value, self.trt.PluginFieldType.INT32)])

    def attach_to_context(self, _context: Any) -> "_Attention":
        """A copy with its programs loaded, so that nothing is loaded while a CUDA graph is captured."""
        attached = self.clone()
        if self.element_type is not None:
            attached._programs(self.trt.DataType(self.element_type))
        return attached

    def on_shape_change(self, inputs: list[Any], _outputs: list[Any]) -> None:
        self._programs(inputs[0].type)

    def enqueue(self, inputs: list[Any], _outputs: list[Any], *memory: Any) -> None:
        """Both launches; `memory` is the inputs' and outputs' addresses, the workspace and the stream."""
        given, (out,), state, stream = memory
        element_type, sizes = inputs[0].type, Sizes.of(tuple(inputs[0].dims))
        q, k, v = thirds(given[0], sizes, BYTES[element_type.name]) if sizes.packed else given
        programs = self._programs(element_type)
        for launch in launches(programs.kernels, sizes, (q, k, v), state, out):
            programs.start(launch, stream)

    def _programs(self, element_type: Any) -> Any:
        from sana_plugins.tensorrt.driver import programs  # building needs no driver

        return programs(ELEMENTS[element_type.name])


class _Creator:
    """Makes plugins for the parser and for engines that are loaded."""

    trt: Any
    interfaces: tuple[Any, ...]
    plugin: type[_Attention]

    def __init__(self) -> None:
        for interface in self.interfaces:
            interface.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
        self.field_names = self.trt.PluginFieldCollection([])

    def create_plugin(self, _name: str, fields: Any, _phase: Any) -> _Attention:
        held = {field.name: int(np.asarray(field.data).flat[0]) for field in fields if field.name == FIELD}
        return self.plugin(held.get(FIELD))


def _creator(trt: Any) -> Any:
    """The creator for this library: what the two classes do, on its interfaces."""
    parts = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    plugin = type("ReluLinearAttention", (_Attention, *parts), {"trt": trt, "interfaces": parts})
    maker = (trt.IPluginCreatorV3One,)
    members = {"trt": trt, "interfaces": maker, "plugin": plugin}
    return type("ReluLinearAttentionCreator", (_Creator, *maker), members)()


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
