"""The graphs that `int8_parts.py` compares, and the forms they are brought into."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sana_calibration.edit import Editor
from sana_calibration.products import chosen
from sana_calibration.quantise import quantise, write_dequantised
from sana_calibration.rounding import LEVELS
from sana_calibration.weight_only import quantise_weights
from sana_reference.config import PRESETS, SanaConfig, TextConfig
from sana_reference.initialise import initialise
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from sana_runtime.session import Arrays, Device, SessionOptions, open_session

from sana_export.engines.narrow import Narrow, narrow
from sana_export.export import export_parts
from sana_export.saving import save_graph

GEMMA = TextConfig()
VOCABULARY = 4096  # rows of the embedding; the other 252,000 cost bytes, and no time
PREFIX = tuple(range(2, 209))  # as many tokens as Gemma's tokenizer makes of the instruction
LOUD, LOUDER = 8, 20.0  # channels of each norm, and how much larger they are
OWN, NEGATIVE = 26, 2  # rows of text of a prompt of 20 words and of its empty negative

Floats = NDArray[np.float32]
Form = Callable[[ir.Model, Path, Arrays], None]  # changes a model, which was read from a path; feeds to calibrate it on


@dataclass(frozen=True)
class Random:
    """Networks of random weights, as something to export."""

    config: SanaConfig = PRESETS["sana-600m"]
    text: TextConfig = GEMMA

    def text_encoder(self, dtype: torch.dtype) -> TextEncoder:
        """Gemma-2's layers; some channels are loud."""
        encoder = TextEncoder(self.text)
        initialise(encoder, 0)
        with torch.no_grad():
            for name, gain in encoder.named_parameters():
                if name.endswith("norm.weight"):
                    gain -= 1.0  # Gemma stores the distance from one
                    gain[torch.randperm(len(gain))[:LOUD]] = LOUDER - 1
        return encoder.to(dtype).eval()

    def transformer(self, dtype: torch.dtype) -> SanaTransformer:
        """Blocks of Sana."""
        transformer = SanaTransformer(self.config)
        initialise(transformer, 0)
        return transformer.to(dtype).eval()


def save_text(graph: Path, wanted: argparse.Namespace) -> Arrays:
    """Layers of Gemma-2-2b's width; the feeds are one prompt."""
    torch.manual_seed(0)
    source = Random(text=replace(GEMMA, depth=wanted.layers, vocabulary=VOCABULARY))
    part = export_parts(source, graph.parent, parts=("text_encoder",), prefix=PREFIX)["text_encoder"]
    _rename(part.graph, graph)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, wanted.tokens))
    return {"input_ids": ids, "text_mask": np.ones((1, wanted.tokens), bool), "instructed": np.ones(1, bool)}


def save_blocks(graph: Path, wanted: argparse.Namespace) -> Arrays:
    """Blocks of Sana-0.6B; the feeds are a step with guidance at the sidelength that gives so many tokens."""
    source = Random(replace(PRESETS["sana-600m"], depth=wanted.layers))
    part = export_parts(source, graph.parent, parts=("transformer",))["transformer"]
    _rename(part.graph, graph)
    side = round(wanted.tokens**0.5)
    feeds = part.signature.example_feeds(batch=2, height=side, width=side, rows=OWN)
    feeds["text_mask"][1, NEGATIVE:] = False
    return feeds


def save_convolutions(graph: Path, wanted: argparse.Namespace) -> Arrays:
    """Three residual blocks of two 3×3 convolutions, as DC-AE's upper stages have them, without their norm."""
    rng, channels = np.random.default_rng(0), wanted.channels
    nodes, weights, x = [], [], "x"
    for block in range(3):
        names = [f"{block}.{i}" for i in range(2)]
        for name in names:
            kernel = rng.standard_normal((channels, channels, 3, 3), np.float32) / np.float32(3 * channels**0.5)
            weights.append(numpy_helper.from_array(kernel, f"{name}.weight"))
        inner = [(x, f"{names[0]}.y"), (f"{names[0]}.silu", f"{names[1]}.y")]
        convolutions = [
            helper.make_node("Conv", [source, f"{name}.weight"], [to], f"{name}.Conv", pads=[1] * 4)
            for (source, to), name in zip(inner, names, strict=True)
        ]
        nodes += [
            convolutions[0],
            helper.make_node("Sigmoid", [inner[0][1]], [f"{block}.gate"]),
            helper.make_node("Mul", [inner[0][1], f"{block}.gate"], [f"{names[0]}.silu"]),
            convolutions[1],
            helper.make_node("Add", [x, inner[1][1]], [f"{block}.out"]),
        ]
        x = f"{block}.out"
    shape = [1, channels, wanted.side, wanted.side]
    made = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)), graph)
    feed = rng.standard_normal(shape, np.float32)
    feed[:, rng.permutation(channels)[:LOUD]] *= LOUDER
    return {"x": feed}


def _rename(exported: Path, graph: Path) -> None:
    save_graph(ir.load(exported), graph)
    for suffix in (".onnx", ".data"):
        exported.with_suffix(suffix).unlink()


def _calibrated(graph: Path, feeds: Arrays, values: Iterable[ir.Value]) -> dict[str, float]:
    """The largest magnitude of each value on the feeds."""
    extended = ir.load(graph)
    known = {value.name: value for node in extended.graph for value in node.outputs if value.name}
    known |= {value.name: value for value in extended.graph.inputs}
    extended.graph.outputs[:] = [known[value.name] for value in values]
    seen = graph.with_name("seen.onnx")
    save_graph(extended, seen)
    answers = open_session(seen, Device.ONNXRUNTIME, SessionOptions(threads=1)).run(feeds)
    return {name: float(np.abs(array).max()) for name, array in answers.items()}


def _static_tokens(editor: Editor, x: ir.Value, largest: float) -> ir.Value:
    """x in INT8 with one step for the whole tensor."""
    step = editor.constant(f"{editor.scope}.step", largest / LEVELS)
    zero = editor.constant("int8.zero", 0, np.int8)
    codes = editor.node("QuantizeLinear", [x, step, zero], "codes", ir.DataType.INT8)
    return editor.node("DequantizeLinear", [codes, step, zero], "values")


def static_products(model: ir.Model, graph: Path, feeds: Arrays) -> None:
    """Every product in INT8, with one step for each tensor of tokens, fixed on these feeds."""
    products = chosen(model)
    largest = _calibrated(graph, feeds, dict.fromkeys(product.tokens for product in products))
    for product in products:
        editor = Editor(model.graph, product.node, f"{product.name}.static")
        product.node.replace_input_with(0, _static_tokens(editor, product.tokens, largest[str(product.tokens.name)]))
        product.node.replace_input_with(1, write_dequantised(editor, product))


def _convolutions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Conv"]


def _kernel(editor: Editor, node: ir.Node) -> ir.Value:
    """A convolution's kernels in INT8, one step for each output channel."""
    kernel = np.asarray(node.inputs[1].const_value.numpy())
    steps = np.abs(kernel).max(axis=(1, 2, 3)) / np.float32(LEVELS)
    codes = editor.constant(f"{editor.scope}.codes8", np.rint(kernel / steps[:, None, None, None]), np.int8)
    inputs = [codes, editor.constant(f"{editor.scope}.steps", steps)]
    inputs.append(editor.constant(f"{editor.scope}.zeros", np.zeros(len(steps)), np.int8))
    return editor.node("DequantizeLinear", inputs, "weight", attributes={"axis": 0})


def static_convolutions(model: ir.Model, graph: Path, feeds: Arrays) -> None:
    """INT8 convolutions, the pictures' step fixed on these feeds."""
    nodes = _convolutions(model)
    largest = _calibrated(graph, feeds, [node.inputs[0] for node in nodes])
    for node in nodes:
        editor = Editor(model.graph, node, str(node.name))
        x = node.inputs[0]
        node.replace_input_with(0, _static_tokens(editor, x, largest[x.name]))
        node.replace_input_with(1, _kernel(editor, node))


def dynamic_convolutions(model: ir.Model, graph: Path, feeds: Arrays) -> None:
    """INT8 convolutions, the pictures' step found while the graph runs."""
    for node in _convolutions(model):
        editor, x, result = Editor(model.graph, node, str(node.name)), node.inputs[0], node.outputs[0]
        readers = list(result.uses())
        size = editor.node("ReduceMax", [editor.node("Abs", [x], "size")], "largest", attributes={"keepdims": 1})
        step = editor.node("Mul", [size, editor.constant("one_level", 1 / LEVELS)], "scale")
        one, zero = editor.constant("one", 1.0), editor.constant("int8.zero", 0, np.int8)
        steps = editor.node("Div", [x, step], "steps_of_x")
        codes = editor.node("QuantizeLinear", [steps, one, zero], "codes", ir.DataType.INT8)
        node.replace_input_with(0, editor.node("DequantizeLinear", [codes, one, zero], "values"))
        node.replace_input_with(1, _kernel(editor, node))
        scaled = ir.node("Mul", [result, step], name=f"{node.name}.scaled")
        scaled.outputs[0].name, scaled.outputs[0].type = scaled.name, result.type
        model.graph.insert_after(node, scaled)
        for reader, place in readers:
            reader.replace_input_with(place, scaled.outputs[0])


def write_forms(folder: Path, forms: Mapping[str, Form], feeds: Arrays) -> None:
    """Bring folder/float.onnx into every form, under its name."""
    for name, change in forms.items():
        model = ir.load(folder / "float.onnx")
        change(model, folder / "float.onnx", feeds)
        for weight in [each for each in model.graph.initializers.values() if not each.uses()]:
            del model.graph.initializers[str(weight.name)]
        save_graph(model, folder / f"{name}.onnx")


def _at_once(change: Callable[[ir.Model], object]) -> Form:
    def changed(model: ir.Model, graph: Path, feeds: Arrays) -> None:
        change(model)

    return changed


PER_TOKEN = _at_once(quantise)
TEXT_FORMS = {
    "int8 weights": _at_once(quantise_weights),
    "int4 weights": _at_once(partial(narrow, form=Narrow.INT4)),
    "w8a8": PER_TOKEN,
}
GRAPHS: dict[str, tuple[Callable[[Path, argparse.Namespace], Arrays], dict[str, Form]]] = {
    "text": (save_text, TEXT_FORMS),
    "decoder": (save_convolutions, {"static": static_convolutions, "dynamic": dynamic_convolutions}),
    "static": (save_blocks, {"per token": PER_TOKEN, "static": static_products}),
}
