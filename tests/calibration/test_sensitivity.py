"""Layers are judged by finished latents, measured once, and taken back to float worst first."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from sana_calibration.painter import Painter, Plan
from sana_calibration.quantise import quantise
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
    return Trial(session_of(graph), names, Painter(make_model(outliers, depth=1), PLAN))


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
    run: Callable[[Arrays], Arrays] = trial._session.run

    def broken(feeds: Arrays) -> Arrays:
        answer = run(feeds)
        return {"velocity": answer["velocity"] * np.nan} if feeds["in_int8"][2] else answer

    monkeypatch.setattr(trial._session, "run", broken)
    effects = measure_effects(trial, tmp_path / "effects.json")
    assert [name for name, effect in effects.items() if math.isinf(effect)] == [trial.names[2]]
    assert measure_effects(trial, tmp_path / "effects.json") == effects
    verdict = fall_back(trial, effects, budget=10.0)
    assert list(verdict.left) == [trial.names[2]]
