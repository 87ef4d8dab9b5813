"""Smoothing changes nothing in float, and saves what rounding would lose where some channels are far larger."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from sana_calibration.choose_factors import choose_factors
from sana_calibration.products import chosen
from sana_calibration.quantise import quantise
from sana_calibration.recording_graph import LARGEST, SAMPLE, write_recording_graph
from sana_calibration.smooth import smooth
from sana_calibration.statistics import TokenStatistics
from sana_reference.config import PRESETS
from sana_runtime.errors import UsageError
from sana_runtime.session import Arrays, Device, SessionOptions, open_session
from sana_runtime.signature import signatures

from sana_export.export import sizes_of

PARTS = ("caption", "transformer")
ENGINES = (Device.ONNXRUNTIME, Device.CPU)
HELD_OUT = 99


@dataclass(frozen=True)
class Pair:
    """The caption and transformer parts of one folder."""

    folder: Path
    device: Device = Device.ONNXRUNTIME

    def run(self, part: str, feeds: Arrays) -> Arrays:
        return open_session(self.folder / f"{part}.onnx", self.device, SessionOptions(threads=1)).run(feeds)

    def velocity(self, seed: int = HELD_OUT) -> np.ndarray:
        return self.run("transformer", self.feeds(seed))["velocity"]

    def feeds(self, seed: int) -> Arrays:
        known = signatures(sizes_of(PRESETS["tiny"]))
        captions = known["caption"].example_feeds(seed=seed, batch=2, rows=5)
        feeds = known["transformer"].example_feeds(seed=seed, batch=2, rows=5, height=4, width=6)
        timestep = np.random.default_rng(seed).uniform(0, 1000, 2).astype(np.float32)
        return {**feeds, "timestep": timestep, "text_kv": self.run("caption", captions)["text_kv"]}


def _layer(weight: np.ndarray) -> ir.Model:
    """A graph of one product, called as in a transformer."""
    x = ir.Value(name="x", shape=ir.Shape(["N", len(weight)]), type=ir.TensorType(ir.DataType.FLOAT))
    tensor = ir.Tensor(weight.astype(np.float32), name="blocks.0.attention.out.weight")
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    node = ir.node("MatMul", [x, value])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def changed(save, tmp_path) -> Callable[..., Pair]:
    """Writes a folder's two parts after some changes."""

    def write(folder: Path, name: str, *changes: Callable[[ir.Model, ir.Model], object]) -> Pair:
        caption, transformer = (ir.load(folder / f"{part}.onnx") for part in PARTS)
        for change in changes:
            change(transformer, caption)
        (tmp_path / name).mkdir()
        for part, model in zip(PARTS, (caption, transformer), strict=True):
            save(model, tmp_path / name / f"{part}.onnx")
        return Pair(tmp_path / name)

    return write


@pytest.fixture(scope="module")
def tokens(outliers) -> dict[str, TokenStatistics]:
    """What flows into the products of the transformer with outliers."""
    channels = write_recording_graph(outliers / "transformer.onnx", outliers / "recording.onnx")
    statistics = {name: TokenStatistics.empty(size) for name, size in channels.items()}
    pair, rng = Pair(outliers), np.random.default_rng(0)
    for seed in range(6):
        answer = pair.run("recording", {**pair.feeds(seed), "sampled_tokens": np.arange(24)})
        for name, each in statistics.items():
            each.observe(answer[name + LARGEST], answer[name + SAMPLE].reshape(-1, channels[name]), rng)
    return statistics


@pytest.mark.parametrize("device", ENGINES)
def test_powers_of_two_leave_the_float_graphs_every_bit_as_it_was(tiny, changed, device):
    def by_random_factors(transformer: ir.Model, caption: ir.Model) -> None:
        rng = np.random.default_rng(0)
        smooth(transformer, caption, {each.name: 2.0 ** rng.integers(-6, 7, each.rows) for each in chosen(transformer)})

    smoothed = changed(tiny, "smoothed", by_random_factors)
    names = {each.name for each in chosen(ir.load(tiny / "transformer.onnx"))}
    for name in names:
        before, after = (
            ir.load(folder / "transformer.onnx").graph.initializers[f"{name}.weight"].const_value.numpy()
            for folder in (tiny, smoothed.folder)
        )
        assert not np.array_equal(before, after)
    np.testing.assert_array_equal(Pair(smoothed.folder, device).velocity(), Pair(tiny, device).velocity())


@pytest.mark.parametrize("product", range(6))
def test_each_place_takes_its_own_factors_alone(tiny, changed, product):
    def by_one(transformer: ir.Model, caption: ir.Model) -> None:
        each = chosen(transformer)[product]
        smooth(transformer, caption, {each.name: 2.0 ** (np.arange(each.rows) % 7 - 3)})

    np.testing.assert_array_equal(changed(tiny, "one", by_one).velocity(), Pair(tiny).velocity())


@pytest.mark.parametrize("device", ENGINES)
def test_outliers_break_plain_rounding_and_not_the_smoothed(outliers, tokens, changed, distance, device):
    choices = choose_factors(ir.load(outliers / "transformer.onnx"), tokens)
    assert len(choices) == 6
    factors = {name: choice.factors for name, choice in choices.items()}
    plain = changed(outliers, "plain", lambda transformer, caption: quantise(transformer))
    smoothed = changed(
        outliers, "smoothed", lambda *parts: smooth(*parts, factors), lambda transformer, caption: quantise(transformer)
    )
    expected = Pair(outliers).velocity()
    assert distance(Pair(plain.folder, device).velocity(), expected) > 3e-2
    assert distance(Pair(smoothed.folder, device).velocity(), expected) < 2e-3


def test_the_error_a_choice_states_is_the_error_on_tokens_it_never_saw(outliers, tokens, changed, distance):
    name = "blocks.0.feed_forward.contract"
    choice = choose_factors(ir.load(outliers / "transformer.onnx"), {name: tokens[name]})[name]
    assert choice.error < 0.02 < 0.2 < choice.plain_error
    recorder = Pair(outliers)
    held_out = recorder.run("recording", {**recorder.feeds(HELD_OUT), "sampled_tokens": np.arange(24)})
    x = held_out[name + SAMPLE].reshape(-1, len(choice.factors)).astype(np.float64)
    weight = ir.load(outliers / "transformer.onnx").graph.initializers[f"{name}.weight"].const_value.numpy()
    for factors, stated in ((choice.factors, choice.error), (1.0, choice.plain_error)):
        smooth_x, smooth_weight = x / factors, weight * np.reshape(factors, (-1, 1))
        token_steps = np.abs(smooth_x).max(1, keepdims=True) / 127
        column_steps = np.abs(smooth_weight).max(0) / 127
        rounded = np.rint(smooth_x / token_steps) * token_steps @ (np.rint(smooth_weight / column_steps) * column_steps)
        assert stated / 1.5 < distance(rounded, x @ weight) < stated * 1.5


def test_a_spike_that_comes_once_does_not_choose_the_factors():
    rng = np.random.default_rng(0)
    model = _layer(rng.standard_normal((64, 96)))
    statistics = TokenStatistics.empty(64)
    usual = rng.standard_normal((2000, 64)).astype(np.float32)
    usual[:, 5] *= 50
    statistics.observe(np.abs(usual).max(0), usual, rng)
    largest = statistics.largest.copy()
    largest[20:40] *= 1000  # of a token that was not sampled
    statistics.observe(largest, usual[:0], rng)
    (choice,) = choose_factors(model, {"blocks.0.attention.out": statistics}).values()
    assert choice.observer in ("Percentile", "LeastError")
    assert choice.error < choice.plain_error / 2
    assert choice.factors[5] > choice.factors[20:40].max()


def test_channels_that_never_fire_and_weights_of_zeros_need_no_factor():
    rng = np.random.default_rng(0)
    statistics = TokenStatistics.empty(64)
    x = rng.standard_normal((100, 64)).astype(np.float32)
    x[:, :8] = 0
    statistics.observe(np.abs(x).max(0), x, rng)
    for weight in (rng.standard_normal((64, 96)), np.zeros((64, 96))):
        (choice,) = choose_factors(_layer(weight), {"blocks.0.attention.out": statistics}).values()
        assert np.isfinite(choice.factors).all() and np.isfinite(choice.error)
        np.testing.assert_array_equal(choice.factors[:8], 1)
    silent = TokenStatistics.empty(64)
    silent.observe(np.zeros(64, np.float32), np.zeros((4, 64), np.float32), rng)
    (choice,) = choose_factors(_layer(np.ones((64, 96))), {"blocks.0.attention.out": silent}).values()
    np.testing.assert_array_equal(choice.factors, 1)


@pytest.mark.parametrize(
    ("name", "factors", "why"),
    [
        ("blocks.0.attention.qkv", np.full(64, 3.0), "power of two"),
        ("blocks.0.attention.qkv", np.ones(63), "takes 64 factors"),
        ("blocks.0.attention.qkv", np.zeros(64), "power of two"),
        ("blocks.0.attention.qkv", -np.ones(64), "power of two"),
        ("patch", np.ones(32), "no known place"),
        ("blocks.7.attention.qkv", np.ones(64), "not a product"),
    ],
)
def test_factors_that_would_change_the_function_are_refused(tiny, name, factors, why):
    transformer, caption = (ir.load(tiny / f"{part}.onnx") for part in ("transformer", "caption"))
    with pytest.raises(UsageError, match=why):
        smooth(transformer, caption, {name: factors})
