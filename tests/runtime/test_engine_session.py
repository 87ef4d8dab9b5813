"""Engine sessions: buffers, graphs, compiled kernels and refusals, over a fake library and card; no GPU is claimed."""

import gc
import os
import sys
import warnings
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sana_runtime import engine_library, engines
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache
from sana_runtime.engine_keys import engine_key, fused
from sana_runtime.engine_library import PLUGINS, EngineLibrary
from sana_runtime.engine_session import EngineSession
from sana_runtime.engine_shapes import Span
from sana_runtime.errors import BackendError, MemoryLimitError, UsageError
from sana_runtime.session import Device, Interrupted


def beside(path):
    spec = spec_from_file_location(Path(path).stem, Path(__file__).parent / path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fake = beside("fake_engine.py")


class Bench:
    """A session over the fakes, and a way to look inside."""

    def __init__(self, plan=b"plan", jit_cache=None, **module):
        self.driver = fake.FakeDriver()
        self.module = fake.FakeModule(self.driver, **module)
        self.library = EngineLibrary(self.module, "TensorRT-RTX")
        self.kept = []
        self.open = lambda: EngineSession(plan, self.library, self.driver, jit_cache, self.kept.append)

    def double(self, session, batch):
        x = np.arange(4 * batch, dtype=np.float32).reshape(batch, 4)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """The plugins that are installed, as far as the library over the fakes sees: none, unless a test adds some."""
    installed = []
    monkeypatch.setattr(engine_library, "entry_points", lambda group: installed if group == PLUGINS else [])
    return installed


@pytest.mark.parametrize("graphs", [True, False])
def test_a_session_brings_every_shape_to_the_card_and_back(graphs):
    bench = Bench(graphs=graphs)
    session = bench.open()
    for batch in (2, 2, 2, 5, 1, 8, 2, 2):
        bench.double(session, batch)


def test_buffers_are_allocated_once_and_only_grow():
    bench = Bench()
    session = bench.open()
    for batch in (4, 4, 1, 3, 4):
        bench.double(session, batch)
        assert len(bench.driver.memory) == 2 and not bench.driver.freed
    bench.double(session, 8)
    assert [len(each) for each in bench.driver.memory.values()] == [128, 128]
    assert [len(each) for each in bench.driver.freed] == [64, 64]


def test_answers_stay_when_the_session_runs_again():
    bench = Bench()
    session = bench.open()
    first = session.run({"x": np.ones((1, 4), np.float32)})["y"]
    session.run({"x": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(first, np.full((1, 4), 2))


def test_views_are_taken_as_what_they_show():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)[::2, ::2]
    np.testing.assert_array_equal(Bench().open().run({"x": x})["y"], 2 * x)


def test_a_library_that_makes_graphs_itself_is_asked_to_and_for_kernels_that_do_not_change():
    bench = Bench()
    session = bench.open()
    for _ in range(3):
        bench.double(session, 2)
    assert "capture" not in bench.driver.events
    assert bench.module.settings.cuda_graph_strategy == "whole"
    assert bench.module.settings.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_for_another_library_each_shape_becomes_a_graph_at_its_second_run():
    bench = Bench(graphs=False)
    session = bench.open()
    for batch in (2, 2, 2, 3, 3):
        bench.double(session, batch)
    acts = [event for event in bench.driver.events if event != "enter"]
    assert acts == ["execute", "capture", "launch", "launch", "drop graph", "execute", "capture", "launch"]


def test_dropping_a_session_gives_everything_back():
    bench = Bench(graphs=False)
    session = bench.open()
    bench.double(session, 2)
    bench.double(session, 2)
    del session
    gc.collect()
    assert not bench.driver.memory
    assert bench.driver.events[-3:] == ["capture", "launch", "drop graph"] or bench.driver.events[-1] == "drop stream"
    assert bench.driver.events.count("drop graph") == bench.driver.events.count("drop stream") == 1


def test_installed_plugins_are_registered_once_before_an_engine_is_read(plugins):
    bench, calls = Bench(), []

    def register(module, *, parsing):
        assert module is bench.module and module.plan is None
        calls.append(parsing)

    plugins.append(SimpleNamespace(name="attention", load=lambda: register))
    bench.open()
    bench.module.plan = None
    bench.open()
    assert calls == [False]


def test_a_plugin_that_does_not_register_is_named(plugins):
    def register(module, *, parsing):
        raise RuntimeError("its programs are missing")

    plugins.append(SimpleNamespace(name="attention", load=lambda: register))
    with pytest.raises(BackendError, match=r"plugin attention does not register \(its programs are missing\)"):
        Bench().open()


def test_nothing_of_an_engine_runs_on_this_side():
    bench = Bench()
    bench.open()
    assert bench.module.runtime.engine_host_code_allowed is False


@pytest.mark.parametrize(
    ("feeds", "complaint"),
    [
        ({"x": np.zeros((9, 4), np.float32)}, r"\(9, 4\) is outside the engine's \(1, 4\) to \(8, 4\); choose"),
        ({"x": np.zeros((2, 4), np.float64)}, "x is float64; the engine takes float32"),
        ({"z": np.zeros((2, 4), np.float32)}, "was fed z; it takes x"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(feeds, complaint):
    bench = Bench()
    session = bench.open()
    with pytest.raises(UsageError, match=complaint):
        session.run(feeds)
    bench.double(session, 2)


def test_types_that_numpy_lacks_are_refused_at_once():
    with pytest.raises(BackendError, match=r"no type for: y \(BF16\)"):
        Bench(kinds=("FLOAT", "BF16")).open()


def test_a_run_that_is_interrupted_meanwhile_raises_and_the_next_one_works():
    bench = Bench()
    session = bench.open()
    bench.driver.on_wait = session.interrupt
    with pytest.raises(Interrupted):
        session.run({"x": np.zeros((1, 4), np.float32)})
    bench.driver.on_wait = lambda: None
    session.interrupt()  # nothing runs: nothing happens
    bench.double(session, 1)


def test_compiled_kernels_are_handed_in_and_kept_when_they_change():
    bench = Bench(jit_cache=b"of an older driver")
    session = bench.open()
    assert bench.module.compiled.given == b"of an older driver"
    bench.double(session, 1)
    bench.double(session, 2)
    bench.module.compiled.content = b"more"
    bench.double(session, 3)
    assert bench.kept == [b"compiled", b"more"]


@pytest.mark.parametrize(
    ("bits", "complaint"),
    [
        (1, "of another version of TensorRT-RTX; build it again with `sana-export engine`"),
        (2, "for other cards than this one; build it again"),
        (4, "driver is too old for TensorRT-RTX; update it"),
        (8, "CUDA runtime is too old"),
        (32, "the engine is damaged; build it again"),
        (64, "cannot reach the card"),
        (1 | 2 | 64, "of another version"),
    ],
)
def test_an_engine_that_does_not_match_is_refused_by_its_header_in_one_sentence(bits, complaint):
    bench = Bench()
    bench.module.validity = (2, bits)
    with pytest.raises(BackendError, match=complaint) as refusal:
        bench.open()
    assert "\n" not in str(refusal.value)


def test_what_the_library_logs_becomes_the_reason():
    bench = Bench()
    bench.module.complaint = "Error Code 1:\n  the tactic is unknown"
    with pytest.raises(BackendError, match=r"does not load the engine \(Error Code 1: the tactic is unknown\); build"):
        bench.open()


def test_a_card_that_is_too_small_is_a_lack_of_memory():
    bench = Bench()
    bench.module.complaint = "CUDA out of memory: 5.65 GB"
    with pytest.raises(MemoryLimitError, match=r"5\.65 GB"):
        bench.open()
    bench.module.validity = (2, 16)
    with pytest.raises(MemoryLimitError, match="too little memory"):
        bench.open()


def test_a_run_that_fails_says_why():
    bench = Bench()
    session = bench.open()
    bench.module.context.fails = True
    with pytest.raises(BackendError, match=r"does not run the engine \(an illegal address\)"):
        session.run({"x": np.zeros((1, 4), np.float32)})


@pytest.mark.parametrize("graphs", [True, False])
def test_weights_that_the_card_has_no_room_for_stay_off_it_and_nothing_is_captured(graphs):
    bench = Bench(graphs=graphs, weights=5_200_000_000, room=3_000_000_000)
    with pytest.warns(RuntimeWarning, match=r"^2\.20 of 5\.20 GB of weights stay off the card"):
        session = bench.open()
    assert bench.module.context.budget == 3_000_000_000
    for _ in range(3):
        bench.double(session, 2)
    assert "capture" not in bench.driver.events
    assert getattr(bench.module.settings, "cuda_graph_strategy", "none") == "none"


@pytest.mark.parametrize("weights", [0, 5_200_000_000])
def test_weights_that_fit_are_all_brought_to_the_card(weights):
    bench = Bench(weights=weights, room=8_000_000_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench.open()
    assert bench.module.context.budget == weights
    assert bench.module.settings.cuda_graph_strategy == "whole"


@pytest.fixture
def machine(monkeypatch, tmp_path, sealed_bundle):
    """A bundle on a machine that has an Ada card and TensorRT-RTX, both fake, and no engines yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    driver = fake.FakeDriver()
    driver.capability = 89
    module = fake.FakeModule(driver)
    monkeypatch.setattr(engines, "_driver", lambda: driver)
    monkeypatch.setattr(engines, "library_for", lambda device: EngineLibrary(module, "TensorRT-RTX"))
    monkeypatch.setattr(engines, "version", lambda package: "1.7.1.116")
    return SimpleNamespace(bundle=open_bundle(sealed_bundle), driver=driver, module=module, cache=EngineCache())


def keep_engine(machine, *, plugin, part="transformer", span=None, streams=False):
    key = engine_key(machine.bundle, part, ("tensorrt_rtx", "1.7.1.116"), (86, 89), plugin=plugin, span=span)
    key = replace(key, streams=streams)
    header = bytearray(64)
    header[24:28], header[32] = bytes((1, 7, 1, 116)), 0x0C
    ending = b"streams" if streams else b"plugin" if plugin else b"body"
    return key, machine.cache.store(key, bytes(header) + ending)


RTX = {"transformer": Device.RTX, "decoder": Device.CPU}


def test_a_part_without_an_engine_is_an_error_that_names_the_command(machine):
    for attempt in (
        lambda: engines.require_engines(machine.bundle, RTX),
        lambda: engines.open_engine(machine.bundle, "transformer", Device.RTX),
    ):
        with pytest.raises(BackendError, match=r"no engine of transformer .*; run `sana-export engine .* --target"):
            attempt()
    engines.require_engines(machine.bundle, {"transformer": Device.CPU})


def test_a_kept_engine_is_run_the_one_with_the_plugin_first_and_its_compiled_kernels_are_kept(machine):
    for plugin in (False, True):
        keep_engine(machine, plugin=plugin)
        engines.require_engines(machine.bundle, RTX)
        session = engines.open_engine(machine.bundle, "transformer", Device.RTX)
        assert machine.module.plan[64:] == (b"plugin" if plugin else b"body")
        assert machine.module.compiled.given is None
    session.run({"x": np.zeros((1, 4), np.float32)})
    engines.open_engine(machine.bundle, "transformer", Device.RTX)
    assert machine.module.compiled.given == b"compiled"


def test_an_engine_whose_weights_may_stay_off_the_card_comes_before_others(machine):
    for streams in (True, False):
        keep_engine(machine, plugin=True, streams=streams)
    engines.open_engine(machine.bundle, "transformer", Device.RTX)
    assert machine.module.plan[64:] == b"streams"


def test_an_engine_with_the_fused_mix_ffn_comes_before_others_and_only_an_int8_transformer_has_one(machine):
    plain, _ = keep_engine(machine, plugin=True)
    assert fused(plain) == plain  # this bundle's transformer is float
    manifest = machine.bundle.manifest
    rounded = replace(manifest.parts["transformer"], precision="int8")
    parts = {**manifest.parts, "transformer": rounded}
    machine.bundle = replace(machine.bundle, manifest=replace(manifest, parts=parts))
    key, _ = keep_engine(machine, plugin=True)
    without_plugin, _ = keep_engine(machine, plugin=False)
    assert fused(without_plugin) == without_plugin
    machine.cache.store(fused(key), machine.cache.load(key)[:64] + b"fused")
    engines.open_engine(machine.bundle, "transformer", Device.RTX)
    assert machine.module.plan[64:] == b"fused"


def test_of_engines_for_several_sizes_those_last_asked_for_are_run_as_far_as_every_part_has_one(machine):
    small, both = Span((256, 256), (256, 256), (256, 512)), RTX | {"decoder": Device.RTX}
    for age, span in enumerate((small, None)):
        _, path = keep_engine(machine, plugin=True, span=span)
        os.utime(path, (1 - age, 1 - age))
    assert engines.require_engines(machine.bundle, RTX) == small
    engines.open_engine(machine.bundle, "transformer", Device.RTX)
    assert engines.require_engines(machine.bundle, RTX) is None  # the other one was just used

    keep_engine(machine, plugin=True, part="decoder", span=small)
    assert engines.require_engines(machine.bundle, both) == small
    engines.open_engine(machine.bundle, "decoder", Device.RTX, small)


def test_sizes_that_make_no_sense_are_passed_over(machine):
    key, path = keep_engine(machine, plugin=True)
    machine.cache.store(replace(key, sizes="as another version writes them"), path.read_bytes())
    assert engines.require_engines(machine.bundle, RTX) is None


def test_an_engine_with_a_single_changed_bit_is_never_handed_to_the_library(machine):
    _, path = keep_engine(machine, plugin=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"was built here .*it is damaged, or was not made here"):
        engines.open_engine(machine.bundle, "transformer", Device.RTX)
    assert machine.module.plan is None


def test_a_card_for_which_the_library_builds_nothing_is_named(machine):
    machine.driver.capability = 90
    with pytest.raises(BackendError, match=r"rtx: this card has compute capability 9\.0, for which it builds no"):
        engines.require_engines(machine.bundle, RTX)
