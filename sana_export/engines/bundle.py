"""Build the engines of a bundle's parts into the user's cache, those alone that are not there yet."""

import contextlib
import hashlib
import mmap
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from sana_runtime.bundle import Bundle
from sana_runtime.engine_cache import EngineCache, EngineKey
from sana_runtime.engine_keys import engine_files, engine_key, fused
from sana_runtime.engine_shapes import Span, engine_signature
from sana_runtime.errors import BackendError, BundleError, BusyError, MemoryLimitError, UsageError
from sana_runtime.publish import FULL
from sana_runtime.signature import PARTS

from sana_export.engines.build import OnBuildProgress, build_engine
from sana_export.engines.job import BuiltEngine, EngineJob
from sana_export.engines.library import CAPABILITIES, Library, version_of

__all__ = ["EngineOutcome", "EngineRequest", "build_engines"]

TURING = 75
ADA = 89
CHUNK = 1 << 20
NEEDS = {"fp8": ADA, "int4": 80}  # the least compute capability that has these products


@dataclass(frozen=True)
class EngineRequest:
    """Which engines are wanted."""

    capabilities: tuple[int, ...]
    library: Library = Library.RTX
    plugin: bool = True
    parts: tuple[str, ...] = ()  # all that the bundle has, when empty
    span: Span | None = None  # of the pictures; all that the bundle paints, when None
    streams: bool = False  # whether weights may stay off the card
    fused_mix_ffn: bool = False  # whether the middle of an INT8 Mix-FFN is a plugin, too


@dataclass(frozen=True)
class EngineOutcome:
    """What became of one engine."""

    key: EngineKey
    path: Path | None  # in the cache; None when it was refused
    built: BuiltEngine | None = None  # None when it was there already, or was refused
    refusal: str = ""


def build_engines(
    bundle: Bundle,
    request: EngineRequest,
    cache: EngineCache,
    on_progress: OnBuildProgress = lambda progress: None,
) -> tuple[EngineOutcome, ...]:
    """Every engine that was asked for, one after the other; what the library refuses is reported, not raised.

    BackendError when it refused every one.
    """
    keys = _keys(bundle, request)

    def nth(index: int) -> OnBuildProgress:
        """Each build's progress as a share of them all."""
        return lambda one: on_progress(replace(one, fraction=(index + one.fraction) / len(keys)))

    outcomes = tuple(_outcome(bundle, key, request.span, cache, nth(i)) for i, key in enumerate(keys))
    if all(outcome.path is None for outcome in outcomes):
        raise BackendError(outcomes[0].refusal)
    return outcomes


def _keys(bundle: Bundle, request: EngineRequest) -> list[EngineKey]:
    parts = request.parts or tuple(part for part in PARTS if part in bundle.manifest.parts)
    missing = [part for part in parts if part not in bundle.manifest.parts]
    if missing:
        raise UsageError(f"{bundle.path} has no part {missing[0]}; it has {', '.join(bundle.manifest.parts)}")
    library = (request.library.value, version_of(request.library))
    keys = [
        replace(
            engine_key(bundle, part, library, together, plugin=request.plugin, span=request.span),
            streams=request.streams,
        )
        for part in parts
        for together in _groups(request)
    ]
    return _fused(keys) if request.fused_mix_ffn else keys


def _fused(keys: list[EngineKey]) -> list[EngineKey]:
    changed = [fused(key) for key in keys]
    if changed == keys:
        raise UsageError("--fused-mix-ffn needs an INT8 transformer, and the plugin; build without it")
    return changed


def _groups(request: EngineRequest) -> Iterator[tuple[int, ...]]:
    """Which architectures share an engine: with Turing among them all would get its slower plan."""
    if request.library is Library.TENSORRT:  # builds for the card at hand, whichever that is
        yield from ((one,) for one in request.capabilities)
        return
    unknown = [one for one in request.capabilities if one not in CAPABILITIES]
    if unknown or not request.capabilities:
        known = ", ".join(map(str, CAPABILITIES))
        raise UsageError(f"compute capability {unknown[0] if unknown else 'none'} is not known; choose from {known}")
    if TURING in request.capabilities:
        yield (TURING,)
    others = tuple(sorted(set(request.capabilities) - {TURING}))
    if others:
        yield others


def _outcome(
    bundle: Bundle, key: EngineKey, span: Span | None, cache: EngineCache, on_progress: OnBuildProgress
) -> EngineOutcome:
    kept = cache.load(key)
    if kept is not None:
        return EngineOutcome(key, cache.folder / key.file)
    try:
        _check_precision(key)
        _check_files(bundle, key.part)
        return _built(bundle, key, span, cache, on_progress)
    except BackendError as error:
        return EngineOutcome(key, None, refusal=str(error))


def _built(
    bundle: Bundle, key: EngineKey, span: Span | None, cache: EngineCache, on_progress: OnBuildProgress
) -> EngineOutcome:
    signature = engine_signature(bundle.manifest.parts[key.part].signature, span)
    with _workplace(cache, key) as folder:
        job = EngineJob(
            part=key.part,
            graph=bundle.graph(key.part),
            output=folder / key.file,
            profiles=signature.profiles(),
            capabilities=key.capabilities,
            library=Library(key.library),
            plugin=key.plugin,
            streams=key.streams,
            fused_mix_ffn=key.fused_mix_ffn,
        )
        built = build_engine(job, on_progress)
        with (
            built.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as engine,
        ):
            path = cache.store(key, engine)
    return EngineOutcome(key, path, built)


@contextlib.contextmanager
def _workplace(cache: EngineCache, key: EngineKey) -> Iterator[Path]:
    """A folder beside the entry for nobody but us; one line says why there can be none."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_alone(cache, key))
            folder = stack.enter_context(_fresh(cache.folder, f".{key.file}.building-"))
        except OSError as error:
            if error.errno in FULL:
                raise MemoryLimitError(f"{cache.folder}: the disk is full; run `sana-export cache clear`") from error
            why = f"{error.filename or cache.folder}: {error.strerror or error}"
            raise BackendError(f"engines cannot be kept ({why}); make {cache.folder} writable") from error
        yield folder


@contextlib.contextmanager
def _fresh(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder that no build had before: the process of one that was killed may still write where it was told to."""
    for left in parent.glob(f"{prefix}*"):  # what such a build left
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alone(cache: EngineCache, key: EngineKey) -> Iterator[None]:
    """The right to build this engine; BusyError while another process has it."""
    cache.prepare()
    lock = FileLock(cache.folder / f".{key.file}.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise BusyError(f"the engine of {key.part} is being built by another process; wait for it") from None


def _check_precision(key: EngineKey) -> None:
    least = NEEDS.get(key.precision, 0)
    older = [one for one in key.capabilities if one < least]
    if older:
        raise BackendError(
            f"{key.part} is {key.precision}, which compute capability {older[0] / 10} does not have; "
            f"leave it out of --sm, or build a bundle at --precision int8"
        )


def _check_files(bundle: Bundle, part: str) -> None:
    """The bytes must be those that the key names, or the engine would be kept under another's name."""
    for name in engine_files(bundle, part):
        if _sha256(bundle.file(name)) != bundle.manifest.files[name].sha256:
            raise BundleError(f"{bundle.path}: {name} changed since it was packed; build the bundle again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
