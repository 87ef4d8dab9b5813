"""Files and folders that are the user's alone: others can neither read what is kept there nor put anything there."""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sana_runtime.errors import BackendError, MemoryLimitError
from sana_runtime.publish import FULL

__all__ = ["make_private", "open_private", "replace_private", "signing_key"]

KEY_BYTES = 32
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
