"""Recording paints as the runtime does, sees every step of both branches, and loses nothing when it is stopped."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from sana_calibration.painter import Model, Painter, Plan
from sana_calibration.record import Recording
from sana_calibration.record import record as record_paintings
from sana_calibration.recording_graph import write_recording_graph
from sana_runtime.errors import QualityError
from sana_runtime.guidance import Guidance
from sana_runtime.session import Arrays, Device, Session, SessionOptions, open_session
from sana_runtime.solver import FlowDpm, FlowEuler

PLAN = Plan(("a cat", "a red circle", "two squares"), FlowDpm(3), (128, 192), Guidance(4.5), negative="blurred")
QKV = "blocks.0.attention.qkv"


@dataclass
class Watched:
    """A session that remembers its feeds, may break an input, and may be stopped."""

    session: Session
    feeds: list[Arrays] = field(default_factory=list)
    runs: int = 10**9
    break_at: tuple[int, float] = (-1, 0.0)

    def run(self, feeds: Arrays) -> Arrays:
        if len(self.feeds) == self.runs:
            raise KeyboardInterrupt
        self.feeds.append(feeds)
        if len(self.feeds) == self.break_at[0]:
            latent = feeds["latent"].copy()
            latent[0, 0, 0, 0] = self.break_at[1]
            feeds = {**feeds, "latent": latent}
        return self.session.run(feeds)


@dataclass(frozen=True)
class Subject:
    """A watched session of the recording graph, and what else a recording needs."""

    session: Watched
    channels: dict[str, int]
    model: Model


def record(subject: Subject, plan: Plan, state: Path, *rest: object) -> Recording:
    def run(part: str, feeds: Arrays) -> Arrays:
        return subject.session.run(feeds)

    return record_paintings(run, subject.channels, Painter(subject.model, plan), state, *rest)


@pytest.fixture(scope="module")
def subject(tiny, make_model) -> Callable[..., Subject]:
    """Makes the tiny transformer ready for recording."""
    graph = tiny / "recording.onnx"
    channels = write_recording_graph(tiny / "transformer.onnx", graph)

    def make(device: Device = Device.ONNXRUNTIME, **watched: object) -> Subject:
        session = Watched(open_session(graph, device, SessionOptions(threads=1)), **watched)
        return Subject(session, channels, make_model(tiny))

    return make


def assert_same(first, second):
    assert first.tokens.keys() == second.tokens.keys()
    for name, tokens in first.tokens.items():
        for kind, array in tokens.arrays().items():
            np.testing.assert_array_equal(array, second.tokens[name].arrays()[kind], err_msg=f"{name} {kind}")


def test_every_timestep_is_recorded_in_both_branches_on_the_solvers_own_path(subject, tmp_path):
    watched = subject()
    recording = record(watched, PLAN, tmp_path / "state.npz")
    feeds = watched.session.feeds
    assert [float(each["timestep"][0]) for each in feeds] == PLAN.solver.timesteps.tolist() * 3
    assert all(each["latent"].shape == (2, 32, 4, 6) for each in feeds)
    kv = feeds[0]["text_kv"]
    assert not np.allclose(kv[:, :, 0], kv[:, :, 1])  # the negative prompt's, then the prompt's
    assert recording.tokens[QKV].seen == 3 * 3 * 2 * 16
    assert len(recording.tokens) == 12


@pytest.mark.parametrize("device", [Device.ONNXRUNTIME, Device.CPU])
def test_what_is_recorded_is_what_flows_into_the_product(subject, tmp_path, tiny, device):
    plan = replace(PLAN, prompts=PLAN.prompts[:1], solver=FlowEuler(1))
    watched = subject(device)
    tokens = record(watched, plan, tmp_path / "state.npz").tokens
    feeds = watched.session.feeds[0]
    answer = watched.session.session.run({**feeds, "sampled_tokens": np.arange(24)})
    flat = answer[f"{QKV}.sample"].reshape(-1, 64)
    np.testing.assert_allclose(tokens[QKV].largest, np.abs(flat).max(0), rtol=1e-4)
    assert all(np.abs(flat - kept).max(1).min() < 1e-4 for kept in tokens[QKV].kept)
    plain = {name: array for name, array in feeds.items() if name != "sampled_tokens"}
    float_run = open_session(tiny / "transformer.onnx", device, SessionOptions(threads=1)).run(plain)
    np.testing.assert_allclose(answer["velocity"], float_run["velocity"], atol=1e-5)


@pytest.mark.parametrize("runs", [0, 2, 3, 7, 8])
def test_a_recording_stopped_anywhere_goes_on_to_the_same_statistics(subject, tmp_path, runs):
    whole = record(subject(), PLAN, tmp_path / "whole.npz")
    with pytest.raises(KeyboardInterrupt):
        record(subject(runs=runs), PLAN, tmp_path / "state.npz")
    resumed = subject()
    again = record(resumed, PLAN, tmp_path / "state.npz")
    assert_same(again, whole)
    assert again.reused == runs // 3
    assert len(resumed.session.feeds) == 9 - 3 * again.reused


def test_a_finished_recording_is_reused_without_a_single_run(subject, tmp_path):
    first = record(subject(), PLAN, tmp_path / "state.npz")
    second = record(subject(runs=0), PLAN, tmp_path / "state.npz")
    assert (first.reused, second.reused) == (0, 3)
    assert_same(first, second)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": ("a cat", "a red circle", "a star")},
        {"solver": FlowDpm(2)},
        {"solver": FlowDpm(3, 2.0)},
        {"guidance": Guidance(3.0)},
        {"size": (128, 128)},
        {"negative": ""},
        {"seed": 1},
    ],
)
def test_every_part_of_a_plan_is_part_of_its_key(change):
    assert replace(PLAN, **change).key("model", [QKV]) != PLAN.key("model", [QKV])
    assert PLAN.key("other", [QKV]) != PLAN.key("model", [QKV]) != PLAN.key("model", [])


def test_the_recording_of_another_plan_is_not_continued(subject, tmp_path):
    short = replace(PLAN, prompts=PLAN.prompts[:1])
    record(subject(), replace(short, seed=5), tmp_path / "state.npz")
    again = record(subject(), short, tmp_path / "state.npz")
    assert again.reused == 0
    assert_same(again, record(subject(), short, tmp_path / "fresh.npz"))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_a_damaged_state_is_no_state(subject, tmp_path, damage):
    state = tmp_path / "state.npz"
    plan = replace(PLAN, prompts=PLAN.prompts[:1])
    first = record(subject(), plan, state)
    state.write_bytes(state.read_bytes()[:2000] if damage is None else damage)
    again = record(subject(), plan, state)
    assert again.reused == 0
    assert_same(first, again)


@pytest.mark.parametrize("device", [Device.ONNXRUNTIME, Device.CPU])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_step_and_prompt(subject, tmp_path, device, value):
    timestep = PLAN.solver.timesteps[1]
    with pytest.raises(
        QualityError, match=rf"blocks\.0\.attention\.qkv is not finite at timestep {timestep:g} of 'a red"
    ):
        record(subject(device, break_at=(5, value)), PLAN, tmp_path / "state.npz")
    assert record(subject(runs=6), PLAN, tmp_path / "state.npz").reused == 1  # what was painted before is kept


def test_without_guidance_one_branch_is_recorded(subject, tmp_path):
    watched = subject()
    recording = record(watched, replace(PLAN, guidance=Guidance(1.0)), tmp_path / "state.npz")
    assert all(len(each["latent"]) == 1 for each in watched.session.feeds)
    assert recording.tokens[QKV].seen == 3 * 3 * 16


def test_progress_counts_all_steps_and_tells_the_time_left(subject, tmp_path):
    events = []
    record(subject(), PLAN, tmp_path / "state.npz", events.append)
    assert [(event.done, event.total) for event in events] == [(i, 9) for i in range(1, 10)]
    assert all(event.seconds_left is not None for event in events)
    assert events[-1].seconds_left == 0


def test_memory_and_state_do_not_grow_with_the_number_of_prompts(subject, tmp_path):
    def peak(prompts: int) -> tuple[int, int]:
        plan = replace(PLAN, prompts=tuple(f"prompt {i}" for i in range(prompts)), solver=FlowEuler(1))
        watched = subject()
        watched.session.feeds = _Forgetful()
        state: Path = tmp_path / f"{prompts}.npz"
        tracemalloc.start()
        record(watched, plan, state)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size, state.stat().st_size

    (few, few_bytes), (many, many_bytes) = peak(8), peak(48)
    assert many < 1.05 * few
    assert many_bytes == few_bytes


class _Forgetful(list):
    def append(self, item: object) -> None:
        pass
