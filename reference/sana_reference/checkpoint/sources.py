"""Named tensors in safetensors and PyTorch files, mapped into memory and read one at a time."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from sana_runtime.errors import CheckpointError
from torch import Tensor

from sana_reference.checkpoint.fields import refuse_strange

__all__ = ["PICKLES", "TensorSource"]

PICKLES = (".pth", ".pt", ".ckpt", ".bin")
WINDOW = 16 << 20  # bytes read through one mapping before it is closed, so that pages already copied are given back
SAFE_TORCH = (2, 10)  # older ones let a crafted file through weights_only (CVE-2025-32434, CVE-2026-24747)

Shape = tuple[int, ...]


class TensorFile(Protocol):
    """One open file of named tensors."""

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor in it."""

    def read(self, name: str) -> Tensor:
        """A view into the mapped file."""


class SafetensorsFile:
    """A .safetensors file."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is damaged or cut short ({_first_line(error)}); download it again"
            ) from error

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor in it."""
        return {name: tuple(self._handle.get_slice(name).get_shape()) for name in self._handle.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        """A view into the mapped file."""
        return self._handle.get_tensor(name)  # type: ignore[no-any-return]


class PickledFile:
    """A .pth file, read by torch's restricted unpickler and by nothing else."""

    def __init__(self, path: Path) -> None:
        _refuse_old_torch(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} holds more than tensors, so it could run code, and is refused; get it as .safetensors"
            ) from error
        except Exception as error:  # what torch raises for damage has no common root
            raise CheckpointError(
                f"{path} cannot be read ({_first_line(error)}); download it again, or get it as .safetensors"
            ) from error
        self._tensors = _state(path, content)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor in it."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """A view into the mapped file."""
        return self._tensors[name]


def _refuse_old_torch(path: Path) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        raise CheckpointError(
            f"{path}: torch {torch.__version__} does not read pickles safely; upgrade to 2.10 or later, "
            "or use safetensors"
        )


def _first_line(error: Exception) -> str:
    """What a library says, without the bytes of the file that it may repeat."""
    return ascii(str(error).strip().split("\n")[0])[1:-1][:200]


def _state(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a bare state dict, or of a training checkpoint that keeps one under `state_dict`."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(name): value for name, value in items if _is_plain(value)}
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict; save the model's state_dict() under the key 'state_dict'")
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with all its numbers in memory, one after the other."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested and not value.is_meta


def _open(path: Path) -> TensorFile:
    refuse_strange(path)
    return PickledFile(path) if path.suffix in PICKLES else SafetensorsFile(path)


class TensorSource:
    """The tensors of several files under one roof."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places: dict[str, Path] = {}
        self.shapes: dict[str, Shape] = {}
        for path in files:
            for name, shape in _open(path).shapes().items():
                self._places[name] = path
                self.shapes[name] = shape
        self._open: tuple[Path, TensorFile] | None = None
        self._bytes_read = 0

    def read(self, name: str) -> Tensor:
        """A view into the mapped file: copy what is to outlive the next read."""
        path = self._places[name]
        if self._open is None or self._open[0] != path or self._bytes_read > WINDOW:
            self._open = None  # the old mapping goes before the new one comes
            self._open, self._bytes_read = (path, _open(path)), 0
        tensor = self._open[1].read(name)
        self._bytes_read += tensor.nbytes
        return tensor

    def file_of(self, name: str) -> Path:
        """The file that a tensor lies in."""
        return self._places[name]
