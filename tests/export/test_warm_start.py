"""A compiled step that is read back is the step that was compiled, custom operator, INT8 products and all."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from sana_calibration.quantise import quantise
from sana_reference.config import PRESETS
from sana_runtime import openvino_session, pipeline
from sana_runtime.bundle import open_bundle
from sana_runtime.compiled_models import SWITCH, CompiledModels, nothing_kept
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.parts import Parts
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import SessionOptions

from sana_export.cache import entries, render
from sana_export.saving import save_graph

ONE_BLOCK = replace(PRESETS["tiny"], depth=1)


def test_an_int8_step_read_back_gives_the_same_numbers_for_each_size(random_model, export, tmp_path, monkeypatch):
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(openvino_session, "WORTH_KEEPING", 0.0)
    part = export(random_model(ONE_BLOCK), "fp32", ("transformer",))["transformer"]
    model, graph = ir.load(part.graph), tmp_path / part.graph.name
    quantise(model)
    save_graph(model, graph)
    sizes = [part.signature.example_feeds(batch=2, height=side, width=4, rows=6) for side in (4, 2)]

    def velocities():
        session = OpenVinoSession(graph, SessionOptions(threads=1, signature=part.signature))
        return [session.run(feeds)["velocity"] for feeds in sizes]

    with nothing_kept():
        velocities()
    assert not CompiledModels().entries()
    compiled = velocities()
    assert len(CompiledModels().entries()) == len(sizes)
    assert "compiled (for this CPU: transformer)" in render(entries(), [], 0)
    monkeypatch.setattr(OpenVinoSession, "_compile", lambda *_: pytest.fail("it was compiled again"))
    for first, again in zip(compiled, velocities(), strict=True):
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("size", "sides"), [(None, (4, 4)), ((64, 96), (2, 3))])
def test_opening_makes_the_transformer_ready_for_the_usual_size_or_the_one_that_is_told(
    built, monkeypatch, size, sides
):
    path, prepared = built("sana").path, []
    monkeypatch.setattr(pipeline, "workers", lambda threads: 2)
    monkeypatch.setattr(OpenVinoSession, "prepare", lambda session, feeds: prepared.append(feeds["latent"].shape))
    with Pipeline.open(path, size=size) as opened:
        opened._parts._ahead._begun["transformer"].result()
        assert {*opened._parts._ahead._begun} == {"text_encoder", "transformer", "caption"}
    assert prepared == [(2, 32, *sides)]


def test_the_decoder_is_not_loaded_before_the_first_step_is_done(built, monkeypatch):
    told, expect, run = [], Parts.expect, Parts.run

    def expected(parts, name, feeds=None):
        told.append(f"expect {name}")
        expect(parts, name, feeds)

    def ran(parts, name, feeds):
        told.append(f"run {name}")
        return run(parts, name, feeds)

    monkeypatch.setattr(Parts, "expect", expected)
    monkeypatch.setattr(Parts, "run", ran)
    with Pipeline.open(built("sana").path) as opened:
        opened.generate("a red circle", steps=2)
    assert told.index("run transformer") < told.index("expect decoder") < told.index("run decoder")


@pytest.mark.parametrize(
    ("part", "precision", "scheme", "in_place"),
    [
        ("text_encoder", "bf16", "int8-weights", True),
        ("text_encoder", "bf16", "bfloat16", False),
        ("text_encoder", "fp32", "float32", False),
        ("caption", "fp32", "float32", True),
        ("caption", "bf16", "float16-weights", False),
        ("transformer", "int8", "int8-channel-token", False),
        ("decoder", "fp32", "float32", False),
    ],
)
def test_text_parts_alone_are_read_in_place(built, part, precision, scheme, in_place):
    bundle = open_bundle(built("sana").path)
    held = replace(bundle.manifest.parts[part], precision=precision, scheme=scheme)
    assert held.in_place is in_place
    assert SessionOptions.of(held, 3).in_place is in_place
    assert SessionOptions.of(held, 3).threads == 3
