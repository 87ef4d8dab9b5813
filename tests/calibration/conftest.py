"""What the tests of calibration share: the tiny transformer's parts, exported once."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from filelock import FileLock
from sana_calibration.painter import Model
from sana_calibration.record import file_sha256
from sana_reference.config import PRESETS, SanaConfig
from sana_reference.transformer import SanaTransformer
from sana_runtime.conditioning import Conditioner
from sana_runtime.prompt import PromptRules
from sana_runtime.session import Arrays, Device, SessionOptions, open_session
from sana_runtime.signature import signatures
from sana_runtime.tokenizer import Tokenizer

from sana_export.export import export_parts, sizes_of
from sana_export.precision import Precision
from sana_export.saving import data_file

SIZES = {"batch": 2, "height": 4, "width": 6, "rows": 5}


@dataclass(frozen=True)
class RandomWeights:
    """A source of parts whose transformer has random weights."""

    config: SanaConfig

    def transformer(self, dtype: torch.dtype) -> SanaTransformer:
        torch.manual_seed(0)
        return SanaTransformer(self.config).to(dtype)


@dataclass(frozen=True)
class OutlierWeights(RandomWeights):
    """The same, with channels up to a hundred times larger than others in front of every product."""

    def transformer(self, dtype: torch.dtype) -> SanaTransformer:
        model = super().transformer(dtype)
        with torch.no_grad():
            for block in model.blocks:
                inject_outliers(block)
            model.patch.weight[:3] *= 20  # the residual stream, which the cross-attention's query reads
            model.patch.bias[:3] *= 20
        return model


def inject_outliers(block: torch.nn.Module) -> None:
    """Scale channels by log-normal numbers, and undo it in the weight of the product that follows."""
    attention, cross, feed = block.attention, block.cross_attention, block.feed_forward
    dim = attention.out.in_features

    def drawn(channels: int) -> torch.Tensor:
        return torch.randn(channels).mul(1.5).exp().clamp(0.01, 100)

    for source, start, product in (
        ([attention.qkv.weight], 2 * dim, attention.out),
        ([cross.kv.weight, cross.kv.bias], dim, cross.out),
        ([feed.depthwise.weight, feed.depthwise.bias], 0, feed.contract),
    ):
        factor = drawn(product.in_features)
        for tensor in source:
            part = tensor[start : start + len(factor)]
            part *= factor.reshape(-1, *[1] * (tensor.dim() - 1))
        product.weight /= factor
    for shift, scale, product in ((0, 1, attention.qkv), (3, 4, feed.expand)):
        factor = drawn(dim)
        block.table[shift] *= factor
        block.table[scale] = factor * (1 + block.table[scale]) - 1
        product.weight /= factor
    cross.q.weight[:, :3] /= 20


BOTH = ("caption", "transformer")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that exports parts under a name, once for all workers; each worker writes beside its own copy."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def export(name: str, source: RandomWeights, precision: Precision, parts: tuple[str, ...]) -> Path:
        whole, half = root / f"calibration-{name}", root / f"calibration-{name}.half"
        with FileLock(root / f"{whole.name}.lock"):
            if not whole.exists():
                export_parts(source, half, precision, parts=parts)
                half.rename(whole)
        return Path(shutil.copytree(whole, tmp_path_factory.mktemp(name) / "parts"))

    return export


@pytest.fixture(scope="session")
def outliers(exported: Callable[..., Path]) -> Path:
    """Folder of the caption and transformer parts in fp32 with outlier channels, one block."""
    return exported("outliers", OutlierWeights(replace(PRESETS["tiny"], depth=1)), Precision.FP32, BOTH)


@pytest.fixture(scope="session")
def tiny(exported: Callable[..., Path]) -> Path:
    """Folder of the caption and transformer parts in fp32, two blocks."""
    return exported("tiny", RandomWeights(replace(PRESETS["tiny"], depth=2)), Precision.FP32, BOTH)


@pytest.fixture(scope="session")
def tiny_half(exported: Callable[..., Path]) -> Path:
    """Folder of the transformer part in fp16, one block."""
    return exported("half", RandomWeights(replace(PRESETS["tiny"], depth=1)), Precision.FP16, ("transformer",))


@pytest.fixture(scope="session")
def feeds() -> Callable[..., Arrays]:
    """Random inputs of the tiny transformer."""

    def make(depth: int = 2, precision: Precision = Precision.FP32) -> Arrays:
        sizes = sizes_of(replace(PRESETS["tiny"], depth=depth), precision)
        inputs = signatures(sizes)["transformer"].example_feeds(seed=1, **SIZES)
        return {**inputs, "timestep": np.array([900, 200], np.float32)}

    return make


@pytest.fixture(scope="session")
def velocity() -> Callable[..., np.ndarray]:
    """Runs a transformer graph."""

    def run(graph: Path, feeds: Arrays, device: Device = Device.ONNXRUNTIME) -> np.ndarray:
        return open_session(graph, device, SessionOptions(threads=1)).run(feeds)["velocity"]

    return run


@pytest.fixture(scope="session")
def save() -> Callable[[ir.Model, Path], Path]:
    """Writes a model with its weights beside it."""

    def write(model: ir.Model, graph: Path) -> Path:
        ir.save(model, graph, external_data=f"{graph.name}.data", size_threshold_bytes=1024)
        return graph

    return write


@pytest.fixture(scope="session")
def distance() -> Callable[[np.ndarray, np.ndarray], float]:
    """Relative error in the Euclidean norm."""
    return lambda actual, expected: float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="session")
def make_model(tiny_tokenizer) -> Callable[..., Model]:
    """What painting with a folder's parts needs; a random vector for each token stands in for a text encoder."""
    words = np.random.default_rng(0).standard_normal((2000, 48)).astype(np.float32)
    tokenizer = Tokenizer(tiny_tokenizer / "tokenizer.json")

    def make(folder: Path, depth: int = 2) -> Model:
        caption = open_session(folder / "caption.onnx", Device.ONNXRUNTIME, SessionOptions(threads=1))

        def run_text(part: str, feeds: Arrays) -> Arrays:
            if part == "caption":
                return caption.run(feeds)
            return {"text": words[np.pad(feeds["input_ids"], ((0, 0), (1, 0)), constant_values=2)]}

        signature = signatures(sizes_of(replace(PRESETS["tiny"], depth=depth)))["transformer"]
        conditioner = Conditioner(run_text, tokenizer, PromptRules.derive(tokenizer), cache_bytes=1)
        return Model(signature, conditioner, file_sha256(data_file(folder / "transformer.onnx")))

    return make
