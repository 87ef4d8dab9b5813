"""Files and folders that are the user's alone: others can neither read what is kept there nor put anything there."""

import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sana_runtime.errors import BackendError, MemoryLimitError
from sana_runtime.publish import FULL

__all__ = ["by_use", "make_private", "make_room", "open_private", "remove", "replace_private", "signing_key"]

KEY_BYTES = 32
ABANDONED = 3600.0  # seconds after which a file that was never finished is removed
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # nothing is wrong with the file, which must not be removed for it


@contextmanager
def open_private(path: Path) -> Iterator[BinaryIO]:
    """A plain file that is the user's own and closed to others, open for reading; ValueError when it is not."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(_handle(path, flags), "rb") as file:
        held = os.fstat(file.fileno())
        if not stat.S_ISREG(held.st_mode):
            raise ValueError("it is not a plain file")
        if os.name == "posix" and (held.st_uid != os.getuid() or held.st_mode & 0o077):
            raise ValueError("other users can read or write it, or own it")
        yield file


def _handle(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno in PASSING:
            why = f"{path} cannot be opened now ({error.strerror}); close other files or programs, and try again"
            raise BackendError(why) from error
        raise


@contextmanager
def replace_private(target: Path) -> Iterator[BinaryIO]:
    """A file, private to the user, that takes the place of `target` when the block ends well."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", suffix=".part", dir=target.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in FULL:
            raise MemoryLimitError(f"{target.parent}: the disk is full; run `sana-export cache clear`") from error
        raise BackendError(f"{target.parent} cannot be written ({error.strerror}); make it writable") from error


def make_private(folder: Path, mode: int | None = 0o700) -> None:
    """Make `folder` if need be, and refuse one that others may write to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder} cannot be made ({error.strerror}); move what is in its way") from error
    held = folder.lstat()
    if os.name != "posix":
        return
    if stat.S_ISLNK(held.st_mode) or held.st_uid != os.getuid():
        raise BackendError(f"{folder} is a link or another user's; remove it, so that a private one can be made")
    if mode is not None and stat.S_IMODE(held.st_mode) != mode:
        folder.chmod(mode)


def by_use(folder: Path, pattern: str) -> list[tuple[Path, int, float]]:
    """Each file with its size and when it was used, the last used first."""
    found = []
    for path in folder.glob(pattern) if folder.is_dir() else ():
        with suppress(OSError):  # another process may remove it meanwhile
            held = path.lstat()
            found.append((path, held.st_size, held.st_mtime))
    return sorted(found, key=lambda each: (-each[2], each[0]))


def make_room(folder: Path, pattern: str, needed: int, limit: int, keep: Path | None = None) -> None:
    """Remove what was used longest ago until the rest fits beside `needed` bytes, and what was never finished."""
    for path in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime > ABANDONED:
                path.unlink()
    for path, size, _ in by_use(folder, pattern):
        if path != keep:
            needed += size
            if needed > limit:
                remove(path)


def remove(path: Path) -> None:
    """Remove a file; one that is gone or cannot be removed is left."""
    with suppress(OSError):
        path.unlink()


def signing_key(secret: Path) -> bytes:
    """The user's key in the file `secret`, made at first need, and anew when others could have read it."""
    with suppress(OSError, ValueError), open_private(secret) as file:
        key = file.read(KEY_BYTES + 1)
        if len(key) == KEY_BYTES:
            return key
    make_private(secret.parent, mode=None)
    with replace_private(secret) as file:
        file.write(secrets.token_bytes(KEY_BYTES))
    return secret.read_bytes()  # of two processes that come here at once, the later one's counts for both
