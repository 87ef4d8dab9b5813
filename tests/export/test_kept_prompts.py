"""A prompt that was painted before is read from the disk, and the picture is the same to the last pixel."""

import json

import numpy as np
import pytest
from sana_runtime import pipeline as pipeline_module
from sana_runtime.compiled_models import SWITCH
from sana_runtime.parts import Parts
from sana_runtime.pipeline import Pipeline
from sana_runtime.prompt_cache import DIGEST_BYTES, PromptCache

from sana_export.cli.main import main

PROMPT = "a red circle above two squares"


@pytest.fixture
def cache(tmp_path):
    return PromptCache(tmp_path / "prompts")


@pytest.fixture
def opened(monkeypatch):
    """Names of the graphs that an engine library has opened."""
    names, open_session = [], pipeline_module.open_session

    def watched(graph, device, options):
        names.append(graph.stem)
        return open_session(graph, device, options)

    monkeypatch.setattr(pipeline_module, "open_session", watched)
    return names


def paint(path, cache=None, threads=1, **arguments):
    with Pipeline.open(path, device="cpu", threads=threads, prompt_cache=cache) as pipeline:
        return pipeline.generate(PROMPT, size=(64, 64), steps=2, seed=3, **arguments).pixels


def test_a_prompt_from_the_disk_gives_the_same_pixels_without_a_text_encoder(built, cache, opened):
    path = built("sana").path
    plain = paint(path)
    np.testing.assert_array_equal(paint(path, cache), plain)
    assert len(cache.entries()) == 2  # the prompt and the empty negative one
    opened.clear()
    np.testing.assert_array_equal(paint(path, cache), plain)
    assert opened == ["transformer", "decoder"]


def test_where_parts_are_loaded_ahead_a_prompt_from_the_disk_needs_no_text_part_either(built, cache, opened):
    path = built("sana").path
    plain = paint(path, cache, threads=2)
    assert {"text_encoder", "caption"} <= set(opened)
    opened.clear()
    np.testing.assert_array_equal(paint(path, cache, threads=2), plain)
    assert set(opened) == {"decoder", "transformer"}  # the transformer for the usual size, too


def test_a_damaged_prompt_is_encoded_again_and_kept_again(built, cache, opened):
    path = built("sana").path
    plain = paint(path, cache)
    for entry in cache.entries():
        entry.write_bytes(entry.read_bytes()[:-1])
    np.testing.assert_array_equal(paint(path, cache), plain)
    assert opened.count("text_encoder") == 2
    opened.clear()
    np.testing.assert_array_equal(paint(path, cache), plain)
    assert "text_encoder" not in opened


def test_another_bundle_finds_nothing_there(built, cache, opened):
    sana, sprint = built("sana").path, built("sprint").path  # building paints, too
    paint(sana, cache)
    opened.clear()
    pixels = paint(sprint, cache)
    assert opened == ["text_encoder", "caption", "transformer", "decoder"]
    np.testing.assert_array_equal(pixels, paint(sprint))


def test_without_being_asked_nothing_is_kept(built, cache):
    paint(built("sana").path)
    assert not cache.folder.exists()


def test_the_empty_prompt_alone_is_kept_beside_compiled_models(built, monkeypatch, tmp_path):
    path = built("sana").path
    plain = paint(path)
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    encoded, run = [], Parts.run

    def watched(parts, name, feeds):
        if name == "text_encoder":
            encoded.append(int(feeds["text_mask"].sum()) > 0)
        return run(parts, name, feeds)

    monkeypatch.setattr(Parts, "run", watched)
    for texts in ([True, False], [True]):
        encoded.clear()
        np.testing.assert_array_equal(paint(path), plain)
        assert encoded == texts
        assert [entry.parent.name for entry in tmp_path.rglob("*.npy")] == ["compiled"]


def test_kept_prompts_are_listed_and_cleared_by_themselves(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sana-export" / "engines").mkdir(parents=True)
    for key in ("one", "two"):
        PromptCache().store(key, np.zeros((2, 2, 1, 3, 4), np.float32))
    assert ran(capsys, "cache", "ls").splitlines() == ["      0.0 MB  engines", "      0.0 MB  prompts (2 of them)"]
    assert json.loads(ran(capsys, "cache", "ls", "--json"))["prompts"] == 2
    assert json.loads(ran(capsys, "cache", "clear", "prompts", "--json"))["bytes"] == 2 * (128 + 192 + DIGEST_BYTES)
    assert ran(capsys, "cache", "ls").splitlines() == ["      0.0 MB  engines"]
    assert "prompts: not kept here; there is engines" in ran(capsys, "cache", "clear", "prompts", code=2)


def ran(capsys, *arguments, code=0):
    """What the command line says."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    out, errors = capsys.readouterr()
    assert left.value.code == code
    return out or errors
