"""A bundle of minute graphs: right in its form, though nobody would want its pictures."""

import json
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.bundle import seal
from sana_runtime.manifest import Defaults, GoldenRecord, Manifest, Part, PreviewMap, Source
from sana_runtime.signature import Sizes, signatures

SIZES = Sizes(depth=2, dim=64, text_dim=48, sample_size=4)
WRITTEN = ("text_encoder", "caption", "transformer", "decoder")


def external(name: str, dims: tuple[int, ...], location: str, **entries: object) -> TensorProto:
    """A float tensor that lies in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def small_model(part: str) -> onnx.ModelProto:
    """A graph with everything that a real one has: external and inline tensors, a custom operator with its body."""
    weight = external("weight", (4, 4), f"{part}.data", offset=0, length=64)
    bias = numpy_helper.from_array(np.ones(4, np.float32), "bias")
    branch = helper.make_graph([helper.make_node("Identity", ["mixed"], ["inner"])], "branch", [], [])
    branch.output.append(helper.make_tensor_value_info("inner", TensorProto.FLOAT, None))
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("ReluLinearAttention", ["product", "bias"], ["mixed"], domain="sana", plugin_namespace="sana"),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    body = helper.make_function(
        "sana",
        "ReluLinearAttention",
        ["a", "b"],
        ["c"],
        [helper.make_node("Add", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
        ["plugin_namespace"],
    )
    graph = helper.make_graph(nodes, part, [x], [y], [weight, bias])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("sana", 1)]
    return helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=10)


def small_manifest() -> Manifest:
    """What a small bundle says of itself, but for the table of files, which `seal` fills in."""
    source = Source("nobody/nothing", "0" * 40, "Apache-2.0", ("LICENSES/nothing.txt",))
    parts = {
        name: Part(f"{name}.onnx", "fp32", "float32", source, signature.inputs, signature.outputs)
        for name, signature in signatures(SIZES).items()
        if name in WRITTEN
    }
    return Manifest(
        model="tiny",
        producer="sana-export test",
        precision="fp32",
        defaults=Defaults("flow-dpm", 20, 4.5, (128, 128), shift=3.0),
        parts=parts,
        files={},
        golden=(
            GoldenRecord(
                "a red circle", "", 7, (64, 96), "flow-dpm", 4, 4.5, "golden-0.data", "golden-0-picture.data", 40.0
            ),
        ),
        preview=PreviewMap(((1.0, 0.5, 0.25),) * 32, (128.0, 128.0, 128.0)),
    )


def vouched(entries: Any) -> bytes:
    """A manifest's text whose own digest is right, whatever else it says; anybody can write that."""
    if not isinstance(entries, dict) or not isinstance(entries.get("sha256"), str):
        return json.dumps(entries).encode()
    unsealed = json.dumps({**entries, "sha256": "0" * 64}).encode()
    return json.dumps({**entries, "sha256": sha256(unsealed).hexdigest()}).encode()


# What stands in a JSON file where something else should; no key of any file is `x` or empty.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**64, 10**400, 0.5, 1e300, [], [1], [[]], {}, {"a": 1}),
    *("", "x", "../secret.data", "/etc/passwd", "\0", "é" * 50, "con.data", "decoder.data", "caption.onnx"),
)
KEYS = ("x", "", "file", "size", "..", "../x.data", "decoder.data", "\n")


def mutated(value: Any, generator: random.Random, depth: int = 0) -> Any:
    """A copy of a JSON value with one thing different somewhere."""
    if isinstance(value, dict | list) and value and (depth == 0 or generator.random() < 0.85):
        value = dict(value) if isinstance(value, dict) else list(value)
        key = generator.choice(list(value) if isinstance(value, dict) else range(len(value)))
        kind = generator.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, dict):
            value[generator.choice(KEYS)] = value[key]
        elif kind < 0.2:
            value.insert(key, value[key])
        else:
            value[key] = mutated(value[key], generator, depth + 1)
        return value
    if isinstance(value, int | float) and generator.random() < 0.5:
        return value * generator.choice((0, -1, 2, 0.5, 1000)) + generator.choice((0, 1))
    return generator.choice(VALUES)


def fill(folder: Path) -> None:
    """Write every file of a small bundle but its manifest."""
    generator = np.random.default_rng(3)
    for part in WRITTEN:
        (folder / f"{part}.onnx").write_bytes(small_model(part).SerializeToString())
        (folder / f"{part}.data").write_bytes(generator.normal(size=16).astype("<f4").tobytes())
    (folder / "tokenizer.json").write_text("{}")
    (folder / "prompt.json").write_text(json.dumps({}))
    (folder / "golden-0.data").write_bytes(generator.normal(size=32 * 2 * 3).astype("<f4").tobytes())
    (folder / "golden-0-picture.data").write_bytes(generator.integers(0, 256, 64 * 96 * 3, np.uint8).tobytes())
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES/nothing.txt").write_text("Do as you like.\n")


@pytest.fixture(scope="session")
def sealed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small bundle, to be read and copied only."""
    folder = tmp_path_factory.mktemp("sealed") / "bundle"
    folder.mkdir()
    fill(folder)
    seal(folder, small_manifest())
    return folder


@pytest.fixture(name="vouched", scope="session")
def the_vouched() -> Callable[[Any], bytes]:
    """`vouched`."""
    return vouched


@pytest.fixture(name="mutated", scope="session")
def the_mutated() -> Callable[[Any, random.Random], Any]:
    """`mutated`."""
    return mutated


@pytest.fixture
def bundle_folder(sealed_bundle: Path, tmp_path: Path) -> Path:
    """The folder of a small bundle of the test's own."""
    return Path(shutil.copytree(sealed_bundle, tmp_path / "bundle"))


@pytest.fixture
def manifest() -> Manifest:
    """What a small bundle says of itself, without files."""
    return small_manifest()
