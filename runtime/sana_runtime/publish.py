"""Put a finished folder in the place of another in one instant, whatever happens meanwhile.

A folder is written beside its target, flushed to the disk, and exchanged with what is there. Killed at any moment, the
target is the old folder or the new one. Where the system cannot exchange two folders (Windows, some network disks) the
old one is first moved to `.NAME.previous`; readers find it there through `resident` if the next step never comes.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sana_runtime.errors import BusyError, MemoryLimitError, UsageError
from sana_runtime.names import FILE
from sana_runtime.rules import shown

__all__ = ["publishing", "resident"]

MARKER = "manifest.json"  # only a folder that holds this, and nothing that no bundle holds, is ever replaced
MOST = 16 << 20  # bytes of it; a manifest of ours has 4 MB at most
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if hasattr(errno, "EDQUOT") else (errno.ENOSPC, errno.EFBIG)


@contextmanager
def publishing(target: Path, *, wait: float = 0.0) -> Iterator[Path]:
    """An empty folder to write into; when the block ends well it becomes `target`, when not it is gone.

    Waits up to `wait` seconds for another process that publishes to the same target, then raises BusyError.
    """
    with _translated(target):
        target = _usable(target)
    with _locked(target, wait):
        stage = _beside(target, f"stage-{os.getpid()}")
        try:
            with _translated(target):
                _sweep(target)
                stage.mkdir()
            yield stage
            with _translated(target):
                _flush(stage)
                _put(stage, target)
                _flush_folder(target.parent)
        except OSError as error:  # the caller's own, out of the block
            _refuse_full(target, error)
            raise
        finally:
            _discard(stage, target)


def resident(target: Path) -> Path:
    """Where the folder that was published as `target` lies: there, or where an interrupted publisher left the old."""
    previous = _beside(target, "previous")
    return previous if not target.exists() and previous.is_dir() else target


@contextmanager
def _locked(target: Path, wait: float) -> Iterator[None]:
    """The right to publish to `target`; it ends with the process at the latest."""
    lock = FileLock(_beside(target, "lock"))
    try:
        with _translated(target):
            lock.acquire(timeout=wait)
    except Timeout:
        raise BusyError(
            f"{target} is being written by {_holder(target)}; wait for it, or choose another place"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Say in one line what the system answered to us."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        _refuse_full(target, error)
        raise UsageError(f"{target} cannot be written ({error}); choose another place") from error


def _refuse_full(target: Path, error: OSError) -> None:
    if error.errno in FULL:
        raise MemoryLimitError(f"{target}: the disk is full; free some space and build again") from error


def _discard(stage: Path, target: Path) -> None:
    """Remove what was not finished, or what was there before; if that fails, the next publisher does it."""
    shutil.rmtree(stage, ignore_errors=True)
    if target.exists():
        shutil.rmtree(_beside(target, "previous"), ignore_errors=True)


def _usable(target: Path) -> Path:
    """The place itself, behind links; UsageError if it holds something that is not ours to replace."""
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: no such folder; make it first, or choose another place")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; choose the name of a folder")
    if target.is_dir() and (stranger := _stranger(target)):
        raise UsageError(f"{target} holds other things than a bundle ({shown(stranger)}); choose a new folder")
    return target


def _stranger(folder: Path) -> str:
    """The name of something in the folder that is no bundle's, and would be lost; empty when there is nothing."""
    if _is_foreign(folder / MARKER):
        return next((path.name for path in folder.iterdir()), "")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in files)
    return next((name for name in names if name != MARKER and FILE.complaint(name)), "")


def _is_foreign(manifest: Path) -> bool:
    """Whether this is no manifest of ours, absent or another program's; a damaged one may have been ours."""
    try:
        held = manifest.lstat()
        if not stat.S_ISREG(held.st_mode) or held.st_size > MOST:
            return True  # a pipe would be waited for without end
        content = json.loads(manifest.read_bytes())
    except FileNotFoundError:
        return True
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "parts" not in content


def _sweep(target: Path) -> None:
    """Finish or remove what publishers left that were killed; the lock is ours, so none of them lives."""
    previous = _beside(target, "previous")
    if previous.is_dir() and not target.exists():
        previous.rename(target)
    for leftover in (previous, *_stages(target)):
        if leftover.exists():
            shutil.rmtree(leftover)


def _stages(target: Path) -> list[Path]:
    prefix = _beside(target, "stage-").name
    return [path for path in target.parent.iterdir() if re.fullmatch(re.escape(prefix) + r"\d+", path.name)]


def _beside(target: Path, suffix: str) -> Path:
    return target.parent / f".{target.name}.{suffix}"


def _holder(target: Path) -> str:
    """Whoever holds the lock has made a stage that bears its number."""
    pids = [path.name.rpartition("-")[2] for path in _stages(target)]
    return f"process {', '.join(pids)}" if pids else "another process"


def _put(stage: Path, target: Path) -> None:
    """Let `stage` be `target`; afterwards the old folder, if there was one, is `stage` or the previous."""
    if not target.exists():
        stage.rename(target)
    elif not _exchange(stage, target):
        target.rename(_beside(target, "previous"))
        stage.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system has no such step."""
    paths = os.fsencode(one), os.fsencode(other)
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = library.renameat2(here, paths[0], here, paths[1], swap)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*paths, 2)  # RENAME_SWAP
    else:
        return False
    unsupported = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
    if failed and ctypes.get_errno() not in unsupported:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return not failed


def _flush(folder: Path) -> None:
    """Have the disk hold everything below `folder` before any name points at it."""
    for path, _, names in os.walk(folder):
        for name in names:
            with (Path(path) / name).open("rb" if os.name == "posix" else "r+b") as file:
                os.fsync(file.fileno())
        _flush_folder(Path(path))


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot, and writes names through
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network disks cannot either
        os.fsync(handle)
    os.close(handle)
