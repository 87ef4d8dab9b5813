"""The pipeline inside an app: seeds, batches, threads, cancellation, callbacks that raise, memory that runs out."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from sana_runtime import pipeline as pipeline_module
from sana_runtime.errors import MemoryLimitError, UsageError
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import Interrupted

STEPS = 3


def psnr(actual, expected):
    error = np.mean((actual.astype(float) - expected.astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-6))


@pytest.fixture(scope="module")
def painter(built):
    with Pipeline.open(built("sana").path) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def expected(painter):
    return painter.generate("a red circle", steps=STEPS, seed=1).pixels


def test_one_seed_is_one_picture_whatever_was_painted_between(painter, expected):
    other = painter.generate("a red circle", steps=STEPS, seed=2).pixels
    again = painter.generate("a red circle", steps=STEPS, seed=1).pixels
    np.testing.assert_array_equal(again, expected)
    assert (other != expected).any()


def test_a_batch_is_its_single_pictures(painter):
    batch = painter.generate("a star", steps=STEPS, seed=5, count=4)
    singles = [painter.generate("a star", steps=STEPS, seed=5 + i) for i in range(4)]
    assert [picture.recipe.seed for picture in batch] == [5, 6, 7, 8]
    assert min(psnr(a.pixels, b.pixels) for a, b in zip(batch, singles, strict=True)) >= 50


def test_a_batch_beyond_what_the_graph_takes_is_painted_in_pieces(painter):
    batch = painter.generate("a star", steps=2, seed=5, count=6)
    assert psnr(batch[5].pixels, painter.generate("a star", steps=2, seed=10).pixels) >= 50


def test_both_engines_paint_the_same_picture(built, expected):
    with Pipeline.open(built("sana").path, device="onnxruntime") as other:
        assert psnr(other.generate("a red circle", steps=STEPS, seed=1).pixels, expected) >= 50


@pytest.mark.parametrize("words", [0, 1, 12, 400])
def test_a_prompt_of_any_length_gives_the_same_picture_on_both_engines(built, painter, words):
    prompt = " ".join(["red"] * words)  # 400 are more than the model reads
    with Pipeline.open(built("sana").path, device="onnxruntime") as other:
        theirs = other.generate(prompt, steps=2, seed=1).pixels
    assert psnr(painter.generate(prompt, steps=2, seed=1).pixels, theirs) >= 50


def test_each_part_may_have_its_own_device(built, expected):
    with Pipeline.open(built("sana").path, device={"decoder": "onnxruntime", "transformer": "cpu"}) as mixed:
        picture = mixed.generate("a red circle", steps=STEPS, seed=1)
    assert picture.recipe.device == "cpu+onnxruntime"
    assert psnr(picture.pixels, expected) >= 50


def test_eight_threads_paint_what_one_paints(painter):
    serial = [painter.generate("a star", steps=2, seed=seed).pixels for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda seed: painter.generate("a star", steps=2, seed=seed).pixels, range(8)))
    for one, other in zip(serial, threaded, strict=True):
        np.testing.assert_array_equal(one, other)


def test_steps_are_counted_and_the_time_left_shrinks_to_nothing(painter):
    events = []
    painter.generate("a star", steps=4, on_step=events.append)
    assert [(event.stage, event.index, event.total) for event in events] == [
        ("text", 1, 1),
        *(("paint", i, 4) for i in range(1, 5)),
        ("decode", 1, 1),
    ]
    assert events[-1].seconds_left == 0


def test_guidance_outside_its_interval_is_not_computed(painter):
    inside = painter.generate("a star", steps=STEPS, guidance_interval=(0, 1000)).pixels
    outside = painter.generate("a star", steps=STEPS, guidance_interval=(0, 0)).pixels
    none = painter.generate("a star", steps=STEPS, guidance=1.0).pixels
    np.testing.assert_array_equal(outside, none)
    assert (inside != none).any()


KINDS = ("stop", "raise", "cancel", "short", "stop", "raise", "cancel", "raise", "cancel", "starved")


class OwnError(Exception):
    """What a caller's own function raises."""


class Failing:
    """A session that runs out of memory after a number of calls: once, or from then on."""

    calls_left, once = -1, True

    def __init__(self, session):
        self.session = session

    def run(self, feeds):
        if Failing.calls_left == 0:
            Failing.calls_left = -1 if Failing.once else 0
            raise MemoryLimitError("not enough memory")
        Failing.calls_left -= Failing.calls_left > 0
        return self.session.run(feeds)

    def interrupt(self):
        self.session.interrupt()


def stopped(pipeline, kind, when):
    """Paint, and be stopped at step `when` by the callback's answer, by its error, or by a cancellation."""

    def on_step(step):
        if step.stage == "decode" or (step.index if step.stage == "paint" else 0) < when:
            return None
        if kind == "raise":
            raise OwnError
        if kind == "cancel":
            pipeline.cancel()
        return kind == "stop"

    with pytest.raises(OwnError if kind == "raise" else Interrupted):
        pipeline.generate("a red circle", steps=STEPS, seed=3, on_step=on_step)


def starved(pipeline, when, expected, *, once):
    """Paint with too little memory for the call `when` of the transformer: just then, or from then on."""
    Failing.calls_left, Failing.once = when, once
    if once:
        np.testing.assert_array_equal(pipeline.generate("a red circle", steps=STEPS, seed=1).pixels, expected)
    else:
        with pytest.raises(MemoryLimitError):
            pipeline.generate("a red circle", steps=STEPS, seed=1)
    Failing.calls_left = -1


def test_a_hundred_failures_of_every_kind_leave_the_pipeline_whole(monkeypatch, built, expected):
    real = pipeline_module.open_session

    def opened(graph, device, options):
        session = real(graph, device, options)
        return Failing(session) if graph.stem == "transformer" else session

    monkeypatch.setattr(pipeline_module, "open_session", opened)
    rng, process, memory = np.random.default_rng(0), psutil.Process(), []
    with Pipeline.open(built("sana").path) as pipeline:
        for round_number in range(100):
            kind = KINDS[round_number % len(KINDS)]
            if kind in ("stop", "raise", "cancel"):
                stopped(pipeline, kind, int(rng.integers(0, STEPS + 1)))
            else:
                starved(pipeline, int(rng.integers(0, STEPS)), expected, once=kind == "short")
            if round_number % 3 == 0:
                again = pipeline.generate("a red circle", steps=STEPS, seed=1)
                np.testing.assert_array_equal(again.pixels, expected)
            memory.append(process.memory_info().rss)
    assert max(memory[-10:]) <= 1.05 * max(memory[10:20])


def test_a_cancellation_from_another_thread_stops_within_a_step(painter, expected):
    started = threading.Event()
    seen = []

    def on_step(step):
        seen.append(step)
        started.set()

    timer = threading.Thread(target=lambda: (started.wait(), painter.cancel()))
    timer.start()
    with pytest.raises(Interrupted):
        painter.generate("a star", steps=500, on_step=on_step)
    timer.join()
    assert len(seen) < 400
    np.testing.assert_array_equal(painter.generate("a red circle", steps=STEPS, seed=1).pixels, expected)


class Scarce:
    """A session that runs out of memory at the calls it was told, or whenever more than `most` are asked at once."""

    def __init__(self, session, calls, failing=(), most=None):
        self.session, self.calls, self.failing, self.most = session, calls, failing, most

    def run(self, feeds):
        if next(self.calls) in self.failing or (self.most and len(feeds["latent"]) > self.most):
            raise MemoryLimitError("not enough memory")
        return self.session.run(feeds)

    def interrupt(self):
        self.session.interrupt()


def scarce_pipeline(monkeypatch, path, **limits):
    """The pipeline of a bundle in which some parts are short of memory."""
    real = pipeline_module.open_session
    calls = {part: itertools.count(1) for part in limits}  # a part that is loaded again goes on counting

    def opened(graph, device, options):
        session = real(graph, device, options)
        return Scarce(session, calls[graph.stem], **limits[graph.stem]) if graph.stem in limits else session

    monkeypatch.setattr(pipeline_module, "open_session", opened)
    return Pipeline.open(path)


@pytest.mark.parametrize("part", ["text_encoder", "caption", "transformer", "decoder"])
def test_memory_that_runs_out_once_costs_nothing_but_time(monkeypatch, built, expected, part):
    with scarce_pipeline(monkeypatch, built("sana").path, **{part: {"failing": (1,)}}) as pipeline:
        picture = pipeline.generate("a red circle", steps=STEPS, seed=1)
    np.testing.assert_array_equal(picture.pixels, expected)


def test_a_batch_that_does_not_fit_is_painted_in_smaller_ones(monkeypatch, built, painter):
    whole = painter.generate("a star", steps=2, seed=5, count=2)
    with scarce_pipeline(monkeypatch, built("sana").path, transformer={"most": 1}) as pipeline:
        pieces = pipeline.generate("a star", steps=2, seed=5, count=2)
    assert min(psnr(a.pixels, b.pixels) for a, b in zip(whole, pieces, strict=True)) >= 50


def test_memory_that_is_not_enough_even_alone_is_one_clear_error(monkeypatch, built):
    limits = {"transformer": {"failing": range(1, 1000)}}
    pipeline = scarce_pipeline(monkeypatch, built("sana").path, **limits)
    with pytest.raises(MemoryLimitError, match="not enough memory"):
        pipeline.generate("a red circle", steps=STEPS, seed=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"size": (100, 128)}, "steps of 32"),
        ({"size": (4096, 4096)}, "height 4096"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1.5}, "seed 1.5"),
        ({"count": 0}, "count 0"),
        ({"steps": 0}, "steps 0"),
        ({"solver": "magic"}, "choose from"),
        ({"guidance": -1.0}, "guidance"),
        ({"latents": np.zeros((1, 32, 3, 3), np.float32)}, "latents are"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "size": (128, 128)}, "the image is"),
        ({"image": np.zeros((128, 128, 3), np.uint8), "strength": 0.0}, "strength"),
    ],
)
def test_what_cannot_be_painted_is_refused_before_anything_runs(painter, arguments, told):
    with pytest.raises(UsageError, match=told):
        painter.generate("a star", **arguments)


def test_a_device_that_is_not_there_is_named(built):
    with pytest.raises(UsageError, match="abacus"):
        Pipeline.open(built("sana").path, device="abacus")
    with pytest.raises(UsageError, match="nose"):
        Pipeline.open(built("sana").path, device={"nose": "cpu"})


def test_parts_that_stay_are_loaded_beside_the_first_and_no_thread_is_left(monkeypatch, built, expected):
    original, loaded = pipeline_module.open_session, {}

    def opened(graph, device, options):
        loaded[graph.stem] = threading.current_thread()
        return original(graph, device, options)

    monkeypatch.setattr(pipeline_module, "open_session", opened)
    monkeypatch.setattr(pipeline_module, "workers", lambda threads: 2)
    with Pipeline.open(built("sana").path) as pipeline:
        np.testing.assert_array_equal(pipeline.generate("a red circle", steps=STEPS, seed=1).pixels, expected)
    assert sum(thread is not threading.current_thread() for thread in loaded.values()) >= 1
    assert not any(thread.is_alive() for thread in loaded.values() if thread is not threading.current_thread())


def test_a_pipeline_that_does_not_open_leaves_no_thread(monkeypatch, built):
    monkeypatch.setattr(pipeline_module, "workers", lambda threads: 2)
    monkeypatch.setattr(pipeline_module, "Conditioner", lambda *_, **__: 1 / 0)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        Pipeline.open(built("sana").path)
    assert set(threading.enumerate()) <= before
