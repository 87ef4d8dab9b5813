"""Layers are judged by finished latents, measured once, and taken back to float worst first."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_calibration.painter import Painter, Plan
from sana_calibration.quantise import quantise
from sana_calibration.rounding import column_codes, rounded_columns, rounded_tokens
from sana_calibration.sensitivity import Trial, fall_back, measure_effects
from sana_calibration.trial_graph import make_trial_graph
from sana_runtime.guidance import Guidance
from sana_runtime.session import Arrays, Device, SessionOptions, open_session
from sana_runtime.solver import FlowDpm

PLAN = Plan(("a cat", "a red circle"), FlowDpm(3), (128, 128), Guidance(3.0))
WORST = "blocks.0.attention.qkv"


def session_of(graph: Path, device: Device = Device.ONNXRUNTIME):
    return open_session(graph, device, SessionOptions(threads=1))


@pytest.fixture(scope="module")
def trial_graph(outliers, save) -> tuple[Path, tuple[str, ...]]:
    """The transformer with outliers, computing in float and in INT8."""
    model = ir.load(outliers / "transformer.onnx")
    names = make_trial_graph(model)
    return save(model, outliers / "trial.onnx"), names


@pytest.fixture
def trial(trial_graph, outliers, make_model) -> Trial:
    graph, names = trial_graph
    session = session_of(graph)
    return Trial(lambda part, feeds: session.run(feeds), names, Painter(make_model(outliers, depth=1), PLAN))


@pytest.mark.parametrize("device", [Device.ONNXRUNTIME, Device.CPU])
@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_a_trial_computes_what_a_graph_with_those_layers_in_int8_computes(
    trial_graph, outliers, save, feeds, distance, tmp_path, device, count
):
    graph, names = trial_graph
    inputs: Arrays = feeds(depth=1)
    actual = session_of(graph, device).run({**inputs, "in_int8": np.arange(6) < count})["velocity"]
    model = ir.load(outliers / "transformer.onnx")
    quantise(model, names[:count])
    expected = session_of(save(model, tmp_path / "some.onnx"), device).run(inputs)["velocity"]
    assert distance(actual, expected) < 2e-4  # a code may fall on the other side of a half
    if count:
        in_float = session_of(graph, device).run({**inputs, "in_int8": np.zeros(6, bool)})["velocity"]
        assert distance(actual, in_float) > 10 * distance(actual, expected)


def test_a_product_is_computed_in_one_of_two_branches_and_nowhere_else(trial_graph, outliers):
    graph, names = trial_graph
    outside, original = ir.load(graph).graph, ir.load(outliers / "transformer.onnx").graph
    choices = [node for node in outside if node.op_type == "If"]
    assert [node.name for node in choices] == [f"{name}.trial.choice" for name in names]
    for name, choice in zip(names, choices, strict=True):
        in_int8, in_float = (choice.attributes[f"{branch}_branch"].as_graph() for branch in ("then", "else"))
        read = {value.name for node in in_int8 for value in node.inputs if value is not None}
        assert f"{name}.weight_int8" in read
        assert f"{name}.weight" not in read
        assert {node.op_type for node in in_int8} >= {"QuantizeLinear", "DequantizeLinear", "MatMul"}
        assert [(node.op_type, node.inputs[1].name) for node in in_float] == [("MatMul", f"{name}.weight")]
        assert not in_int8.initializers  # beside the graph, where there is room for them
    kinds = Counter(node.op_type for node in original)
    assert kinds["MatMul"] - len(names) == sum(node.op_type == "MatMul" for node in outside)
    assert not [node for node in outside if node.op_type == "QuantizeLinear"]


def twins(first: np.ndarray, second: np.ndarray) -> ir.Model:
    """Two products of the same tokens x (N, rows), which are the graph's outputs."""
    weights = {"first": first, "second": second}
    types = {name: (TensorProto.FLOAT, ["N", each.shape[1]]) for name, each in weights.items()}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"{name}.weight"], [name], name) for name in weights],
        "twins",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", len(first)])],
        [helper.make_tensor_value_info(name, *kind) for name, kind in types.items()],
        [numpy_helper.from_array(weight, f"{name}.weight") for name, weight in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize("device", [Device.ONNXRUNTIME, Device.CPU])
def test_products_of_the_same_tokens_are_chosen_one_by_one(tmp_path, device, save, distance):
    rng = np.random.default_rng(0)
    x, *weights = (rng.standard_normal(shape, np.float32) for shape in ((5, 96), (96, 64), (96, 128)))
    model = twins(*weights)
    assert make_trial_graph(model) == ("first", "second")
    session = session_of(save(model, tmp_path / "twins.onnx"), device)
    for chosen in np.ndindex(2, 2):
        answers = session.run({"x": x, "in_int8": np.array(chosen, bool)})
        for name, weight, in_int8 in zip(("first", "second"), weights, chosen, strict=True):
            pairs = (rounded_tokens(x) @ rounded_columns(weight), x @ weight)
            assert distance(answers[name], pairs[0] if in_int8 else pairs[1]) < 1e-5
            assert distance(*pairs) > 1e-3


def test_openvino_adds_up_the_codes_of_a_branch_in_whole_numbers(tmp_path, save):
    """Half of the sums passes 2 ** 24, beyond which fp32 no longer counts in ones, and the other half takes it back."""
    rng = np.random.default_rng(0)
    x, weight = (rng.choice(np.arange(65, 128, 2), shape).astype(np.float32) for shape in ((3, 8192), (8192, 64)))
    x[:, 0] = weight[0] = 127  # both steps are one
    weight[4096:] *= -1
    model = twins(weight, weight)
    make_trial_graph(model)
    session = session_of(save(model, tmp_path / "sums.onnx"), Device.CPU)
    exact = x.astype(np.int64) @ column_codes(weight).astype(np.int64)
    in_int8, in_float = session.run({"x": x, "in_int8": np.array([True, False])}).values()
    np.testing.assert_allclose(in_int8, exact, rtol=1e-6)
    assert np.abs(in_float - exact).max() > 1


def test_effects_are_those_of_each_layer_alone_on_the_finished_latents(trial, tmp_path):
    effects = measure_effects(trial, tmp_path / "effects.json")
    assert tuple(effects) == trial.names
    assert all(effect > 0 for effect in effects.values())
    assert effects[WORST] == pytest.approx(trial.error({WORST}))
    assert trial.error(()) == 0


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4])
def test_stopped_measurements_go_on_where_they_were(trial, tmp_path, after, monkeypatch):
    whole = measure_effects(trial, tmp_path / "whole.json")
    real, measured = Trial.error, []

    def error(self: Trial, products: set[str]) -> float:
        if len(measured) == after:
            raise Stopped
        measured.append(products)
        return real(self, products)

    monkeypatch.setattr(Trial, "error", error)
    with pytest.raises(Stopped):
        measure_effects(trial, tmp_path / "effects.json")
    measured.clear()
    monkeypatch.setattr(Trial, "error", lambda self, products: measured.append(products) or real(self, products))
    counted = []
    assert measure_effects(trial, tmp_path / "effects.json", lambda *each: counted.append(each)) == whole
    assert len(measured) == 6 - after
    assert counted[-1] == (6, 6)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1, "effects": {}}'])
def test_a_state_that_is_damaged_or_of_another_plan_counts_for_nothing(trial, tmp_path, damage):
    state = tmp_path / "effects.json"
    state.write_text(damage)
    counted: list[tuple[int, int]] = []
    measure_effects(trial, state, lambda *each: counted.append(each))
    assert counted[0] == (1, 6)


def test_within_the_budget_every_layer_stays_int8(trial, tmp_path):
    effects = measure_effects(trial, tmp_path / "effects.json")
    verdict = fall_back(trial, effects, budget=10.0)
    assert verdict.products == trial.names
    assert not verdict.left
    assert verdict.error == trial.error(trial.names)


def test_over_the_budget_the_worst_layers_go_first_until_the_rest_fit(trial, tmp_path):
    effects = measure_effects(trial, tmp_path / "effects.json")
    ranked = sorted(effects, key=effects.__getitem__)
    budget = trial.error(ranked[:3]) * 1.0001
    verdict = fall_back(trial, effects, budget)
    assert set(ranked[:3]) <= set(verdict.products)
    assert set(verdict.products) == set(ranked[: len(verdict.products)])
    assert list(verdict.left) == ranked[: len(verdict.products) - 1 : -1]
    assert verdict.error == trial.error(verdict.products) <= budget
    assert trial.error(ranked[: len(verdict.products) + 1]) > budget
    assert all("moves finished latents by" in reason and "%" in reason for reason in verdict.left.values())


def test_a_layer_that_breaks_the_picture_altogether_has_an_infinite_effect(trial, tmp_path, monkeypatch):
    run = trial._run

    def broken(part: str, feeds: Arrays) -> Arrays:
        answer = run(part, feeds)
        return {"velocity": answer["velocity"] * np.nan} if feeds["in_int8"][2] else answer

    monkeypatch.setattr(trial, "_run", broken)
    effects = measure_effects(trial, tmp_path / "effects.json")
    assert [name for name, effect in effects.items() if math.isinf(effect)] == [trial.names[2]]
    assert measure_effects(trial, tmp_path / "effects.json") == effects
    verdict = fall_back(trial, effects, budget=10.0)
    assert list(verdict.left) == [trial.names[2]]
