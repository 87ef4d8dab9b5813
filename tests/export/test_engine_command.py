"""`sana-export engine`, and what other commands say of the engines that it keeps."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from sana_runtime.bundle import open_bundle

from sana_export.cli.main import main

needs_library = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed; pip install sana-export[rtx]"
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing is read from or written to the user's own folders."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys):
    """A function that runs the command line in this process: exit code, the last JSON object, everything said."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in (*arguments, "--json")])
        lines = capsys.readouterr().out.splitlines()
        return left.value.code, json.loads(lines[-1]), "\n".join(lines)

    return call


@needs_library
def test_an_engine_is_built_once_shown_listed_and_built_again_when_a_bit_of_it_has_flipped(built, run):
    command = ("engine", built("sana").path, "--sm", "89", "--part", "caption")
    code, result, _ = run(*command)
    (first,) = result["engines"]
    assert code == 0 and first["seconds"] > 0 and first["peak_memory"] > 0
    assert run(*command)[1]["engines"][0]["seconds"] is None  # it was there already

    shown = run("inspect", "--engine", first["engine"])[1]
    assert shown["targets"] == ["sm89"] and shown["built_from"]["part"] == "caption"
    assert set(shown["products"]) == {"float x float -> float"}  # an fp32 bundle
    (listed,) = run("cache", "ls")[1]["engines"]
    assert listed["path"] == first["engine"] and listed["capabilities"] == [89]

    kept = Path(first["engine"])
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    code, result, said = run(*command)
    assert code == 0 and result["engines"][0]["seconds"] > 0
    assert "damaged, or was not made here" in said
    assert run(*command)[1]["engines"][0]["seconds"] is None  # whole again


@needs_library
def test_an_engine_for_fewer_sizes_takes_less_memory_and_is_kept_beside_the_other(built, run):
    manifest = open_bundle(built("sana").path).manifest
    height, width = manifest.defaults.size
    command = ("engine", built("sana").path, "--sm", "89", "--part", "transformer")
    native = f"{width}x{height}"
    for sizes, told in (("all", "all"), (native, f"{native} {native} {native}")):
        (entry,) = run(*command, "--sizes", sizes)[1]["engines"]
        assert entry["seconds"] > 0 and entry["sizes"] == told
    kept = run("cache", "ls")[1]["engines"]
    memory = [run("inspect", "--engine", entry["path"])[1]["activation_bytes"] for entry in kept]
    assert [entry["sizes"] == "all" for entry in kept] == [False, True]
    assert memory[0] < memory[1]


@needs_library
def test_what_turing_cannot_compute_is_refused_in_one_sentence_with_exit_code_5(built, run):
    code, result, _ = run("engine", built("sana").path, "--sm", "75", "--part", "caption")
    assert code == 5
    assert "fp32" in result["message"] and "--precision fp16" in result["message"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sm", "8.9"), "without the dot"),
        (("--sm", "42"), "is not known; choose from 75"),
        (("--sm", "89", "--part", "nose"), "has no part nose"),
        (("--sm", "89", "--target", "tensorrt"), "has no effect"),
        (("--sm", "89", "--sizes", "huge"), "give all, a side"),
        (("--sm", "89", "--fused-mix-ffn"), "needs an INT8 transformer, and the plugin; build without it"),
    ],
)
@needs_library
def test_options_that_cannot_work_are_refused(arguments, told, built, run):
    code, result, _ = run("engine", built("sana").path, *arguments)
    assert code == 2 and told in result["message"]


def test_a_file_that_is_no_engine_is_not_shown(run, tmp_path):
    (tmp_path / "x").write_bytes(bytes(100))
    code, result, _ = run("inspect", "--engine", tmp_path / "x")
    assert code == 2 and "is no engine" in result["message"]
