"""Angles that are looked up are the angles that the reference computes, in an engine that rounds to bfloat16, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sana_reference.config import PRESETS, TextConfig
from sana_reference.positions import GridPositions, Sinusoid
from sana_reference.text_encoder import TextEncoder
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import SessionOptions

from sana_export.tracing.tables import GridTable, RotationTable, TimeTable

TINY = PRESETS["tiny"]
TEXT = TextConfig(64, 48, 1, 4, 2, 16, 96, query_scalar=16.0)


def test_every_timestep_has_the_sinusoid_of_the_reference():
    times = torch.arange(1001)
    assert torch.equal(TimeTable(Sinusoid())(times), Sinusoid()(times))


@pytest.mark.parametrize(("base", "scale"), [(64, 1.0), (128, 2.0)])
@pytest.mark.parametrize("size", [(1, 1), (48, 80), (64, 64), (100, 7)])
def test_positions_are_those_of_the_reference(base, scale, size):
    original = GridPositions(64, base, scale)
    torch.testing.assert_close(GridTable(original)(*size), original(*size), rtol=0, atol=1e-5)


def test_rotations_are_those_of_the_reference():
    encoder = TextEncoder(TEXT)
    positions = torch.tensor([[0, 5, 719], [3, 207, 300]])
    for actual, expected in zip(
        RotationTable(encoder, 719, torch.float32)(positions), encoder.rotation(positions), strict=True
    ):
        assert torch.equal(actual, expected)


def relative(actual, expected):
    """Root mean square difference, in units of the expected numbers."""
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def both(part, feeds):
    """The part's output in fp32 and with bfloat16 products."""
    name = part.signature.outputs[0].name
    return [OpenVinoSession(part.graph, SessionOptions(half)).run(feeds)[name] for half in (False, True)]


def test_late_timesteps_and_far_positions_survive_bfloat16_products(random_model, export):
    config = replace(TINY, depth=1, sample_size=32, position_base=64)
    part = export(random_model(config), "fp32", ("transformer",))["transformer"]
    for timestep in (3.0, 999.0):
        feeds = part.signature.example_feeds(batch=1, height=32, width=24, rows=5)
        feeds["timestep"] = np.array([timestep], np.float32)
        exact, rounded = both(part, feeds)
        assert relative(rounded, exact) <= 0.03


def test_the_end_of_a_long_text_survives_bfloat16_products(random_model, export):
    model = random_model(replace(TINY, text_dim=TEXT.dim), text_config=TEXT)
    part = export(model, "fp32", ("text_encoder",))["text_encoder"]
    feeds = part.signature.example_feeds(batch=1, tokens=400)
    feeds["input_ids"] = np.random.default_rng(0).integers(4, 64, (1, 400))
    exact, rounded = both(part, feeds)
    assert relative(rounded[:, -50:], exact[:, -50:]) <= 0.06
