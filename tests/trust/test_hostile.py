"""Bundles made to mislead, stall or kill their reader; each of these got through once."""

import ast
import json
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL.PngImagePlugin import PngInfo
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import BackendError, BundleError, UsageError
from sana_runtime.manifest import parse
from sana_runtime.onnx_guard import guard
from sana_runtime.onnx_operators import weights
from sana_runtime.picture import Picture, read_picture, read_recipe
from sana_runtime.session import Device, SessionOptions, open_session

from sana_export.layers import layers

IR = (
    '<?xml version="1.0"?><net name="m" version="11"><layers><layer id="0" name="x" type="Parameter" '
    'version="opset1"><data shape="1,4" element_type="f32"/><output><port id="0" precision="FP32"><dim>1</dim>'
    '<dim>4</dim></port></output></layer><layer id="1" name="r" type="Result" version="opset1"><input><port id="0" '
    'precision="FP32"><dim>1</dim><dim>4</dim></port></input></layer></layers><edges><edge from-layer="0" '
    'from-port="0" to-layer="1" to-port="0"/></edges></net>'
)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(tag, content, beyond=0):
    """A field of bytes; `beyond` is added to its key above the 32 bits that protobuf's readers keep."""
    return varint((tag << 3 | 2) + (beyond << 32)) + varint(len(content)) + content


def hidden_engine(beyond):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph([], "g", [x], [y]).SerializeToString() + field(1, node.SerializeToString(), beyond)
    imports = field(8, b"\x10\x14") + field(8, field(1, b"com.microsoft") + b"\x10\x01", beyond)
    return b"\x08\x0a" + imports + field(7, graph)


@pytest.mark.parametrize("beyond", [1, 2, 7])
def test_a_node_behind_a_field_number_that_readers_cut_short_is_refused(beyond, tmp_path):
    file = tmp_path / "decoder.onnx"
    file.write_bytes(hidden_engine(beyond))
    with pytest.raises(BackendError, match="EPContext"):  # onnxruntime does see the node
        open_session(file, Device.ONNXRUNTIME, SessionOptions())
    with pytest.raises(BundleError, match="number of no field"):
        guard(file, {})


@pytest.mark.parametrize("start", [b"", b"\x08\x0a"], ids=["bare", "with a version"])
def test_a_graph_that_openvino_would_read_as_another_format_is_not(start, tmp_path):
    file = tmp_path / "decoder.onnx"
    file.write_bytes(start + field(9, b"   " + IR.encode()) + field(100, b"x") + field(7, b""))
    guard(file, {})  # nothing in it is ONNX
    with pytest.raises(BackendError, match="no graph in it"):
        open_session(file, Device.CPU, SessionOptions())


def test_a_manifest_of_four_megabytes_is_read_in_linear_time(figure):
    keys = ",".join(f'"{i}":0' for i in range(380_000))
    slowest = 0.0
    for text in (f'{{{keys},"9":1}}', f'{{"files":{{{keys},"9":1}}}}', "[" * 4_000_000, "[[]," * 1_000_000 + "0"):
        start = time.process_time()
        with pytest.raises(BundleError):
            parse(text.encode())
        slowest = max(slowest, time.process_time() - start)
    figure(1, f"the slowest manifest of 4 MB takes {slowest:.1f} s of processor time to refuse")
    assert slowest < 20, "a quadratic reader takes hours"


def test_the_most_fields_that_are_looked_through_take_little_memory(tmp_path, figure):
    file = tmp_path / "decoder.onnx"
    file.write_bytes(field(7, b"\x0a\x03\x22\x01A" * 149_000))  # nodes of an operator "A" and nothing else
    tracemalloc.start()
    guard(file, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    figure(1, f"a graph of 149,000 nodes is looked through in {peak / 1e6:.0f} MB")
    assert peak < 256 << 20


@pytest.mark.parametrize("read", [layers, weights], ids=["layers", "weights"])
def test_what_the_guard_looked_through_can_be_read_again(read, tmp_path):
    """A reader that looks at a field twice is over the budget at half of what the guard allows."""
    tensor, node = b"\x08\x04\x10\x01\x4a\x10" + bytes(16), field(1, b"\x22\x03Add")
    file = tmp_path / "decoder.onnx"
    file.write_bytes(field(7, node * 9 + field(5, tensor + field(12, b"") * 150_000)))
    guard(file, {})
    assert list(read(file))


PROMPTS = {
    "brackets without end": "[" * 200_000,
    "half a surrogate pair": '{"instruction": "\\ud800", "prefix": [2], "start": 1, "max_tokens": 300}',
    "an instruction of a megabyte": json.dumps(
        {"instruction": "a" * 10**6, "prefix": [2], "start": 1, "max_tokens": 300}
    ),
    "a number beyond all limits": '{"instruction": "", "prefix": [2], "start": %s, "max_tokens": 1}' % ("9" * 5000),
}


@pytest.mark.parametrize("reason", PROMPTS)
def test_prompt_rules_are_refused_for(reason, folder, declare):
    (folder / "prompt.json").write_text(PROMPTS[reason])
    declare(folder)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder).prompt_rules()
    assert "\n" not in str(caught.value)


def test_a_prompt_file_or_tokenizer_of_gigabytes_is_refused_by_its_size(folder, declare):
    for name in ("prompt.json", "tokenizer.json"):
        original = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(1 << 30)  # without taking room on the disk
        declare(folder)
        tracemalloc.start()
        with pytest.raises(BundleError, match=f"{name} has 1073741824 bytes"):
            open_bundle(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        tracemalloc.stop()
        (folder / name).write_bytes(original)


def recipe_picture(path, text):
    info = PngInfo()
    info.add_itxt("sana-export", text)
    from PIL import Image

    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


FIELDS = {
    "prompt": "a", "seed": 1, "steps": 1, "guidance": 1.0, "size": [32, 32], "solver": "x", "bundle": "x",
    "device": "x", "version": "x",
}  # fmt: skip
RECIPES = (
    "5", "null", '"x"', "[]", "[" * 100_000, '{"size": [Infinity, 1]}', '{"size": 5}',
    *(json.dumps({**FIELDS, **wrong}) for wrong in (
        {"prompt": "\ud800"}, {"seed": float("nan")}, {"seed": 1.5}, {"size": [True, 1]}, {"size": ["1", "2"]},
        {"steps": "9"}, {"guidance": float("inf")}, {"guidance": None}, {"other": 1}, {"device": 1},
    )),
)  # fmt: skip


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text[:30])
def test_a_recipe_that_is_none_is_refused_in_one_line(text, tmp_path):
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe_picture(tmp_path / "x.png", text))
    assert "\n" not in str(caught.value)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "kind", [b"gAMA", b"pHYs", b"tRNS", b"cHRM", b"iCCP", b"fcTL", b"acTL", b"eXIf", b"IHDR", b"zTXt"]
)
def test_short_chunks_anywhere_give_a_picture_or_one_line(kind, tmp_path):
    original = Picture(np.zeros((8, 8, 3), np.uint8)).png()
    for at in (33, original.rfind(b"IEND") - 4):
        for content in (b"", b"1", b"a\0\1z"):
            (tmp_path / "x.png").write_bytes(original[:at] + chunk(kind, content) + original[at:])
            for read in (read_picture, read_recipe):
                try:
                    read(tmp_path / "x.png")
                except UsageError as error:
                    assert "\n" not in str(error)


def test_a_picture_in_a_language_that_another_program_would_run_is_not_opened(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UsageError, match="not a picture"):
        read_picture(tmp_path / "x.png")


def test_lying_sizes_are_refused_with_little_allocated(folder, declare, times, figure):
    count = times(300, 10_000, 10_000)
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    tensor, generator = model.graph.initializer[0], np.random.default_rng(5)
    place = {entry.key: entry for entry in tensor.external_data}
    contents = []
    for _ in range(count):
        size = int(2 ** generator.uniform(5, 62))
        del tensor.dims[:]
        tensor.dims.extend([size] if generator.random() < 0.5 else [4, 4])
        place["offset"].value = str(int(2 ** generator.uniform(7, 62)) if generator.random() < 0.5 else 0)
        place["length"].value = str(4 * size if generator.random() < 0.7 else 65)
        contents.append(model.SerializeToString())
    declare(folder)
    tracemalloc.start()
    for content in contents:
        (folder / "decoder.onnx").write_bytes(content)
        with pytest.raises(BundleError):
            guard(folder / "decoder.onnx", {"decoder.data": 64})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    figure(3, f"{count:,} graphs that lie about sizes: all refused, {peak / 1e6:.1f} MB allocated at most")
    assert peak < 16 << 20


FAILING = """
import sys
from pathlib import Path
import numpy as np
from sana_runtime.errors import BackendError
from sana_runtime.session import Device, SessionOptions, open_session
session = open_session(Path(sys.argv[1]), Device(sys.argv[2]), SessionOptions(threads=1))
try:
    session.run({"x": np.ones((2, 3), np.float32)})
except BackendError as error:
    print(ascii(str(error)))
"""


@pytest.mark.parametrize("device", ["onnxruntime", "cpu"])
def test_a_name_that_steers_a_terminal_does_not_reach_it_when_the_graph_fails(device, tmp_path):
    """Engines put names of nodes into messages, and onnxruntime wrote them to the terminal besides."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"], name="a\x1b[2Jb\x07\nc")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m"]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "x.onnx")
    command = [sys.executable, "-c", FAILING, str(tmp_path / "x.onnx"), device]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    message = ast.literal_eval(done.stdout)
    assert message.isprintable() and done.stderr == ""
    if device == "onnxruntime":
        assert "a\\x1b[2Jb\\x07 c" in message
