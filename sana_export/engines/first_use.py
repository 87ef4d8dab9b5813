"""Build the engines that a device wants and that are not here yet, so that the first picture needs no other command."""

from collections.abc import Callable
from pathlib import Path

from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache
from sana_runtime.engine_library import MODULES
from sana_runtime.engines import card_capability, kept_engines
from sana_runtime.errors import BackendError
from sana_runtime.session import Device

from sana_export.engines.build import OnBuildProgress
from sana_export.engines.bundle import EngineRequest, build_engines
from sana_export.engines.library import Library

__all__ = ["build_missing"]


def build_missing(path: Path, device: Device, note: Callable[[str], None], on_progress: OnBuildProgress) -> None:
    """Build what `device` needs to run the bundle on this card; nothing where all is there.

    Parts that are new get the sizes of those that are there. BackendError when one of them cannot be built.
    """
    bundle = open_bundle(path)
    kept = kept_engines(bundle, dict.fromkeys(bundle.manifest.parts, device))
    if not kept.missing:
        return
    note(
        f"{device.value}: no engine of {', '.join(kept.missing)} for this card is here yet; "
        "building, which takes minutes and is done once"
    )
    capabilities, library = (card_capability(device),), Library(MODULES[device])
    request = EngineRequest(capabilities, library, parts=kept.missing, span=kept.span)
    for outcome in build_engines(bundle, request, EngineCache(note=note), on_progress):
        if outcome.path is None:
            raise BackendError(outcome.refusal)
