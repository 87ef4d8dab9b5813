"""Which engine a part of a bundle needs on this machine, whether it is there, and its session."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from sana_runtime.bundle import Bundle
from sana_runtime.engine_cache import EngineCache, EngineKey
from sana_runtime.engine_keys import engine_key
from sana_runtime.engine_library import MODULES, library_for
from sana_runtime.engine_session import EngineSession
from sana_runtime.errors import BackendError, SanaError
from sana_runtime.session import Device

if TYPE_CHECKING:
    from sana_runtime.cuda_driver import CudaDriver

__all__ = ["open_engine", "require_engines"]

COMPILED = "_compiled"  # ends the library's name in the key of what it compiled for this very card
CARDS = {Device.RTX: (75, 80, 86, 89, 120, 121), Device.TENSORRT: (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)}


def require_engines(bundle: Bundle, devices: Mapping[str, Device]) -> None:
    """Raise BackendError, before anything is painted, unless every part that is to run as an engine can."""
    kept = EngineCache().entries()
    for part, device in devices.items():
        if device.runs_engines:
            keys = tuple(_keys(bundle, part, device))
            if not any(entry.key.serves(key) for entry in kept for key in keys):
                raise _missing(bundle, part, device)


def open_engine(bundle: Bundle, part: str, device: Device) -> EngineSession:
    """The session of a part's engine, which must be one that this user built here; no other device stands in."""
    refused: list[str] = []
    engines = EngineCache(note=refused.append)
    for key in _keys(bundle, part, device):
        plan = engines.load(key)
        if plan is not None:
            compiled = replace(key, library=key.library + COMPILED)

            def keep(kernels: bytes, key: EngineKey = compiled) -> None:
                with suppress(SanaError):  # without them the next start is slower, no more
                    engines.store(key, kernels)

            return EngineSession(plan, library_for(device), _driver(), engines.load(compiled), keep)
    raise _missing(bundle, part, device, refused)


def _keys(bundle: Bundle, part: str, device: Device) -> Iterator[EngineKey]:
    """The engines that would do on this card, the best first."""
    library_for(device)
    capability = _driver().capability
    if capability not in CARDS[device]:
        raise BackendError(
            f"{device.value}: this card has compute capability {capability / 10}, for which it builds no engines; "
            "choose --device cuda or cpu"
        )
    library = MODULES[device], _version(device)
    keys = (engine_key(bundle, part, library, (capability,), plugin=plugin) for plugin in (True, False))
    yield from dict.fromkeys(keys)  # a part without linear attention has one


@cache
def _driver() -> "CudaDriver":
    """The card; looked for once."""
    from sana_runtime.cuda_driver import CudaDriver  # only those who run engines have its library

    return CudaDriver()


def _version(device: Device) -> str:
    try:
        return version(MODULES[device].replace("_", "-"))
    except PackageNotFoundError as error:
        raise BackendError(
            f'{device.value}: its library is not installed; pip install "sana-export[{device.value}]"'
        ) from error


def _missing(bundle: Bundle, part: str, device: Device, refused: list[str] | None = None) -> BackendError:
    why = f" ({'; '.join(refused)})" if refused else ""
    return BackendError(
        f"{device.value}: no engine of {part} for this card was built here{why}; "
        f"run `sana-export engine {bundle.path} --target {device.value}`, or choose --device cpu"
    )
