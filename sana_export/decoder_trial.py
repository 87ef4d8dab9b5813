"""The decoder's residual convolutions in INT8, where OpenVINO computes them: allowed if pictures stay what they are.

The graph stays float, and other engines run it as it is: theirs would be slower in INT8 (docs/calibration.md). Steps
are found for each picture, so there is nothing to calibrate; tried are the latents of the golden pictures.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray
from sana_runtime.bundle import Bundle
from sana_runtime.manifest import INT8_CONVOLUTIONS
from sana_runtime.session import Device, SessionOptions, open_session

from sana_export.replay import psnr

__all__ = ["DECODER", "DecoderTrial", "try_decoder"]

DECODER = "decoder"
LEAST_PSNR = 45.0  # decibels of the median picture from fp32's: 16-bit products alone cost nano 53
SIDE = 16  # of the latent that is tried: the middle of a large one


@dataclass(frozen=True)
class DecoderTrial:
    """What INT8 convolutions do to pictures."""

    psnrs: tuple[float, ...]  # from fp32's, of the golden latents

    @property
    def shipped(self) -> bool:
        """Whether the bundle says that they may be used."""
        return bool(self.psnrs) and median(self.psnrs) >= LEAST_PSNR

    @property
    def verdict(self) -> str:
        """What is gained and lost, in a sentence."""
        if not self.psnrs:
            return "stays float: there is no golden picture to try INT8 convolutions on"
        told = f"INT8 convolutions in OpenVINO: pictures {median(self.psnrs):.1f} dB from fp32's"
        return f"{told}: used" if self.shipped else f"{told}: stays float, as {LEAST_PSNR:.0f} are asked for"

    def scheme(self, usual: str) -> str:
        """The decoder's scheme."""
        return usual + INT8_CONVOLUTIONS if self.shipped else usual


def try_decoder(bundle: Bundle) -> DecoderTrial:
    """Decode the golden latents in fp32, and as the pipeline would with INT8 convolutions."""
    part = bundle.manifest.parts[DECODER]
    exact = _decoded(bundle, SessionOptions())
    rounded = _decoded(bundle, SessionOptions(part.half_products, int8_convolutions=True))
    return DecoderTrial(tuple(psnr(*pair) for pair in zip(rounded, exact, strict=True)))


def _decoded(bundle: Bundle, options: SessionOptions) -> list[NDArray[Any]]:
    session = open_session(bundle.graph(DECODER), Device.CPU, options)
    latents = (_middle(bundle.golden(record)[0]) for record in bundle.manifest.golden)
    return [session.run({"latent": latent[None]})["image"] for latent in latents]


def _middle(latent: NDArray[Any]) -> NDArray[Any]:
    top, left = (max(0, (side - SIDE) // 2) for side in latent.shape[1:])
    return latent[:, top : top + SIDE, left : left + SIDE]
