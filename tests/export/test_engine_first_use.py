"""Engines that are not there yet are built when a device that runs them is first used; no card is claimed."""

from types import SimpleNamespace

import pytest
from sana_runtime import engines
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache
from sana_runtime.engine_keys import engine_key
from sana_runtime.engine_shapes import Span
from sana_runtime.errors import BackendError
from sana_runtime.session import Device

from sana_export import generate
from sana_export.cli.main import main
from sana_export.engines import first_use
from sana_export.engines.bundle import EngineOutcome
from sana_export.engines.library import Library

RTX = ("tensorrt_rtx", "1.7.1.116")


@pytest.fixture
def machine(monkeypatch, tmp_path, built):
    """A bundle on a machine with an Ada card and no engines, and a builder that keeps empty ones and takes notes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(engines, "_driver", lambda: SimpleNamespace(capability=89))
    monkeypatch.setattr(engines, "library_for", lambda device: None)
    monkeypatch.setattr(engines, "version", lambda package: RTX[1])
    machine = SimpleNamespace(path=built("sana").path, requests=[], refusal="")

    def build(bundle, request, cache, on_progress):
        machine.requests.append(request)
        keys = [engine_key(bundle, part, RTX, request.capabilities, span=request.span) for part in request.parts]
        if machine.refusal:
            return tuple(EngineOutcome(key, None, refusal=machine.refusal) for key in keys)
        return tuple(EngineOutcome(key, cache.store(key, empty())) for key in keys)

    monkeypatch.setattr(first_use, "build_engines", build)
    return machine


def empty():
    """An engine's header for the card, and nothing after it."""
    header = bytearray(64)
    header[24:28], header[32] = bytes((1, 7, 1, 116)), 0x08
    return bytes(header)


def build_missing(machine):
    told = []
    first_use.build_missing(machine.path, Device.RTX, told.append, lambda progress: None)
    return told


def test_all_parts_are_built_for_this_card_once_and_it_is_said(machine):
    parts = tuple(open_bundle(machine.path).manifest.parts)
    (told,) = build_missing(machine)
    assert "no engine of " + ", ".join(parts) in told and "minutes" in told
    (request,) = machine.requests
    assert (request.capabilities, request.library, request.parts) == ((89,), Library.RTX, parts)
    assert build_missing(machine) == [] and len(machine.requests) == 1


def test_only_what_lacks_is_built_and_for_the_sizes_of_what_is_there(machine):
    bundle, span = open_bundle(machine.path), Span((256, 256), (256, 256), (256, 512))
    for part in ("text_encoder", "transformer"):
        EngineCache().store(engine_key(bundle, part, RTX, (89,), span=span), empty())
    build_missing(machine)
    (request,) = machine.requests
    assert set(request.parts) == set(bundle.manifest.parts) - {"text_encoder", "transformer"}
    assert request.span == span
    assert engines.require_engines(bundle, dict.fromkeys(bundle.manifest.parts, Device.RTX)) == span


def test_what_cannot_be_built_is_the_reason_that_is_given(machine):
    machine.refusal = "text_encoder for compute capability 7.5: no"
    with pytest.raises(BackendError, match="7\\.5: no"):
        build_missing(machine)


def exit_code(*arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return left.value.code


def test_generate_builds_before_it_opens_the_bundle_and_not_for_an_order_that_cannot_be_painted(
    machine, monkeypatch, capsys, tmp_path
):
    opened = []
    monkeypatch.setattr(generate, "generate", lambda bundle, order, on_step: opened.append(len(machine.requests)) or [])
    command = ("generate", "-b", machine.path, "-o", tmp_path / "out.png", "--device", "rtx")
    assert exit_code(*command) == 2 and not machine.requests  # no prompt
    assert exit_code(*command, "a red circle") == 0 and opened == [1]
    assert "is here yet; building" in capsys.readouterr().err
    assert exit_code(*command[:-1], "cpu", "a red circle") == 0 and opened == [1, 1]
