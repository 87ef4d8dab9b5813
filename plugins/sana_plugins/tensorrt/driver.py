"""The CUDA driver, as far as the plugins need it: load programs and start them."""

from functools import cache
from typing import Any

from cuda.bindings import driver as cuda

from sana_plugins.tensorrt.operators import Launch
from sana_plugins.tensorrt.shipped import PluginError, ShippedKernel, kernel_for

__all__ = ["Programs", "programs"]


class Programs:
    """A plugin's kernels for one element type, loaded into the CUDA context that was current."""

    def __init__(self, kernels: tuple[str, ...], element: str) -> None:
        device = _done(cuda.cuCtxGetDevice())
        capability = 10 * _attribute(device, "MAJOR") + _attribute(device, "MINOR")
        self.kernels = tuple(kernel_for(kernel, element, capability) for kernel in kernels)
        self._functions = {kernel: _load(kernel) for kernel in self.kernels}

    def start(self, launch: Launch, stream: int) -> None:
        """Put one launch into the stream."""
        kernel = launch.kernel
        function = self._functions[kernel]
        block = (kernel.threads, 1, 1)
        _done(cuda.cuLaunchKernel(function, *launch.grid, *block, kernel.shared, stream, launch.parameters, 0))


def programs(kernels: tuple[str, ...], element: str) -> Programs:
    """The programs for the current context, loaded once: loading is not allowed while a CUDA graph is captured."""
    return _programs(int(_done(cuda.cuCtxGetCurrent())), kernels, element)


@cache
def _programs(_context: int, kernels: tuple[str, ...], element: str) -> Programs:
    return Programs(kernels, element)


def _load(kernel: ShippedKernel) -> Any:
    module = _done(cuda.cuModuleLoadData(kernel.ptx))
    return _done(cuda.cuModuleGetFunction(module, kernel.entry.encode()))


def _attribute(device: Any, which: str) -> int:
    name = f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{which}"
    return int(_done(cuda.cuDeviceGetAttribute(getattr(cuda.CUdevice_attribute, name), device)))


def _done(answer: tuple[Any, ...]) -> Any:
    """What a call returned besides its status, which must say that it succeeded."""
    status, *results = answer
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise PluginError(f"the CUDA driver refused the plugin's call ({status.name}); update the driver")
    return results[0] if results else None
