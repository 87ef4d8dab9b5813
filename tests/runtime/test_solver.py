"""The solvers: equal to diffusers' schedulers step by step, of the order they claim, strict about their arguments."""

import importlib.util
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from sana_runtime.errors import UsageError
from sana_runtime.solver import SOLVERS, FlowDpm, FlowEuler, Scm, make_solver, walk

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[2]
SHAPE = (2, 32, 3, 5)
SHIFTS = (1.0, 3.0, 4.0, 6.0)
COUNTS = (1, 2, 3, 14, 20, 50)
TABLES = {
    (3.0, 20): "999 982 963 944 922 899 874 847 817 785 749 710 666 617 562 499 428 345 249 136",
    (3.0, 14): "999 974 947 916 881 843 799 749 691 624 545 449 333 187",
    (4.0, 20): "999 986 972 957 940 922 902 881 856 829 799 765 726 682 631 571 499 413 307 173",
    (4.0, 14): "999 980 959 935 908 877 841 799 749 689 615 521 399 235",
    (6.0, 20): "999 991 981 971 959 947 933 917 899 879 856 830 799 763 719 666 599 513 399 239",
}
SIGMAS = (
    ".999666 .982419 .963941 .944094 .922722 .899640 .874635 .847457 .817810 .785340 .749625 .710152 .666296 .617284 "
    ".562148 .499667 .428265 .345888 .249792 .136240 0"
)


class RandomModel:
    """A random nonlinear velocity: two layers over the channels, steered by the timestep."""

    def __init__(self, seed: int, time_scale: float) -> None:
        random = np.random.default_rng(seed)
        self.first, self.second = (random.normal(size=(32, 32)).astype(np.float32) / 32**0.5 for _ in range(2))
        self.drift, self.time_scale = random.normal(size=(32, 1, 1)).astype(np.float32), time_scale

    def __call__(self, latent: np.ndarray, timestep: float) -> np.ndarray:
        hidden = np.einsum("oc,bchw->bohw", self.first, latent) + np.float32(timestep / self.time_scale) * self.drift
        return np.einsum("oc,bchw->bohw", self.second, np.tanh(hidden)) - latent

    def tensor(self, latent: "torch.Tensor", timestep: "torch.Tensor") -> "torch.Tensor":
        return torch.from_numpy(self(latent.numpy(), float(timestep)))


def unit_noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def their_flow_dpm(steps: int, shift: float) -> "diffusers.DPMSolverMultistepScheduler":
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    return scheduler


def their_flow_euler(steps: int, shift: float) -> "diffusers.FlowMatchEulerDiscreteScheduler":
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def their_trajectory(scheduler, model: RandomModel, noise: np.ndarray) -> list[np.ndarray]:
    latent, trajectory = torch.from_numpy(noise), []
    for timestep in scheduler.timesteps:
        latent = scheduler.step(model.tensor(latent, timestep), timestep, latent, return_dict=False)[0]
        trajectory.append(latent.numpy())
    return trajectory


def sprint_trajectory(steps: int, model: RandomModel, noise: np.ndarray, generator: "torch.Generator"):
    """The denoising loop of diffusers' SanaSprintPipeline around its SCMScheduler; also the clean latents."""
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    scale = scheduler.config.sigma_data
    latent, noisy, clean = torch.from_numpy(noise) * scale, [], []
    for t in scheduler.timesteps[:-1]:
        s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
        fed = latent / scale * torch.sqrt(s**2 + (1 - s) ** 2)
        out = model.tensor(fed, s)
        out = ((1 - 2 * s) * fed + (1 - 2 * s + 2 * s**2) * out) / torch.sqrt(s**2 + (1 - s) ** 2) * scale
        latent, denoised = scheduler.step(out, t, latent, generator=generator, return_dict=False)
        clean.append((denoised / scale).numpy())
        noisy.append((latent / scale).numpy())
    return noisy, clean, scheduler.timesteps


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert np.linalg.norm(actual - expected) <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("ours", "theirs"), [(FlowDpm, their_flow_dpm), (FlowEuler, their_flow_euler)])
def test_every_step_of_a_flow_equals_diffusers(ours, theirs, shift, steps):
    model, solver, scheduler = RandomModel(steps, 1000), ours(steps, shift), theirs(steps, shift)
    noise = unit_noise(7)
    np.testing.assert_allclose(solver.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
    np.testing.assert_allclose(solver.sigmas, scheduler.sigmas.numpy(), rtol=1e-6)
    taken = list(walk(solver, solver.start(noise), model))
    assert [(step.index, step.total) for step in taken] == [(index, steps) for index in range(steps)]
    for step, expected in zip(taken, their_trajectory(scheduler, model, noise), strict=True):
        assert_close(step.latent, expected)


@pytest.mark.parametrize(("shift", "steps"), TABLES)
def test_flow_dpm_feeds_the_published_timesteps(shift, steps):
    assert FlowDpm(steps, shift).timesteps.tolist() == [float(word) for word in TABLES[shift, steps].split()]


def test_flow_dpm_has_the_published_noise_levels():
    np.testing.assert_allclose(FlowDpm(20, 3.0).sigmas, [float(word) for word in SIGMAS.split()], atol=5.1e-7)


@pytest.mark.parametrize(("shift", "last"), [(3.0, 8.929), (4.0, 15.764), (6.0, 34.783)])
def test_euler_starts_at_a_thousand_and_ends_where_the_published_one_does(shift, last):
    timesteps = FlowEuler(20, shift).timesteps
    assert timesteps[0] == 1000
    assert timesteps[-1] == pytest.approx(last, abs=5e-4)


@pytest.mark.parametrize("steps", COUNTS)
def test_every_step_of_scm_equals_the_sprint_pipeline_with_the_same_draws(steps):
    model, solver, noise = RandomModel(steps, 1), Scm(steps), unit_noise(8)
    theirs, ours = (torch.Generator().manual_seed(5) for _ in range(2))
    _, cleans, angles = sprint_trajectory(steps, model, noise, theirs)
    np.testing.assert_allclose(
        solver.timesteps, (torch.sin(angles) / (torch.cos(angles) + torch.sin(angles))).numpy()[:-1], rtol=1e-6
    )
    fresh = lambda: torch.randn(SHAPE, generator=ours).numpy()  # noqa: E731
    taken = list(walk(solver, solver.start(noise), model, fresh=fresh))
    for step, expected in zip(taken, cleans, strict=True):
        assert_close(step.clean, expected)
    assert_close(taken[-1].latent, cleans[-1])
    assert torch.equal(theirs.get_state(), ours.get_state()), "as many draws, the last step's included"


def test_two_scm_steps_use_the_angles_sprint_was_distilled_for():
    angles = np.arctan2(np.array(Scm(2).sigmas), 1 - np.array(Scm(2).sigmas))
    np.testing.assert_allclose(angles, [1.57080, 1.3, 0], atol=1e-6)
    np.testing.assert_allclose(Scm(1).sigmas, [1, 0], atol=1e-5)


def test_the_whole_sprint_loop_equals_the_real_pipeline_code():
    """Not the formulas above but `SanaSprintPipeline.__call__` itself, with the model and the rest put in by hand."""
    model, noise = RandomModel(3, 1), unit_noise(4)[:1]
    pipeline = sprint_pipeline(model)
    images = pipeline(
        prompt_embeds=torch.zeros(1, 3, 8),
        prompt_attention_mask=torch.ones(1, 3),
        latents=torch.from_numpy(noise),
        height=96,
        width=160,
        num_inference_steps=2,
        output_type="latent",
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(11),
    ).images
    generator, solver = torch.Generator().manual_seed(11), Scm(2)
    fresh = lambda: torch.randn(noise.shape, generator=generator).numpy()  # noqa: E731
    *_, last = walk(solver, solver.start(noise), model, fresh=fresh)
    assert_close(last.latent, images.numpy())


def sprint_pipeline(model: RandomModel):
    from types import SimpleNamespace

    class Transformer(torch.nn.Module):
        config = SimpleNamespace(in_channels=32, guidance_embeds_scale=0.1, sample_size=3)
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, hidden_states, timestep, **_):
            return (model.tensor(hidden_states, timestep[0]),)

    pipeline = diffusers.SanaSprintPipeline.__new__(diffusers.SanaSprintPipeline)
    diffusers.DiffusionPipeline.__init__(pipeline)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "vae"))
    pipeline.register_modules(transformer=Transformer(), scheduler=diffusers.SCMScheduler(), **absent)
    pipeline.vae_scale_factor = 32
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_bench():
    spec = importlib.util.spec_from_file_location("solver_order", ROOT / "bench/solver_order.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_fall_with_the_order_each_solver_has():
    bench, counts = load_bench(), (32, 64, 128)
    euler, dpm, middle = (
        [bench.end_error(kind(count), middle=half) for count in counts]
        for kind, half in ((FlowEuler, False), (FlowDpm, False), (FlowDpm, True))
    )
    assert bench.slope(euler, counts) == pytest.approx(1, abs=0.1)
    assert bench.slope(middle, counts) == pytest.approx(2, abs=0.1)
    assert 1.2 < bench.slope(dpm, counts) < 2.2, "the ends of the grid cost a logarithm; see the bench"
    assert all(ours < theirs / 4 for ours, theirs in zip(dpm, euler, strict=True))


def test_the_analytic_flow_of_the_bench_is_the_flow_of_its_velocity():
    """Its exact end points, found by quantiles, against scipy's integration of the velocity."""
    integrate = pytest.importorskip("scipy.integrate")
    bench = load_bench()
    probability = np.array([0.03, 0.4, 0.6, 0.97])
    start, end = bench.quantile(probability, 0.99), bench.quantile(probability, 0.0)
    solution = integrate.solve_ivp(lambda s, x: bench.velocity(x, s), (0.99, 0), start, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(solution.y[:, -1], end, atol=1e-6)


@pytest.mark.parametrize("kind", [FlowDpm, FlowEuler, Scm])
def test_a_picture_is_noised_as_the_step_it_enters_at_expects(kind):
    solver, noise, picture = kind(8), unit_noise(1), unit_noise(2)
    first = solver.first_step(0.5)
    sigma = solver.sigmas[first]
    np.testing.assert_allclose(solver.start(noise, picture, first), (1 - sigma) * picture + sigma * noise, rtol=1e-6)
    steps = list(
        walk(
            solver, solver.start(noise, picture, first), lambda x, t: noise - picture, fresh=lambda: noise, first=first
        )
    )
    assert [step.index for step in steps] == list(range(first, 8))
    np.testing.assert_allclose(steps[-1].latent, picture, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
@pytest.mark.parametrize("strength", [0.01, 0.3, 0.5, 0.6, 0.99, 1.0])
def test_strength_starts_where_diffusers_does(steps, strength):
    pipeline = diffusers.SanaSprintImg2ImgPipeline.__new__(diffusers.SanaSprintImg2ImgPipeline)
    diffusers.DiffusionPipeline.__init__(pipeline)
    scheduler = diffusers.SCMScheduler()
    scheduler.set_timesteps(steps, intermediate_timesteps=None)
    pipeline.register_modules(scheduler=scheduler)
    timesteps, _ = pipeline.get_timesteps(steps, strength, "cpu")
    assert len(scheduler.timesteps) - len(timesteps) == FlowDpm(steps).first_step(strength)


def test_a_solver_serves_many_threads():
    solver, model = FlowDpm(20), RandomModel(0, 1000)
    results: dict[int, np.ndarray] = {}

    def paint(seed: int) -> None:
        *_, last = walk(solver, solver.start(unit_noise(seed)), model)
        results[seed] = last.latent

    threads = [Thread(target=paint, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for seed in range(4):
        *_, last = walk(solver, solver.start(unit_noise(seed)), model)
        np.testing.assert_array_equal(results[seed], last.latent)


def test_a_walk_can_be_left_after_any_step():
    calls = []

    def velocity(latent, timestep):
        calls.append(timestep)
        return latent

    for step in walk(FlowEuler(20), unit_noise(0), velocity):
        if step.index == 3:
            break
    assert len(calls) == 4


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_found_by_name_with_their_usual_steps(name):
    solver = make_solver(name)
    assert solver.name == name and len(solver.timesteps) == SOLVERS[name].usual_steps
    assert len(make_solver(name, 7).timesteps) == 7


def test_the_shift_reaches_the_grid():
    assert make_solver("flow-dpm", 20, 6.0).timesteps.tolist() == FlowDpm(20, 6.0).timesteps.tolist()
    assert make_solver("flow-dpm", 20).timesteps.tolist() == FlowDpm(20, 3.0).timesteps.tolist()


@pytest.mark.parametrize("steps", [1000, 999])
@pytest.mark.parametrize("shift", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("kind", [FlowDpm, FlowEuler])
def test_the_extremes_that_are_allowed_stay_finite(kind, shift, steps):
    solver = kind(steps, shift)
    assert np.all(np.diff(solver.sigmas) < 0)
    *_, last = walk(solver, unit_noise(0), lambda latent, timestep: 0.5 * latent)
    assert np.isfinite(last.latent).all()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, "20", True, float("nan")])
def test_step_counts_that_cannot_work_are_refused(name, steps):
    with pytest.raises(UsageError, match="steps"):
        make_solver(name, steps)


@pytest.mark.parametrize("name", ["flow-dpm", "flow-euler"])
@pytest.mark.parametrize("shift", [0, -3.0, float("nan"), float("inf"), 1000, True, "3"])
def test_flow_shifts_that_cannot_work_are_refused(name, shift):
    with pytest.raises(UsageError, match="shift"):
        make_solver(name, 20, shift)


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_strengths_that_cannot_work_are_refused(strength):
    with pytest.raises(UsageError, match="strength"):
        FlowDpm(20).first_step(strength)


def test_an_unknown_solver_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="flow-dpm, flow-euler, scm"):
        make_solver("ddim")


def test_scm_refuses_what_it_cannot_use_and_asks_for_what_it_needs():
    with pytest.raises(UsageError, match="no flow shift"):
        make_solver("scm", 2, 3.0)
    with pytest.raises(UsageError, match="fresh noise"):
        list(walk(Scm(2), unit_noise(0), lambda latent, timestep: latent))
