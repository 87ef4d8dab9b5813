"""The manifest: one canonical text, one schema, and nothing but a one-line BundleError for everything else."""

import json
import math
import os
import random
import time
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jsonschema
import pytest
from sana_runtime import manifest as manifest_module
from sana_runtime.errors import BundleError
from sana_runtime.manifest import Defaults, dump, parse, schema

PUBLISHED = Path(manifest_module.__file__).with_name("manifest.schema.json")


@pytest.fixture(scope="module")
def entries(sealed_bundle) -> dict:
    return json.loads((sealed_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(json.loads(PUBLISHED.read_text()))


def refusal(content: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


def test_the_text_is_canonical(sealed_bundle, vouched):
    content = (sealed_bundle / "manifest.json").read_bytes()
    manifest = parse(content)
    assert dump(manifest) == content == dump(parse(dump(manifest)))
    shuffled = vouched(dict(reversed(json.loads(content).items())))
    assert dump(parse(shuffled)) == content, "order and white space of the input leave no trace"


def test_every_field_survives(sealed_bundle):
    manifest = parse((sealed_bundle / "manifest.json").read_bytes())
    decoder = replace(manifest.parts["decoder"], precision="int8", kept_float={"blocks.0.out": "too far off"})
    changed = replace(
        manifest,
        parts={**manifest.parts, "decoder": decoder},
        defaults=Defaults("scm", 2, 4.5, (128, 256)),
        preview=None,
        golden=(),
    )
    assert parse(dump(changed)) == changed
    assert parse(dump(manifest)) == manifest


def test_the_text_carries_its_own_digest_with_zeros_in_its_place(sealed_bundle):
    content = (sealed_bundle / "manifest.json").read_bytes()
    own = json.loads(content)["sha256"]
    assert content.count(own.encode()) == 1
    assert sha256(content.replace(own.encode(), b"0" * 64)).hexdigest() == own


def test_a_manifest_without_its_digest_or_with_anothers_is_refused_in_one_clear_line(entries):
    without = {name: entry for name, entry in entries.items() if name != "sha256"}
    assert refusal(json.dumps(without).encode()) == "manifest.json: $ lacks 'sha256'; build the bundle again"
    for wrong in ("0" * 64, "1" * 64, entries["files"]["decoder.data"]["sha256"]):
        text = json.dumps({**entries, "sha256": wrong}).encode()
        assert refusal(text) == "manifest.json changed since it was packed; build the bundle again"


def test_every_single_flipped_bit_is_noticed(sealed_bundle):
    original = (sealed_bundle / "manifest.json").read_bytes()
    for bit in random.Random(23).sample(range(8 * len(original)), 400):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        refusal(bytes(flipped))


def test_the_published_schema_is_the_one_that_the_code_makes():
    assert json.loads(PUBLISHED.read_text()) == json.loads(json.dumps(schema()))


def test_the_schema_accepts_what_we_write(entries, validator):
    validator.validate(entries)


# (where, what is put there, what the message must say)
WRONG = (
    ("$", {"surprise": 1}, "$ has the unknown key 'surprise'"),
    ("$.parts.decoder", {"engine": "x"}, "$.parts.decoder has the unknown key 'engine'"),
    ("$.parts.decoder.inputs.0.shape.0", {"step": 2}, "$.parts.decoder.inputs[0].shape[0] has the unknown key 'step'"),
    ("$.format", 2, "$.format is 2, allowed is 1 to 1"),
    ("$.format", "1", "$.format is '1', must be a whole number"),
    ("$.format", True, "$.format is true, must be a whole number"),
    ("$.format", None, "$.format is null, must be a whole number"),
    ("$.model", "two\nlines", "$.model is 'two\\nlines', must be text"),
    ("$.model", "", "$.model is '', must be a short name"),
    ("$.precision", "int3", "$.precision is 'int3', must be one of fp32"),
    ("$.defaults.steps", 0, "$.defaults.steps is 0, allowed is 1 to 1000"),
    ("$.defaults.steps", 20.5, "$.defaults.steps is 20.5, must be a whole number"),
    ("$.defaults.guidance", -1, "$.defaults.guidance is -1.0"),
    ("$.defaults.solver", "ddim", "$.defaults.solver is 'ddim', must be one of flow-dpm"),
    ("$.defaults.size", [128], "$.defaults.size has 1 entries, must have 2"),
    ("$.defaults.size", "128", "$.defaults.size is '128', must be a list"),
    ("$.files", [], "$.files is list, must be an object"),
    ("$.files.decoder&data.size", -1, "$.files['decoder.data'].size is -1"),
    ("$.files.decoder&data.size", 2**63, "$.files['decoder.data'].size is 9223372036854775808"),
    ("$.files.decoder&data.sha256", "A" * 64, "$.files['decoder.data'].sha256"),
    ("$.files.decoder&data.sha256", "a" * 63, "$.files['decoder.data'].sha256"),
    ("$.parts.decoder.inputs.0.dtype", "complex64", "dtype is 'complex64', must be one of"),
    ("$.parts.decoder.inputs.0.name", "la tent", "name is 'la tent', must be an identifier"),
    ("$.parts.decoder.inputs.0.shape", [], "shape has 0 entries"),
    ("$.parts.decoder.inputs.0.shape.0", "batch", "must be a whole number"),
    ("$.parts.decoder.inputs", [], "inputs has 0 entries"),
    ("$.parts.stranger", {}, "$.parts has a key that is 'stranger'"),
    ("$.parts.decoder.source.revision", "x\u0000y", "must be text"),
    ("$.parts.decoder.source.revision", "\ud83d", "lone surrogate"),
    ("$.golden.0.seed", -1, "$.golden[0].seed is -1"),
    ("$.golden.0.least_psnr", 0, "$.golden[0].least_psnr is 0.0"),
    ("$.preview.weight.0", [1, 2], "$.preview.weight[0] has 2 entries"),
    ("$.preview.bias.0", "0", "$.preview.bias[0] is '0', must be a number"),
    ("$.preview", None, "$.preview is null, must be an object"),
)

# What no schema says: mostly entries that disagree with each other.
CROSSED = (
    ("$.parts.decoder.inputs.0.shape.0", 0, "$.parts.decoder.inputs[0]: 0 is not a positive whole number"),
    ("$.defaults.size", [128, 100], "$.defaults.size is a size that the transformer does not take"),
    ("$.defaults.size", [128, 4096], "$.defaults.size is a size that the transformer does not take"),
    ("$.defaults.solver", "scm", "$.defaults.shift must be absent for scm"),
    ("$.parts.decoder.file", "stranger.onnx", "which $.files does not have"),
    ("$.parts.decoder.file", "caption.onnx", "uses already"),
    ("$.parts.decoder.source.licence_files", ["LICENSES/absent.txt"], "$.files does not have"),
    ("$.parts.decoder.inputs.0.shape.0.optimum", 1000, "optimum outside its bounds"),
    ("$.golden.0.size", [64, 64], "$.golden[0] needs 'golden-0.data' of 512"),
    ("$.golden.0.latent", "decoder.data", "$.golden[0] needs 'decoder.data'"),
    ("$.preview.weight", [[1, 1, 1]], "$.preview.weight has 1 rows, a latent has 32 channels"),
)


def changed(entries: dict, where: str, value: object) -> dict:
    entries = deepcopy(entries)
    *path, last = [int(key) if key.isdigit() else key.replace("&", ".") for key in where.split(".")[1:]] or [None]
    place = entries
    for key in path:
        place = place[key]
    if isinstance(value, dict) and value and last is not None:
        place = place.setdefault(last, {}) if isinstance(place, dict) else place[last]
    place.update(value) if isinstance(value, dict) and value else place.__setitem__(last, value)
    return entries


@pytest.mark.parametrize(("where", "value", "message"), WRONG)
def test_what_is_not_as_declared_is_refused_with_its_place_by_us_and_by_the_schema(
    entries, validator, where, value, message
):
    wrong = changed(entries, where, value)
    assert message in refusal(json.dumps(wrong).encode())
    assert value == "\ud83d" or not validator.is_valid(wrong), "half a character is the one thing it cannot see"


@pytest.mark.parametrize(("where", "value", "message"), CROSSED)
def test_entries_that_disagree_are_refused(entries, validator, where, value, message):
    wrong = changed(entries, where, value)
    assert message in refusal(json.dumps(wrong).encode())
    assert validator.is_valid(wrong)


def missing_keys(value: object, path: tuple = ()):
    if isinstance(value, dict):
        for key, entry in value.items():
            yield (*path, key)
            yield from missing_keys(entry, (*path, key))
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from missing_keys(entry, (*path, i))


OPTIONAL = {"format", "golden", "preview", "kept_float", "licence_files", "multiple", "shift", "waived"}


def test_every_key_but_the_optional_ones_is_missed(entries, validator):
    one_of_each = {(path[0], path[-1]): path for path in missing_keys(entries)}
    assert len(one_of_each) > 50
    for *path, last in one_of_each.values():
        wrong = deepcopy(entries)
        place = wrong
        for key in path:
            place = place[key]
        del place[last]
        if last in OPTIONAL or (path == ["files"] and last.endswith(".data") and "golden" not in last):
            assert validator.is_valid(wrong)
            continue
        message = refusal(json.dumps(wrong).encode())
        assert repr(last) in message
        assert not validator.is_valid(wrong) or path == ["files"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"null", "$ is null, must be an object"),
        (b"[]", "$ is list, must be an object"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"model": ' + b"[" * 500 + b"]" * 500 + b"}", "lacks"),
        (b" " * (5 << 20), "at most 4194304"),
        (b'{"format": ' + b"1" * 10_000 + b"}", "not JSON"),
    ],
)
def test_what_is_not_a_json_object_is_refused(content, message):
    assert message in refusal(content)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e301"])
def test_numbers_that_are_not_finite_are_refused(sealed_bundle, number):
    text = (sealed_bundle / "manifest.json").read_text()
    assert text.count('"guidance": 4.5') == 2
    assert "is not a finite number" in refusal(text.replace('"guidance": 4.5', f'"guidance": {number}').encode())
    with pytest.raises(BundleError):
        dump(replace(parse(text.encode()), defaults=Defaults("flow-dpm", 20, math.nan, (128, 128), 3.0)))


@pytest.mark.parametrize("key", ["format", "model", "sha256", "dtype"])
def test_a_key_that_comes_twice_is_refused(sealed_bundle, key):
    text = (sealed_bundle / "manifest.json").read_text()
    at = text.index(f'"{key}":')
    twice = text[:at] + f'"{key}": 1,' + text[at:]
    assert f"has the key '{key}' twice" in refusal(twice.encode())


def test_a_lone_surrogate_is_refused_by_name(entries):
    assert "lone surrogate" in refusal(json.dumps(changed(entries, "$.golden.0.prompt", "\udc00")).encode())


MUTATIONS = int(os.environ.get("SANA_TEST_MUTATIONS", "1500"))


def test_thousands_of_mutated_manifests_give_a_manifest_or_a_one_line_error(entries, validator, vouched, mutated):
    generator = random.Random(20)
    accepted, agreed, slowest = 0, 0, 0.0
    for _ in range(MUTATIONS):
        wrong = mutated(entries, generator)
        content = vouched(wrong)
        start = time.process_time()
        try:
            manifest = parse(content)
        except BundleError as error:
            assert "\n" not in str(error) and str(error).isprintable()
        else:
            accepted += 1
            assert parse(dump(manifest)) == manifest
            if accepted <= 40:
                assert validator.is_valid(json.loads(content)), "the schema refuses what we accept"
                agreed += 1
        slowest = max(slowest, time.process_time() - start)
    assert 20 < accepted < 0.6 * MUTATIONS and agreed > 20, "the mutations reach both sides"
    assert slowest < 5, "none takes for ever"


def test_the_schema_refuses_what_the_parser_refuses_but_for_disagreements(entries, validator, vouched, mutated):
    """Structure is the schema's business; a text that only `complaints` refuses is well-formed to it."""
    generator = random.Random(21)
    refused = 0
    for _ in range(150):
        content = vouched(mutated(entries, generator))
        try:
            parse(content)
        except BundleError as error:
            crossed = any(word in str(error) for word in DISAGREEMENTS)
            if crossed or WHOLE_FLOAT in str(error):
                continue
            assert not validator.is_valid(json.loads(content)), str(error)
            refused += 1
    assert refused > 50


DISAGREEMENTS = (
    "transformer does not take", "$.defaults.shift must be", "which $.files does not have", "uses already",
    "outside its bounds", " needs '", "latent of four", "the same name twice", "channels", "which some systems",
    "not a positive whole number",
)  # fmt: skip
WHOLE_FLOAT = ".0, must be a whole number"  # to JSON Schema 2.0 is an integer


def test_mutated_bytes_give_a_manifest_or_a_one_line_error(sealed_bundle):
    original = (sealed_bundle / "manifest.json").read_bytes()
    generator = random.Random(22)
    for _ in range(1500):
        content = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(len(content))
            content[at : at + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
        try:
            parse(bytes(content))
        except BundleError as error:
            assert "\n" not in str(error)


def test_long_lists_are_refused_before_their_entries_are_read(entries):
    axis = entries["parts"]["decoder"]["inputs"][0]
    wrong = changed(entries, "$.parts.decoder.inputs", [axis] * 5000)
    start = time.process_time()
    assert "has 5000 entries" in refusal(json.dumps(wrong).encode())
    assert time.process_time() - start < 5
