"""The CUDA driver as far as engines need it: one card, memory, copies, streams, graphs; the door to cuda-bindings."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from sana_runtime.errors import BackendError, MemoryLimitError

try:
    from cuda.bindings import driver as cuda
except ImportError as error:
    raise BackendError(
        'cuda-bindings is not installed, and engines need it; pip install "sana-export[rtx]", or choose --device cpu'
    ) from error

__all__ = ["LEAST_CUDA", "CudaDriver"]

LEAST_CUDA = (13, 0)  # what the engine libraries of our extras are made for
OTHERWISE = "or choose --device cpu"


class CudaDriver:
    """The first visible card and its primary context, which the engine libraries use, too."""

    def __init__(self) -> None:
        _start()
        version = int(_done(cuda.cuDriverGetVersion(), "tell its version"))
        self.version = version // 1000, version % 1000 // 10
        if self.version < LEAST_CUDA:
            raise BackendError(
                f"the NVIDIA driver here is made for CUDA {_dotted(self.version)} and engines need "
                f"{_dotted(LEAST_CUDA)}; update the driver, {OTHERWISE}"
            )
        self._device = _done(cuda.cuDeviceGet(0), "name its first card")
        self.capability = 10 * self._attribute("MAJOR") + self._attribute("MINOR")
        self._context = _done(cuda.cuDevicePrimaryCtxRetain(self._device), "make a context")
        self.enter()

    def enter(self) -> None:
        """Make this card the current one of the calling thread."""
        _done(cuda.cuCtxSetCurrent(self._context), "enter its context")

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the card."""
        return int(_done(cuda.cuMemAlloc(size), f"give {size >> 20} MB"))

    def free(self, address: int) -> None:
        """Give memory back."""
        self.enter()
        _done(cuda.cuMemFree(address), "take memory back")

    def stream(self) -> int:
        """A new stream, which does not wait for the default one."""
        return int(_done(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "make a stream"))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the card; it must stay as it is until `wait`."""
        _done(cuda.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, stream), "copy to the card")

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the card into a contiguous array, which holds it after `wait`."""
        _done(cuda.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, stream), "copy from the card")

    def wait(self, stream: int) -> None:
        """Until everything in the stream is done; errors of what ran there come out here."""
        _done(cuda.cuStreamSynchronize(stream), "finish what was started")

    def capture(self, work: Callable[[], None], stream: int) -> int:
        """What `work` puts into the stream, as a graph that is started in one go; `work` itself runs nothing."""
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _done(cuda.cuStreamBeginCapture(stream, mode), "begin a graph")
        try:
            work()
        finally:
            graph = _done(cuda.cuStreamEndCapture(stream), "end a graph")
        try:
            return int(_done(cuda.cuGraphInstantiate(graph, 0), "make a graph"))
        finally:
            _done(cuda.cuGraphDestroy(graph), "drop a graph")

    def launch(self, graph: int, stream: int) -> None:
        """Start a captured graph."""
        _done(cuda.cuGraphLaunch(graph, stream), "start a graph")

    def drop_graph(self, graph: int) -> None:
        """Free a captured graph."""
        self.enter()
        _done(cuda.cuGraphExecDestroy(graph), "drop a graph")

    def drop_stream(self, stream: int) -> None:
        """Free a stream."""
        self.enter()
        _done(cuda.cuStreamDestroy(stream), "drop a stream")

    def _attribute(self, which: str) -> int:
        name = f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{which}"
        return int(
            _done(cuda.cuDeviceGetAttribute(getattr(cuda.CUdevice_attribute, name), self._device), "say its kind")
        )


def _start() -> None:
    try:
        status = cuda.cuInit(0)[0]
    except RuntimeError as error:  # what cuda-bindings raises where there is no driver library
        raise BackendError(
            f"this machine has no NVIDIA driver, and engines run on NVIDIA cards only; install it, {OTHERWISE}"
        ) from error
    if status == cuda.CUresult.CUDA_ERROR_NO_DEVICE:
        raise BackendError(f"the NVIDIA driver finds no card here; look at CUDA_VISIBLE_DEVICES, {OTHERWISE}")
    _done((status,), "start")


def _done(answer: tuple[Any, ...], what: str) -> Any:
    """What a call returned besides its status, which must say that it succeeded."""
    status, *results = answer
    if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryLimitError(f"the card's memory is full: it could not {what}; try a smaller size, {OTHERWISE}")
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise BackendError(f"the CUDA driver could not {what} ({status.name}); start again, {OTHERWISE}")
    return results[0] if results else None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
