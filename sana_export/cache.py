"""What is kept between runs in the user's cache folder, and how to be rid of it."""

import shutil
from pathlib import Path
from typing import Any

import platformdirs
from sana_runtime.compiled_models import CompiledModels
from sana_runtime.engine_cache import ALL_SIZES, EngineCache
from sana_runtime.errors import UsageError
from sana_runtime.prompt_cache import PromptCache

__all__ = ["cache_folder", "clear_cache", "engines", "entries", "prompts", "render"]


def cache_folder() -> Path:
    """Where everything that can be made again is kept."""
    return Path(platformdirs.user_cache_dir("sana-export"))


def entries() -> list[tuple[str, int]]:
    """Name and size in bytes of each thing that is kept."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    return [(entry.name, _size(entry)) for entry in sorted(folder.iterdir())]


def engines() -> list[dict[str, Any]]:
    """Each engine that is kept, the last used first, with what it was built from by its own account."""
    return [
        {"path": str(entry.path), "bytes": entry.bytes, "used": entry.used, **entry.key.to_dict()}
        for entry in EngineCache().entries()
    ]


def prompts() -> int:
    """Number of prompts that are kept."""
    return len(PromptCache().entries())


def render(kept: list[tuple[str, int]], built: list[dict[str, Any]], encoded: int) -> str:
    """What is kept as lines of text, with the engines and the number of prompts."""
    told = {"prompts": f" ({encoded} of them)"} if encoded else {}
    if models := ", ".join(sorted({model.made_of["part"] for model in CompiledModels().entries()})):
        told["compiled"] = f" (for this CPU: {models})"
    lines = [f"{size / 1e6:>9.1f} MB  {name}{told.get(name, '')}" for name, size in kept]
    for entry in built:
        capabilities = ", ".join(f"{one / 10}" for one in entry["capabilities"])
        form = ", plugin" if entry["plugin"] else ""
        form += ", fused Mix-FFN" if entry["fused_mix_ffn"] else ""
        form += f", sizes {entry['sizes']}" if entry["sizes"] != ALL_SIZES else ""
        form += ", weights streamed" if entry["streams"] else ""
        lines.append(
            f"{entry['bytes'] / 1e6:>9.1f} MB    {entry['part']} {entry['precision']} for {capabilities}{form}, "
            f"{entry['library']} {entry['version']}: {entry['path']}"
        )
    return "\n".join(lines) or "nothing is kept"


def clear_cache(name: str | None = None) -> int:
    """Remove what is kept as `name`, or everything; returns the bytes that this freed."""
    kept = entries() if name is None else [entry for entry in entries() if entry[0] == name]
    if name is not None and not kept:
        known = ", ".join(entry for entry, _ in entries()) or "nothing"
        raise UsageError(f"{name}: not kept here; there is {known}")
    for each, _ in kept:
        entry = cache_folder() / each
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return sum(size for _, size in kept)


def _size(entry: Path) -> int:
    if entry.is_symlink() or entry.is_file():
        return entry.lstat().st_size
    return sum(file.lstat().st_size for file in entry.rglob("*") if not file.is_dir())
