"""ReLU is taken before numbers are split, where that changes none of them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.openvino_graph import read
from sana_runtime.session import Device, SessionOptions, open_session

MOVED = [("Transpose", {"perm": [0, 2, 1]})]


def save(path, *, parts=3, axis=-1, rectified=(0, 1), seen=(), moves=MOVED):
    """x is scaled and split; parts are moved, `rectified` ones go through ReLU; those `seen` are also read before."""
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Split", ["scaled"], [f"part{i}" for i in range(parts)], axis=axis, num_outputs=parts),
    ]
    outputs = []
    for i in range(parts):
        last = f"part{i}"
        for j, (kind, attributes) in enumerate(moves):
            nodes.append(helper.make_node(kind, [last], [f"moved{i}_{j}"], **attributes))
            last = f"moved{i}_{j}"
        nodes.append(helper.make_node("Relu" if i in rectified else "Neg", [last], [f"answer{i}"]))
        outputs.append(f"answer{i}")
        if i in seen:
            nodes.append(helper.make_node("Abs", [f"part{i}"], [f"also{i}"]))
            outputs.append(f"also{i}")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, "n", 12]) for name in ("x",)]
    answers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 3) for name in outputs]
    graph = helper.make_graph(nodes, "split", ends, answers, [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("form", "left"),
    [
        ({}, 0),
        ({"moves": []}, 0),
        ({"rectified": (0, 1, 2)}, 0),
        ({"rectified": (1,)}, 0),
        ({"parts": 4, "rectified": (3,)}, 0),
        ({"seen": (1,)}, 1),  # somebody else reads what is below zero
        ({"seen": (0, 1)}, 2),
        ({"axis": 0, "parts": 2}, 2),  # each part has all columns
        ({"rectified": ()}, 0),
    ],
)
def test_answers_are_those_of_the_file_to_the_last_bit(tmp_path, form, left):
    graph = save(tmp_path / "split.onnx", **form)
    kinds = [node.get_type_name() for node in read(graph, half_convolutions=False).get_ops()]
    assert kinds.count("Relu") == left
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
    found = open_session(graph, Device.CPU, SessionOptions(threads=1)).run({"x": x})
    session = ort.InferenceSession(graph)
    for name, expected in zip((each.name for each in session.get_outputs()), session.run(None, {"x": x}), strict=True):
        np.testing.assert_array_equal(found[name], expected)
