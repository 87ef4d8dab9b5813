"""What this machine can run, and why: processor, memory, cards, engine libraries."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sana_runtime.memory import available_memory

__all__ = ["cards", "examine", "render"]

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
# What each library gives, and from which version on we use it: older ones have known holes or lack what we need.
LIBRARIES = {
    "openvino": ("2026.0", "the fast engine on CPUs", "sana-export"),
    "onnxruntime": ("1.27", "the portable engine", "sana-export"),
    "tensorrt-rtx": ("1.7", "engines for RTX cards", "sana-export[rtx]"),
    "tensorrt": ("11", "engines of full TensorRT, for data-centre cards", "sana-export[tensorrt]"),
    "cuda-bindings": ("13", "running engines on a card", "sana-export[rtx]"),
    "torch": ("2.11", "building bundles", "sana-export[build]"),
    "onnx": ("1.21", "building bundles", "sana-export[build]"),
    "Pillow": ("12.1.1", "picture files", "sana-export"),
}
INT8_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8"}
QUERY = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version,memory.total", "--format=csv,noheader,nounits"]


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows."""
    features = [feature for feature in FEATURES if feature in _processor_flags()]
    libraries = {name: _library(name, least) for name, (least, _, _) in LIBRARIES.items()}
    found = cards()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "features": features,
        "memory": available_memory(),
        "cards": found,
        "libraries": libraries,
        "more": _more(found, libraries),
        **_recommended(features, libraries),
    }


def render(found: dict[str, Any]) -> str:
    """The findings as one screen of text."""
    memory = "unknown" if found["memory"] is None else f"{found['memory'] / 1e9:.1f} GB free"
    lines = [
        f"python     {found['python']} on {found['system']}",
        f"processor  {found['cores']} cores; {', '.join(found['features']) or 'no vector features known'}",
        f"memory     {memory}",
        *(f"card       {card}" for card in found["cards"] or ["none that the NVIDIA driver knows"]),
        "",
    ]
    advice = f"use        --device {found['device']} --precision {found['precision']}: {found['why']}"
    for name, (least, use, extra) in LIBRARIES.items():
        state = found["libraries"][name]
        missing = f"not installed; for {use}: pip install '{extra}'"
        old = f"{state['version']}, older than {least}; run: pip install -U '{extra}'"
        told = missing if state["version"] is None else f"{state['version']}, {use}" if state["usable"] else old
        lines.append(f"{name:<15}{told}")
    return "\n".join([*lines, "", advice, *([f"more       {found['more']}"] if found["more"] else [])])


def _recommended(features: list[str], libraries: dict[str, Any]) -> dict[str, str]:
    """Device and precision for this machine, with the reason: INT8 is the default everywhere, docs/precision.md."""
    openvino = bool(libraries["openvino"]["usable"])
    native = INT8_PRODUCTS & set(features)
    speed = "this processor multiplies INT8 natively" if native else "its files are the smallest on any processor"
    why = speed if openvino else f"OpenVINO is not usable here; {speed}"
    return {"device": "cpu" if openvino else "onnxruntime", "precision": "int8", "why": why}


def _more(found: list[str], libraries: dict[str, Any]) -> str:
    """What would let a card that is here paint; empty without one."""
    if not found:
        return ""
    engines = [name for name in ("tensorrt-rtx", "tensorrt") if libraries[name]["usable"]]
    if not engines:
        return "a card is here, but no library that builds engines for it: pip install 'sana-export[rtx]'"
    extra = "rtx" if engines[0] == "tensorrt-rtx" else "tensorrt"
    if not libraries["cuda-bindings"]["usable"]:
        return f"{engines[0]} is here, but not what runs its engines: pip install -U 'sana-export[{extra}]'"
    return f"for the card: `sana-export engine --target {extra}`, once for each bundle, then --device {extra}"


def _library(name: str, least: str) -> dict[str, Any]:
    try:
        found = version(name)
    except PackageNotFoundError:
        return {"version": None, "usable": False}
    return {"version": found, "usable": _numbers(found) >= _numbers(least)}


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux lists them there
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


def cards() -> list[str]:
    """Name, compute capability, driver and memory of each NVIDIA card, as the driver's own tool tells."""
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in answer.splitlines() if line.count(",") == 3]
    return [f"{name}, compute capability {cc}, driver {driver}, {memory} MB" for name, cc, driver, memory in rows]
