"""Open a bundle: a folder of declared data, refused whole when anything in it is anything else.

What is checked before a library sees a single file: the manifest, that exactly the declared files are there, each a
plain file of its own with its declared size, and that every graph holds known operators over declared data only.
`verify` reads every byte besides. docs/bundle-format.md has the full list.
"""

import hashlib
import os
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import BundleError
from sana_runtime.manifest import LARGEST, MANIFEST, FileEntry, GoldenRecord, Manifest, dump, parse
from sana_runtime.names import LICENCES
from sana_runtime.onnx_guard import guard
from sana_runtime.progress import Preview
from sana_runtime.publish import resident
from sana_runtime.rules import shown
from sana_runtime.signature import COMPRESSION
from sana_runtime.verdicts import verdicts

if TYPE_CHECKING:  # these load a library that only painting needs
    from sana_runtime.prompt import PromptRules
    from sana_runtime.tokenizer import Tokenizer

__all__ = ["Bundle", "describe", "open_bundle", "reseal", "seal"]

CHUNK = 1 << 20
MOST_FILES = 600  # a folder with more is not looked through to its end
REMEDY = "build the bundle again"
LONGEST = {"prompt.json": 1 << 20, "tokenizer.json": 128 << 20}  # bytes of files that are read whole


@dataclass(frozen=True)
class Bundle:
    """A bundle whose structure was checked; its files may be handed to the engine libraries."""

    path: Path
    manifest: Manifest
    digest: str  # of the manifest, and through it of every byte

    def file(self, name: str) -> Path:
        """Where the declared file `name` lies; BundleError when the bundle was replaced since it was opened."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name}; build a bundle that has it")
        if _sha256(self.path / MANIFEST) != self.digest:
            raise BundleError(f"{self.path} was replaced while it was in use; open it again")
        return self.path / name

    def graph(self, part: str) -> Path:
        """Where the graph of `part` lies."""
        if part not in self.manifest.parts:
            raise BundleError(f"{self.path} has no part {part}; build a bundle that has it")
        return self.file(self.manifest.parts[part].file)

    @property
    def size(self) -> int:
        """Bytes of all graphs and their data."""
        return sum(entry.size for name, entry in self.manifest.files.items() if name.endswith((".onnx", ".data")))

    def verify(self) -> None:
        """Read every byte and raise BundleError at the first file that is not what was packed."""
        for name, entry in sorted(self.manifest.files.items()):
            if _sha256(self.file(name)) != entry.sha256:
                raise BundleError(f"{self.path}: {name} changed since it was packed; {REMEDY}")

    @cached_property
    def preview(self) -> Preview | None:
        """The map from latents to small pictures, where the bundle has one."""
        fitted = self.manifest.preview
        if fitted is None:
            return None
        return Preview(np.array(fitted.weight, np.float32), np.array(fitted.bias, np.float32))

    def tokenizer(self) -> "Tokenizer":
        """The bundle's tokenizer."""
        from sana_runtime.tokenizer import Tokenizer

        return Tokenizer(self.file("tokenizer.json"))

    def prompt_rules(self) -> "PromptRules":
        """How prompts become tokens."""
        from sana_runtime.prompt import PromptRules

        try:
            return PromptRules.from_json(self.file("prompt.json").read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise BundleError(f"{self.path}: prompt.json is not UTF-8 text; {REMEDY}") from None

    def golden(self, record: GoldenRecord) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """The reference's latent (C, h, w) and pixels (H, W, 3) of a golden record."""
        height, width = record.size
        latent = _array(self.file(record.latent), "<f4", (-1, height // COMPRESSION, width // COMPRESSION))
        return latent, _array(self.file(record.picture), "u1", (height, width, 3))


def open_bundle(path: str | Path) -> Bundle:
    """The bundle in the folder `path`, checked as this module says; BundleError tells what is wrong with it."""
    root = resident(Path(path))
    if not root.is_dir():
        raise BundleError(f"{path}: no such folder; build a bundle with `sana-export build`")
    content = _manifest_bytes(root)
    try:
        return _checked(root, content)
    except BundleError:
        if _manifest_bytes(root) == content:
            raise
        return open_bundle(path)  # it was replaced while we looked


def describe(folder: Path) -> dict[str, FileEntry]:
    """Size and digest of every file in `folder` but the manifest; BundleError for what no bundle may hold."""
    found = _listing(folder)
    found.pop(MANIFEST, None)
    return {name: FileEntry(info.st_size, _sha256(folder / name)) for name, info in sorted(found.items())}


def seal(folder: Path, manifest: Manifest) -> Bundle:
    """Declare every file that lies in `folder`, write the manifest there, and open the bundle that this makes."""
    return _written(folder, replace(manifest, files=describe(folder)))


def reseal(bundle: Bundle, manifest: Manifest) -> Bundle:
    """The bundle with another manifest, for the files that it declares; they are not read again."""
    return _written(bundle.path, replace(manifest, files=bundle.manifest.files))


def _written(folder: Path, manifest: Manifest) -> Bundle:
    (folder / MANIFEST).write_bytes(dump(manifest))
    return open_bundle(folder)


def _checked(root: Path, content: bytes) -> Bundle:
    manifest = parse(content, str(root / MANIFEST))
    _check_files(root, manifest)
    data_files = {name: entry.size for name, entry in manifest.files.items() if name.endswith(".data")}
    before = verdicts()
    for name in sorted(manifest.files):
        if name.endswith(".onnx"):
            guard(root / name, data_files, before)
    return Bundle(root, manifest, hashlib.sha256(content).hexdigest())


def _manifest_bytes(root: Path) -> bytes:
    file = root / MANIFEST
    try:
        complaint = _complaint(file.lstat())
        if complaint:
            raise BundleError(f"{file} {complaint}; {REMEDY}")
        with file.open("rb") as stream:
            return stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise BundleError(
            f"{root} has no {MANIFEST}, so it is not a bundle; give the folder that `build` made"
        ) from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error}); check its permissions") from error


def _check_files(root: Path, manifest: Manifest) -> None:
    """Refuse a folder that does not hold exactly the declared files, each with its declared size."""
    found = _listing(root)
    found.pop(MANIFEST, None)
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            raise BundleError(f"{root}: {name} is missing; {REMEDY}")
        if name not in manifest.files:
            raise BundleError(
                f"{root} holds {shown(name)}, which the manifest does not declare; remove it, or {REMEDY}"
            )
        if found[name].st_size != manifest.files[name].size:
            wrong, right = found[name].st_size, manifest.files[name].size
            raise BundleError(f"{root}: {name} has {wrong} bytes, must have {right}; {REMEDY}")
        if found[name].st_size > LONGEST.get(name, found[name].st_size):
            wrong, most = found[name].st_size, LONGEST[name]
            raise BundleError(f"{root}: {name} has {wrong} bytes, at most {most} are allowed; {REMEDY}")


def _listing(root: Path) -> dict[str, os.stat_result]:
    """Every file by name, also those in the licence folder; BundleError for links, devices and other folders."""
    found: dict[str, os.stat_result] = {}
    for folder, prefix in ((root, ""), (root / LICENCES, f"{LICENCES}/")):
        if folder.is_dir():
            found |= _listing_of(folder, prefix, root)
    return found


def _listing_of(folder: Path, prefix: str, root: Path) -> dict[str, os.stat_result]:
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                info = os.lstat(entry.path)  # scandir's own stat leaves out the link count on Windows
                if not prefix and entry.name == LICENCES and stat.S_ISDIR(info.st_mode) and not _is_reparse(info):
                    continue
                if complaint := _complaint(info):
                    raise BundleError(f"{root}: {shown(prefix + entry.name)} {complaint}; {REMEDY}")
                found[prefix + entry.name] = info
                if len(found) > MOST_FILES:
                    raise BundleError(f"{root} holds more than {MOST_FILES} files; {REMEDY}")
    except OSError as error:
        raise BundleError(f"{root} cannot be read ({error}); check its permissions") from error
    return found


def _complaint(info: os.stat_result) -> str:
    """Why a directory entry is not a plain file of its own; empty when it is one."""
    if stat.S_ISLNK(info.st_mode) or _is_reparse(info):
        return "is a link; bundles hold real files only"
    if not stat.S_ISREG(info.st_mode):
        return "is a folder or a device, not a file"
    if info.st_nlink > 1:
        return "has a second name elsewhere (a hard link); bundles hold files of their own only"
    return ""


def _is_reparse(info: os.stat_result) -> bool:
    """Whether Windows would go elsewhere from here: a junction, a mount point, a link."""
    return bool(getattr(info, "st_file_attributes", 0) & stat.FILE_ATTRIBUTE_REPARSE_POINT)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error}); {REMEDY}") from error
    return digest.hexdigest()


def _array(file: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.fromfile(file, dtype).reshape(shape)
