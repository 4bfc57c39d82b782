"""`preprocessor_config.json` of a vision model → the steps that its images go through.

The families whose transformers classes do no more than resize, crop, rescale and normalize: ViT
(and Swin, which uses its class), DeiT, BEiT, CLIP, SigLIP, ConvNeXT, BiT (and DINOv2). What a
file leaves out is what the class says; a step set to null is off. A file that asks for anything
else is refused here, at export, so that nothing is left to refuse when images come.

`do_convert_rgb` and `do_reduce_labels` are read over: every image is RGB by the time that these
steps see it, and the second one is about segmentation maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfc.errors import BadCheckpoint
from tfc.manifest import ImagePreprocess, Resize

PREPROCESSOR_CONFIG = "preprocessor_config.json"

# Pillow's numbers, which are what the files hold, and its names, which the manifest shows.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

_KNOWN_FLAGS = frozenset(
    {
        "do_resize",
        "do_center_crop",
        "do_rescale",
        "do_normalize",
        "do_convert_rgb",
        "do_reduce_labels",
    }
)
_SIZES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
)
# ConvNeXT's class crops below this size and squeezes the whole image from it on.
_CONVNEXT_WHOLE = 384


@dataclass(frozen=True)
class _Family:
    """What a transformers image processor class does unless the file says otherwise.

    `square`: whether a size of one number is both sides, or the shorter one.
    """

    resample: int
    size: Mapping[str, int]
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    crop_size: Mapping[str, int] | None = None
    center_crop: bool = False
    square: bool = True
    crop_pct: float | None = None


_SQUARE_224 = {"height": 224, "width": 224}
_CLIP = _Family(
    resample=3,
    size={"shortest_edge": 224},
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    crop_size=_SQUARE_224,
    center_crop=True,
    square=False,
)
# By the name of the class, without what follows the family's name.
_FAMILIES = {
    "ViT": _Family(resample=2, size=_SQUARE_224),
    "DeiT": _Family(
        resample=3,
        size={"height": 256, "width": 256},
        crop_size=_SQUARE_224,
        center_crop=True,
    ),
    "Beit": _Family(resample=3, size=_SQUARE_224, crop_size=_SQUARE_224),
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": _Family(resample=3, size=_SQUARE_224, square=False),
    "ConvNext": _Family(resample=3, size={"shortest_edge": 384}, square=False, crop_pct=224 / 256),
}
_CLASS_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
# For a file that names no class: transformers then goes by the model's type.
_FAMILY_OF_MODEL = {
    "vit": "ViT",
    "swin": "ViT",
    "swinv2": "ViT",
    "deit": "DeiT",
    "beit": "Beit",
    "clip": "CLIP",
    "siglip": "Siglip",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "bit": "Bit",
    "dinov2": "Bit",
}


def image_steps_from_config(
    config: Mapping[str, Any], model_type: str = "", where: str = PREPROCESSOR_CONFIG
) -> ImagePreprocess:
    """The steps that `config` asks for, as transformers' class of it would take them.

    Args:
        config: what `preprocessor_config.json` holds, or `processor_config.json`, where the
            same stands under `image_processor`.
        model_type: the `model_type` of `config.json`; needed where `config` names no class.
        where: the file, for messages.

    Raises:
        BadCheckpoint: the class is of no family above, or a value is not one that it takes, or
            a step is asked for that tfc does not know.
    """
    file = _File(config.get("image_processor", config), where)
    family = _family_of(file, model_type)
    _refuse_other_steps(file)
    normalize = file.flag("do_normalize", True)
    resize, crop = _geometry(file, family)
    return ImagePreprocess(
        resize=resize,
        crop=crop,
        rescale_factor=file.number("rescale_factor", 1 / 255)
        if file.flag("do_rescale", True)
        else None,
        mean=file.colours("image_mean", family.mean) if normalize else None,
        std=file.colours("image_std", family.std) if normalize else None,
    )


def _family_of(file: _File, model_type: str) -> _Family:
    name = file.values.get("image_processor_type") or file.values.get("feature_extractor_type")
    if name is None:
        name = f"{_FAMILY_OF_MODEL.get(model_type, model_type)}ImageProcessor"
    suffix = next((s for s in _CLASS_SUFFIXES if str(name).endswith(s)), "")
    family = _FAMILIES.get(str(name).removesuffix(suffix)) if suffix else None
    if family is None:
        raise file.refused(f"the image processor '{name}' is not one that tfc knows")
    return family


def _refuse_other_steps(file: _File) -> None:
    flags = {name for name in file.values if name.startswith("do_")} - _KNOWN_FLAGS
    asked = sorted(name for name in flags | {"use_square_size"} if file.values.get(name))
    if asked:
        raise file.refused(f"it asks for '{asked[0]}', a step that tfc does not know")


def _geometry(file: _File, family: _Family) -> tuple[Resize | None, list[int] | None]:
    """The resize and the crop; ConvNeXT's class derives both from one size below 384."""
    crop = None
    if file.flag("do_center_crop", family.center_crop):
        crop = _crop(file, family)
    if not file.flag("do_resize", True):
        return None, crop
    size = _size(file, "size", family.size, family.square)
    filter_name = _filter(file, family)
    if family.crop_pct is None:
        return Resize(filter_name, **size), crop
    if set(size) != {"shortest_edge"}:
        raise file.refused("the size of a ConvNeXT model is its shortest edge, and nothing else")
    edge = size["shortest_edge"]
    if edge >= _CONVNEXT_WHOLE:
        return Resize(filter_name, height=edge, width=edge), crop
    if crop is not None:
        raise file.refused("the images are cropped twice: by 'crop_pct' and by 'crop_size'")
    larger = int(edge / file.number("crop_pct", family.crop_pct))
    return Resize(filter_name, shortest_edge=larger), [edge, edge]


def _crop(file: _File, family: _Family) -> list[int]:
    size = _size(file, "crop_size", family.crop_size, square=True)
    if set(size) != {"height", "width"}:
        raise file.refused("'crop_size' has no height and width")
    return [size["height"], size["width"]]


def _size(
    file: _File, name: str, default: Mapping[str, int] | None, square: bool
) -> dict[str, int]:
    """A size in its spellings: one number, [height, width], or an object."""
    value = file.value(name, default)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, int):
        both = file.flag("default_to_square", square)
        value = {"height": value, "width": value} if both else {"shortest_edge": value}
    if not isinstance(value, Mapping) or set(value) not in _SIZES:
        raise file.refused(f"'{name}' is {value!r}, which tfc does not know as a size")
    if not all(type(pixels) is int and pixels > 0 for pixels in value.values()):
        raise file.refused(f"'{name}' is {dict(value)!r}, and pixels are whole numbers from 1 on")
    return dict(value)


def _filter(file: _File, family: _Family) -> str:
    number = file.value("resample", family.resample)
    if type(number) is not int or number not in range(len(FILTERS)):
        raise file.refused(f"'resample' is {number!r}, which is no filter of Pillow's")
    return FILTERS[number]


@dataclass(frozen=True)
class _File:
    """The values of the file, read one by one. Null is not left out: it turns a flag off."""

    values: Mapping[str, Any]
    where: str

    def value(self, name: str, default: Any) -> Any:
        return self.values.get(name, default)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name, default)
        if value is not None and not isinstance(value, bool):
            raise self.refused(f"'{name}' is {value!r}, not true or false")
        return bool(value)

    def number(self, name: str, default: float) -> float:
        value = self.value(name, default)
        if type(value) not in (int, float) or not value > 0:
            raise self.refused(f"'{name}' is {value!r}, not a number above 0")
        return float(value)

    def colours(self, name: str, default: tuple[float, ...]) -> list[float]:
        value = self.value(name, default)
        values = value if isinstance(value, (list, tuple)) else [value] * 3
        if len(values) != 3 or not all(type(v) in (int, float) for v in values):
            raise self.refused(f"'{name}' is {value!r}, not three numbers for red, green and blue")
        if name == "image_std" and not all(values):
            raise self.refused("'image_std' has a 0, and is divided by")
        return [float(v) for v in values]

    def refused(self, what: str) -> BadCheckpoint:
        return BadCheckpoint(
            what,
            where=self.where,
            fix="Give the model tensors instead of images, or correct the file",
        )
