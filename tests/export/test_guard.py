"""What a step costs in counts that no other load can change: nodes, copies, bytes, INT8 products, imports.

A bound may be lowered when a change earns it; raising one needs a reason in the commit that does.
"""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from sana_calibration.quantise import quantise
from sana_reference.config import PRESETS
from sana_runtime.openvino_graph import ov
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import SessionOptions

from sana_export.saving import save_graph

ONE_BLOCK = replace(PRESETS["tiny"], depth=1, dim=288, cross_heads=4)  # heads of 32 and 72, as in Sana-0.6B
PRODUCTS = ("attention.qkv", "attention.out", "cross_attention.q", "cross_attention.out")
PRODUCTS += ("feed_forward.expand", "feed_forward.contract")

# Nodes of a transformer of one block. Those that only move or view numbers are bounded one by one.
LARGEST = {"Transpose": 8, "Split": 4, "Reshape": 13, "Cast": 2, "Concat": 2, "Expand": 0, "Slice": 0}
ALL_NODES = 92
ALL_NODES_INT8 = ALL_NODES + 9 * len(PRODUCTS)

# Nodes of the INT8 transformer as OpenVINO compiles it for one size of picture.
COMPILED_COPIES = {"Transpose": 15, "Reorder": 2, "Split": 4}
COMPILED_NODES = 102  # a minimum beside each maximum, for which no sizes are written

# What those nodes write into memory, in passes: the bytes of one fp32 number for each channel of each token.
VIEWS = ("Input", "Output", "Const", "Reshape")  # look at numbers where they are
COPYING = ("Transpose", "Reorder", "Split", "Gather", "Concatenation", "Pad", "Tile", "Convert")
HALF = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # then so do depthwise convolutions
WRITTEN_PASSES = 54 if HALF else 62
COPIED_PASSES = 12.2 if HALF else 15

MODULES = {"sana_runtime": 12, "sana_runtime.pipeline": 300, "sana_export.cli.main": 60}  # of Python 3.11 here
MODULES |= {"sana_runtime.openvino_session": 320}


@pytest.fixture(scope="module")
def part(random_model, export):
    return export(random_model(ONE_BLOCK), "fp32", ("transformer",))["transformer"]


@pytest.fixture(scope="module")
def int8(part, tmp_path_factory):
    """The INT8 form of the part, and what was said of its making."""
    model = ir.load(part.graph)
    quantised = quantise(model)
    path = tmp_path_factory.mktemp("int8") / part.graph.name
    save_graph(model, path)
    return path, quantised


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_a_graph_moves_numbers_no_more_often_than_it_did(part):
    counted = kinds(part.graph)
    assert {kind: counted[kind] for kind in LARGEST if counted[kind] > LARGEST[kind]} == {}
    assert counted.total() <= ALL_NODES, counted


def test_every_wide_product_of_a_block_is_int8_and_costs_few_nodes(int8):
    path, quantised = int8
    assert quantised.products == tuple(f"blocks.0.{name}" for name in PRODUCTS)
    assert quantised.left == ("patch", "out")
    counted = kinds(path)
    assert counted["QuantizeLinear"] == len(PRODUCTS)
    assert counted.total() <= ALL_NODES_INT8, counted


def test_int8_weights_take_a_quarter_of_the_bytes(part, int8):
    floats = part.graph.with_suffix(".data").stat().st_size
    kept = floats - sum(rows * columns for rows, columns in weights(part)) * 4
    assert int8[0].with_suffix(".data").stat().st_size <= kept + (floats - kept) * 0.27 + 64 * 4096  # pages


def weights(part):
    graph = onnx.load(part.graph, load_external_data=False).graph
    return [each.dims for each in graph.initializer if each.name in {f"blocks.0.{name}.weight" for name in PRODUCTS}]


def test_a_compiled_step_has_int8_products_and_few_copies(part, int8):
    session = OpenVinoSession(int8[0], SessionOptions(threads=1, signature=part.signature))
    session.run(part.signature.example_feeds(batch=2, height=4, width=4, rows=6))
    nodes = [node.get_rt_info() for node in compiled(session).get_ordered_ops()]
    counted = Counter(node["layerType"].astype(str) for node in nodes)
    products = [node for node in nodes if node["layerType"].astype(str) == "FullyConnected"]
    assert sum(node["runtimePrecision"].astype(str) == "i8" for node in products) == len(PRODUCTS)
    assert {kind: counted[kind] for kind in COMPILED_COPIES if counted[kind] > COMPILED_COPIES[kind]} == {}
    assert counted.total() - counted["Const"] <= COMPILED_NODES, counted


@pytest.mark.parametrize(("form", "expected"), [("float", "f32"), ("int8", "bf16" if HALF else "f32")])
def test_depthwise_convolutions_between_int8_products_write_half_the_bytes(part, int8, form, expected):
    graph = int8[0] if form == "int8" else part.graph
    session = OpenVinoSession(graph, SessionOptions(threads=1, signature=part.signature))
    session.run(part.signature.example_feeds(batch=2, height=4, width=4, rows=6))
    nodes = [node.get_rt_info() for node in compiled(session).get_ordered_ops()]
    kinds = [node["runtimePrecision"].astype(str) for node in nodes if node["layerType"].astype(str) == "Convolution"]
    assert kinds == [expected]


def compiled(session):
    ((request,),) = session._requests.values()
    return request.get_compiled_model().get_runtime_model()


def test_a_compiled_step_writes_each_number_few_times_over(part, int8):
    session = OpenVinoSession(int8[0], SessionOptions(threads=1, signature=part.signature))
    feeds = part.signature.example_feeds(batch=2, height=4, width=4, rows=6)
    session.run(feeds)
    one_pass = feeds["latent"][:, 0].size * ONE_BLOCK.dim * 4
    passes = {name: size / one_pass for name, size in written(session).items()}
    assert sum(passes.values()) <= WRITTEN_PASSES, passes
    assert sum(passes.get(name, 0) for name in COPYING) <= COPIED_PASSES, passes


def written(session):
    """Bytes that the nodes of a compiled step write for other nodes, by kind of node; weights are there before."""
    found = Counter()
    for node in compiled(session).get_ops():
        moves = kind(node) not in VIEWS and not node.get_friendly_name().endswith("_fake")  # which nobody runs
        if moves and any(kind(each.get_source_output().get_node()) != "Const" for each in node.inputs()):
            sizes = (int(np.prod(output.get_shape())) * output.get_element_type().size for output in node.outputs())
            found[kind(node)] += sum(sizes)
    return found


def kind(node):
    return node.get_rt_info()["layerType"].astype(str)


def test_knowing_the_size_saves_a_compiled_step_its_transposes(part, int8):
    counts = []
    feeds = part.signature.example_feeds(batch=2, height=4, width=4, rows=6)
    for signature in (None, part.signature):
        session = OpenVinoSession(int8[0], SessionOptions(threads=1, signature=signature))
        answer = session.run(feeds)["velocity"]
        counts.append(Counter(node.get_rt_info()["layerType"].astype(str) for node in compiled(session).get_ops()))
    assert counts[1]["Transpose"] + counts[1]["Reorder"] < counts[0]["Transpose"] + counts[0]["Reorder"]
    assert counts[1]["Eltwise"] < counts[0]["Eltwise"] / 2
    assert np.isfinite(answer).all()


@pytest.mark.parametrize("module", MODULES)
def test_starting_imports_few_modules(module):
    program = f"import sys; before = len(sys.modules); import {module}; print(len(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= MODULES[module]


def test_openvinos_converter_is_there_for_others_but_not_loaded_for_us(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, ir_version=10), tmp_path / "relu.onnx")
    program = (
        "import sys, sana_runtime.openvino_session, openvino; print('openvino.tools.ovc' in sys.modules)\n"
        f"print(len(openvino.convert_model({str(tmp_path / 'relu.onnx')!r}).inputs))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]


def test_bench_scripts_load_engines_through_our_doors():
    scripts = sorted((Path(__file__).parents[2] / "bench").glob("*.py"))
    assert len(scripts) > 20
    loading = re.compile(r"^\s*(?:import|from) (?:onnxruntime|openvino|nncf)\b", re.M)
    assert [script.name for script in scripts if loading.search(script.read_text())] == []
