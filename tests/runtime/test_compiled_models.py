"""Compiled models are read back whole, by the user that kept them, for what they were made of, or not at all."""

import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime import openvino_session
from sana_runtime.compiled_models import PAGE, SWITCH, CompiledModels, compiled_folder, origin
from sana_runtime.errors import BackendError
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import SessionOptions

MADE_OF = {"part": "transformer", "graph": "0" * 64, "shapes": [["latent", [2, 32, 16, 16]]]}
MODEL = bytes(range(256)) * 40
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


@pytest.fixture
def models(tmp_path):
    return CompiledModels(tmp_path / "compiled", tmp_path / "secret" / "key")


@pytest.fixture
def kept(models):
    return models.store(MADE_OF, memoryview(MODEL))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Sessions keep what they compile, in a home of their own."""
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(openvino_session, "WORTH_KEEPING", 0.0)
    return tmp_path


def scale(path, factor):
    """A graph that multiplies by `factor`."""
    value = helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", ends[:1], ends[1:], [value])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def shift(path, amount, data):
    """A graph that multiplies by 2, which stands in it, and adds `amount`, which lies in the file `data`."""
    scale(path, 2.0)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.full(20_000, amount, np.float32), "amount"))
    model.graph.node.append(helper.make_node("Add", ["y", "amount"], ["z"]))
    model.graph.output[0].name = "z"
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1000)
    return path


def answer(graph):
    (outputs,) = OpenVinoSession(graph, SessionOptions(threads=1)).run({"x": np.arange(3, dtype=np.float32)}).values()
    return outputs


def test_a_model_comes_back_as_it_was_kept_and_on_a_page_of_its_own(models, kept):
    model = models.load(MADE_OF)
    assert model.tobytes() == MODEL
    assert model.ctypes.data % 4096 == 0


@pytest.mark.parametrize("change", [{"part": "decoder"}, {"graph": "1" * 64}, {"shapes": []}])
def test_what_was_made_of_something_else_is_not_taken(models, kept, change):
    assert models.load({**MADE_OF, **change}) is None
    shutil.copy(kept, models.store({**MADE_OF, **change}, memoryview(b"another")))
    assert models.load({**MADE_OF, **change}) is None


@pytest.mark.parametrize("place", [0, 31, 32, 40, 500, 4095, 4096, -1])
def test_one_flipped_bit_is_found_and_the_entry_removed(models, kept, place):
    content = bytearray(kept.read_bytes())
    content[place] ^= 1
    kept.write_bytes(content)
    assert models.load(MADE_OF) is None
    assert not kept.exists()


@pytest.mark.parametrize("length", [0, 20, 4096, 5000])
def test_a_shortened_entry_is_refused(models, kept, length):
    os.truncate(kept, length)
    assert models.load(MADE_OF) is None


@posix
def test_an_entry_that_others_may_write_or_that_is_a_link_is_refused(models, kept, tmp_path):
    kept.chmod(0o666)
    assert models.load(MADE_OF) is None
    elsewhere = models.store(MADE_OF, memoryview(MODEL)).rename(tmp_path / "elsewhere")
    kept.symlink_to(elsewhere)
    assert models.load(MADE_OF) is None


def test_an_entry_of_another_user_is_refused(models, kept, tmp_path):
    assert CompiledModels(models.folder, tmp_path / "other" / "key").load(MADE_OF) is None


def test_what_was_used_longest_ago_makes_room(tmp_path):
    models = CompiledModels(tmp_path / "compiled", tmp_path / "key", limit=3 * (len(MODEL) + 4096))
    for age, part in enumerate(("d", "c", "b", "a")):
        os.utime(models.store({"part": part}, memoryview(MODEL)), (1e9 + age, 1e9 + age))
    models.load({"part": "c"})
    models.store({"part": "e"}, memoryview(MODEL))
    assert [entry.made_of["part"] for entry in models.entries()] == ["e", "c", "a"]


def test_a_later_session_reads_back_what_an_earlier_one_compiled(home, monkeypatch):
    graph = scale(home / "scale.onnx", 3.0)
    first = answer(graph)
    monkeypatch.setattr(OpenVinoSession, "_compile", lambda *_: pytest.fail("it was compiled again"))
    np.testing.assert_array_equal(answer(graph), first)


def answer_of_many(graph):
    feeds = {"x": np.arange(20_000, dtype=np.float32)}
    return OpenVinoSession(graph, SessionOptions(threads=1)).run(feeds)["z"][3]


def test_weights_stay_in_their_own_file_and_are_found_there_again(home, monkeypatch):
    graph = shift(home / "shift.onnx", 5.0, "shift.data")
    assert answer_of_many(graph) == 11
    (entry,) = CompiledModels().entries()
    assert entry.bytes < PAGE + 20_000  # of 80,000 bytes of weights
    monkeypatch.setattr(OpenVinoSession, "_compile", lambda *_: pytest.fail("it was compiled again"))
    assert answer_of_many(graph) == 11


def test_a_model_with_weights_in_a_file_of_another_name_is_not_kept(home):
    shift(home / "other.onnx", 7.0, "other.data")
    graph = shift(home / "shift.onnx", 5.0, "more.data")
    shutil.copy(home / "other.data", home / "shift.data")
    assert [answer_of_many(graph) for _ in range(2)] == [11, 11]
    assert not CompiledModels().entries()


def test_weights_that_are_replaced_while_a_session_is_open_are_not_mixed_with_its_own(home):
    graph = shift(home / "shift.onnx", 5.0, "shift.data")
    answer_of_many(graph)
    (entry,) = CompiledModels().entries()
    session = OpenVinoSession(graph, SessionOptions(threads=1))
    os.utime(graph.with_suffix(".data"), (1, 1))
    session._requests.clear()
    with pytest.raises(BackendError, match="was replaced while it was in use"):
        session.run({"x": np.arange(20_000, dtype=np.float32)})
    assert entry.path.exists()


def test_another_graph_in_the_same_place_is_compiled_anew(home):
    assert answer(scale(home / "scale.onnx", 3.0))[1] == 3
    assert answer(scale(home / "scale.onnx", 4.0))[1] == 4


def test_weights_of_the_same_name_and_size_are_told_apart(tmp_path):
    graph, data = scale(tmp_path / "scale.onnx", 3.0), tmp_path / "scale.data"
    data.write_bytes(b"one")
    first = origin(graph)
    assert origin(graph) == first
    held = data.stat()
    data.unlink()
    data.write_bytes(b"two")
    os.utime(data, ns=(held.st_atime_ns, held.st_mtime_ns))
    assert origin(graph) != first


def test_a_damaged_or_useless_entry_is_compiled_and_replaced(home):
    graph = scale(home / "scale.onnx", 3.0)
    answer(graph)
    (entry,) = CompiledModels().entries()
    entry.path.write_bytes(b"\0" * entry.bytes)
    assert answer(graph)[1] == 3
    CompiledModels().store(entry.made_of, memoryview(b"signed, but no model"))
    assert answer(graph)[1] == 3
    assert CompiledModels().entries()[0].bytes == entry.bytes


def test_nothing_is_kept_when_it_is_switched_off_or_quickly_compiled(home, monkeypatch):
    graph = scale(home / "scale.onnx", 3.0)
    monkeypatch.setattr(openvino_session, "WORTH_KEEPING", 1000.0)
    answer(graph)
    monkeypatch.setattr(openvino_session, "WORTH_KEEPING", 0.0)
    monkeypatch.setenv(SWITCH, "off")
    answer(graph)
    assert not compiled_folder().exists()
