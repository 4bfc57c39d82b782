"""Images → `pixel_values`, equal to what the checkpoint's transformers image processor gives.

Each image is first what `transformers.image_utils.load_image` makes of it, whichever way it
comes: turned upright by its EXIF orientation, and RGB by Pillow's `convert`, which drops alpha (a
processor that is handed a transparent PIL image without `load_image` may put it on white instead),
takes 16-bit grey above 255 for white, and keeps the first frame of several. Then it is resized,
cropped, rescaled and normalized as `ImagePreprocess` says, in the number formats of transformers'
Pillow processors, whose values it equals bit for bit (`backend="pil"`; its torchvision processors
resize with other arithmetic).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tfc.errors import BadArtifact, BadData, BadInput, first_line, require
from tfc.manifest import ImagePreprocess, Resize
from tfc.runtime.image_steps import FILTERS
from tfc.runtime.media_files import opened_file

if TYPE_CHECKING:
    from PIL import Image

Floats = npt.NDArray[np.float32]

PIXEL_VALUES = "pixel_values"

# Raster formats that Pillow decodes itself. It knows others, of which EPS starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO")
# A thin strip grows without bounds when its shorter side is scaled up: 1 x 50000 pixels become
# 224 x 11 million. The limit is Pillow's own for opening images: a quarter GiB of RGB.
MAX_RESIZED_PIXELS = 1024**3 // 4 // 3
_SMALLER = "Scale or cut it to a common size first"


class ImageEncoder:
    """Turns images into the model's input. Safe to call from several threads.

    Args:
        preprocess: the steps, from `image_steps_from_config`.

    Raises:
        MissingPackage: Pillow is not installed.
        BadArtifact: a value of `preprocess` is not one that `image_steps_from_config` gives.
    """

    def __init__(self, preprocess: ImagePreprocess) -> None:
        require("PIL", "images")
        _check(preprocess)
        self.preprocess = preprocess
        self._values = _values_of_bytes(preprocess)

    def encode(self, items: Sequence[object]) -> list[Floats]:
        """One float32 array `[3, height, width]` per item.

        All have the crop's size where the steps crop, and the resize's where it is exact;
        otherwise each keeps its aspect ratio.

        Args:
            items: each the path of an image file, the bytes of one, a PIL image, or a uint8
                array `[height, width, 3]` (RGB), `[height, width, 1]` or `[height, width]`
                (grey).

        Raises:
            BadInput: an item is none of these, or a file that cannot be read.
            BadData: a file holds no image, half of one, or one too large to be safe.
        """
        return [self.encode_one(item, f"item {index}") for index, item in enumerate(items)]

    def encode_one(self, item: object, where: str) -> Floats:
        """`encode` of one item; its errors name `where`, or its path if it is one."""
        where = str(item) if isinstance(item, (str, Path)) else where
        image = _image_of_item(item, where)
        if self.preprocess.resize:
            image = _resized(image, self.preprocess.resize, where)
        if self.preprocess.crop:
            image = _cropped(image, *self.preprocess.crop)
        pixels = np.asarray(image)
        channels = zip(self._values, np.moveaxis(pixels, -1, 0), strict=True)
        return np.stack([values[channel] for values, channel in channels])

    def batch(self, arrays: Sequence[Floats]) -> dict[str, Floats]:
        """The graph's input by name: `[batch, 3, height, width]`.

        Raises:
            BadInput: the arrays differ in size.
        """
        sizes = sorted({array.shape[1:] for array in arrays})
        if len(sizes) > 1:
            (height, width), (other_height, other_width) = sizes[:2]
            raise BadInput(
                f"images of {height} x {width} and {other_height} x {other_width} pixels cannot"
                " run together, and this model neither crops nor squeezes them",
                fix="Give images of one aspect ratio, or one at a time",
            )
        return {PIXEL_VALUES: np.stack(arrays)}


def _check(preprocess: ImagePreprocess) -> None:
    resize = preprocess.resize
    exact = resize is not None and resize.height and resize.width
    good = (
        (resize is None or (resize.filter in FILTERS and (exact or resize.shortest_edge)))
        and (preprocess.crop is None or len(preprocess.crop) == 2)
        and (preprocess.mean is None) == (preprocess.std is None)
        and all(v is None or len(v) == 3 for v in (preprocess.mean, preprocess.std))
    )
    if not good:
        raise BadArtifact(
            "the steps for images do not fit together",
            fix="Export the checkpoint again with: tfc export --overwrite",
        )


def _values_of_bytes(preprocess: ImagePreprocess) -> Floats:
    """What each byte becomes in each channel: [3, 256].

    Rescaling and normalizing see one byte at a time, so 256 results serve every image. Rescaled
    in float64 and rounded to float32 before the mean is taken off: transformers' order.
    """
    values = np.arange(256, dtype=np.float64)
    if preprocess.rescale_factor is not None:
        values = values * preprocess.rescale_factor
    channels = np.broadcast_to(values.astype(np.float32), (3, 256))
    if preprocess.mean is None or preprocess.std is None:
        return channels
    mean = np.array(preprocess.mean, np.float32)[:, None]
    std = np.array(preprocess.std, np.float32)[:, None]
    return (channels - mean) / std


def _image_of_item(item: object, where: str) -> Image.Image:
    """The item as an upright RGB image."""
    from PIL import Image

    if isinstance(item, np.ndarray):
        return _image_of_array(item, where)
    if isinstance(item, (str, Path)):
        with opened_file(item) as file:
            item = file.read()
    if not isinstance(item, (bytes, bytearray, Image.Image)):
        raise BadInput(
            f"this is a {type(item).__name__}, not an image",
            where=where,
            fix="Give a path, the bytes of an image file, a PIL image or a uint8 array",
        )
    try:
        opened = item if isinstance(item, Image.Image) else _opened(bytes(item))
        image = _upright_rgb(opened)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and many more
        raise _bad_image(error, where) from error
    if 0 in image.size:
        raise BadInput("the image has no pixels", where=where, fix="Leave it out")
    return image


def _opened(data: bytes) -> Image.Image:
    from PIL import Image

    Image.init()  # registers every format, so that those which this Pillow lacks can be left out
    return Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])


def _upright_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning
    return image.convert("RGB")


def _bad_image(error: Exception, where: str) -> BadData:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        what, fix = "this is not an image of a format that tfc reads", "Save it as PNG or JPEG"
    elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        what, fix = f"the image is too large to be opened ({first_line(error)})", _SMALLER
    else:
        what = f"the image is damaged or cut short ({first_line(error)})"
        fix = "Get it again from its source"
    return BadData(what, where=where, fix=fix)


def _image_of_array(array: npt.NDArray[np.generic], where: str) -> Image.Image:
    from PIL import Image

    if array.dtype != np.uint8:
        raise BadInput(
            f"an array of images holds uint8 from 0 to 255, and this one holds {array.dtype}",
            where=where,
            fix="Convert it with astype(numpy.uint8), after scaling it to 0..255",
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not is_image or array.size == 0:
        raise BadInput(
            f"an array of shape {list(array.shape)} is not one image",
            where=where,
            fix="Give [height, width, 3] as RGB, or [height, width] as grey",
        )
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _resized(image: Image.Image, resize: Resize, where: str) -> Image.Image:
    from PIL import Image

    height, width = _new_size(image.height, image.width, resize)
    if min(height, width) < 1 or height * width > MAX_RESIZED_PIXELS:
        raise BadData(
            f"an image of {image.height} x {image.width} pixels (height x width) would become"
            f" {height} x {width}",
            where=where,
            fix=_SMALLER,
        )
    return image.resize((width, height), Image.Resampling[resize.filter.upper()])


def _new_size(height: int, width: int, resize: Resize) -> tuple[int, int]:
    """(height, width) after resizing; fractions of a pixel are cut off, as in transformers."""
    if resize.height and resize.width:
        return resize.height, resize.width
    short, long = sorted((height, width))
    new_short = resize.shortest_edge or short
    new_long = int(new_short * long / short)
    if resize.longest_edge and long / short * new_short > resize.longest_edge:
        exact = resize.longest_edge * short / long
        new_short, new_long = round(exact), int(exact * long / short)
        if new_short == short:
            return height, width
    return (new_short, new_long) if height <= width else (new_long, new_short)


def _cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle: with an odd rest, one pixel more is cut off below and at the right, or filled
    in above and at the left.
    """
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
