"""The cache hands out engines that this user built, whole, and nothing else."""

import os
import random
import stat
from dataclasses import replace

import pytest
from sana_runtime.engine_cache import EngineCache, EngineKey, graph_digest
from sana_runtime.engine_shapes import Span, engine_signature, has_sizes, profile_digest
from sana_runtime.errors import BackendError
from sana_runtime.signature import Sizes, signatures

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
KEY = EngineKey(
    part="transformer",
    graph=graph_digest(["a" * 64, "b" * 64]),
    library="tensorrt_rtx",
    version="1.7.1.116",
    capabilities=(86, 89, 120),
    precision="fp16",
    profile="0123456789abcdef",
    plugin=True,
)


def engine(size=1000, version=(1, 7, 1, 116), mask=0x04 | 0x08 | 0x10):
    """Bytes with the header of an engine."""
    content = bytearray(random.Random(size).randbytes(size))
    content[24:28], content[32:36] = bytes(version), mask.to_bytes(4, "little")
    return bytes(content)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def cache(tmp_path, notes):
    return EngineCache(tmp_path / "engines", tmp_path / "secret" / "key", note=notes.append)


def test_an_engine_comes_back_as_it_was_kept(cache, notes):
    cache.store(KEY, engine())
    assert cache.load(KEY) == engine()
    assert notes == []


@pytest.mark.parametrize(
    "change",
    [
        {"part": "decoder"},
        {"graph": "0" * 64},
        {"library": "tensorrt"},
        {"version": "1.7.1.117"},
        {"capabilities": (75,)},
        {"precision": "int8"},
        {"profile": "f" * 16},
        {"plugin": False},
        {"sizes": "512x512 1024x1024 2048x2048"},
        {"streams": True},
        {"fused_mix_ffn": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_engine_for_something_else_is_not_found(change, cache):
    cache.store(KEY, engine())
    assert cache.load(replace(KEY, **change)) is None


def test_an_engine_for_several_cards_serves_each_of_them(cache):
    cache.store(KEY, engine())
    for capability in KEY.capabilities:
        assert cache.load(replace(KEY, capabilities=(capability,))) == engine()
    assert cache.load(replace(KEY, capabilities=(89, 121))) is None


def test_five_hundred_flipped_bits_are_each_found_and_the_entry_is_removed(cache, notes):
    path = cache.store(KEY, engine())
    whole, bits = path.read_bytes(), random.Random(0)
    for _ in range(500):
        position, bit = bits.randrange(len(whole)), 1 << bits.randrange(8)
        damaged = bytearray(whole)
        damaged[position] ^= bit
        path.write_bytes(damaged)
        path.chmod(0o600)
        assert cache.load(KEY) is None
        assert not path.exists()
    assert len(notes) == 500
    path.write_bytes(whole)
    path.chmod(0o600)
    assert cache.load(KEY) == engine()


@pytest.mark.parametrize("length", [0, 10, 31, 32, 40, 44, 200, -1])
def test_an_entry_that_ends_early_is_refused(length, cache):
    path = cache.store(KEY, engine())
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load(KEY) is None


def test_an_entry_that_was_signed_with_another_key_is_refused(cache, tmp_path, notes):
    theirs = EngineCache(tmp_path / "theirs", tmp_path / "their-key")
    foreign = theirs.store(KEY, engine())
    cache.prepare()
    foreign.rename(cache.folder / KEY.file)
    assert cache.load(KEY) is None
    assert "was not made here" in notes[0]


def test_an_entry_under_the_name_of_another_is_refused(cache, notes):
    other = replace(KEY, precision="int8")
    cache.store(KEY, engine()).rename(cache.folder / other.file)
    assert cache.load(other) is None
    assert "another engine" in notes[0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (engine(version=(1, 6, 0, 1)), "built by TensorRT-RTX 1.6.0.1"),
        (engine(mask=0x08), "compute capability 8.6"),
        (bytes(10), "too short"),
    ],
)
def test_an_engine_whose_own_header_disagrees_is_refused(content, why, cache, notes):
    cache.store(KEY, content)
    assert cache.load(KEY) is None
    assert why in notes[0]


@posix
def test_folder_entries_and_key_are_closed_to_other_users(cache, tmp_path):
    path = cache.store(KEY, engine())
    modes = [stat.S_IMODE(place.stat().st_mode) for place in (cache.folder, path, tmp_path / "secret" / "key")]
    assert modes == [0o700, 0o600, 0o600]


@posix
def test_an_open_folder_is_closed_before_it_is_used(cache):
    cache.folder.mkdir(mode=0o777)
    cache.store(KEY, engine())
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@posix
def test_a_folder_that_is_a_link_is_refused(cache, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    cache.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendError, match="remove it"):
        cache.store(KEY, engine())


@posix
@pytest.mark.parametrize("spoil", [lambda key: key.chmod(0o644), lambda key: key.write_bytes(b"short")])
def test_a_key_that_others_may_know_is_replaced_and_its_engines_are_stale(spoil, cache, tmp_path):
    cache.store(KEY, engine())
    key = tmp_path / "secret" / "key"
    before = key.read_bytes()
    spoil(key)
    assert cache.load(KEY) is None
    assert len(key.read_bytes()) == 32 and key.read_bytes() != before
    cache.store(KEY, engine())
    assert cache.load(KEY) == engine()


@posix
@pytest.mark.parametrize("spoil", ["link", "readable", "pipe"])
def test_an_entry_that_is_no_private_plain_file_is_refused(spoil, cache, tmp_path):
    path = cache.store(KEY, engine())
    if spoil == "readable":
        path.chmod(0o644)
    else:
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "moved") if spoil == "link" else os.mkfifo(path, 0o600)
    assert cache.load(KEY) is None
    assert not os.path.lexists(path)


def test_engines_that_were_used_longest_ago_make_room(cache):
    cache = EngineCache(cache.folder, cache._secret, limit=3000)
    keys = [replace(KEY, graph=str(i) * 64) for i in range(3)]
    for age, key in zip((300, 200, 100), keys, strict=True):
        path = cache.store(key, engine())
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert cache.load(keys[0]) is None  # the oldest went when the third came
    assert cache.load(keys[1]) == engine()  # and is now the last used
    cache.store(KEY, engine())
    assert cache.load(keys[2]) is None
    assert cache.load(keys[1]) == engine() and cache.load(KEY) == engine()


def test_an_engine_larger_than_the_whole_cache_is_kept_alone(cache):
    small = EngineCache(cache.folder, cache._secret, limit=10)
    small.store(replace(KEY, part="decoder"), engine())
    small.store(KEY, engine())
    assert [entry.key for entry in small.entries()] == [KEY]


def test_what_a_killed_process_left_behind_goes_after_an_hour(cache):
    cache.prepare()
    old, new = (cache.folder / f".{name}.part" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.store(KEY, engine())
    assert not old.exists() and new.exists()


def test_a_store_that_fails_leaves_the_old_engine(cache, monkeypatch):
    cache.store(KEY, engine())
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "input/output error")))
    with pytest.raises(BackendError, match="cannot be written"):
        cache.store(KEY, engine(2000))
    monkeypatch.undo()
    assert cache.load(KEY) == engine()
    assert [path.name for path in cache.folder.iterdir()] == [KEY.file]


def test_entries_are_listed_with_what_they_were_built_from(cache):
    path = cache.store(KEY, engine())
    (cache.folder / "junk.engine").write_bytes(b"junk")
    (entry,) = cache.entries()
    assert (entry.path, entry.key, entry.bytes) == (path, KEY, path.stat().st_size)


SIGNATURES = signatures(Sizes(depth=2, dim=64, text_dim=48, sample_size=64))


def test_a_decoders_engine_takes_one_tile_and_the_transformers_every_size_of_one_picture():
    (latent,) = engine_signature(SIGNATURES["decoder"]).profiles().values()
    assert latent == ((1, 32, 16, 16), (1, 32, 32, 32), (1, 32, 32, 32))
    assert engine_signature(SIGNATURES["transformer"]).profiles()["latent"][2] == (2, 32, 128, 128)


def test_an_engines_signature_accepts_no_more_than_its_graphs():
    for signature in SIGNATURES.values():
        for spec, limited in zip(signature.inputs, engine_signature(signature).inputs, strict=True):
            for (_, axis), (_, less) in zip(spec.axes(), limited.axes(), strict=True):
                assert axis.min == less.min <= less.optimum <= less.max <= axis.max


LANDSCAPE = Span.around([(1024, 1024), (768, 1536), (512, 2048)])


def test_a_span_holds_every_size_it_was_made_of_and_reads_what_it_wrote():
    assert (LANDSCAPE.smallest, LANDSCAPE.usual, LANDSCAPE.largest) == ((512, 1024), (1024, 1024), (1024, 2048))
    assert str(LANDSCAPE) == "1024x512 1024x1024 2048x1024"
    assert Span.parse(str(LANDSCAPE)) == LANDSCAPE
    for text in ("all", "1x1 2x2", "1x1 2x2 3x3 4x4", "1x1 2x2 axb", "1x1x1 2 3"):
        with pytest.raises(ValueError):
            Span.parse(text)


def test_a_spans_engines_take_its_sizes_and_no_others():
    taken = {name: engine_signature(signature, LANDSCAPE).profiles() for name, signature in SIGNATURES.items()}
    assert taken["transformer"]["latent"] == ((1, 32, 16, 32), (2, 32, 32, 32), (2, 32, 32, 64))
    assert taken["encoder"]["image"] == ((1, 512, 1024, 3), (1, 1024, 1024, 3), (1, 1024, 2048, 3))
    assert taken["decoder"]["latent"] == ((1, 32, 16, 16), (1, 32, 32, 32), (1, 32, 32, 32))  # tiles, as ever
    for name in ("text_encoder", "caption"):
        assert taken[name] == engine_signature(SIGNATURES[name]).profiles() and not has_sizes(SIGNATURES[name])


def test_a_span_gives_an_engine_nothing_that_its_graph_does_not_take():
    signature = engine_signature(SIGNATURES["transformer"], Span((32, 32), (9000, 9000), (9000, 9000)))
    assert signature.profiles()["latent"] == ((1, 32, 16, 16), (2, 32, 128, 128), (2, 32, 128, 128))


def test_other_shapes_have_another_digest():
    profiles = SIGNATURES["transformer"].profiles()
    assert profile_digest(profiles) == profile_digest(dict(reversed(profiles.items())))
    assert profile_digest(profiles) != profile_digest(engine_signature(SIGNATURES["transformer"]).profiles())
