"""A bundle whose golden pictures were not painted with this library and driver yet is said not to have been."""

import json
import os

import pytest
from sana_runtime.bundle import open_bundle, seal
from sana_runtime.manifest import parse

from sana_export import verified
from sana_export.cli.main import main
from sana_export.latest import latest_bundle, remember_bundle
from sana_export.verified import advice, remember_verified


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A data folder of the test's own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data" / "sana-export"


def test_what_was_verified_is_not_asked_for_again(folder):
    assert "`sana-export verify" in advice(folder, "cpu")
    remember_verified(folder, "cpu")
    assert advice(folder, "cpu") == advice(folder, "auto") == ""
    assert "onnxruntime" in advice(folder, "onnxruntime")


def test_another_version_of_the_library_asks_again(folder, monkeypatch):
    remember_verified(folder, "cpu")
    monkeypatch.setattr(verified, "version", lambda name: "99.1")
    assert "openvino 99.1" in advice(folder, "cpu")


def test_another_driver_asks_again_where_a_card_paints(folder, monkeypatch):
    monkeypatch.setattr(verified, "cards", lambda: ["a card, driver 580"])
    for device in ("rtx", "cpu"):
        remember_verified(folder, device)
    monkeypatch.setattr(verified, "cards", lambda: ["a card, driver 590"])
    assert advice(folder, "rtx") and not advice(folder, "cpu")


def test_another_bundle_in_the_same_place_asks_again(folder):
    remember_verified(folder, "cpu")
    (folder / "decoder.data").write_bytes(bytes(64))
    seal(folder, parse((folder / "manifest.json").read_bytes()))
    assert advice(folder, "cpu")


def test_nothing_is_advised_where_it_would_not_help(folder, declare, tmp_path):
    declare(folder, lambda entries: entries.pop("golden"))
    assert advice(folder, "cpu") == advice(tmp_path / "nothing", "cpu") == ""


@pytest.mark.parametrize("damage", [b"", b"\xff", b"{}", b'[1, null, {"a": "b"}]', b"[" * 100_000])
def test_a_damaged_note_is_no_note(damage, folder, home):
    home.mkdir(parents=True)
    (home / "verified.json").write_bytes(damage)
    assert advice(folder, "cpu")
    remember_verified(folder, "cpu")
    assert not advice(folder, "cpu")


def test_no_more_is_remembered_than_there_is_use_for(folder, home):
    home.mkdir(parents=True)
    (home / "verified.json").write_text(json.dumps([str(i) for i in range(10_000)]))
    remember_verified(folder, "cpu")
    assert len(json.loads((home / "verified.json").read_text())) == 500 and not advice(folder, "cpu")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every path is text")
def test_a_bundle_whose_path_is_no_text_is_remembered(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9")
    remember_bundle(path)
    assert latest_bundle() == path


def test_what_took_an_hour_does_not_fail_for_a_note_that_cannot_be_written(folder, home):
    home.parent.mkdir()
    home.write_text("in the way")
    remember_bundle(folder)
    remember_verified(folder, "cpu")
    assert advice(folder, "cpu")


def status(*arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def test_painting_says_so_in_one_line_until_verify_has_painted_them(built, tmp_path, capsys, figure):
    bundle = built("sana").path
    paint = ("generate", "a star", "--bundle", bundle, "--steps", "1", "--output", tmp_path / "out.png")
    assert status(*paint) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "golden" in line]
    assert f"sana-export verify {bundle} --device auto" in line
    assert status("verify", bundle) == 0
    capsys.readouterr()
    assert status(*paint) == 0
    assert "golden" not in capsys.readouterr().err
    many = len(open_bundle(bundle).manifest.golden)
    figure(18, f"a new library or driver is told of in one line until `verify` painted {many} pictures with it")
