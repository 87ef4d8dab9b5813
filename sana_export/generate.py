"""Paint what the command line orders: one prompt or a file of them, once or repeated from a picture."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import UsageError
from sana_runtime.picture import Picture, read_picture, read_recipe
from sana_runtime.pipeline import Pipeline
from sana_runtime.progress import StepEvent
from sana_runtime.prompt_cache import PromptCache

from sana_export.painting import interruptible

__all__ = ["Order", "Painted", "generate"]

PREVIEW_SCALE = 8  # a preview has one pixel for 32 × 32; this makes it something to look at

OnOrderStep = Callable[[int, int, str, int, int, float | None], None]


@dataclass(frozen=True)
class Order:
    """The options of `sana-export generate`; None means the recipe's value, or the bundle's own."""

    prompt: str | None
    output: Path
    size: tuple[int, int] | None
    steps: int | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    negative: str | None
    seed: int | None
    solver: str | None
    count: int
    prompts: Path | None
    image: Path | None
    strength: float | None
    like: Path | None
    preview: bool
    no_metadata: bool
    keep_prompts: bool
    device: str

    def prompt_list(self) -> list[str]:
        """Every prompt to paint; UsageError unless they come from exactly one place."""
        given = [name for name in ("prompt", "prompts") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError("both PROMPT and --prompts were given; give one of them")
        if self.prompts is not None:
            return _lines(self.prompts)
        if self.prompt is not None:
            return [self.prompt]
        if self.like is not None:
            return [read_recipe(self.like).prompt]
        raise UsageError("nothing to paint; give a PROMPT, --prompts FILE or --like PNG")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.generate` that the prompts share."""
        chosen: dict[str, Any] = {}
        if self.like is not None:
            recipe = read_recipe(self.like)
            for name in ("negative", "size", "steps", "guidance", "guidance_interval", "seed", "solver"):
                chosen[name] = getattr(recipe, name)
        for name in ("size", "steps", "guidance", "guidance_interval", "negative", "seed", "solver", "strength"):
            if getattr(self, name) is not None:
                chosen[name] = getattr(self, name)
        if self.image is not None:
            chosen["image"] = read_picture(self.image)
        return chosen

    def path(self, number: int, total: int) -> Path:
        """Where picture `number` of `total` goes."""
        if total == 1:
            return self.output
        return self.output.with_name(f"{self.output.stem}-{number}{self.output.suffix}")


@dataclass(frozen=True)
class Painted:
    """One picture on disk."""

    path: Path
    seed: int
    seconds: float


def generate(bundle: Path, order: Order, on_step: OnOrderStep) -> Iterator[Painted]:
    """Paint the order; each picture is on disk before the next is begun."""
    prompts, arguments = order.prompt_list(), order.arguments()
    seed = arguments.pop("seed", 42)
    if order.count < 1:
        raise UsageError(f"count {order.count}: give a whole number from 1 up")
    if order.output.suffix.lower() != ".png":
        raise UsageError(f"{order.output}: pictures are written as PNG; give the file a name that ends in .png")
    if order.preview and open_bundle(bundle).preview is None:
        raise UsageError(f"{bundle} has no preview map, so --preview has no effect; leave it out or build it again")
    total = len(prompts) * order.count
    _prepare([order.path(number, total) for number in range(total)])
    kept = PromptCache() if order.keep_prompts else None
    with Pipeline.open(bundle, device=order.device, prompt_cache=kept, size=arguments.get("size")) as pipeline:
        for number in range(total):
            began, path = time.monotonic(), order.path(number, total)

            def told(event: StepEvent, number: int = number, path: Path = path) -> None:
                on_step(number, total, event.stage, event.index, event.total, event.seconds_left)
                if order.preview:
                    _write_preview(event, path)

            prompt, chosen = prompts[number // order.count], seed + number % order.count
            picture = interruptible(
                pipeline,
                lambda prompt=prompt, chosen=chosen, told=told: pipeline.generate(  # type: ignore[misc]
                    prompt, seed=chosen, on_step=told, **arguments
                ),
            )
            assert isinstance(picture, Picture)
            picture.save(path, metadata=not order.no_metadata)
            yield Painted(path, chosen, round(time.monotonic() - began, 3))


def _prepare(outputs: list[Path]) -> None:
    """Make the folder, and refuse before painting what could not be written after it."""
    folder = outputs[0].absolute().parent
    if blocked := next((path for path in outputs if path.is_dir()), None):
        raise UsageError(f"{blocked}: a folder has this name; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: pictures cannot be written there; choose another --output")


def _write_preview(event: StepEvent, path: Path) -> None:
    pixels = event.preview()
    if pixels is not None:
        size = (pixels.shape[2] * PREVIEW_SCALE, pixels.shape[1] * PREVIEW_SCALE)
        large = Image.fromarray(pixels[0]).resize(size, Image.Resampling.BICUBIC)
        Picture(np.asarray(large)).save(path.with_suffix(".preview.png"))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error}); give one prompt a line") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise UsageError(f"{path}: no prompt in it; give one prompt a line")
    return prompts
