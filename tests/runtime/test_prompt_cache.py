"""Prompts on disk: what was stored comes back, and nothing else does."""

import os
import shutil
import stat
from dataclasses import replace

import numpy as np
import pytest
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import BackendError
from sana_runtime.prompt_cache import DIGEST_BYTES, PromptCache, text_source
from sana_runtime.session import Device

ARRAY = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 1, 3, 4)


@pytest.fixture
def cache(tmp_path):
    return PromptCache(tmp_path / "cache" / "prompts")


def only(cache):
    (path,) = cache.entries()
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_was_stored_comes_back_bit_for_bit(cache, dtype):
    cache.store("key", ARRAY.astype(dtype))
    found = cache.load("key")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ARRAY.astype(dtype))
    assert cache.load("another key") is None


def test_entries_are_plain_npy_files_that_no_other_user_can_read(cache):
    cache.store("a prompt that tells", ARRAY)
    np.testing.assert_array_equal(np.load(only(cache), allow_pickle=False), ARRAY)
    assert "prompt that" not in only(cache).name
    assert b"prompt that" not in only(cache).read_bytes()
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(only(cache).stat().st_mode) == 0o600
    assert [path.name for path in cache.folder.iterdir()] == [only(cache).name]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def pickled(path):
    with path.open("wb") as file:
        np.save(file, np.array([print], dtype=object), allow_pickle=True)


DAMAGE = {
    "one bit of the numbers": lambda path: flip(path, 200),
    "one bit of the header": lambda path: flip(path, 20),
    "one bit of the digest": lambda path: flip(path, -1),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "cut to its digest": lambda path: path.write_bytes(path.read_bytes()[-DIGEST_BYTES:]),
    "empty": lambda path: path.write_bytes(b""),
    "without a digest": lambda path: np.save(path, ARRAY),
    "pickled": pickled,
    "readable by others": lambda path: path.chmod(0o644),
    "a link": lambda path: (path.rename(path.with_suffix(".moved")), path.symlink_to(path.with_suffix(".moved"))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_entry_that_is_not_whole_and_ours_is_not_used_and_makes_room_for_a_new_one(cache, damage):
    cache.store("key", ARRAY)
    DAMAGE[damage](only(cache))
    assert cache.load("key") is None
    cache.store("key", ARRAY)
    np.testing.assert_array_equal(cache.load("key"), ARRAY)


def test_an_entry_under_anothers_name_is_not_used(cache):
    cache.store("one", ARRAY)
    first = only(cache)
    cache.store("two", ARRAY + 1)
    (second,) = set(cache.entries()) - {first}
    second.write_bytes(first.read_bytes())
    assert cache.load("two") is None
    assert cache.load("one") is not None


def test_those_used_longest_ago_make_room(cache):
    size = 0
    for number in range(3):
        cache.store(str(number), ARRAY)
        size = size or only(cache).stat().st_size
        for path in cache.entries():
            os.utime(path, (1000 + number, 1000 + number)) if path.stat().st_mtime > 5000 else None
    assert cache.load("0") is not None  # now the last used
    small = PromptCache(cache.folder, limit=3 * size + 1)
    small.store("3", ARRAY)
    assert [small.load(key) is not None for key in "0123"] == [True, False, True, True]
    PromptCache(cache.folder, limit=size - 1).store("4", ARRAY)
    assert cache.load("4") is None


def test_a_folder_that_is_a_link_is_refused_at_once_and_written_to_never(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    cache = PromptCache(tmp_path / "link")
    with pytest.raises(BackendError, match="is a link"):
        cache.prepare()
    cache.store("key", ARRAY)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_disk_that_takes_nothing_costs_nothing_but_the_entry(cache, monkeypatch):
    def full(handle):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.store("key", ARRAY)
    assert cache.load("key") is None
    assert not list(cache.folder.iterdir())


NUMBERS = ("text_encoder.onnx", "text_encoder.data", "caption.onnx", "caption.data")


def changed(folder, name):
    """The file with another byte in it, and its old times."""
    file = folder / name
    times, content = (file.stat().st_atime_ns, file.stat().st_mtime_ns), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=times)


def test_whatever_the_numbers_depend_on_makes_another_source(bundle_folder):
    bundle = open_bundle(bundle_folder)
    manifest, devices = bundle.manifest, dict.fromkeys(bundle.manifest.parts, Device.CPU)

    def source(threads=0, *, part="caption", device=Device.CPU, precision=None):
        parts = dict(manifest.parts)
        parts[part] = replace(parts[part], precision=precision or parts[part].precision)
        other = replace(bundle, manifest=replace(manifest, parts=parts))
        return text_source(other, {**devices, part: device}, threads)

    others = [source(1), source(device=Device.ONNXRUNTIME), source(precision="fp16")]
    others += [source(part="text_encoder", device=Device.ONNXRUNTIME), source(part="text_encoder", precision="fp16")]
    usual = source()
    assert usual == text_source(open_bundle(bundle_folder), devices, 0) == source(part="decoder", precision="fp16")
    changed(bundle_folder, "transformer.onnx")
    assert source() == usual
    for name in NUMBERS:
        changed(bundle_folder, name)
        others.append(source())
    assert len({usual, *others}) == 1 + len(others)


def test_a_bundle_that_says_it_has_anothers_files_has_a_source_of_its_own(bundle_folder, tmp_path):
    """Nothing of a manifest is checked against the bytes when a bundle is opened, but sizes."""
    stranger = tmp_path / "stranger"
    shutil.copytree(bundle_folder, stranger)
    (stranger / "caption.data").write_bytes(bytes((stranger / "caption.data").stat().st_size))
    bundles = [open_bundle(folder) for folder in (bundle_folder, stranger)]
    assert bundles[0].digest == bundles[1].digest
    devices = dict.fromkeys(bundles[0].manifest.parts, Device.CPU)
    assert len({text_source(bundle, devices, 0) for bundle in bundles}) == 2
