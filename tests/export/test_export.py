"""An export says how far it is, stops when told to, and refuses what it cannot do."""

import weakref

import pytest
import torch
from sana_reference.config import PRESETS
from sana_runtime.errors import UsageError
from sana_runtime.signature import signatures

from sana_export.export import export_parts, sizes_of
from sana_export.precision import Precision


class Interruption(BaseException):
    """What Ctrl-C raises, as far as this code can tell."""


def test_progress_rises_to_one_and_two_files_are_there(random_model, tmp_path):
    told = []
    exported = export_parts(random_model(), tmp_path, parts=("caption",), on_progress=told.append)
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {progress.part for progress in told} == {"caption"}
    assert exported["caption"].files == (tmp_path / "caption.onnx", tmp_path / "caption.data")
    assert exported["caption"].signature == signatures(sizes_of(PRESETS["tiny"]))["caption"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["caption.data", "caption.onnx"]


def test_what_progress_raises_stops_the_export_and_leaves_nothing(random_model, tmp_path):
    def stop(progress):
        if progress.message == "writing":
            raise Interruption

    with pytest.raises(Interruption):
        export_parts(random_model(), tmp_path, parts=("caption",), on_progress=stop)
    assert list(tmp_path.iterdir()) == []


class Watched:
    """A source that lets a network be read only when those before are gone from memory, but for odds and ends.

    The tracer's matchers remember the last graph, and with it weights that its part did not read.
    """

    def __init__(self, source):
        self.source, self.config, self.weights = source, source.config, {}

    def _watched(self, network):
        assert self.forgotten()
        self.weights |= {weakref.ref(weight): weight.numel() for weight in network.parameters()}
        return network

    def forgotten(self):
        left = sum(size for weight, size in self.weights.items() if weight() is not None)
        return left <= sum(self.weights.values()) / 5

    def text_encoder(self, dtype=torch.float32):
        return self._watched(self.source.text_encoder(dtype))

    def transformer(self, dtype=torch.float32):
        return self._watched(self.source.transformer(dtype))

    def autoencoder(self, dtype=torch.float32):
        return self._watched(self.source.autoencoder(dtype))


def test_one_network_is_in_memory_at_a_time(random_model, tmp_path):
    source = Watched(random_model())
    export_parts(source, tmp_path, parts=("text_encoder", "caption"), prefix=(2, 5, 6))
    assert len(source.weights) > 50
    assert source.forgotten()


def test_half_precision_changes_the_signature_between_caption_and_transformer():
    wide, half = (signatures(sizes_of(PRESETS["tiny"], precision)) for precision in (Precision.FP32, Precision.FP16))
    assert wide["caption"].outputs[0].dtype == "float32"
    assert half["caption"].outputs[0].dtype == "float16"
    assert half["transformer"].inputs[2] == half["caption"].outputs[0]


def test_an_unknown_part_is_refused(random_model, tmp_path):
    with pytest.raises(UsageError, match="'unet' is not a part; choose from text_encoder, caption"):
        export_parts(random_model(), tmp_path, parts=("unet",))


def test_a_text_encoder_without_a_prefix_is_refused(random_model, tmp_path):
    with pytest.raises(UsageError, match="needs a prefix of at least BOS"):
        export_parts(random_model(), tmp_path, parts=("text_encoder",))
