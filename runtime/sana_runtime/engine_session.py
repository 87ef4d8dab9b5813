"""Engines of TensorRT-RTX and TensorRT as sessions: buffers that stay, CUDA graphs, compiled kernels kept."""

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sana_runtime.engine_library import EngineLibrary
from sana_runtime.errors import BackendError, SanaError, UsageError
from sana_runtime.session import Arrays, Interrupted, contiguous

__all__ = ["Driver", "EngineSession"]

# numpy's name of each element type that crosses between the card and this side
ELEMENTS = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Driver(Protocol):
    """What a session asks of the CUDA driver; `CudaDriver` says what each does."""

    def enter(self) -> None: ...
    def allocate(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def stream(self) -> int: ...
    def upload(self, address: int, array: NDArray[Any], stream: int) -> None: ...
    def download(self, array: NDArray[Any], address: int, stream: int) -> None: ...
    def wait(self, stream: int) -> None: ...
    def capture(self, work: Callable[[], None], stream: int) -> int: ...
    def launch(self, graph: int, stream: int) -> None: ...
    def drop_graph(self, graph: int) -> None: ...
    def drop_stream(self, stream: int) -> None: ...


class EngineSession:
    """One engine, ready. Buffers grow to the largest shape that came and stay; every other shape reuses them."""

    def __init__(
        self,
        plan: bytes,
        library: EngineLibrary,
        driver: Driver,
        jit_cache: bytes | None = None,
        keep_jit_cache: Callable[[bytes], None] = lambda compiled: None,
    ) -> None:
        driver.enter()
        self._library, self._driver, self._keep = library, driver, keep_jit_cache
        self._loaded = library.load(plan, jit_cache)
        self._kept = jit_cache
        self._inputs, self._outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        self._card = _Card(driver)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._results: dict[str, tuple[int, ...]] = {}
        self._warm = False
        self._running, self._interrupted = threading.Event(), threading.Event()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name; raises `Interrupted` when `interrupt` was called meanwhile."""
        self._interrupted.clear()
        self._running.set()
        try:
            self._driver.enter()
            outputs = self._computed(self._checked(contiguous(feeds)))
        finally:
            self._running.clear()
        if self._interrupted.is_set():
            raise Interrupted("the run was cancelled")
        self._keep_compiled()
        return outputs

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Nothing: it was done when the session was opened."""

    def interrupt(self) -> None:
        """Stop the run that is under way, from any thread: what the card has begun, it ends, and it is not used."""
        if self._running.is_set():
            self._interrupted.set()

    def _computed(self, feeds: Arrays) -> Arrays:
        card, driver = self._card, self._driver
        shapes = {name: array.shape for name, array in feeds.items()}
        if shapes != self._shapes:
            self._settle(shapes)
        for name, array in feeds.items():
            driver.upload(card.buffers[name].address, array, card.stream)
        self._start()
        outputs = {name: np.empty(shape, self._outputs[name]) for name, shape in self._results.items()}
        for name, array in outputs.items():
            driver.download(array, card.buffers[name].address, card.stream)
        driver.wait(card.stream)
        return outputs

    def _start(self) -> None:
        """Put the engine's work into the stream: at first by itself, then as a graph if the library makes none."""
        card, driver = self._card, self._driver
        by_itself = self._loaded.captures_graphs or self._loaded.streams
        if card.graph is None and self._warm and not by_itself:
            card.graph = driver.capture(self._enqueue, card.stream)
        if card.graph is None:
            self._enqueue()
        else:
            driver.launch(card.graph, card.stream)
        self._warm = True

    def _enqueue(self) -> None:
        if not self._loaded.context.execute_async_v3(self._card.stream):
            raise self._library.failure("does not run the engine")

    def _settle(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Tell the engine the shapes of this run, and give it room for what goes in and comes out."""
        context = self._loaded.context
        self._shapes, self._warm = {}, False
        self._card.drop_graph()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._unfit(name, shape)
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"{self._library.title} wants more than it was fed: {', '.join(missing)}; report this")
        self._results = {name: tuple(context.get_tensor_shape(name)) for name in self._outputs}
        for name, shape in {**shapes, **self._results}.items():
            dtype = self._inputs.get(name) or self._outputs[name]
            context.set_tensor_address(name, self._card.room(name, dtype.itemsize * int(np.prod(shape))))
        self._shapes = dict(shapes)

    def _checked(self, feeds: Arrays) -> Arrays:
        """The feeds, which must be the engine's own inputs in its own types: it would read other bytes as numbers."""
        if set(feeds) != set(self._inputs):
            raise UsageError(f"the engine was fed {', '.join(feeds)}; it takes {', '.join(self._inputs)}")
        for name, array in feeds.items():
            if array.dtype != self._inputs[name]:
                raise UsageError(f"{name} is {array.dtype}; the engine takes {self._inputs[name]}")
        return feeds

    def _unfit(self, name: str, shape: tuple[int, ...]) -> SanaError:
        smallest, _, largest = self._loaded.engine.get_tensor_profile_shape(name, 0)
        return UsageError(
            f"{name} of shape {shape} is outside the engine's {tuple(smallest)} to {tuple(largest)}; "
            "choose another size, or --device cpu"
        )

    def _tensors(self, mode: str) -> dict[str, np.dtype[Any]]:
        """The engine's inputs or outputs and what numpy calls their types."""
        engine = self._loaded.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        kinds = {
            name: engine.get_tensor_dtype(name).name for name in names if engine.get_tensor_mode(name).name == mode
        }
        strange = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in ELEMENTS]
        if strange:
            raise BackendError(f"the engine has tensors that numpy has no type for: {', '.join(strange)}")
        return {name: np.dtype(ELEMENTS[kind]) for name, kind in kinds.items()}

    def _keep_compiled(self) -> None:
        """Hand out the kernels that were compiled for this card, once there are new ones."""
        if self._loaded.jit_cache is None:
            return
        compiled = bytes(self._loaded.jit_cache.serialize())
        if compiled != self._kept:
            self._keep(compiled)
            self._kept = compiled


@dataclass
class _Buffer:
    """Memory on the card."""

    address: int
    size: int


class _Card:
    """What a session holds on the card; it is given back when the session goes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.stream = driver.stream()
        self.buffers: dict[str, _Buffer] = {}
        self._graphs: list[int] = []
        weakref.finalize(self, _give_back, driver, self.stream, self.buffers, self._graphs)

    @property
    def graph(self) -> int | None:
        """The captured graph of the present shapes."""
        return self._graphs[0] if self._graphs else None

    @graph.setter
    def graph(self, graph: int) -> None:
        self._graphs.append(graph)

    def drop_graph(self) -> None:
        """Forget the graph: it was made for other shapes."""
        while self._graphs:
            self._driver.drop_graph(self._graphs.pop())

    def room(self, name: str, size: int) -> int:
        """Address of at least `size` bytes for a tensor; the same as before if they were enough."""
        held = self.buffers.pop(name, None)
        if held is not None and held.size < size:
            self._driver.free(held.address)
            held = None
        self.buffers[name] = held or _Buffer(self._driver.allocate(max(size, 1)), size)
        return self.buffers[name].address


def _give_back(driver: Driver, stream: int, buffers: dict[str, _Buffer], graphs: list[int]) -> None:
    with suppress(SanaError):  # at the end of the process the card is often gone already
        for graph in graphs:
            driver.drop_graph(graph)
        for buffer in buffers.values():
            driver.free(buffer.address)
        driver.drop_stream(stream)
