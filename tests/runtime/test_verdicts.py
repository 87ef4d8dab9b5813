"""A graph that has passed the guard is not looked through again, and no other is spared that."""

import os
import shutil
from pathlib import Path

import pytest
from sana_runtime import onnx_guard
from sana_runtime.bundle import open_bundle
from sana_runtime.compiled_models import SWITCH, compiled_folder
from sana_runtime.errors import BundleError
from sana_runtime.onnx_guard import guard
from sana_runtime.verdicts import LIMIT, Verdicts

DATA = {"decoder.data": 64}


@pytest.fixture
def kept(tmp_path):
    return Verdicts(tmp_path / "cache" / "compiled", tmp_path / "data" / "key")


@pytest.fixture
def graph(sealed_bundle, tmp_path):
    """A graph that the guard lets pass, in a folder that may be written to."""
    return Path(shutil.copy(sealed_bundle / "decoder.onnx", tmp_path))


@pytest.fixture
def walked(monkeypatch):
    """The graphs that are really looked through, from here on."""
    seen, model = [], onnx_guard._Guard.model

    def look(self, message):
        seen.append(bytes(message))
        model(self, message)

    monkeypatch.setattr(onnx_guard._Guard, "model", look)
    return seen


def test_the_same_bytes_are_looked_through_once(graph, kept, walked):
    for _ in range(3):
        guard(graph, DATA, kept)
    assert walked == [graph.read_bytes()]


def test_without_verdicts_they_are_looked_through_every_time(graph, walked):
    for _ in range(2):
        guard(graph, DATA)
    assert len(walked) == 2


def test_other_bytes_under_the_same_name_and_times_are_refused(graph, kept, walked):
    guard(graph, DATA, kept)
    held = graph.stat()
    content = graph.read_bytes()
    graph.write_bytes(content.replace(b"decoder.data", b"another.data"))
    os.utime(graph, ns=(held.st_atime_ns, held.st_mtime_ns))
    for _ in range(2):  # a refusal is not remembered as anything else
        with pytest.raises(BundleError, match="not a declared data file"):
            guard(graph, DATA, kept)
    assert len(walked) == 3


@pytest.mark.parametrize("data", [{"decoder.data": 1}, {"another.data": 64}, {}])
def test_data_files_of_other_sizes_or_names_are_looked_at_again(graph, kept, data):
    guard(graph, DATA, kept)
    with pytest.raises(BundleError):
        guard(graph, data, kept)


def forge(file):
    file.write_bytes(bytes(32))


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def open_up(file):
    file.chmod(0o644)


def link(file):
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


@pytest.mark.parametrize("spoil", [forge, cut, open_up, link])
def test_a_verdict_that_others_could_have_written_does_not_count(graph, kept, walked, spoil):
    guard(graph, DATA, kept)
    (file,) = kept._folder.glob("*.passed")
    spoil(file)
    guard(graph, DATA, kept)
    assert len(walked) == 2


def test_another_users_key_signs_nothing_here(graph, kept, walked, tmp_path):
    guard(graph, DATA, Verdicts(kept._folder, tmp_path / "other" / "key"))
    guard(graph, DATA, kept)
    assert len(walked) == 2


def test_one_graphs_verdict_is_not_anothers(graph, kept, tmp_path):
    guard(graph, DATA, kept)
    (verdict,) = kept._folder.glob("*.passed")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(graph.read_bytes().replace(b"decoder.data", b"another.data"))
    with pytest.raises(BundleError):
        guard(bad, DATA, kept)
    content = verdict.read_bytes()
    for name in ("0" * 64, bad.name):
        (verdict.parent / f"{name}.passed").write_bytes(content)
        (verdict.parent / f"{name}.passed").chmod(0o600)
    with pytest.raises(BundleError):
        guard(bad, DATA, kept)


def test_where_nothing_can_be_kept_the_guard_still_looks(graph, walked, tmp_path):
    (tmp_path / "file").write_text("in the way")
    nowhere = Verdicts(tmp_path / "file" / "compiled", tmp_path / "key")
    for _ in range(2):
        guard(graph, DATA, nowhere)
    assert len(walked) == 2


def test_verdicts_make_room_for_newer_ones(graph, kept):
    guard(graph, DATA, kept)
    (first,) = kept._folder.glob("*.passed")
    os.utime(first, (1, 1))
    (kept._folder / "large.passed").write_bytes(bytes(LIMIT - 40))
    kept.remember(b"another graph", DATA)
    assert kept.passed(b"another graph", DATA)
    assert not first.exists()


@pytest.mark.parametrize(("switch", "times"), [("on", 1), ("off", 2)])
def test_opening_a_bundle_remembers_unless_nothing_is_to_be_kept(
    sealed_bundle, walked, monkeypatch, tmp_path, switch, times
):
    monkeypatch.setenv(SWITCH, switch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    graphs = len(list(sealed_bundle.glob("*.onnx")))
    for _ in range(2):
        open_bundle(sealed_bundle)
    assert len(walked) == times * graphs
    assert len(list(compiled_folder().glob("*.passed"))) == (graphs if times == 1 else 0)
