"""Thousands of pictures, threads and cancellations leave the process as it was."""

import random
import threading
from contextlib import suppress

import numpy as np
import psutil
import pytest
from sana_runtime.errors import SanaError, UsageError
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import Interrupted

STEPS = 2
SMALL = (64, 64)


@pytest.fixture(scope="module")
def painter(built):
    """One pipeline that all tests use, as an app would."""
    with Pipeline.open(built("sana").path, device="onnxruntime", threads=1) as pipeline:
        yield pipeline


def test_many_pictures_in_one_process_take_no_more_memory_or_handles(painter, times, figure):
    count, process = times(60, 1000, 5000), psutil.Process()
    for i in range(20):
        painter.generate(f"picture {i % 7}", size=SMALL, steps=STEPS, seed=i)
    memory, handles = [process.memory_info().rss], process.num_fds()
    for i in range(count):
        painter.generate(f"picture {i % 7}", size=SMALL, steps=STEPS, seed=i)
        memory.append(process.memory_info().rss)
    slope = float(np.polyfit(np.arange(len(memory)), np.array(memory) / 1e6, 1)[0]) * 100
    more = process.num_fds() - handles
    figure(25, f"{count:,} pictures in one process: {slope:+.2f} MB per 100, {more:+d} handles")
    assert more <= 0
    if count >= 1000:
        assert slope < 1


def test_eight_threads_paint_what_one_does(painter, times, figure):
    each = times(3, 25, 25)
    wanted = [painter.generate("a star", size=SMALL, steps=STEPS, seed=seed).pixels for seed in range(each)]
    wrong = []

    def paint(thread):
        for seed in random.Random(thread).sample(range(each), each):
            picture = painter.generate("a star", size=SMALL, steps=STEPS, seed=seed)
            wrong.extend([] if np.array_equal(picture.pixels, wanted[seed]) else [(thread, seed)])

    threads = [threading.Thread(target=paint, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figure(13, f"8 threads x {each} pictures: {len(wrong)} differ from the serial run")
    assert not wrong


def test_starts_and_cancellations_in_any_order_leave_the_pipeline_whole(painter, times, figure):
    count, generator = times(60, 1000, 5000), random.Random(61)
    wanted = painter.generate("a star", size=SMALL, steps=STEPS, seed=1).pixels
    outcomes = {"painted": 0, "cancelled": 0}
    lock = threading.Lock()

    def paint(seed):
        try:
            picture = painter.generate("a star", size=SMALL, steps=generator.choice((1, 2, 5)), seed=seed)
            assert picture.pixels.shape == (*SMALL, 3)
            kind = "painted"
        except Interrupted:
            kind = "cancelled"
        with lock:
            outcomes[kind] += 1

    waiting = []
    for i in range(count):
        waiting.append(threading.Thread(target=paint, args=(i,)))
        waiting[-1].start()
        for _ in range(generator.randrange(3)):
            painter.cancel()
        if generator.random() < 0.3:
            waiting.pop(generator.randrange(len(waiting))).join(60)
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive()
    figure(
        13, f"{count:,} starts among cancellations: {outcomes['painted']} painted, {outcomes['cancelled']} cancelled"
    )
    assert sum(outcomes.values()) == count
    np.testing.assert_array_equal(painter.generate("a star", size=SMALL, steps=STEPS, seed=1).pixels, wanted)


CHARACTERS = "aé一🙂\u200b\u202e\x1b\x00\x07\r\n\t\ufeff\u0301\ud800\udfff<bos><eos><pad>\\\"'`$%{}"


def test_any_prompt_is_painted_or_refused(painter, times, figure):
    count, generator, painted, refused = times(30, 1000, 100_000), random.Random(62), 0, 0
    prompts = [
        "",
        " ",
        "\0",
        "\x1b[2J",
        "<bos><eos>",
        "a" * 8192,
        "🙂" * 2049,
        "a" * 10_000_000,
        "\ud800",
        None,
        5,
        b"x",
    ]
    for i in range(count):
        length = generator.choice((1, 3, 20, 200))
        prompt = prompts[i] if i < len(prompts) else "".join(generator.choice(CHARACTERS) for _ in range(length))
        try:
            painter.generate(prompt, size=SMALL, steps=1)
            painted += 1
        except UsageError as error:
            assert "\n" not in str(error) and len(str(error)) < 300
            refused += 1
    figure(19, f"{count:,} strange prompts: {painted} painted, {refused} refused, 0 crashes")
    assert painted and refused


def test_a_callback_that_paints_is_told_instead_of_waiting_for_ever(painter):
    told = []

    def on_step(step):
        try:
            painter.generate("inside", size=SMALL, steps=1)
        except SanaError as error:
            told.append(error)
        return True

    thread = threading.Thread(target=lambda: _paint(painter, on_step), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and isinstance(told[0], UsageError)


def _paint(painter, on_step):
    with suppress(Interrupted):
        painter.generate("outside", size=SMALL, steps=STEPS, on_step=on_step)
