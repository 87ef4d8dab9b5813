"""What TensorRT's quickly deployable plugins are told, over a small stand-in for `tensorrt.plugin`; none was run."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from onnx import TensorProto, helper
from sana_plugins.custom_op import ATTRIBUTES, DOMAIN, NAME, attach, body, split
from sana_plugins.tensorrt.attention import ATTENTION, attention_launches
from sana_plugins.tensorrt.operators import Memory
from sana_plugins.tensorrt.quick import program, register_quick
from sana_plugins.tensorrt.shipped import PluginError, kernel_for, shipped

MEMORY = Memory((16, 32, 48), (80,), 64)


class Tensor:
    """A described tensor whose sizes are plain numbers."""

    def __init__(self, *shape, kind="HALF"):
        self.shape_expr, self.dtype = shape, SimpleNamespace(name=kind)

    def like(self):
        return self


class Numbers(list):
    """Room for so many numbers."""

    def __init__(self, count):
        super().__init__([None] * count)


@pytest.fixture
def registered(monkeypatch):
    """The plugins' functions by name, as the decorators received them."""
    described, implemented = {}, {}
    plugins = ModuleType("tensorrt.plugin")
    plugins.TensorDesc = Tensor
    plugins.cdiv = lambda a, b: -(-a // b)
    plugins.from_shape_expr = lambda shape, dtype: (shape, dtype)
    plugins.KernelLaunchParams = SimpleNamespace
    plugins.SymIntExprs = Numbers
    plugins.SymInt32 = int
    plugins.register = lambda name: lambda function: described.setdefault(name, function)
    plugins.aot_impl = lambda name: lambda function: implemented.setdefault(name, function)
    trt = ModuleType("tensorrt")
    trt.float32 = "float32"
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    register_quick(trt, 89)
    return SimpleNamespace(described=described, implemented=implemented)


@pytest.mark.parametrize("tokens", [1, 1024, 1025, 4096])
def test_the_launches_are_those_of_the_other_plugin(tokens, registered):
    q = k = v = Tensor(2, tokens, 36, 32)
    kernels = tuple(kernel_for(name, "fp16", 89) for name in ATTENTION.kernels)
    expected = attention_launches(kernels, (2, tokens, 36, 32), 2, MEMORY)
    state, element = registered.described["sana::SumKeyValues"](k, v)
    assert (state, element) == ((72, expected[0].grid[1], 33, 32), "float32")
    calls = (("sana::SumKeyValues", (k, v)), ("sana::ApplyQueries", (q, Tensor(*state))))
    for (name, inputs), launch in zip(calls, expected, strict=True):
        entry, ptx, parameters, numbers = registered.implemented[name](*inputs, outputs=(), tactic=0)
        assert entry == launch.kernel.entry and ptx == program(launch.kernel)
        assert (parameters.grid_x, parameters.grid_y, 1) == launch.grid
        assert (parameters.block_x, parameters.shared_mem) == (launch.kernel.threads, launch.kernel.shared)
        assert tuple(numbers) == launch.numbers


def test_programs_take_inputs_then_numbers_then_outputs_and_still_assemble():
    measure = pytest.importorskip("sana_plugins.kernels.compilation").measure
    for kernel in (kernel for kernel in shipped() if kernel.kernel in ATTENTION.kernels):
        ptx = program(kernel)
        header = ptx.split(f".entry {kernel.entry}(")[1].split(")")[0]
        order = [int(line.split("_param_")[1].rstrip(",")) for line in header.splitlines() if "_param_" in line]
        assert order == [0, 1, 3, 4, 5, 6, 7, 2]  # k, v or q, state; five numbers; state or out
        if kernel.element == "fp16":
            assert measure(SimpleNamespace(name=kernel.entry, ptx=ptx)).registers > 0


def test_a_library_without_such_plugins_is_named():
    with pytest.raises(PluginError, match="tensorrt_rtx has no plugins that live in the plan; use `register`"):
        register_quick(SimpleNamespace(__name__="tensorrt_rtx"), 89)


def test_an_operator_splits_into_the_two():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "n", 4, 32]) for name in ("q", "k", "v", "y")]
    nodes = [
        helper.make_node(NAME, ["q", "k", "v"], ["mixed"], name="attention", domain=DOMAIN, **ATTRIBUTES),
        helper.make_node("Relu", ["mixed"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "one", ends[:3], ends[3:])
    model = attach(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), body())
    assert split(model) == 1
    assert [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node] == [
        ("SumKeyValues", ["k", "v"], ["mixed.state"]),
        ("ApplyQueries", ["q", "mixed.state"], ["mixed"]),
        ("Relu", ["mixed"], ["y"]),
    ]
    assert not model.functions
    assert helper.get_node_attr_value(model.graph.node[0], "plugin_namespace") == b"sana"
    assert split(model) == 0
