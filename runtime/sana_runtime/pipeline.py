"""The whole way from a prompt to pictures, inside somebody's app."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.ahead import workers
from sana_runtime.batches import first_batch
from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.compiled_models import keeping
from sana_runtime.conditioning import Conditioner, Kept
from sana_runtime.engine_shapes import Span, engine_signature
from sana_runtime.errors import UsageError
from sana_runtime.guidance import ALWAYS, Guidance
from sana_runtime.manifest import Defaults
from sana_runtime.memory import available_memory
from sana_runtime.memory_plan import Layout, keeps_all, usual_layout
from sana_runtime.painting import Painting
from sana_runtime.parts import Parts
from sana_runtime.picture import Picture, Recipe
from sana_runtime.progress import OnStep, StepEvent
from sana_runtime.request import Request, check_size
from sana_runtime.session import Arrays, Device, Session, SessionOptions, open_session
from sana_runtime.signature import COMPRESSION, TEXT_PARTS, Signature
from sana_runtime.solver import Solver, make_solver

if TYPE_CHECKING:
    from sana_runtime.prompt_cache import PromptCache

__all__ = ["Pipeline"]


class Pipeline:
    """Paints pictures from one bundle. Safe to call from several threads: they take turns."""

    def __init__(
        self,
        bundle: Bundle,
        parts: Parts,
        devices: Mapping[str, Device],
        span: Span | None = None,
        kept: Kept | None = None,
    ) -> None:
        """`span` is what the engines take, where there are any and they take less than all that the bundle paints.

        `kept` says which prompts stay for later runs, and where.
        """
        self._bundle = bundle
        self._parts = parts
        self._device = "+".join(sorted({chosen.value for chosen in devices.values()}))
        self._conditioner = Conditioner(self._run, bundle.tokenizer(), bundle.prompt_rules(), kept=kept)
        self._signatures = {name: _signature(bundle, name, devices[name], span) for name in bundle.manifest.parts}
        self._turn = threading.Lock()
        self._painter: int | None = None  # the thread whose turn it is

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str | Mapping[str, str] = "auto",
        threads: int = 0,
        prompt_cache: "PromptCache | None" = None,
        size: tuple[int, int] | None = None,
    ) -> "Pipeline":
        """Open a bundle; `device` is auto, a device's name, or names by part (the others are auto).

        With a `prompt_cache`, what prompts become is kept on the disk: painted again, they need no text encoder.
        Parts that stay in memory are made ready from here on, for the bundle's own size (height, width) or this one.
        """
        bundle = open_bundle(Path(path))
        signature = bundle.manifest.parts["transformer"].signature
        check_size(size or bundle.manifest.defaults.size, signature.inputs[0])
        devices = _devices(bundle, device)
        span = None
        if any(chosen.runs_engines for chosen in devices.values()):
            from sana_runtime.engines import require_engines

            span = require_engines(bundle, devices)

        def load(name: str) -> Session:
            if devices[name].runs_engines:
                from sana_runtime.engines import open_engine

                return open_engine(bundle, name, devices[name], span)
            options = SessionOptions.of(bundle.manifest.parts[name], threads)
            return open_session(bundle.graph(name), devices[name], options)

        beside = workers(threads) if set(devices.values()) == {Device.CPU} else 0  # others' libraries may mind threads
        parts = Parts(load, together=keeps_all(bundle, available_memory()), workers=beside)
        if beside:  # the transformer first: it takes longest
            _expect_transformer(parts, signature, usual_layout(bundle.manifest, size))
        for name in TEXT_PARTS if prompt_cache is None else ():  # a prompt that was kept will need neither
            parts.expect(name)
        try:
            return cls(bundle, parts, devices, span, _kept(prompt_cache, bundle, devices, threads))
        except BaseException:
            parts.drop(keep=None)
            raise

    def generate(
        self,
        prompt: str,
        *,
        negative: str = "",
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] = ALWAYS,
        seed: int = 42,
        solver: str | None = None,
        count: int = 1,
        latents: NDArray[np.float32] | None = None,
        image: NDArray[np.uint8] | None = None,
        strength: float = 0.6,
        on_step: OnStep | None = None,
    ) -> Picture | list[Picture]:
        """One picture, or a list of them when `count` is above 1; what is left out is the bundle's own default.

        Picture i of several is the single picture of `seed` + i. `size` is (height, width); `latents` is unit noise
        (count, channels, h, w) in place of the seed's. With an `image` (H, W, 3) the last `strength` of the steps
        repaint it. `on_step` is called after every step and may return True to stop, which raises Interrupted.
        """
        usual = self._bundle.manifest.defaults
        request = Request(
            prompt=prompt,
            negative=negative,
            size=size or (image.shape[:2] if image is not None else usual.size),
            guidance=Guidance(usual.guidance if guidance is None else guidance, guidance_interval),
            seed=seed,
            solver=_solver(usual, solver, steps),
            count=count,
            latents=latents,
            image=image,
            strength=strength,
        )
        request.check(self._signatures["transformer"].inputs[0])
        self._check_guided(request)
        with self._own_turn():
            self._parts.resume()
            pictures = self._paint(request, on_step)
        return pictures if count > 1 else pictures[0]

    def cancel(self) -> None:
        """Stop the painting that is under way, from any thread: its call raises Interrupted within a step."""
        self._parts.interrupt()

    def close(self) -> None:
        """Unload everything; the pipeline may be used again, and then loads again."""
        with self._own_turn():
            self._parts.drop(keep=None)

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """One thread at a time; UsageError for one that would wait for itself."""
        if self._painter == threading.get_ident():
            raise UsageError(
                "on_step may not paint or close the pipeline that calls it; return True, and do so afterwards"
            )
        with self._turn:
            self._painter = threading.get_ident()
            try:
                yield
            finally:
                self._painter = None

    def _paint(self, request: Request, on_step: OnStep | None) -> list[Picture]:
        layout = Layout(request.size, request.count * (2 if self._guided(request) else 1))
        _expect_transformer(self._parts, self._signatures["transformer"], layout)
        painting = Painting(self._run, self._signatures, request, self._bundle.preview, on_step)
        positive = self._conditioner.prompt(request.prompt)
        negative = self._conditioner.negative(request.negative) if self._guided(request) else None
        painting.report(StepEvent("text", 1, 1, 0.0))
        pixels = painting.decode(painting.denoise(positive, negative))
        return [Picture(each, self._recipe(request, i)) for i, each in enumerate(pixels)]

    def _run(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run a part; the decoder is loaded beside the second step: sooner, it would take cores from the first one."""
        if name == "text_encoder":
            self._parts.expect("caption")
        outputs = self._parts.run(name, feeds)
        if name == "transformer":
            self._parts.expect("decoder")
        return outputs

    def _guided(self, request: Request) -> bool:
        """Whether the model is run for the negative prompt: not where it is itself told the guidance, as Sprint is."""
        told = any(spec.name == "guidance" for spec in self._signatures["transformer"].inputs)
        return request.guidance.scale > 1 and not told

    def _check_guided(self, request: Request) -> None:
        """Raise UsageError for what only guidance gives an effect, where there is none."""
        if self._guided(request):
            return
        for given, what in ((request.negative, "negative prompt"), (request.guidance.narrowed, "guidance interval")):
            if given:
                raise UsageError(f"the {what} has no effect without guidance above 1; leave it out, or raise guidance")

    def _recipe(self, request: Request, index: int) -> Recipe:
        return Recipe(
            prompt=request.prompt,
            negative=request.negative,
            seed=request.seed + index,
            steps=len(request.solver.timesteps),
            guidance=request.guidance.scale,
            size=request.size,
            solver=request.solver.name,
            bundle=self._bundle.digest,
            device=self._device,
            version=version("sana-export"),
            guidance_interval=request.guidance.interval,
        )


def _expect_transformer(parts: Parts, signature: Signature, layout: Layout) -> None:
    """Begin to load the transformer, for what is painted at once."""
    height, width = (side // COMPRESSION for side in layout.size)
    batch = first_batch(signature, layout.rows)
    parts.expect("transformer", signature.example_feeds(batch=batch, height=height, width=width, rows=1))


def _solver(usual: Defaults, name: str | None, steps: int | None) -> Solver:
    """The bundle's own solver, or another with its own usual steps."""
    if name is None or name == usual.solver:
        return make_solver(usual.solver, usual.steps if steps is None else steps, usual.shift)
    return make_solver(name, steps, None if name == "scm" else usual.shift)


def _kept(
    prompt_cache: "PromptCache | None", bundle: Bundle, devices: Mapping[str, Device], threads: int
) -> Kept | None:
    """The cache, ready; without one the empty prompt alone is kept, beside the compiled models."""
    if prompt_cache is None and not keeping():
        return None
    from sana_runtime.prompt_cache import empty_prompts, text_source

    if prompt_cache is not None:
        prompt_cache.prepare()
    source = text_source(bundle, devices, threads)
    return Kept(prompt_cache or empty_prompts(), source, every=prompt_cache is not None)


def _devices(bundle: Bundle, device: str | Mapping[str, str]) -> dict[str, Device]:
    """Who runs each part."""
    wanted = device if isinstance(device, Mapping) else dict.fromkeys(bundle.manifest.parts, device)
    unknown = set(wanted) - set(bundle.manifest.parts)
    if unknown:
        raise UsageError(f"device for {', '.join(sorted(unknown))}: this bundle has {', '.join(bundle.manifest.parts)}")
    return {name: _device(wanted.get(name, "auto")) for name in bundle.manifest.parts}


def _signature(bundle: Bundle, part: str, device: Device, span: Span | None) -> Signature:
    """What may be fed to a part: an engine takes fewer sizes than the graph it was built from."""
    signature = bundle.manifest.parts[part].signature
    return engine_signature(signature, span) if device.runs_engines else signature


def _device(name: str) -> Device:
    if name == "auto":
        return Device.CPU
    try:
        return Device(name)
    except ValueError:
        known = ", ".join(["auto", *(device.value for device in Device)])
        raise UsageError(f"{name}: not a device; choose from {known}") from None
