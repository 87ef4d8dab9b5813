"""Remembers which bundles painted their golden pictures rightly on this machine, and with which library and driver.

A new version of either may compute otherwise. To paint the record takes as long as two pictures, so nobody does it
unasked: commands that paint say in one line when it was not done yet, and `verify` does it.
"""

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs
from sana_runtime.errors import BundleError
from sana_runtime.manifest import MANIFEST, parse
from sana_runtime.publish import resident

from sana_export.doctor import cards
from sana_export.notes import write_note

__all__ = ["advice", "remember_verified"]

NOTE = "verified.json"
MOST = 500  # bundles and versions that are remembered
PACKAGES = {  # whose version decides what each device computes
    "cpu": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "cuda": ("onnxruntime-gpu",),
    "directml": ("onnxruntime-directml",),
    "webgpu": ("onnxruntime-webgpu",),
    "rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
}
WITHOUT_DRIVER = ("cpu", "onnxruntime")


def remember_verified(bundle: Path, device: str) -> None:
    """Note that the bundle painted its golden pictures rightly here; nothing is noted where that cannot be written."""
    key = _key((resident(bundle) / MANIFEST).read_bytes(), device)
    known = [each for each in _known() if each != key]
    write_note(_note(), json.dumps([*known, key][-MOST:]).encode())


def advice(bundle: Path, device: str) -> str:
    """What to do before the bundle's pictures are trusted; empty when it was done, or can do nothing."""
    try:
        content = (resident(bundle) / MANIFEST).read_bytes()
        golden = parse(content).golden
    except (OSError, BundleError):  # for whoever opens it to say
        return ""
    if not golden or _key(content, device) in _known():
        return ""
    return (
        f"{bundle} has not painted its golden pictures here with {_versions(device)}; "
        f"`sana-export verify {bundle} --device {device}` does, once"
    )


def _key(manifest: bytes, device: str) -> str:
    """A digest of the bundle, of the machine, and of what computes there."""
    drivers = [] if _resolved(device) in WITHOUT_DRIVER else cards()
    facts = (hashlib.sha256(manifest).hexdigest(), _resolved(device), _versions(device), drivers, platform.node())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _versions(device: str) -> str:
    packages = ("sana-export", *PACKAGES.get(_resolved(device), ()))
    return " and ".join(f"{name} {_version(name)}" for name in packages)


def _resolved(device: str) -> str:
    return "cpu" if device == "auto" else device


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of no known version"


def _known() -> list[str]:
    """What is remembered; nothing when the file is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        known = json.loads(_note().read_bytes())
        if isinstance(known, list):
            return [each for each in known if isinstance(each, str)]
    return []


def _note() -> Path:
    return Path(platformdirs.user_data_dir("sana-export")) / NOTE
