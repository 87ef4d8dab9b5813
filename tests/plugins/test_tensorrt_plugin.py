"""Engine libraries take the attention plugin in place of the operator's body; building needs no GPU."""

import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_plugins.custom_op import ATTRIBUTES, DOMAIN, NAME, attach, body, pack
from sana_plugins.tensorrt import plugin
from sana_plugins.tensorrt.shipped import PluginError

_spec = importlib.util.spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
rtx_builds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rtx_builds)

BLOCKS, HEADS = 2, 2
WIDTH = 32 * HEADS
TYPES = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


def attention_layers(path, dtype, head_dim=32):
    """A graph of `BLOCKS` attention layers with their projections, and nothing else of Sana."""
    generator, heads = np.random.default_rng(0), WIDTH // head_dim
    held, nodes, x = {"split": [0, 0, heads, head_dim], "join": [0, 0, WIDTH]}, [], "x"
    values = [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in held.items()]
    for i in range(BLOCKS):
        for name in ("q", "k", "v", "out"):
            weight = (generator.standard_normal((WIDTH, WIDTH)) / 8).astype(dtype)
            values.append(numpy_helper.from_array(weight, f"{name}{i}"))
        for name in "qkv":
            nodes.append(helper.make_node("MatMul", [x, f"{name}{i}"], [f"{name}{i}_flat"]))
            nodes.append(helper.make_node("Reshape", [f"{name}{i}_flat", "split"], [f"{name}{i}_heads"]))
        inputs, names = [f"{name}{i}_heads" for name in "qkv"], {"name": f"attention{i}"}
        nodes.append(helper.make_node(NAME, inputs, [f"mixed{i}"], domain=DOMAIN, **names, **ATTRIBUTES))
        nodes.append(helper.make_node("Reshape", [f"mixed{i}", "join"], [f"joined{i}"]))
        nodes.append(helper.make_node("MatMul", [f"joined{i}", f"out{i}"], [x := f"y{i}"]))
    ends = [helper.make_tensor_value_info(name, TYPES[dtype], ["batch", "tokens", WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(attach(model, body()), path)
    return str(path)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Engines of fp16 layers with the plugin, by architecture, one of them twice from two processes."""
    folder = tmp_path_factory.mktemp("engines")
    graph = attention_layers(folder / "layers.onnx", "float16")
    profile = {"x": ((1, 1, WIDTH), (2, 64, WIDTH), (2, 256, WIDTH))}
    names = ("SM89", "SM75", "SM86", "SM120")
    jobs = [rtx_builds.Job(graph, name, profile, str(folder / f"{name}.engine")) for name in names]
    again = rtx_builds.Job(graph, "SM89", profile, str(folder / "again.engine"))
    builds = dict(zip(names, rtx_builds.build_all(jobs, plugin=True), strict=True))
    assert rtx_builds.build_all([again], plugin=True)[0].engine_bytes
    without = rtx_builds.build_all([rtx_builds.Job(graph, "SM89", profile), rtx_builds.Job(graph, "SM75", profile)])
    return SimpleNamespace(folder=folder, builds=builds, without=without)


@pytest.mark.parametrize("architecture", ["SM75", "SM86", "SM89", "SM120"])
def test_each_attention_layer_becomes_one_plugin_layer(architecture, engines):
    build = engines.builds[architecture]
    assert build.engine_bytes, build.errors
    assert build.layers["PLUGIN_V3"] == BLOCKS


def test_the_plugin_takes_the_place_of_the_body(engines):
    with_plugin, (ada, turing) = engines.builds["SM89"], engines.without
    assert ada.engine_bytes and "PLUGIN_V3" not in ada.layers
    assert ada.layers["MATRIX_MULTIPLY"] > with_plugin.layers["MATRIX_MULTIPLY"] == 4 * BLOCKS
    assert not turing.engine_bytes  # the body has fp32 products, which Turing lacks; with the plugin it builds


def test_the_plan_runs_the_plugin_once_per_layer_on_tensors_in_one_piece(engines):
    text = (engines.folder / "SM89.engine").read_bytes().decode("latin1")
    main = text[text.index("\nmain {") :]
    assert [f'custom_layer={{ name="attention{i}' in main for i in range(BLOCKS)] == [True] * BLOCKS
    assert main.count("custom_layer={") % BLOCKS == 0


def test_two_processes_build_the_same_bytes(engines):
    first, second = (engines.folder / f"{name}.engine" for name in ("SM89", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_heads_without_a_kernel_do_not_build(tmp_path):
    graph = attention_layers(tmp_path / "wide.onnx", "float16", head_dim=64)
    profile = {"x": ((1, 1, WIDTH), (2, 64, WIDTH), (2, 256, WIDTH))}
    (build,) = rtx_builds.build_all([rtx_builds.Job(graph, "SM89", profile)], plugin=True)
    assert not build.engine_bytes
    assert any("Failed to find any supported plugin" in error for error in build.errors), build.errors


def one_layer(third="v.0"):
    """A graph whose q, k and v are thirds of one product; `third` is what v is shaped from."""
    generator, shapes = np.random.default_rng(0), {"apart": [0, 0, HEADS, 32], "together": [0, 0, WIDTH]}
    values = [numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()]
    weight = (generator.standard_normal((WIDTH, 3 * WIDTH)) / 8).astype(np.float16)
    values.append(numpy_helper.from_array(weight, "weight"))
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["qkv"], name="product"),
        helper.make_node("Split", ["qkv"], ["q.0", "k.0", "v.0"], name="split", axis=-1, num_outputs=3),
        *(
            helper.make_node("Reshape", [a, "apart"], [b], name=b)
            for a, b in (("q.0", "q"), ("k.0", "k"), (third, "v"))
        ),
        helper.make_node(NAME, ["q", "k", "v"], ["mixed"], name="attention", domain=DOMAIN, **ATTRIBUTES),
        helper.make_node("Reshape", ["mixed", "together"], ["joined"], name="joined"),
        helper.make_node("Relu", ["joined"], ["y"], name="after"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", "tokens", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "layer", ends[:1], ends[1:], values)
    return attach(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), body())


def test_a_packed_tensor_goes_into_the_plugin_without_a_copy(tmp_path):
    model, profile = one_layer(), {"x": ((1, 1, WIDTH), (2, 64, WIDTH), (2, 256, WIDTH))}
    onnx.save(model, tmp_path / "apart.onnx")
    assert pack(model) == 1 and pack(model) == 0
    assert [node.name for node in model.graph.node] == ["product", "attention", "after"]
    onnx.save(model, tmp_path / "packed.onnx")
    paths = [tmp_path / f"{name}.onnx" for name in ("apart", "packed")]
    jobs = [rtx_builds.Job(str(path), "SM89", profile, str(path.with_suffix(".engine"))) for path in paths]
    for build in rtx_builds.build_all(jobs, plugin=True):
        assert build.engine_bytes and build.layers["PLUGIN_V3"] == 1, build.errors
    apart, packed = (path.with_suffix(".engine").read_bytes() for path in paths)
    copies = [engine[: engine.index(b"custom_layer={")].count(b"name=__myl_Slic ") for engine in (apart, packed)]
    assert copies == [3, 0]


@pytest.mark.parametrize("third", ["q.0", "elsewhere"])
def test_thirds_that_are_not_q_k_and_v_in_this_order_stay_apart(third):
    model = one_layer(third)
    before = model.SerializeToString()
    assert pack(model) == 0
    assert model.SerializeToString() == before


def test_a_third_that_others_read_too_stays_apart():
    model = one_layer()
    model.graph.node.append(helper.make_node("Relu", ["k.0"], ["also"], name="also"))
    assert pack(model) == 0


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A library folder as the wheel has it, in place of the real one."""
    (tmp_path / "libtensorrt_rtx.so.1").write_bytes(b"library")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_libs", SimpleNamespace(__path__=[str(tmp_path)]))
    monkeypatch.setattr(plugin.sys, "platform", "linux")
    registered = []
    registry = SimpleNamespace(register_creator=lambda creator, namespace: registered.append(namespace) or True)
    interface = type("Interface", (), {})
    names = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime", "IPluginCreatorV3One")
    interfaces = {name: type(name, (interface,), {}) for name in names}
    library = SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.7",
        get_plugin_registry=lambda: registry,
        PluginFieldCollection=list,
        **interfaces,
    )
    monkeypatch.setattr(plugin, "_registered", {})
    return SimpleNamespace(library=library, folder=tmp_path, registered=registered, registry=registry)


def test_registering_names_the_library_as_the_parser_asks_for_it_and_registers_once(wheel):
    plugin.register(wheel.library)
    plugin.register(wheel.library)
    assert (wheel.folder / "libtensorrt_rtx.so").read_bytes() == b"library"
    assert wheel.registered == ["sana"] * len(plugin.OPERATORS)


def test_where_the_library_cannot_be_named_registering_says_what_to_do(wheel, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(PluginError, match=r"cannot be made \(Permission denied\); make it a link to libtensorrt_rtx"):
        plugin.register(wheel.library)
    plugin.register(wheel.library, parsing=False)  # loading a built engine needs no parser
    assert wheel.registered == ["sana"] * len(plugin.OPERATORS)


def test_a_library_that_refuses_the_plugin_is_named(wheel):
    wheel.registry.register_creator = lambda creator, namespace: False
    with pytest.raises(PluginError, match=r"tensorrt_rtx 1\.7 does not register the plugin ReluLinearAttention"):
        plugin.register(wheel.library)


def test_the_runtime_finds_the_plugin_without_importing_this_package():
    (entry,) = entry_points(group="sana_runtime.engine_plugins")
    assert entry.load() is plugin.register
