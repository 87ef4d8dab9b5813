"""A graph and its weights are written whole or not at all, and always as the same bytes."""

import hashlib

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from sana_export.saving import data_file, save_graph


class Interruption(BaseException):
    """What Ctrl-C raises, as far as this code can tell."""


def model(scale=1.0, weights=3):
    """x · w0 · w1 …, each weight 32 × 32."""
    x = ir.Value(name="x", shape=ir.Shape(["n", 32]), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="main")
    value = x
    for i in range(weights):
        array = np.random.default_rng(i).standard_normal((32, 32), np.float32) * np.float32(scale)
        tensor = ir.Tensor(array, name=f"w{i}")
        weight = ir.Value(name=f"w{i}", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(weight)
        node = ir.Node("", "MatMul", [value, weight], num_outputs=1, name=f"product{i}")
        graph.append(node)
        value = node.outputs[0]
        value.name, value.type, value.shape = f"y{i}", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 32])
    graph.outputs.append(value)
    return ir.Model(graph, ir_version=10)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def interrupted(share):
    if share > 0.5:
        raise Interruption


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_graph(model(), tmp_path / name / "part.onnx")
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_two_files_are_written_and_nothing_else(tmp_path):
    shares = []
    save_graph(model(), tmp_path / "part.onnx", shares.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.data", "part.onnx"]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    assert session.run(None, {"x": np.eye(32, dtype=np.float32)})[0].std() > 0


def test_weights_start_on_a_page(tmp_path):
    save_graph(model(), tmp_path / "part.onnx")
    for weight in onnx.load(tmp_path / "part.onnx", load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in weight.external_data}
        assert int(place["offset"]) % 4096 == 0


def test_an_interruption_leaves_nothing(tmp_path):
    with pytest.raises(Interruption):
        save_graph(model(), tmp_path / "part.onnx", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_the_file_that_was_there(tmp_path):
    save_graph(model(), tmp_path / "part.onnx")
    before = digests(tmp_path)
    with pytest.raises(Interruption):
        save_graph(model(scale=2.0), tmp_path / "part.onnx", interrupted)
    assert digests(tmp_path) == before


def test_what_a_killed_export_left_behind_is_swept_away(tmp_path):
    left = tmp_path / ".part.onnx.partial"
    left.mkdir()
    (left / "part.data").write_bytes(b"half")
    save_graph(model(), tmp_path / "part.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.data", "part.onnx"]


def test_a_graph_without_large_weights_has_no_file_beside_it_not_even_an_old_one(tmp_path):
    save_graph(model(), tmp_path / "part.onnx")
    assert data_file(tmp_path / "part.onnx").is_file()
    small = model(weights=1)
    small.graph.initializers["w0"].const_value = ir.Tensor(np.ones((32, 1), np.float32), name="w0")
    small.graph.initializers["w0"].shape = ir.Shape([32, 1])
    small.graph.outputs[0].shape = ir.Shape(["n", 1])
    save_graph(small, tmp_path / "part.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["part.onnx"]
