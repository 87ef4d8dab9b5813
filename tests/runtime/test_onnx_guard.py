"""Graphs that are anything but data are refused before a library opens them."""

import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.onnx_ml_pb2 import AttributeProto, ModelProto, NodeProto, SparseTensorProto
from sana_runtime.errors import BundleError
from sana_runtime.onnx_guard import guard

DATA = {"decoder.data": 64}
Change = Callable[[ModelProto], object]


@pytest.fixture(scope="module")
def original(sealed_bundle) -> bytes:
    return (sealed_bundle / "decoder.onnx").read_bytes()


def refusal(path: Path, content: bytes) -> str:
    file = path / "decoder.onnx"
    file.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        guard(file, DATA)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def accepts(path: Path, content: bytes) -> None:
    (path / "decoder.onnx").write_bytes(content)
    guard(path / "decoder.onnx", DATA)


def external(
    location: str, dims: tuple[int, ...] = (4, 4), data_type: int = TensorProto.FLOAT, **entries
) -> TensorProto:
    tensor = TensorProto(name="t", data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def first(model: ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def set_entry(key: str, value: str) -> Change:
    def change(model: ModelProto) -> None:
        entries = [entry for entry in first(model).external_data if entry.key == key]
        entry = entries[0] if entries else first(model).external_data.add(key=key)
        entry.value = value

    return change


def add_node(**fields) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(fields.pop("op_type"), [], ["z"], **fields))


def in_branch(node: NodeProto) -> Change:
    """Put a node two graphs deep."""

    def change(model: ModelProto) -> None:
        outer = model.graph.node[-1].attribute[0].g
        inner = helper.make_graph([node], "inner", [], [])
        outer.node.append(helper.make_node("If", ["yes"], ["q"], then_branch=inner, else_branch=inner))

    return change


def constant(**kind) -> NodeProto:
    return helper.make_node("Constant", [], ["c"], **kind)


def add_sparse(model: ModelProto) -> None:
    sparse = SparseTensorProto(dims=[4, 4])
    sparse.values.CopyFrom(external("../secret.data"))
    model.graph.sparse_initializer.append(sparse)


def sparse_indices() -> SparseTensorProto:
    sparse = SparseTensorProto(dims=[4, 4])
    sparse.indices.CopyFrom(external("../secret.data", data_type=TensorProto.INT64))
    return sparse


def add_tensors_attribute(model: ModelProto) -> None:
    attribute = AttributeProto(name="value", type=AttributeProto.TENSORS)
    attribute.tensors.append(external("../secret.data"))
    model.graph.node[0].attribute.append(attribute)


def add_default_attribute(model: ModelProto) -> None:
    """A function's attribute may have a constant as its default."""
    model.functions[0].attribute_proto.append(helper.make_attribute("weight", external("../secret.data")))


def call_itself(model: ModelProto) -> None:
    model.functions[0].node.append(helper.make_node("ReluLinearAttention", ["a", "b"], ["d"], domain="sana"))


def call_in_a_ring(model: ModelProto) -> None:
    for name, other in (("One", "Two"), ("Two", "One")):
        body = helper.make_node(other, ["a"], ["b"], domain="sana")
        model.functions.append(helper.make_function("sana", name, ["a"], ["b"], [body], []))


def add_training(model: ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(model.graph)


def nest(model: ModelProto) -> None:
    graph = helper.make_graph([], "inside", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["yes"], [], then_branch=graph)], "around", [], [])
    model.graph.node.append(helper.make_node("If", ["yes"], [], then_branch=graph))


def replace_location(location: str) -> Change:
    return set_entry("location", location)


LOCATIONS = (
    "../secret.data", "/etc/passwd", "decoder.data\0", "decoder.data\0x", "./decoder.data", "Decoder.data", "",
    "C:\\x.data", "\\\\server\\x.data", "sub/decoder.data", "decoder.data/", "caption.data", "decoder.onnx",
    "tokenizer.json", "file:decoder.data", "d\u00e9coder.data", "decoder.data ",
)  # fmt: skip

REFUSED = {
    "an unknown domain": (add_node(op_type="Run", domain="evil"), "domain 'evil'"),
    "onnxruntime's own domain": (add_node(op_type="MatMulNBits", domain="com.microsoft"), "domain 'com.microsoft'"),
    "a domain hidden by case": (add_node(op_type="Add", domain="SANA"), "domain 'SANA'"),
    "an unknown domain that is imported only": (
        lambda model: model.opset_import.append(helper.make_opsetid("evil", 1)),
        "domain 'evil'",
    ),
    "an engine": (add_node(op_type="EPContext", domain="com.microsoft"), "EPContext"),
    "an engine in a known domain": (add_node(op_type="EPContext"), "EPContext"),
    "an engine in another case": (add_node(op_type="epcontext", domain="sana"), "EPContext"),
    "an engine two graphs deep": (in_branch(helper.make_node("EPContext", [], ["z"])), "EPContext"),
    "an unknown domain two graphs deep": (in_branch(helper.make_node("Run", [], ["z"], domain="evil")), "'evil'"),
    "an engine in a function": (
        lambda model: model.functions[0].node.append(helper.make_node("EPContext", [], ["z"])),
        "EPContext",
    ),
    "a function that imports a domain": (
        lambda model: model.functions[0].opset_import.append(helper.make_opsetid("evil", 1)),
        "domain 'evil'",
    ),
    "a function that takes the place of an operator": (
        lambda model: model.functions.append(helper.make_function("", "Add", [], [], [], [])),
        "only 'sana' may have any",
    ),
    "a function given twice": (lambda model: model.functions.append(model.functions[0]), "twice"),
    "a function that calls itself": (call_itself, "call themselves"),
    "functions that call each other": (call_in_a_ring, "call themselves"),
    "training graphs": (add_training, "training graphs"),
    "graphs nested without end": (nest, "nested more than 16 deep"),
    "a constant outside": (in_branch(constant(value=external("../secret.data"))), "not a declared data file"),
    "a sparse initializer outside": (add_sparse, "not a declared data file"),
    "a sparse constant outside": (in_branch(constant(sparse_value=sparse_indices())), "not a declared data file"),
    "a list of constants outside": (add_tensors_attribute, "not a declared data file"),
    "a function's default outside": (add_default_attribute, "not a declared data file"),
    "no location": (lambda model: first(model).external_data.pop(0), "not a declared data file"),
    "no place at all": (lambda model: first(model).ClearField("external_data"), "not a declared data file"),
    "a place without the mark": (
        lambda model: (first(model).ClearField("data_location"), set_entry("location", "x")(model)),
        "not a declared data file",
    ),
    "a negative offset": (set_entry("offset", "-1"), "not a whole number"),
    "an offset past the end": (set_entry("offset", "4"), "beyond the end"),
    "an enormous offset": (set_entry("offset", "9" * 18), "beyond the end"),
    "a number beyond all limits": (set_entry("offset", "9" * 5000), "not a whole number"),
    "digits of another script": (set_entry("length", "\u0666\u0664"), "not a whole number"),
    "a length that is too long": (set_entry("length", "4398046511104"), "needs 64 bytes"),
    "a length that is too short": (set_entry("length", "16"), "needs 64 bytes"),
    "a negative length": (set_entry("length", "-64"), "not a whole number"),
    "a key that is not known": (set_entry("basepath", "/etc"), "keys that are unknown"),
    "a key given twice": (lambda model: first(model).external_data.append(first(model).external_data[0]), "twice"),
    "a shape without end": (lambda model: first(model).dims.extend([2**62] * 20), "needs"),
    "a negative dimension": (lambda model: first(model).dims.extend([-1]), "negative dimension"),
    "a thousand dimensions": (lambda model: first(model).dims.extend([1] * 1000), "more than 32"),
    "text in a file": (lambda model: setattr(first(model), "data_type", TensorProto.STRING), "cannot lie in a file"),
    "a type that is not known": (lambda model: setattr(first(model), "data_type", 99), "cannot lie in a file"),
    "an inline tensor of four terabytes": (
        lambda model: model.graph.initializer.append(TensorProto(data_type=1, dims=[2**40], raw_data=b"1234")),
        "more elements than it holds",
    ),
    **{f"the location {location!a}": (replace_location(location), "not a declared") for location in LOCATIONS},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_graph_is_refused_for(reason, original, tmp_path):
    change, message = REFUSED[reason]
    model = ModelProto.FromString(original)
    change(model)
    assert message in refusal(tmp_path, model.SerializeToString())


def test_a_graph_of_our_own_is_accepted(original, tmp_path):
    accepts(tmp_path, original)


@pytest.mark.parametrize(
    ("data_type", "dims", "offset"),
    [
        (1, (4, 4), 0),
        (10, (32,), 0),
        (3, (3, 5), 49),
        (22, (5, 5), 51),
        (21, (2,), 63),
        (26, (5,), 62),
        (7, (0, 9), 64),
    ],
)
def test_tensors_of_every_width_fit_to_the_byte_and_no_further(data_type, dims, offset, original, tmp_path):
    for shift, fits in ((0, True), (1, False)):
        model = ModelProto.FromString(original)
        first(model).CopyFrom(external("decoder.data", dims, data_type, offset=offset + shift))
        (accepts if fits else refusal)(tmp_path, model.SerializeToString())


def test_dimensions_may_be_packed_or_not(original, tmp_path):
    packed = b"\x0a\x02\x04\x04" + b"\x10\x01" + b"\x70\x01" + entry(b"location", b"decoder.data")
    loose = b"\x08\x04\x08\x04" + b"\x10\x01" + b"\x70\x01" + entry(b"location", b"decoder.data")
    for tensor in (packed, loose):
        accepts(tmp_path, chunk(7, chunk(5, tensor)))
        assert "beyond the end" in refusal(tmp_path, chunk(7, chunk(5, tensor.replace(b"\x04", b"\x05", 1))))


def chunk(tag: int, content: bytes) -> bytes:
    return varint(tag << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def entry(key: bytes, value: bytes) -> bytes:
    return chunk(13, chunk(1, key) + chunk(2, value))


NODE = chunk(4, b"Add")
DAMAGED = {
    "an empty file": (b"", "not an ONNX model"),
    "text": (b"<html>no model here</html>", ""),
    "no graph": (chunk(8, b""), "not an ONNX model"),
    "two graphs, which readers merge": (chunk(7, b"") + chunk(7, chunk(1, NODE)), "given twice"),
    "two domains, of which readers take the last": (
        chunk(7, chunk(1, NODE + chunk(7, b"sana") + chunk(7, b"evil"))),
        "given twice",
    ),
    "two tensors in one attribute": (chunk(7, chunk(1, chunk(5, chunk(5, b"") * 2))), "given twice"),
    "a domain as a number": (chunk(7, chunk(1, NODE + b"\x38\x01")), "wrong kind"),
    "a dimension as a fixed number": (chunk(7, chunk(5, b"\x0d1234")), "wrong kind"),
    "a domain that is not text": (chunk(7, chunk(1, chunk(7, b"\xff\xfe"))), "not text"),
    "a field beyond the end": (chunk(7, b"")[:-1] + b"\x7f", "longer than the message"),
    "a field beyond its parent": (chunk(7, b"\x0a\x7f"), "longer than the message"),
    "a length of 2^63": (b"\x3a" + b"\xff" * 9 + b"\x01", "longer than the message"),
    "a number without an end": (b"\x80" * 20, "longer than ten bytes"),
    "half a number": (b"\x3a\x80", "middle of a number"),
    "field number nought": (b"\x02\x00", "number 0"),
    "a group": (b"\x3b\x3c", "unknown kind"),
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_bytes_are_refused_that_are(reason, tmp_path):
    content, message = DAMAGED[reason]
    assert message in refusal(tmp_path, content)


def test_a_graph_of_millions_of_fields_is_given_up_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sana_runtime.onnx_guard.FIELDS", 10_000)
    assert "too many fields" in refusal(tmp_path, chunk(7, b"\x80\x01\x00" * 20_000))


def test_a_graph_with_its_weights_inside_is_too_large(tmp_path, monkeypatch, original):
    monkeypatch.setattr("sana_runtime.onnx_guard.LARGEST", 1000)
    assert "larger than" in refusal(tmp_path, original + chunk(99, b"x" * 1000))


def test_truncated_anywhere_a_graph_gives_a_bundle_error_or_is_still_whole(original, tmp_path):
    for end in range(0, len(original), 7):
        (tmp_path / "decoder.onnx").write_bytes(original[:end])
        try:
            guard(tmp_path / "decoder.onnx", DATA)
        except BundleError as error:
            assert "\n" not in str(error)


def test_mutated_graphs_that_pass_reach_nothing_outside(original, tmp_path):
    """What the guard lets through is checked again by onnx's own reader: known domains, declared data."""
    generator, passed = random.Random(1), 0
    for _ in range(800):
        content = bytearray(original)
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        (tmp_path / "decoder.onnx").write_bytes(content)
        try:
            guard(tmp_path / "decoder.onnx", DATA)
        except BundleError:
            continue
        passed += 1
        assert_harmless(bytes(content))
    assert 30 < passed < 750


def assert_harmless(content: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        model = ModelProto.FromString(content)
    except DecodeError:
        return  # stricter than the guard: no reader takes it
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert {node.domain for node in nodes} <= {"", "ai.onnx", "sana"}
    assert "EPContext" not in {node.op_type for node in nodes}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == TensorProto.EXTERNAL:
            assert entries["location"] == "decoder.data"
            assert int(entries.get("offset", 0)) + int(entries.get("length", 0)) <= 64


def test_lying_sizes_are_refused_without_allocating_them(original, tmp_path):
    models = []
    for exponent in range(20, 60, 4):
        model = ModelProto.FromString(original)
        first(model).CopyFrom(external("decoder.data", (2**exponent,), length=4 * 2**exponent))
        models.append(model.SerializeToString())
    tracemalloc.start()
    for content in models:
        refusal(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_large_graph_is_looked_through(tmp_path):
    nodes = [helper.make_node("Add", [f"x{i}", "b"], [f"x{i + 1}"], name=f"node {i}") for i in range(20_000)]
    weights = [numpy_helper.from_array(np.ones(8, np.float32), f"w{i}") for i in range(2000)]
    model = helper.make_model(helper.make_graph(nodes, "large", [], [], weights))
    start = time.process_time()
    accepts(tmp_path, model.SerializeToString())
    assert time.process_time() - start < 20


def test_what_onnxruntime_runs_the_guard_accepts(original, sealed_bundle):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(sealed_bundle / "decoder.onnx"), providers=["CPUExecutionProvider"])
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    weight = np.fromfile(sealed_bundle / "decoder.data", "<f4").reshape(4, 4)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight + 1, rtol=1e-5)
    guard(sealed_bundle / "decoder.onnx", DATA)
    assert onnx.load(sealed_bundle / "decoder.onnx").functions[0].domain == "sana"
