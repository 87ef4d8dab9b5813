"""Signatures are data from which feeds, profiles, manifest entries and checks derive."""

import json

import numpy as np
import pytest
from sana_runtime.errors import BundleError, UsageError
from sana_runtime.signature import PARTS, Axis, Signature, Sizes, TensorSpec, signatures

SMALL = Sizes(depth=2, dim=64, text_dim=48, guidance=True, sample_size=4, text_kv="float16")


@pytest.mark.parametrize("part", PARTS)
def test_a_signature_survives_the_manifest(part):
    signature = signatures(SMALL)[part]
    assert Signature.from_dict(part, json.loads(json.dumps(signature.to_dict()))) == signature


@pytest.mark.parametrize("part", PARTS)
def test_example_feeds_pass_the_check_at_every_bound(part):
    signature = signatures(SMALL)[part]
    axes = {axis.name: axis for spec in signature.inputs for _, axis in spec.axes()}
    for bound in ("min", "optimum"):
        sizes = {name: getattr(axis, bound) for name, axis in axes.items()}
        feeds = signature.example_feeds(**sizes)
        signature.check(feeds)
        position = {"min": 0, "optimum": 1}[bound]
        assert {name: array.shape for name, array in feeds.items()} == {
            name: profile[position] for name, profile in signature.profiles().items()
        }


def test_parts_connect_by_equal_specs():
    parts = signatures(SMALL)
    assert parts["text_encoder"].outputs[0] == parts["caption"].inputs[0]
    assert parts["caption"].outputs[0] in parts["transformer"].inputs
    assert parts["encoder"].outputs[0] == parts["decoder"].inputs[0]
    assert parts["transformer"].outputs[0].shape == parts["transformer"].inputs[0].shape


def test_only_a_model_that_embeds_guidance_takes_it():
    with_it, without = (
        [spec.name for spec in signatures(Sizes(2, 64, 48, guidance=guidance))["transformer"].inputs]
        for guidance in (True, False)
    )
    assert [*without, "guidance"] == with_it


def test_images_are_sized_in_steps_of_32_pixels():
    _, height, _, _ = signatures(SMALL)["encoder"].inputs[0].shape
    assert height == Axis("image_height", 32, 128, 256, 32)


def decoder_feeds(shape=(1, 32, 4, 4), dtype="float32"):
    return {"latent": np.zeros(shape, dtype)}


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "fed nothing; it takes latent"),
        (decoder_feeds(dtype="float64"), "latent is float64, must be float32"),
        (decoder_feeds(shape=(32, 4, 4)), "3 dimensions, must have 4"),
        (decoder_feeds(shape=(1, 16, 4, 4)), "16 along dimension 1, must be 32"),
        (decoder_feeds(shape=(1, 32, 99, 4)), "99 along dimension 2, allowed is height 1…8"),
    ],
)
def test_a_wrong_feed_is_refused_in_one_line_that_names_it(feeds, words):
    with pytest.raises(UsageError, match=words) as failure:
        signatures(SMALL)["decoder"].check(feeds)
    assert "\n" not in str(failure.value)


def test_inputs_that_disagree_about_a_shared_axis_are_refused():
    signature = signatures(SMALL)["transformer"]
    feeds = signature.example_feeds(rows=5, batch=2)
    feeds["text_mask"] = np.ones((2, 6), np.bool_)
    with pytest.raises(UsageError, match="rows is 5 in text_kv but 6 in text_mask"):
        signature.check(feeds)


def test_a_size_off_the_step_is_refused():
    spec = TensorSpec("image", "uint8", (Axis("image_height", 32, 64, 96, 32),))
    assert "in steps of 32" in spec.complaint(np.zeros(40, np.uint8))


def change(entry, path, value):
    *parents, last = path
    target = entry
    for key in parents:
        target = target[key]
    target[last] = value
    return entry


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("inputs",), 3),
        (("inputs", 0, "dtype"), "object"),
        (("inputs", 0, "name"), "../x"),
        (("inputs", 0, "shape", 1), -32),
        (("inputs", 0, "shape", 1), True),
        (("inputs", 0, "shape", 0), {"name": "batch"}),
        (("inputs", 0, "shape", 0, "optimum"), 10**6),
        (("outputs", 0), "velocity"),
    ],
)
def test_a_malformed_manifest_entry_is_refused(path, value):
    entry = change(json.loads(json.dumps(signatures(SMALL)["transformer"].to_dict())), path, value)
    with pytest.raises(BundleError, match="signature of transformer is malformed"):
        Signature.from_dict("transformer", entry)
