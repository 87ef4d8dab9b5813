"""Graphs on the CPU through OpenVINO, the fastest engine there."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.ahead import workers
from sana_runtime.compiled_models import CompiledModels, keeping, origin
from sana_runtime.errors import BackendError, MemoryLimitError, SanaError
from sana_runtime.onnx_guard import guard
from sana_runtime.openvino_convolutions import round_convolutions
from sana_runtime.openvino_graph import ov, read
from sana_runtime.openvino_halves import halves, side_by_side
from sana_runtime.rules import printable
from sana_runtime.session import Arrays, Interrupted, SessionOptions, contiguous
from sana_runtime.signature import Signature

__all__ = ["OpenVinoSession"]

EVERY_STEP = "timestep"  # an input of a part that is run many times for one picture
ROWS = "rows"  # of text
RECIPE = 6  # another number makes every compiled model that was kept before stale
WORTH_KEEPING = 0.25  # seconds of compiling
WORTH_HALVING = 64 << 20  # bytes of weights
WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}  # a compiled model names the places of its weights in their file
KEPT = 2  # sizes that stay compiled: guidance halves the batch where it is switched off for some of the steps

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # by input; -1 is any size


@cache
def _core() -> ov.Core:
    return ov.Core()


@cache
def computes_half() -> bool:
    """Whether this processor multiplies bfloat16 as such."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _properties(options: SessionOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        **WITHOUT_WEIGHTS,
        "ENABLE_CPU_PINNING": False,  # every model's first thread would be tied to the same core
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if options.half_products else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # only what the graph says is quantised
    }
    if options.threads:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    return properties


def _data_file(graph: Path) -> Path | None:
    """The data file of the graph's own name, if it has one."""
    data = graph.with_suffix(".data")
    return data if data.exists() else None


def _runs_every_step(signature: Signature | None) -> bool:
    return signature is not None and any(spec.name == EVERY_STEP for spec in signature.inputs)


def _fitted(signature: Signature, feeds: Mapping[str, NDArray[Any]]) -> Shapes:
    """The shapes to compile for: those of the picture as they are, a text's length free.

    OpenVINO drops the transposes around convolutions and joins element-wise operations only where it knows the sizes:
    a quarter of an INT8 step. Texts differ in length from prompt to prompt, and little depends on them.
    """
    signature.check(feeds)
    free = {(spec.name, i) for spec in signature.inputs for i, axis in spec.axes() if axis.name == ROWS}
    return tuple(
        (name, tuple(-1 if (name, i) in free else size for i, size in enumerate(array.shape)))
        for name, array in sorted(feeds.items())
    )


class OpenVinoSession:
    """One graph compiled for this CPU: at once for all sizes, or, if it runs every step, for each size that comes."""

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        self._graph = graph
        self._name = graph.name
        self._signature = options.signature if _runs_every_step(options.signature) else None
        self._properties = _properties(options)
        self._int8_convolutions = options.int8_convolutions
        self._requests: dict[Shapes, list[ov.InferRequest]] = {}  # of the whole graph, or of its halves
        self._mapped: dict[Shapes, list[NDArray[np.uint8]]] = {}  # what models that were read back stand on
        self._running = threading.Event()
        self._interrupted = threading.Event()
        try:
            self._origin = origin(graph)
        except OSError as error:
            raise _translated(error, f"{self._name}: OpenVINO does not load it") from error
        data = _data_file(graph)
        heavy = data is not None and data.stat().st_size >= WORTH_HALVING
        self._pieces = 2 if self._signature and heavy and workers(options.threads) else 1
        self._request: ov.InferRequest | None = None  # the last one that was started
        if self._signature is None:
            self._compiled(())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name; raises `Interrupted` when `interrupt` was called meanwhile."""
        self._interrupted.clear()
        self._running.set()
        try:
            tensors: dict[str, ov.Tensor] = {}
            for request in self._compiled(_fitted(self._signature, feeds) if self._signature else ()):
                tensors = self._run_one(request, feeds, tensors)
        except RuntimeError as error:
            if self._interrupted.is_set():
                raise Interrupted("the run was cancelled") from None
            raise _translated(error, "OpenVINO stopped") from error
        finally:
            self._running.clear()
        return {name: tensor.data.copy() for name, tensor in tensors.items()}

    def _run_one(
        self, request: ov.InferRequest, feeds: Mapping[str, NDArray[Any]], passed: Mapping[str, ov.Tensor]
    ) -> dict[str, ov.Tensor]:
        """What the whole graph or a half of it makes of the feeds, and of what the other half has `passed`."""
        self._request = request
        model = request.get_compiled_model()
        kinds = {name: each.get_element_type() for each in model.inputs for name in each.get_names()}
        for name in kinds.keys() & passed.keys():
            request.set_tensor(name, passed[name])
        read = {name: feeds[name] for name in feeds if name in kinds}
        whole = {name: read[name].astype(np.int64) for name in read if kinds[name] == ov.Type.i64}
        request.start_async(contiguous({**read, **whole}), share_inputs=True)
        if self._interrupted.is_set():  # while the graph was compiled, or between its halves
            request.cancel()
        request.wait()
        names = [output.get_any_name() for output in model.outputs]
        return {name: request.get_tensor(name) for name in names}

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Compile for feeds of these shapes, where each size is compiled for itself."""
        if self._signature is not None:
            self._compiled(_fitted(self._signature, feeds))

    def interrupt(self) -> None:
        """Stop the run that is under way, from any thread; does nothing when none is."""
        if self._running.is_set():
            self._interrupted.set()
            if self._request is not None:
                self._request.cancel()

    def _compiled(self, shapes: Shapes) -> list[ov.InferRequest]:
        """Requests for these shapes; the graph is compiled when they come first, and a few are kept."""
        try:
            requests = self._requests.pop(shapes, None) or [
                model.create_infer_request() for model in self._ready(shapes)
            ]
        except RuntimeError as error:
            raise _translated(error, f"{self._name}: OpenVINO does not load it") from error
        self._requests[shapes] = requests  # the last ones are the youngest
        for oldest in list(self._requests)[:-KEPT]:
            del self._requests[oldest]
            self._mapped.pop(oldest, None)
        return requests

    def _ready(self, shapes: Shapes) -> list[ov.CompiledModel]:
        """The models compiled for these shapes, now or at an earlier start."""
        models = CompiledModels() if keeping() else None
        recipes = [self._made_of(shapes, piece) for piece in range(self._pieces)]
        found = [models.load(recipe) for recipe in recipes] if models else []
        mapped = [each for each in found if each is not None]
        if len(mapped) == len(recipes):
            with suppress(RuntimeError):  # then they are compiled, and replaced
                compiled = side_by_side(self._read_back, mapped)
                self._refuse_replaced()
                self._mapped[shapes] = mapped
                return compiled
        begun = time.perf_counter()
        compiled = self._compile(shapes)
        if models and time.perf_counter() - begun >= WORTH_KEEPING:
            with suppress(SanaError):  # without them the next start is slower, no more
                data = _data_file(self._graph)
                guard(self._graph, {data.name: data.stat().st_size} if data else {})  # no weights anywhere else
                for recipe, model in zip(recipes, compiled, strict=True):
                    models.store(recipe, model.export_model().getbuffer())
        return compiled

    def _read_back(self, mapped: NDArray[np.uint8]) -> ov.CompiledModel:
        """A kept model, with the weights that it was compiled with."""
        data = _data_file(self._graph)
        properties = {**self._properties, "WEIGHTS_PATH": str(data)} if data else self._properties
        return _core().import_model(ov.Tensor(mapped, shared_memory=True), "CPU", properties)

    @cached_property
    def _model(self) -> ov.Model:
        """The graph itself, which is needed only where there is no kept model."""
        try:
            model = read(self._graph, half_convolutions=computes_half())
            if self._int8_convolutions:
                round_convolutions(model)
        except Exception as error:  # the reader's failures have no base class of their own
            raise _translated(error, f"{self._name}: OpenVINO does not load it") from error
        self._refuse_replaced()
        return model

    def _refuse_replaced(self) -> None:
        """Raise unless the files are still those that the session was opened with; what was read of them is mapped."""
        if origin(self._graph) != self._origin:
            raise BackendError(f"{self._graph} was replaced while it was in use; open it again")

    def _made_of(self, shapes: Shapes, piece: int) -> dict[str, Any]:
        """Everything that the compiled model of the graph, or of a half, depends on."""
        machine = [_core().get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        return {
            "part": Path(self._name).stem,
            "piece": [piece, self._pieces],
            "graph": self._origin,
            "shapes": [[name, list(shape)] for name, shape in shapes],
            "library": f"openvino {ov.get_version()}, recipe {RECIPE}",
            "machine": repr(machine),
            "properties": self._properties,
            "int8_convolutions": self._int8_convolutions,
        }

    def _compile(self, shapes: Shapes) -> list[ov.CompiledModel]:
        if shapes:
            self._model.reshape({name: ov.PartialShape(list(shape)) for name, shape in shapes})
        models = halves(self._model.clone()) if self._pieces > 1 else (self._model,)
        return side_by_side(lambda model: _core().compile_model(model, "CPU", self._properties), models)


def _translated(error: Exception, what: str) -> BackendError | MemoryLimitError:
    """OpenVINO reports everything with pages of text; keep the one line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line.startswith("Exception from")), "no reason given")
    why = printable(last)
    if "alloc" in why.lower() or "memory" in why.lower():
        return MemoryLimitError(f"{what}: not enough memory ({why}); try a smaller size or fewer pictures")
    return BackendError(f"{what}: {why}")
