"""A step of two halves, which two cores make ready, gives the numbers of the whole one."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from sana_calibration.quantise import quantise
from sana_reference.config import PRESETS
from sana_runtime import openvino_session
from sana_runtime.compiled_models import SWITCH, CompiledModels
from sana_runtime.openvino_graph import ov, read
from sana_runtime.openvino_halves import halves, side_by_side
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import Interrupted, SessionOptions

from sana_export.saving import save_graph

FORMS = {
    "even": {"depth": 4},
    "sprint": {
        "depth": 3,
        "qk_norm": True,
        "guidance_embedding": True,
        "integer_timesteps": False,
        "position_base": 64,
    },
}
PASSING = 4  # tokens, time for the blocks and for the end, and the mask
PRODUCTS = 6  # of a block


@pytest.fixture(scope="module", params=FORMS)
def each_part(request, random_model, export):
    return exported(request.param, random_model, export)


@pytest.fixture(scope="module")
def part(random_model, export):
    return exported("even", random_model, export)


def exported(form, random_model, export):
    return export(random_model(replace(PRESETS["tiny"], **FORMS[form])), "fp32", ("transformer",))["transformer"]


@pytest.fixture
def heavy(monkeypatch):
    """Everything is worth cutting, and two cores are at hand."""
    monkeypatch.setattr(openvino_session, "WORTH_HALVING", 0)
    monkeypatch.setattr(openvino_session, "workers", lambda threads: 2)


def feeds_of(part, side=4, rows=6):
    return part.signature.example_feeds(batch=2, height=side, width=side, rows=rows)


def session_of(graph, part, **options):
    return OpenVinoSession(graph, SessionOptions(threads=2, signature=part.signature, **options))


def int8_of(part, folder):
    model, graph = ir.load(part.graph), folder / part.graph.name
    quantise(model)
    save_graph(model, graph)
    return graph


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_answers_are_those_of_the_whole_graph_to_the_last_bit(each_part, tmp_path, monkeypatch, form):
    graph = int8_of(each_part, tmp_path) if form == "int8" else each_part.graph
    shapes = ({}, {"rows": 9}, {"side": 6, "rows": 1}, {})
    several = [feeds_of(each_part, **shape) for shape in shapes]
    whole = session_of(graph, each_part)
    expected = [whole.run(feeds)["velocity"] for feeds in several]
    monkeypatch.setattr(openvino_session, "WORTH_HALVING", 0)
    cut = session_of(graph, each_part)
    for feeds, velocity in zip(several, expected, strict=True):
        np.testing.assert_array_equal(cut.run(feeds)["velocity"], velocity)
    assert [len(requests) for requests in whole._requests.values()] == [1, 1]
    assert [len(requests) for requests in cut._requests.values()] == [2, 2]


def test_bfloat16_halves_are_as_near_to_float_as_the_whole(part, monkeypatch):
    exact = session_of(part.graph, part).run(feeds_of(part))["velocity"]

    def error():
        return np.linalg.norm(session_of(part.graph, part, half_products=True).run(feeds_of(part))["velocity"] - exact)

    whole = error()
    monkeypatch.setattr(openvino_session, "WORTH_HALVING", 0)
    assert error() <= 1.25 * whole


def test_few_numbers_pass_and_each_half_has_about_half_of_the_products(each_part, tmp_path):
    model = read(int8_of(each_part, tmp_path), half_convolutions=False)
    shapes = {name: array.shape for name, array in feeds_of(each_part).items()}
    model.reshape({name: ov.PartialShape(list(shape)) for name, shape in shapes.items()})
    first, second = halves(model)
    assert len(first.outputs) <= PASSING
    assert {output.get_any_name() for output in first.outputs} <= {each.get_any_name() for each in second.inputs}
    rounded = [sum(node.get_type_name() == "FakeQuantize" for node in half.get_ops()) for half in (first, second)]
    assert min(rounded) >= PRODUCTS, rounded
    assert max(rounded) <= 2 * min(rounded), rounded


def test_a_light_graph_and_one_core_are_not_cut(part, heavy, monkeypatch):
    assert session_of(part.graph, part)._pieces == 2
    monkeypatch.setattr(openvino_session, "workers", lambda threads: 0)
    assert session_of(part.graph, part)._pieces == 1
    monkeypatch.undo()
    assert session_of(part.graph, part)._pieces == 1


def test_both_halves_are_kept_and_read_back_or_neither(part, heavy, tmp_path, monkeypatch):
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(openvino_session, "WORTH_KEEPING", 0.0)
    first = session_of(part.graph, part).run(feeds_of(part))["velocity"]
    entries = CompiledModels().entries()
    assert sorted(entry.made_of["piece"] for entry in entries) == [[0, 2], [1, 2]]
    compiled = []
    monkeypatch.setattr(
        OpenVinoSession, "_compile", lambda *given, how=OpenVinoSession._compile: compiled.append(1) or how(*given)
    )
    np.testing.assert_array_equal(session_of(part.graph, part).run(feeds_of(part))["velocity"], first)
    assert not compiled
    entries[0].path.unlink()
    np.testing.assert_array_equal(session_of(part.graph, part).run(feeds_of(part))["velocity"], first)
    assert compiled
    assert len(CompiledModels().entries()) == 2


def test_a_run_is_interrupted_between_its_halves(part, heavy, monkeypatch):
    session, done = session_of(part.graph, part), []
    run_one = OpenVinoSession._run_one

    def stopping(self, *given):
        answer = run_one(self, *given)
        done.append(self.interrupt())
        return answer

    monkeypatch.setattr(OpenVinoSession, "_run_one", stopping)
    with pytest.raises(Interrupted):
        session.run(feeds_of(part))
    assert len(done) == 1
    monkeypatch.undo()
    assert session.run(feeds_of(part))["velocity"].shape == feeds_of(part)["latent"].shape


def test_a_graph_of_one_operation_is_cut_before_its_end(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in ("latent", "velocity")]
    graph = helper.make_graph([helper.make_node("Neg", ["latent"], ["velocity"])], "g", ends[:1], ends[1:])
    path = tmp_path / "transformer.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    model = read(path, half_convolutions=False)
    model.reshape([2, 32, 4, 4])
    first, second = halves(model)
    assert [node.get_type_name() for node in second.get_ops()] == ["Parameter", "Result"]
    assert "Negative" in [node.get_type_name() for node in first.get_ops()]


def test_what_fails_in_a_thread_fails_for_all():
    assert side_by_side(abs, [-1, 2, -3]) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda number: 1 // number, [1, 0])
