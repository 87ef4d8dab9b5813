"""Picture files keep the pixels, say how they were painted, and are never half written."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sana_runtime.errors import UsageError
from sana_runtime.picture import Picture, Recipe, read_picture, read_recipe

RECIPE = Recipe(
    prompt="ein 红色 circle 🎈\n\x1b[31m",
    seed=7,
    steps=20,
    guidance=4.5,
    size=(64, 96),
    solver="flow-dpm",
    bundle="ab" * 32,
    device="cpu",
    version="0.1.0",
)


@pytest.fixture
def picture():
    return Picture(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8), RECIPE)


def test_a_png_keeps_pixels_and_recipe(picture, tmp_path):
    path = picture.save(tmp_path / "out.png")
    np.testing.assert_array_equal(read_picture(path), picture.pixels)
    assert read_recipe(path) == RECIPE


def test_a_recipe_tells_when_guidance_was_applied_and_an_older_one_that_it_always_was(picture, tmp_path):
    narrowed = replace(RECIPE, guidance_interval=(600.0, 1000.0))
    assert read_recipe(Picture(picture.pixels, narrowed).save(tmp_path / "new.png")) == narrowed
    told = {name: value for name, value in asdict(RECIPE).items() if name != "guidance_interval"}
    info = PngInfo()
    info.add_itxt("sana-export", json.dumps(told))
    Image.fromarray(picture.pixels).save(tmp_path / "old.png", pnginfo=info)
    assert read_recipe(tmp_path / "old.png") == RECIPE


def test_a_png_is_tagged_as_made_by_a_model(picture, tmp_path):
    with Image.open(picture.save(tmp_path / "out.png")) as image:
        assert "trainedAlgorithmicMedia" in str(image.info["xmp"])


def test_metadata_can_be_left_out(picture, tmp_path):
    path = picture.save(tmp_path / "out.png", metadata=False)
    assert b"circle" not in path.read_bytes()
    with pytest.raises(UsageError, match="no recipe inside"):
        read_recipe(path)


def test_only_png_is_written(picture, tmp_path):
    with pytest.raises(UsageError, match=r"ends in \.png"):
        picture.save(tmp_path / "out.jpg")


def test_a_failed_write_leaves_the_old_file_and_no_other(picture, tmp_path, monkeypatch):
    path = picture.save(tmp_path / "out.png")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        picture.save(path, metadata=False)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_picture, read_recipe):
        with pytest.raises(UsageError, match="not a picture"):
            read(path)


def test_mutated_files_never_crash_the_reader(picture, tmp_path):
    rng = np.random.default_rng(1)
    original = np.frombuffer(picture.png(), np.uint8)
    path = tmp_path / "x.png"
    for _ in range(500):
        mutant = original.copy()
        mutant[rng.integers(0, mutant.size, rng.integers(1, 9))] = rng.integers(0, 256)
        path.write_bytes(mutant[: rng.integers(1, mutant.size + 1)].tobytes())
        for read in (read_picture, read_recipe):
            try:
                read(path)
            except UsageError as error:
                assert "\n" not in str(error)
