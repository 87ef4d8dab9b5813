"""Which engine a part of a bundle needs on this machine, whether it is there, and its session."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from sana_runtime.bundle import Bundle
from sana_runtime.engine_cache import ALL_SIZES, EngineCache, EngineEntry, EngineKey
from sana_runtime.engine_keys import engine_key, fused
from sana_runtime.engine_library import MODULES, library_for
from sana_runtime.engine_session import EngineSession
from sana_runtime.engine_shapes import Span, has_sizes
from sana_runtime.errors import BackendError, SanaError
from sana_runtime.session import Device

if TYPE_CHECKING:
    from sana_runtime.cuda_driver import CudaDriver

__all__ = ["KeptEngines", "card_capability", "kept_engines", "open_engine", "require_engines"]

COMPILED = "_compiled"  # ends the library's name in the key of what it compiled for this very card
CARDS = {Device.RTX: (75, 80, 86, 89, 120, 121), Device.TENSORRT: (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)}


@dataclass(frozen=True)
class KeptEngines:
    """Which sizes the engines take that will be used, and which parts have none for them yet."""

    span: Span | None  # None: all that the bundle allows
    missing: tuple[str, ...]


def require_engines(bundle: Bundle, devices: Mapping[str, Device]) -> Span | None:
    """The sizes that the engines take; BackendError, before anything is painted, unless every part has its own."""
    kept = kept_engines(bundle, devices)
    for part in kept.missing:
        raise _missing(bundle, part, devices[part])
    return kept.span


def kept_engines(bundle: Bundle, devices: Mapping[str, Device]) -> KeptEngines:
    """The engines that were last asked for, of those that serve one span of sizes for every part; else what lacks."""
    entries = EngineCache().entries()
    found = [
        KeptEngines(span, tuple(part for part in devices if not _is_kept(bundle, part, devices[part], span, entries)))
        for span in _spans(bundle, devices, entries)
    ]
    return min(found, key=lambda kept: len(kept.missing))


def open_engine(bundle: Bundle, part: str, device: Device, span: Span | None = None) -> EngineSession:
    """The session of a part's engine, which must be one that this user built here; no other device stands in."""
    refused: list[str] = []
    engines = EngineCache(note=refused.append)
    for key in _keys(bundle, part, device, span):
        plan = engines.load(key)
        if plan is not None:
            compiled = replace(key, library=key.library + COMPILED)

            def keep(kernels: bytes, key: EngineKey = compiled) -> None:
                with suppress(SanaError):  # without them the next start is slower, no more
                    engines.store(key, kernels)

            return EngineSession(plan, library_for(device), _driver(), engines.load(compiled), keep)
    raise _missing(bundle, part, device, refused)


def card_capability(device: Device) -> int:
    """The compute capability of the card at hand, such as 89; BackendError when there is none that `device` can use."""
    library_for(device)
    capability = _driver().capability
    if capability not in CARDS[device]:
        raise BackendError(
            f"{device.value}: this card has compute capability {capability / 10}, for which it builds no engines; "
            "choose --device cuda or cpu"
        )
    return capability


def _is_kept(bundle: Bundle, part: str, device: Device, span: Span | None, entries: Sequence[EngineEntry]) -> bool:
    """Whether the part needs no engine, or has one."""
    if not device.runs_engines:
        return True
    return any(entry.key.serves(key) for key in _keys(bundle, part, device, span) for entry in entries)


def _spans(bundle: Bundle, devices: Mapping[str, Device], entries: Sequence[EngineEntry]) -> list[Span | None]:
    """The sizes that kept engines are for, the last used first, and at any rate all."""
    parts = {part for part in devices if has_sizes(bundle.manifest.parts[part].signature)}
    spans: dict[Span | None, None] = {}
    for entry in entries:
        with suppress(ValueError):  # what another version of us wrote
            if entry.key.part in parts and devices[entry.key.part].runs_engines:
                spans.setdefault(None if entry.key.sizes == ALL_SIZES else Span.parse(entry.key.sizes))
    return list(spans | {None: None})


def _keys(bundle: Bundle, part: str, device: Device, span: Span | None) -> Iterator[EngineKey]:
    """The engines that would do on this card, the best first."""
    capability = card_capability(device)
    library = MODULES[device], _version(device)
    keys = [engine_key(bundle, part, library, (capability,), plugin=plugin, span=span) for plugin in (True, False)]
    plain = dict.fromkeys([*map(fused, keys), *keys])  # a part without linear attention has one
    yield from (replace(key, streams=True) for key in plain)  # who asked for one has too little memory for the others
    yield from plain


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
