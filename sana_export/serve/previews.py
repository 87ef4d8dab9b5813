"""What is there so far, as a small PNG."""

import base64

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sana_runtime.picture import Picture

from sana_export.serve.jobs import Job

__all__ = ["enlarged", "small", "text"]


def small(job: Job) -> str | None:
    """The preview of the picture under way, one pixel for 32 × 32 of the final one, as a data URL."""
    pixels = _pixels(job)
    return None if pixels is None else f"data:image/png;base64,{text(Picture(pixels).png(metadata=False))}"


def enlarged(job: Job) -> bytes | None:
    """The preview at the size of the final picture."""
    pixels = _pixels(job)
    if pixels is None:
        return None
    height, width = job.order.size
    large = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return Picture(np.asarray(large)).png()  # tagged as a model's, as every picture of this size is


def text(png: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(png).decode("ascii")


def _pixels(job: Job) -> NDArray[np.uint8] | None:
    event = job.event
    previews = event.preview() if event is not None else None
    return None if previews is None else previews[0]
