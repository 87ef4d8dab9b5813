"""What is kept between runs in the user's cache folder, and how to be rid of it."""

import shutil
from pathlib import Path

import platformdirs

__all__ = ["cache_folder", "clear_cache", "entries"]


def cache_folder() -> Path:
    """Where everything that can be made again is kept."""
    return Path(platformdirs.user_cache_dir("sana-export"))


def entries() -> list[tuple[str, int]]:
    """Name and size in bytes of each thing that is kept."""
    folder = cache_folder()
    if not folder.is_dir():
        return []
    return [(entry.name, _size(entry)) for entry in sorted(folder.iterdir())]


def clear_cache() -> int:
    """Remove everything; returns the bytes that this freed."""
    freed = sum(size for _, size in entries())
    for name, _ in entries():
        entry = cache_folder() / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return freed


def _size(entry: Path) -> int:
    if entry.is_symlink() or entry.is_file():
        return entry.lstat().st_size
    return sum(file.lstat().st_size for file in entry.rglob("*") if not file.is_dir())
