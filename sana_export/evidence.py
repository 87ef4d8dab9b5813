"""The gate's evidence as JSON: numbers as they are, pictures as PNG in base64."""

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sana_calibration.gate import Evidence

__all__ = ["pack", "png", "unpack"]

LISTS = ("latent_cosines", "psnrs", "ssims")


def png(pixels: NDArray[np.uint8]) -> str:
    """A picture as the text of a data address."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def pack(evidence: Evidence) -> dict[str, Any]:
    """Everything, to be stored."""
    return {
        "velocity_errors": [[timestep, errors] for timestep, errors in evidence.velocity_errors.items()],
        "pictures": [[png(pixels) for pixels in pair] for pair in evidence.pictures],
        **{name: getattr(evidence, name) for name in LISTS},
    }


def unpack(stored: dict[str, Any]) -> Evidence:
    """What `pack` gave."""
    errors = dict(stored["velocity_errors"])
    pictures = [(_pixels(first), _pixels(second)) for first, second in stored["pictures"]]
    return Evidence(errors, **{name: stored[name] for name in LISTS}, pictures=pictures)


def _pixels(text: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
