"""What INT8 convolutions do to a whole decoder: time in OpenVINO, and how far its pictures are from fp32's.

    python bench/decoder_int8.py quality BUNDLE [--each 16]
    python bench/decoder_int8.py speed [FOLDER] [--size 512] [--threads 2] [--rounds 5] [--forms static dynamic]

The 3×3 convolutions of all residual blocks in INT8: kernels with a step for each output channel, pictures with one
found for each while it is decoded. "ours int8" is how the pipeline does it; `forms` do it in the graph's file, with a
step found there, or fixed beforehand, and with channels balanced: divided by the root of how much louder they are than
the weights that meet them. `quality` paints held-out prompts with BUNDLE, a float one of nano, fixes steps on half of
the latents and decodes the other half; `speed` races diffusers and ours on the full decoder with random weights, made
once in FOLDER. Writes docs/measurements/int8-decoder-quality.json and int8-decoder-speed.json.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_runtime.session import Arrays, Device, SessionOptions, open_session

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race
from cpu_parts import OURS, Job, diffusers_decode
from limits import preset

Floats = NDArray[np.float32]
Form = Callable[["Chosen"], None]

LEVELS = 127
LOWEST = 0.2785  # SiLU is nowhere below minus this
ZERO = 16  # of 255 levels, the one that stands for 0 behind a SiLU whose step is found at run time
BLOCK = re.compile(r"stages\.\d+\.\d+\.(first|second)\.Conv")


class Chosen:
    """One convolution that becomes INT8, and the largest magnitude of each channel that it reads."""

    def __init__(self, graph: Any, node: Any, loudest: Floats) -> None:
        from sana_calibration.edit import Editor

        self.node, self.loudest = node, loudest
        self.editor = Editor(graph, node, str(node.name))
        self.kernel: Floats = np.asarray(node.inputs[1].const_value.numpy(), np.float32)
        self.after_silu = "second" in str(node.name)

    def balance(self) -> None:
        """Let weights take over a part of how unlike the channels are."""
        heard = np.abs(self.kernel).max(axis=(0, 2, 3))
        shares = np.sqrt(np.maximum(self.loudest, 1e-6) / np.maximum(heard, 1e-6))
        shares = (shares / np.exp(np.log(shares).mean())).astype(np.float32)
        self.kernel = self.kernel * shares[None, :, None, None]
        self.loudest = self.loudest / shares
        inverse = self.editor.constant(f"{self.editor.scope}.shares", 1 / shares[None, :, None, None])
        self.node.replace_input_with(0, self.editor.node("Mul", [self.node.inputs[0], inverse], "balanced"))

    def round_kernel(self) -> None:
        """Weights with a step for each output channel."""
        steps = np.maximum(np.abs(self.kernel).max(axis=(1, 2, 3)), 1e-12) / np.float32(LEVELS)
        codes = np.rint(self.kernel / steps[:, None, None, None])
        editor, scope = self.editor, self.editor.scope
        inputs = [editor.constant(f"{scope}.codes8", codes, np.int8), editor.constant(f"{scope}.steps", steps)]
        inputs.append(editor.constant(f"{scope}.zeros", np.zeros(len(steps)), np.int8))
        self.node.replace_input_with(1, editor.node("DequantizeLinear", inputs, "weight", attributes={"axis": 0}))

    def round_picture(self, x: Any, step: Any, zero: int, kind: type) -> None:
        """The picture in INT8."""
        import onnx_ir as ir

        name = f"zero.{np.dtype(kind).name}.{zero}"
        inputs = [step, self.editor.constant(name, zero, kind)]
        dtype = ir.DataType.from_numpy(np.dtype(kind))
        codes = self.editor.node("QuantizeLinear", [x, *inputs], "codes", dtype)
        self.node.replace_input_with(0, self.editor.node("DequantizeLinear", [codes, *inputs], "values"))


def static(balanced: bool, chosen: Chosen) -> None:
    """One step for all pictures; all 255 levels for what a SiLU gives, which is hardly ever negative."""
    if balanced:
        chosen.balance()
    largest, zero, kind = float(chosen.loudest.max()), 0, np.int8
    step = largest / LEVELS
    if chosen.after_silu:
        step, kind = (largest + LOWEST) / 255, np.uint8
        zero = round(LOWEST / step)
    chosen.round_kernel()
    chosen.round_picture(chosen.node.inputs[0], chosen.editor.constant(f"{chosen.editor.scope}.step", step), zero, kind)


def dynamic(balanced: bool, chosen: Chosen) -> None:
    """One step for each picture, multiplied in after the convolution, before its bias."""
    import onnx_ir as ir

    if balanced:
        chosen.balance()
    editor, node, x = chosen.editor, chosen.node, chosen.node.inputs[0]
    axes = editor.constant("picture_axes", [1, 2, 3], np.int64)
    largest = editor.node("ReduceMax", [x if chosen.after_silu else editor.node("Abs", [x], "size"), axes], "largest")
    levels, zero, kind = (255 - ZERO, ZERO, np.uint8) if chosen.after_silu else (LEVELS, 0, np.int8)
    step = editor.node("Mul", [largest, editor.constant(f"one_of_{levels}", 1 / levels)], "scale")
    step = editor.node("Max", [step, editor.constant("smallest", 1e-6)], "step")
    chosen.round_kernel()
    chosen.round_picture(editor.node("Div", [x, step], "levels"), editor.constant("one", 1.0), zero, kind)
    result, readers = node.outputs[0], list(node.outputs[0].uses())
    after = ir.node("Mul", [result, step], name=f"{node.name}.scaled")
    chain = [after]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = editor.constant(f"{editor.scope}.bias", np.asarray(node.inputs[2].const_value.numpy())[:, None, None])
        node.replace_input_with(2, None)
        chain.append(ir.node("Add", [after.outputs[0], bias], name=f"{node.name}.biased"))
    for each in chain:
        each.outputs[0].name, each.outputs[0].type = each.name, result.type
    editor.graph.insert_after(node, chain)
    for reader, place in readers:
        reader.replace_input_with(place, chain[-1].outputs[0])


FORMS: dict[str, Form] = {
    "static": partial(static, False),
    "static, balanced": partial(static, True),
    "dynamic": partial(dynamic, False),
    "dynamic, balanced": partial(dynamic, True),
}


def write_form(graph: Path, to: Path, form: Form, loudest: dict[str, Floats]) -> None:
    """Bring the convolutions of a decoder that were listened to into INT8."""
    import onnx_ir as ir

    from sana_export.saving import save_graph

    model = ir.load(graph)
    for node in [each for each in model.graph if str(each.name) in loudest]:
        form(Chosen(model.graph, node, loudest[str(node.name)]))
    for weight in [each for each in model.graph.initializers.values() if not each.uses()]:
        del model.graph.initializers[str(weight.name)]
    save_graph(model, to)


def listen(graph: Path, latents: Floats, threads: int) -> dict[str, Floats]:
    """The largest magnitude of each channel that each convolution of a residual block reads, over these latents."""
    import onnx_ir as ir

    from sana_export.saving import save_graph

    model = ir.load(graph)
    names = [str(node.name) for node in model.graph if BLOCK.fullmatch(str(node.name))]
    for node in [each for each in model.graph if str(each.name) in names]:
        size = ir.node("Abs", [node.inputs[0]])
        axes = ir.Value(name=f"{node.name}.axes", const_value=ir.tensor(np.array([0, 2, 3]), name=f"{node.name}.axes"))
        model.graph.register_initializer(axes)
        top = ir.node("ReduceMax", [size.outputs[0], axes], {"keepdims": 0})
        top.outputs[0].name, top.outputs[0].type = f"{node.name}.loudest", ir.TensorType(ir.DataType.FLOAT)
        top.outputs[0].shape = ir.Shape(["channels"])
        model.graph.extend([size, top])
        model.graph.outputs.append(top.outputs[0])
    with tempfile.TemporaryDirectory() as folder:
        save_graph(model, Path(folder) / "loudest.onnx")
        session = open_session(Path(folder) / "loudest.onnx", Device.CPU, SessionOptions(threads=threads))
        answers = [session.run({"latent": each[None]}) for each in latents]
    return {name: np.max([each[f"{name}.loudest"] for each in answers], axis=0) for name in names}


def painted(bundle: Path, each: int) -> Floats:
    """What the decoder is given when a bundle paints held-out prompts."""
    from sana_reference.nano.evaluation import questions
    from sana_runtime.openvino_session import OpenVinoSession
    from sana_runtime.pipeline import Pipeline

    latents: list[Floats] = []
    run = OpenVinoSession.run

    def recorded(session: OpenVinoSession, feeds: Arrays) -> Arrays:
        if set(feeds) == {"latent"}:
            latents.append(np.array(feeds["latent"]))
        return run(session, feeds)

    OpenVinoSession.run = recorded  # type: ignore[assignment, method-assign]
    with Pipeline.open(bundle, device="cpu") as pipeline:
        for seed, question in enumerate(questions(each)):
            pipeline.generate(question.prompt, seed=seed)
    OpenVinoSession.run = run  # type: ignore[method-assign]
    return np.concatenate(latents)


def decode(graph: Path, latents: Floats, half: bool, int8: bool = False) -> list[NDArray[np.uint8]]:
    """Every latent's picture."""
    session = open_session(graph, Device.CPU, SessionOptions(half, int8, threads=1))
    return [session.run({"latent": each[None]})["image"] for each in latents]


def quality(arguments: argparse.Namespace) -> str:
    """Decibels of every form against fp32."""
    from sana_export.replay import psnr

    graph = arguments.path / "decoder.onnx"
    latents = painted(arguments.path, arguments.each)
    loudest, asked = listen(graph, latents[::2], 1), latents[1::2]
    exact = decode(graph, asked, False)

    def against(decoded: Path, half: bool, int8: bool = False) -> dict[str, float]:
        pictures = decode(decoded, asked, half, int8)
        alike = [psnr(a, b) for a, b in zip(pictures, exact, strict=True)]
        return {"median": round(median(alike), 1), "worst": round(min(alike), 1)}

    rows = {"float, bf16": against(graph, True)}
    kinds = {"fp32 between": False, "bf16 between": True}
    rows |= {f"ours int8, {kind}": against(graph, half, True) for kind, half in kinds.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, form in FORMS.items():
            changed = Path(folder) / "decoder.onnx"
            write_form(graph, changed, form, loudest)
            rows |= {f"{name}, {kind}": against(changed, half) for kind, half in kinds.items()}
    facts = {"pictures": len(exact), "convolutions": list(loudest), "decibels": rows}
    about = {**facts, "machine": cpu_race.machine(), "versions": cpu_race.versions()}
    (cpu_race.RESULTS / "int8-decoder-quality.json").write_text(json.dumps(about, indent=1) + "\n")
    return json.dumps(facts, indent=1)


def our_decode(graph: Path, job: Job, int8: bool) -> cpu_race.Run:
    """One run of a decoder, bf16 where it is not INT8."""
    session = open_session(graph, Device.CPU, SessionOptions(True, int8, job.threads))
    return lambda: session.run({"latent": job.latent(1)})["image"]


def speed(arguments: argparse.Namespace) -> str:
    """diffusers and ours in turn."""
    from cpu_graphs import prepare_decode

    prepare_decode(arguments.path)
    graph = arguments.path / OURS / "decoder.onnx"
    job = Job(arguments.path, arguments.size // 32, arguments.threads, preset())
    contenders = [
        cpu_race.Contender("diffusers fp32", partial(diffusers_decode, job, "float32")),
        cpu_race.Contender("diffusers bf16", partial(diffusers_decode, job, "bfloat16")),
        cpu_race.Contender("ours bf16", partial(our_decode, graph, job, False)),
        cpu_race.Contender("ours int8", partial(our_decode, graph, job, True)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        loudest = listen(graph, job.latent(1), job.threads) if arguments.forms else {}
        for name in arguments.forms:
            changed = Path(folder) / f"{name.replace(', ', '-')}.onnx"
            write_form(graph, changed, FORMS[name], loudest)
            contenders.append(cpu_race.Contender(name, partial(our_decode, changed, job, False)))
        racing = cpu_race.only(contenders, arguments.only)
        results = cpu_race.race(racing, arguments.rounds, job.threads)
    facts = {"size": arguments.size, "threads": job.threads}
    return cpu_race.report("int8-decoder-speed", results, facts)


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("path", type=Path, nargs="?", default=Path("out/bench/depth28"))
    for name, usual in (("--each", 16), ("--size", 512), ("--threads", 2), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--forms", nargs="*", default=[], choices=FORMS)
    parser.add_argument("--only", nargs="*", help="contenders, by name or by the beginning of several")
    chosen = parser.parse_args(arguments)
    print({"quality": quality, "speed": speed}[chosen.what](chosen))


if __name__ == "__main__":
    main(sys.argv[1:])
