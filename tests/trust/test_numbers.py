"""Engines that compute wrongly are found out, and those that compute rightly do so every time."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from sana_runtime.errors import BackendError
from sana_runtime.pipeline import Pipeline
from sana_runtime.soundness import EmptyPictureWarning, refuse_unsound, suspicion

from sana_export.replay import psnr, replay

PARTS = {"text_encoder": "text", "caption": "text_kv", "transformer": "velocity"}


class Wrong:
    """A session whose answer is changed."""

    def __init__(self, session, change):
        self.session, self.change = session, change

    def run(self, feeds):
        return {name: self.change(array.copy()) for name, array in self.session.run(feeds).items()}

    def interrupt(self):
        self.session.interrupt()


def with_one(value):
    def change(array):
        array.flat[array.size // 3] = value
        return array

    return change


@pytest.fixture
def painter_with(built, monkeypatch):
    """A function that opens the small bundle with one part's answer changed."""
    import sana_runtime.pipeline as module

    original, bundle = module.open_session, built("sana").path

    def opened(part, change):
        def open_session(graph, *arguments):
            session = original(graph, *arguments)
            return Wrong(session, change) if Path(graph).stem == part else session

        monkeypatch.setattr(module, "open_session", open_session)
        return Pipeline.open(bundle, device="onnxruntime")

    return opened


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", PARTS)
def test_one_number_that_is_not_finite_is_said_with_its_part(part, value, painter_with):
    with pytest.raises(BackendError, match=f"{part} gave numbers that are not finite"):
        painter_with(part, with_one(value)).generate("a star", steps=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: image * 0 + 128, "is one flat colour, levels 128 to 128"),
        (lambda image: image * 0, "is one flat colour, levels 0 to 0"),
        (lambda image: np.where(image > 128, 255, 0).astype(np.uint8), "darkest and the brightest"),
    ],
    ids=["grey", "black", "saturated"],
)
def test_a_picture_that_shows_nothing_is_said_to(change, told, painter_with):
    with pytest.warns(EmptyPictureWarning, match=told):
        painter_with("decoder", change).generate("a star", steps=2)


def test_a_sound_picture_is_let_pass_in_silence(painter_with):
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmptyPictureWarning)
        painter_with("none", None).generate("a star", steps=2)


def test_the_check_takes_a_small_share_of_a_step(figure):
    import time

    velocity = np.random.default_rng(0).normal(size=(2, 32, 32, 32)).astype(np.float32)
    picture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    start = time.process_time()
    for _ in range(20):
        refuse_unsound("transformer", {"velocity": velocity})
    middle = time.process_time()
    assert suspicion(picture) == ""
    end = time.process_time()
    figure(18, f"NaN and Inf looked for in a step of 1024x1024 in {(middle - start) * 50:.2f} ms, in a picture's "
               f"pixels in {(end - middle) * 1e3:.1f} ms")  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "onnxruntime"])
def test_the_golden_record_is_painted_again_on_every_engine(device, built, figure):
    replays = list(replay(built("sana").path, device))
    figure(18, f"golden record on {device}: {len(replays)} pictures at {min(each.psnr for each in replays):.1f} dB")
    assert replays and all(each.passed for each in replays)


def digest(picture):
    return hashlib.sha256(picture.pixels.tobytes()).hexdigest()


def test_one_seed_is_one_picture_in_every_run(built, times, figure):
    runs = times(3, 20, 100)
    seen = set()
    for _ in range(runs):
        with Pipeline.open(built("sana").path, threads=1) as pipeline:
            seen.add(digest(pipeline.generate("a star", steps=2)))
    figure(18, f"{runs} runs, each with the bundle opened anew: {len(seen)} different picture(s)")
    assert len(seen) == 1


def test_any_number_of_threads_paints_nearly_the_same(built, figure):
    pictures = {}
    for threads in (1, 2, 8):
        with Pipeline.open(built("sana").path, threads=threads) as pipeline:
            pictures[threads] = pipeline.generate("a star", steps=4).pixels
    worst = min(psnr(pictures[1], pictures[threads]) for threads in (2, 8))
    figure(18, f"1, 2 and 8 threads on {os.cpu_count()} cores: {worst:.1f} dB or better (99 is identical)")
    assert worst >= 45
