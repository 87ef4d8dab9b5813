"""Pictures and their files: PNG with everything needed to paint the same picture again."""

import io
import json
import struct
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sana_runtime.errors import UsageError
from sana_runtime.guidance import ALWAYS

__all__ = ["Picture", "Recipe", "read_picture", "read_recipe"]

KEY = "sana-export"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow knows dozens more, one of which starts another program
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error)
# The tag by which readers of the IPTC standard know a picture made by a generative model.
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"/>'
    "</rdf:RDF></x:xmpmeta>"
)


@dataclass(frozen=True)
class Recipe:
    """What was asked of the pipeline: enough to paint the same picture again."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    size: tuple[int, int]  # height, width
    solver: str
    bundle: str  # the bundle's own digest
    device: str
    version: str
    negative: str = ""
    guidance_interval: tuple[float, float] = ALWAYS


@dataclass(frozen=True)
class Picture:
    """One painted picture."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    recipe: Recipe | None = None

    def save(self, path: str | Path, *, metadata: bool = True) -> Path:
        """Write a PNG; the old file or the whole new one is there, never half of one."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise UsageError(f"{path}: pictures are written as PNG; give the file a name that ends in .png")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.stem}.", delete=False) as file:
            try:
                file.write(self.png(metadata=metadata))
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return path

    def png(self, *, metadata: bool = True) -> bytes:
        """The picture as the bytes of a PNG file."""
        info = PngInfo()
        if metadata:
            info.add_itxt("XML:com.adobe.xmp", XMP)
            if self.recipe is not None:
                info.add_itxt(KEY, json.dumps(asdict(self.recipe), ensure_ascii=False, sort_keys=True))
        stream = io.BytesIO()
        Image.fromarray(self.pixels).save(stream, "PNG", pnginfo=info, compress_level=4)
        return stream.getvalue()


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """The pixels of any picture file that Pillow reads, as (H, W, 3)."""
    with _opened(path) as image:
        _load(image, path)
        return np.asarray(image.convert("RGB"))


def read_recipe(path: str | Path) -> Recipe:
    """What the PNG at `path` says about how it was painted; no model is loaded."""
    with _opened(path) as image:
        _load(image, path)
        text = getattr(image, "text", {}).get(KEY)
    if text is None:
        raise UsageError(f"{path}: no recipe inside; it was not painted here, or its metadata was removed")
    try:
        return _recipe(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UsageError(f"{path}: its recipe cannot be read ({ascii(str(error))[1:-1][:100]})") from error


def _recipe(fields: Any) -> Recipe:
    """A recipe out of JSON, each field of the type that it must have."""
    if not isinstance(fields, dict):
        raise TypeError("it is not an object")
    height, width = fields.pop("size")
    low, high = fields.pop("guidance_interval", ALWAYS)  # older pictures do not tell it
    recipe = Recipe(size=(height, width), guidance_interval=(low, high), **fields)
    for name in ("prompt", "negative", "solver", "bundle", "device", "version"):
        text = getattr(recipe, name)
        if not isinstance(text, str):
            raise TypeError(f"{name} is not text")
        text.encode()  # half a surrogate pair, which JSON can spell, could be shown nowhere
    for value in (height, width, recipe.seed, recipe.steps):
        if type(value) is not int:
            raise TypeError("size, seed and steps must be whole numbers")
    for value in (recipe.guidance, low, high):
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise TypeError("guidance is not a number")
    return recipe


def _opened(path: str | Path) -> Image.Image:
    try:
        return Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (*DAMAGE, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: not a picture ({error}); give a file of {', '.join(FORMATS)}") from error


def _load(image: Image.Image, path: str | Path) -> None:
    """Read all of a picture, so that damage shows here."""
    try:
        image.load()
    except DAMAGE as error:
        raise UsageError(f"{path}: the picture is damaged ({error})") from error
