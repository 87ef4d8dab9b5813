"""A compiled step that is read back is the step that was compiled, custom operator, INT8 products and all."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from sana_calibration.quantise import quantise
from sana_reference.config import PRESETS
from sana_runtime import openvino_session
from sana_runtime.compiled_models import SWITCH, CompiledModels, nothing_kept
from sana_runtime.openvino_session import OpenVinoSession
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
