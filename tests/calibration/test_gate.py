"""The gate measures what it says, lets a good INT8 model pass and names what is wrong with a bad one."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from sana_calibration.gate import Contender, Evidence, Limits, compare, enforce
from sana_calibration.likeness import cosine, psnr, relative_error, ssim
from sana_calibration.painter import Painter, Plan
from sana_calibration.quantise import quantise
from sana_runtime.errors import QualityError
from sana_runtime.guidance import Guidance
from sana_runtime.session import Device, SessionOptions, open_session
from sana_runtime.solver import FlowDpm
from scipy import ndimage

PLAN = Plan(("a cat", "a red circle", "two squares"), FlowDpm(4), (128, 128), Guidance(1.5), seed=7)


def picture(seed: int, size: tuple[int, int] = (40, 52)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((*size, 3)), (3, 3, 0))
    return np.clip(smooth / smooth.std() * 50 + 128, 0, 255).astype(np.uint8)


def noisy(original: np.ndarray, strength: float) -> np.ndarray:
    noise = np.random.default_rng(9).standard_normal(original.shape) * strength
    return np.clip(original + noise, 0, 255).astype(np.uint8)


def ssim_through_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 with a uniform 7 × 7 window and sample variances, borders left out."""
    values = []
    for channel in range(3):
        x, y = a[..., channel].astype(float), b[..., channel].astype(float)
        mx, my, xx, yy, xy = (ndimage.uniform_filter(each, 7) for each in (x, y, x * x, y * y, x * y))
        vx, vy, vxy = ((each - m) * 49 / 48 for each, m in ((xx, mx * mx), (yy, my * my), (xy, mx * my)))
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        score = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        values.append(score[3:-3, 3:-3].mean())
    return float(np.mean(values))


@pytest.mark.parametrize("strength", [0, 1, 10, 80])
def test_ssim_is_what_scipys_filters_give(strength):
    a = picture(0)
    b = noisy(a, strength)
    assert ssim(a, b) == pytest.approx(ssim_through_scipy(a, b), abs=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(np.zeros_like(a), np.zeros_like(a)) == 1


def test_psnr_cosine_and_relative_error_by_hand():
    black, grey = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 51, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * math.log10(5))
    assert psnr(grey, grey) == math.inf
    a, b = np.array([3.0, 4.0]), np.array([4.0, -3.0])
    assert cosine(a, 2 * a) == pytest.approx(1)
    assert cosine(a, b) == pytest.approx(0)
    assert relative_error(np.array([3.0, 4.5]), a) == pytest.approx(0.1)
    assert relative_error(np.array([np.nan, 0]), a) == math.inf
    assert cosine(np.array([np.inf, 0]), a) == -1


@pytest.fixture(scope="module")
def contenders(tiny, make_model, save, tmp_path_factory):
    """The float model and the same in INT8."""
    model = ir.load(tiny / "transformer.onnx")
    quantise(model)
    graphs = (tiny / "transformer.onnx", save(model, tmp_path_factory.mktemp("gate") / "int8.onnx"))

    def contender(graph) -> Contender:
        session = open_session(graph, Device.ONNXRUNTIME, SessionOptions(threads=1))
        return Contender(Painter(make_model(tiny), PLAN), lambda part, feeds: session.run(feeds), decode)

    return tuple(map(contender, graphs))


def decode(latent: np.ndarray) -> np.ndarray:
    """Three channels of the latent as a picture, each value eight pixels wide."""
    pixels = np.clip(latent[:, :3].transpose(0, 2, 3, 1) * 40 + 128, 0, 255).astype(np.uint8)
    return pixels.repeat(8, axis=1).repeat(8, axis=2)


def test_a_model_is_like_itself_and_passes(contenders):
    evidence = compare(contenders[0], contenders[0])
    assert set(evidence.psnrs) == {math.inf}
    assert {error for errors in evidence.velocity_errors.values() for error in errors} == {0.0}
    enforce(evidence, Limits())


def test_int8_is_measured_at_every_step_and_passes(contenders):
    told = []
    evidence = compare(*contenders, lambda *each: told.append(each))
    assert list(evidence.velocity_errors) == PLAN.solver.timesteps.tolist()
    assert all(len(errors) == 3 for errors in evidence.velocity_errors.values())
    assert all(1e-4 < error < 2e-2 for errors in evidence.velocity_errors.values() for error in errors)
    assert all(0.99 < value < 1 for value in evidence.latent_cosines)
    assert told == [(1, 3), (2, 3), (3, 3)]
    enforce(evidence, Limits())


def test_the_reference_is_painted_once_for_every_round_of_the_gate(contenders):
    runs, shown = [], []

    def run(part, feeds):
        runs.append(part)
        return contenders[0].run(part, feeds)

    def show(latent):
        shown.append(latent)
        return decode(latent)

    reference = Contender(contenders[0].painter, run, show)
    first, second = (compare(reference, contenders[1]) for _ in range(2))
    assert first.velocity_errors == second.velocity_errors and first.psnrs == second.psnrs
    assert len(runs) == 3 * len(PLAN.solver.timesteps) and len(shown) == 3


def test_an_error_at_one_step_is_seen_at_that_step_and_in_the_picture(contenders):
    reference, candidate = contenders
    wrong = float(PLAN.solver.timesteps[2])

    def run(part, feeds):
        answer = candidate.run(part, feeds)["velocity"]
        return {"velocity": answer * (-1 if feeds["timestep"][0] == wrong else 1)}

    evidence = compare(reference, Contender(candidate.painter, run, decode))
    limits = Limits()
    bad = [timestep for timestep, errors in evidence.velocity_errors.items() if min(errors) > limits.velocity_error]
    assert bad == [wrong]
    with pytest.raises(QualityError, match=rf"at timestep {wrong:g}, allowed 0\.05; .*PSNR") as caught:
        enforce(evidence, limits)
    assert caught.value.exit_code == 6


def test_a_model_that_gives_no_numbers_fails_every_limit(contenders):
    reference, candidate = contenders
    broken = Contender(
        candidate.painter, lambda part, feeds: {"velocity": np.full_like(feeds["latent"], np.nan)}, decode
    )
    complaints = compare(reference, broken).complaints(Limits())
    assert len(complaints) == len(PLAN.solver.timesteps) + 3


@pytest.mark.parametrize("values", [[31.9, 31.9, 99.0], [math.nan]])
def test_the_median_counts_and_nan_never_passes(values):
    assert Evidence(psnrs=values).complaints(Limits())
    assert not Evidence(psnrs=[10.0, 32.0, 40.0]).complaints(Limits())


def test_the_next_try_aims_at_what_the_last_one_missed_by():
    limits = Limits()
    assert Evidence({999.0: [0.01], 95.0: [0.1, 0.2, 0.15]}).excess(limits) == pytest.approx(3)
    assert Evidence({999.0: [0.01]}, psnrs=[20.0]).excess(limits) == 2
