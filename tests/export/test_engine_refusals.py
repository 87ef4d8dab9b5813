"""What keeps an engine from being built is said in one line: disks, folders, missing files, a missing library."""

import json
import os
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from sana_plugins.tensorrt import shipped
from sana_plugins.tensorrt.plugin import register
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_keys import engine_key
from sana_runtime.errors import MemoryLimitError, SanaError

from sana_export.cli.main import main
from sana_export.engines.build import build_engine
from sana_export.engines.job import EngineJob
from sana_export.engines.library import Library, version_of

needs_library = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed; pip install sana-export[rtx]"
)
CAPTION = ("--part", "caption")
# What TensorRT-RTX 1.7 has and the bindings of TensorRT 11.4 have not.
RTX_ONLY = (
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "IRuntimeCache",
)
OTHER_NAME = f"""
import tensorrt_rtx
globals().update({{name: getattr(tensorrt_rtx, name) for name in dir(tensorrt_rtx) if name not in {RTX_ONLY!r}}})
__name__ = "tensorrt"
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing is read from or written to the user's own folders; the cache is returned."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sana-export"


@pytest.fixture
def engine(built, capsys):
    """A function that runs `sana-export engine` on a small bundle: exit code and the last JSON object."""

    def run(*options):
        with pytest.raises(SystemExit) as left:
            main(["engine", str(built("sana").path), *options, "--json"])
        return left.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def job(export, random_model, tmp_path):
    """A small graph to build."""
    part = export(random_model(), "fp16", ("transformer",))["transformer"]
    return EngineJob("transformer", part.graph, tmp_path / "engine", part.signature.profiles(), (89,))


def refusal(job):
    """The one line that a build ends with, and no file."""
    with pytest.raises(SanaError) as raised:
        build_engine(job)
    assert "\n" not in str(raised.value) and not job.output.exists()
    return raised.value


@needs_library
@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_disk_that_is_full_is_a_lack_of_space(job):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        error = refusal(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(error, MemoryLimitError) and "the disk is full; free some space" in str(error)


@needs_library
def test_a_graph_that_cannot_be_read_is_named(job):
    job.graph.with_name("folder.onnx").mkdir(exist_ok=True)
    for name, why in (("gone.onnx", "No such file"), ("folder.onnx", "Is a directory")):
        gone = EngineJob("transformer", job.graph.with_name(name), job.output, job.profiles, (89,))
        assert name in str(refusal(gone)) and why in str(refusal(gone))


@needs_library
def test_a_cache_that_takes_no_files_is_named(engine, home):
    home.parent.mkdir()
    home.write_text("in the way")
    code, result = engine("--sm", "89", *CAPTION)
    assert code == 5 and f"{home / 'engines'} cannot be made" in result["message"]


@needs_library
def test_a_file_that_cannot_be_made_is_named(engine, home, built):
    library = Library.RTX.value, version_of(Library.RTX)
    key = engine_key(open_bundle(built("sana").path), "caption", library, (89,))
    (home / "engines" / f".{key.file}.lock").mkdir(parents=True, mode=0o700)
    (home / "engines").chmod(0o700)
    code, result = engine("--sm", "89", *CAPTION)
    assert code == 5 and result["message"].startswith("engines cannot be kept (")
    assert result["message"].endswith(f"make {home / 'engines'} writable")


@pytest.mark.parametrize("capability", ["87", "90", "1000"])
@needs_library
def test_an_architecture_that_the_library_does_not_build_for_is_refused_with_those_it_does(engine, capability):
    code, result = engine("--sm", f"89,{capability}")
    assert code == 2 and result["message"].startswith(f"compute capability {capability} is not known; choose from 75, ")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """The folder of the plugin's programs, which lacks everything."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    shipped.shipped.cache_clear()
    yield tmp_path
    shipped.shipped.cache_clear()


def test_a_plugin_without_its_programs_is_not_registered(programs):
    registry = SimpleNamespace(__name__="tensorrt")
    with pytest.raises(shipped.PluginError, match=r"kernels\.json is missing; install sana-export again, or build"):
        register(registry)
    row = {"kernel": "apply_queries", "element": "fp16", "target": 80, "entry": "a", "file": "a.ptx"}
    row |= {"threads": 128, "shared": 0, "block": 64}
    (programs / "kernels.json").write_text(json.dumps({"kernels": [row]}))
    with pytest.raises(shipped.PluginError, match=r"a\.ptx is missing; install sana-export again"):
        register(registry)


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_its_target_says_what_to_install(engine):
    code, result = engine("--target", "tensorrt")
    assert code == 5
    assert result["message"] == 'TensorRT is not installed; pip install "sana-export[tensorrt]"'


@pytest.fixture
def tensorrt(tmp_path, monkeypatch):
    """TensorRT-RTX under the name of TensorRT, without what that has not; and a card, as the driver's tool tells."""
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(OTHER_NAME)
    described = tmp_path / "tensorrt-11.4.0.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@needs_library
@pytest.mark.skipif(find_spec("tensorrt") is not None or sys.platform != "linux", reason="stands in for TensorRT")
def test_the_target_tensorrt_builds_for_the_card_at_hand_with_no_more_than_its_bindings_have(engine, tensorrt):
    code, result = engine("--target", "tensorrt", *CAPTION)
    assert code == 5 and "no NVIDIA card answers here, and --target tensorrt builds for it" in result["message"]

    tool = tensorrt / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 8.9\n")
    tool.chmod(0o700)
    code, result = engine("--target", "tensorrt", *CAPTION)
    (entry,) = result["engines"]
    assert code == 0 and entry["capabilities"] == [89] and entry["seconds"] > 0
    assert engine("--target", "tensorrt", *CAPTION)[1]["engines"][0]["seconds"] is None
