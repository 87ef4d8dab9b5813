"""Guidance: the formula, when it is needed, and what it refuses."""

import math

import numpy as np
import pytest
from sana_runtime.conditioning import Condition
from sana_runtime.errors import UsageError
from sana_runtime.guidance import Guidance
from sana_runtime.painting import Painting
from sana_runtime.request import Request
from sana_runtime.signature import Sizes, signatures
from sana_runtime.solver import FlowDpm


def halves(seed: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(2, 4, 3, 5)).astype(dtype), random.normal(size=(2, 4, 3, 5)).astype(dtype)


@pytest.mark.parametrize("scale", [1.5, 4.5, 7.25])
def test_guidance_equals_the_formula_of_diffusers(scale):
    import torch

    negative, positive = halves(0, np.float32)
    both = torch.from_numpy(np.concatenate([negative, positive]))
    unconditional, conditional = both.float().chunk(2)
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_array_equal(Guidance(scale).combine(negative, positive), expected.numpy())


def test_guidance_computes_in_float32_when_the_model_does_not():
    negative, positive = (np.float16(20000 * np.clip(half, -3, 3)) for half in halves(1, np.float32))
    guided = Guidance(4.5).combine(negative, positive)
    assert guided.dtype == np.float32
    assert np.isfinite(guided).all() and np.abs(guided).max() > 65504


@pytest.mark.parametrize(
    ("guidance", "timestep", "active"),
    [
        (Guidance(4.5), 999.0, True),
        (Guidance(4.5), 0.0, True),
        (Guidance(1.0), 500.0, False),
        (Guidance(0.0), 500.0, False),
        (Guidance(4.5, (100, 700)), 100.0, True),
        (Guidance(4.5, (100, 700)), 700.0, True),
        (Guidance(4.5, (100, 700)), 99.9, False),
        (Guidance(4.5, (100, 700)), 701.0, False),
    ],
)
def test_the_negative_prompt_is_needed_inside_of_the_interval_only(guidance, timestep, active):
    assert guidance.active(timestep) is active


@pytest.mark.parametrize(("interval", "guided"), [((0, 1000), 4), ((600, 1000), 3), ((600, 900), 2), ((0, 0), 0)])
def test_a_step_outside_of_the_interval_runs_half_of_the_rows(interval, guided):
    rows = []

    def run(part, feeds):
        rows.append(len(feeds["latent"]))
        return {"velocity": feeds["latent"]}

    request = Request("", "", (128, 128), Guidance(4.5, interval), seed=1, solver=FlowDpm(4, 2.0), count=2)
    sizes = Sizes(depth=2, dim=64, text_dim=48, sample_size=4)
    condition = Condition(np.zeros((2, 2, 1, 3, 64), np.float32))
    Painting(run, signatures(sizes), request).denoise(condition, condition)
    assert sorted(rows) == [2] * (4 - guided) + [4] * guided  # of two pictures


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf, -math.inf])
def test_a_scale_that_cannot_work_is_refused(scale):
    with pytest.raises(UsageError, match="guidance"):
        Guidance(scale)


@pytest.mark.parametrize("interval", [(700, 100), (-1, 10), (0, 1001), (math.nan, 10)])
def test_an_interval_that_cannot_work_is_refused(interval):
    with pytest.raises(UsageError, match="interval"):
        Guidance(4.5, interval)
