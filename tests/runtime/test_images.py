"""`pixel_values` equal transformers', and what is no image says so in one sentence."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfc.errors import BadArtifact, BadCheckpoint, BadData, BadInput, MissingPackage
from tfc.manifest import ImagePreprocess, Resize
from tfc.runtime.image_steps import image_steps_from_config
from tfc.runtime.images import ImageEncoder

Image = pytest.importorskip("PIL.Image")

WHERE = "preprocessor_config.json"
FIX = "Give the model tensors instead of images, or correct the file"
FAMILIES = ["ViT", "DeiT", "Beit", "CLIP", "Bit", "Siglip", "ConvNext"]
IMAGENET: dict[str, Any] = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def kind(family: str, **values: Any) -> dict[str, Any]:
    return {"image_processor_type": f"{family}ImageProcessor", **values}


# As checkpoints hold them: the newest form, older spellings, and steps turned off.
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"{family}, nothing said": kind(family) for family in FAMILIES},
    "ViT, oldest": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 96,
    },
    "ViT, fast": {**kind("ViT"), "image_processor_type": "ViTImageProcessorFast"},
    "Swin": kind("ViT", resample=3, size={"height": 192, "width": 192}, **IMAGENET),
    "DeiT, oldest": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": 96,
        "do_center_crop": True,
        "size": 110,
        "resample": 3,
        **IMAGENET,
    },
    "CLIP, oldest": {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": 96,
        "size": 96,
        "resample": 3,
    },
    "CLIP, an odd crop": kind("CLIP", size={"shortest_edge": 97}, crop_size=[64, 81]),
    "CLIP, a crop larger than the image": kind("CLIP", size=50, crop_size=[99, 120]),
    "DINOv2": kind("Bit", size={"shortest_edge": 256}, do_convert_rgb=True, **IMAGENET),
    "SigLIP 384": kind("Siglip", size={"height": 384, "width": 384}, do_convert_rgb=None),
    "ConvNeXT, oldest": kind("ConvNext", size=160, crop_pct=0.875, **IMAGENET),
    "ConvNeXT, resnet": kind("ConvNext", size={"shortest_edge": 100}, crop_pct=0.95, resample=2),
    "ConvNeXT, whole": kind("ConvNext", size={"shortest_edge": 384}),
    "BEiT, cropped": kind("Beit", do_center_crop=True, size=120, crop_size=96),
    "two edges": kind("ViT", size={"shortest_edge": 80, "longest_edge": 100}),
    "not square": kind("ViT", size=[90, 130], resample=1),
    "not resized": kind("ViT", do_resize=False, do_center_crop=True, crop_size=70),
    "rescaled only": kind("ViT", do_normalize=False, size=64, resample=4),
    "normalized only": kind("ViT", do_rescale=False, size=64, image_mean=127.5, image_std=127.5),
    "neither": kind("ViT", do_rescale=False, do_normalize=False, size=64, resample=0),
    "another factor": kind("ViT", rescale_factor=0.00392156862745098, size=64, resample=5),
    "steps set to null": kind("CLIP", do_resize=None, size=None, do_normalize=None),
    "squeezed to a square": kind("CLIP", size=60, default_to_square=True),
}
# height x width: portrait, landscape, square, tiny, one pixel in either direction or both.
SIZES = [(120, 80), (80, 121), (97, 97), (7, 5), (1, 9), (9, 1), (1, 1), (300, 211)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    rows = np.linspace(0, 255, height)[:, None, None]
    columns = np.linspace(255, 0, width)[None, :, None]
    return ((rows + columns * [1.0, 0.5, 0.1]) / 2).astype(np.uint8)


def processor(config: dict[str, Any], folder: Path) -> Any:
    """transformers' own, as it loads it from a checkpoint's folder."""
    transformers = pytest.importorskip("transformers")
    (folder / WHERE).write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def saved(image: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


def encoder(**values: Any) -> ImageEncoder:
    return ImageEncoder(image_steps_from_config(kind("ViT", **values)))


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_bit_for_bit(name: str, tmp_path: Path) -> None:
    theirs = processor(CONFIGS[name], tmp_path)
    ours = ImageEncoder(image_steps_from_config(CONFIGS[name]))
    arrays = [make(*size) for size in SIZES for make in (noise, gradient)]

    found = ours.encode(arrays)

    for array, pixels in zip(arrays, found, strict=True):
        expected = np.asarray(theirs(Image.fromarray(array))["pixel_values"][0])
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected.astype(np.float32), str(array.shape))


def test_a_file_is_taken_as_load_image_takes_it(tmp_path: Path) -> None:
    load_image = pytest.importorskip("transformers.image_utils").load_image
    theirs = processor(kind("ViT", size=32), tmp_path)
    colour = Image.fromarray(noise(20, 30))
    palette = colour.quantize(9)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # a quarter turn
    files = {
        "jpeg": saved(colour, format="JPEG"),
        "jpeg on its side": saved(colour, format="JPEG", exif=rotated),
        "two pictures": saved(colour, format="MPO", save_all=True, append_images=[colour]),
        "grey jpeg": saved(colour.convert("L"), format="JPEG"),
        "cmyk jpeg": saved(colour.convert("CMYK"), format="JPEG"),
        "webp": saved(colour, format="WEBP", lossless=True),
        "bmp": saved(colour, format="BMP"),
        "jpeg 2000": saved(colour, format="JPEG2000"),
        "16 bit ppm": b"P6 2 2 65535 " + noise(4, 2).tobytes(),
        "palette": saved(palette),
        "one transparent colour": saved(palette, transparency=3),
        "gif": saved(palette, format="GIF"),
        "alpha": saved(Image.fromarray(np.dstack([noise(20, 30), noise(20, 30)[..., 0]]))),
        "grey and alpha": saved(colour.convert("LA")),
        "one bit": saved(colour.convert("1")),
        "16 bit": saved(Image.fromarray((np.arange(600, dtype=np.uint16) * 109).reshape(20, 30))),
        "float tiff": saved(colour.convert("F"), format="TIFF"),
        "two frames": saved(palette, format="GIF", save_all=True, append_images=[palette]),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        expected = theirs(load_image(Image.open(io.BytesIO(data))))["pixel_values"][0]
        for item in (path, str(path), data, Image.open(io.BytesIO(data))):
            (found,) = encoder(size=32).encode([item])
            np.testing.assert_array_equal(found, expected, name)


def test_a_palette_with_transparent_colours_gives_no_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(noise(20, 30)).quantize(9)
    plain = encoder().encode([palette])
    several = saved(palette, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(encoder().encode([several]), plain)


def test_grey_arrays_are_repeated_into_three_channels() -> None:
    grey = noise(9, 11)[..., 0]
    expected = encoder().encode([np.dstack([grey] * 3)])
    np.testing.assert_array_equal(encoder().encode([grey]), expected)
    np.testing.assert_array_equal(encoder().encode([grey[..., None]]), expected)


def test_arrays_are_never_taken_for_channels_first() -> None:
    narrow = noise(3, 3)
    expected = encoder().encode([Image.fromarray(narrow)])
    np.testing.assert_array_equal(encoder().encode([narrow]), expected)


def test_a_batch_is_one_tensor() -> None:
    made = encoder(size=16)
    batch = made.batch(made.encode([noise(9, 11), noise(4, 5)]))
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].dtype == np.float32


def test_a_batch_of_several_sizes_is_refused() -> None:
    made = encoder(size={"shortest_edge": 16})
    with pytest.raises(BadInput) as caught:
        made.batch(made.encode([noise(10, 20), noise(20, 20)]))
    assert str(caught.value) == (
        "images of 16 x 16 and 16 x 32 pixels cannot run together, and this model neither crops"
        " nor squeezes them. Give images of one aspect ratio, or one at a time"
    )


def test_the_steps_are_plain_values() -> None:
    steps = image_steps_from_config(kind("ConvNext", size={"shortest_edge": 224}))
    assert json.loads(json.dumps(dataclasses.asdict(steps))) == {
        "resize": {
            "filter": "bicubic",
            "height": None,
            "width": None,
            "shortest_edge": 256,
            "longest_edge": None,
        },
        "crop": [224, 224],
        "rescale_factor": 1 / 255,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_the_newest_files_nest_the_steps() -> None:
    nested = {"image_processor": kind("CLIP"), "processor_class": "CLIPProcessor"}
    assert image_steps_from_config(nested) == image_steps_from_config(kind("CLIP"))


def test_a_file_without_a_class_goes_by_the_model() -> None:
    mapping = pytest.importorskip("transformers.models.auto.image_processing_auto")
    from tfc.runtime.image_steps import _FAMILY_OF_MODEL

    for model_type, family in _FAMILY_OF_MODEL.items():
        name = mapping.IMAGE_PROCESSOR_MAPPING_NAMES[model_type]["pil"]
        assert name == f"{family}ImageProcessorPil"
        assert image_steps_from_config({}, model_type) == image_steps_from_config(kind(family))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (kind("Detr"), "the image processor 'DetrImageProcessor' is not one that tfc knows"),
    (kind("Siglip2"), "the image processor 'Siglip2ImageProcessor' is not one that tfc knows"),
    ({}, "the image processor 'ImageProcessor' is not one that tfc knows"),
    (kind("ViT", do_pad=True), "it asks for 'do_pad', a step that tfc does not know"),
    (kind("CLIP", use_square_size=True), "it asks for 'use_square_size', a step that tfc does not"),
    (kind("ViT", do_resize="yes"), "'do_resize' is 'yes', not true or false"),
    (
        kind("ViT", size={"longest_edge": 224}),
        "'size' is {'longest_edge': 224}, which tfc does not know as a size",
    ),
    (kind("ViT", size=0), "'size' is {'height': 0, 'width': 0}, and pixels are whole numbers"),
    (kind("ViT", size=[224.0, 224]), "'size' is {'height': 224.0, 'width': 224}, and pixels are"),
    (kind("ViT", do_center_crop=True), "'crop_size' is None, which tfc does not know as a size"),
    (kind("CLIP", crop_size={"shortest_edge": 9}), "'crop_size' has no height and width"),
    (kind("ViT", resample=6), "'resample' is 6, which is no filter of Pillow's"),
    (kind("ViT", resample=None), "'resample' is None, which is no filter of Pillow's"),
    (kind("ViT", rescale_factor="1/255"), "'rescale_factor' is '1/255', not a number above 0"),
    (kind("ViT", image_mean=[0.5]), "'image_mean' is [0.5], not three numbers for red, green and"),
    (kind("ViT", image_std=[1, 0, 1]), "'image_std' has a 0, and is divided by"),
    (kind("ViT", image_mean=None), "'image_mean' is None, not three numbers for red, green and"),
    (kind("ViT", size=None), "'size' is None, which tfc does not know as a size"),
    (kind("ConvNext", size=[9, 9]), "the size of a ConvNeXT model is its shortest edge, and"),
    (
        kind("ConvNext", size=224, do_center_crop=True, crop_size=200),
        "the images are cropped twice: by 'crop_pct' and by 'crop_size'",
    ),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_refuses_what_it_cannot_do(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        image_steps_from_config(config)
    assert str(caught.value).startswith(f"{WHERE}: {reason}")
    assert str(caught.value).endswith(FIX)


JPEG = saved(Image.fromarray(noise(64, 64)), format="JPEG")
EPS = saved(Image.fromarray(noise(4, 4)), format="EPS")
SENTENCES: list[tuple[object, type[Exception], str]] = [
    (
        b"no image",
        BadData,
        "item 0: this is not an image of a format that tfc reads. Save it as PNG or JPEG",
    ),
    (
        EPS,
        BadData,
        "item 0: this is not an image of a format that tfc reads. Save it as PNG or JPEG",
    ),
    (b"", BadData, "item 0: this is not an image of a format that tfc reads. Save it as PNG or"),
    (JPEG[: len(JPEG) // 2], BadData, "item 0: the image is damaged or cut short (image file is"),
    (
        7,
        BadInput,
        "item 0: this is a int, not an image. Give a path, the bytes of an image file, a PIL"
        " image or a uint8 array",
    ),
    (
        np.zeros((4, 4, 3), np.float32),
        BadInput,
        "item 0: an array of images holds uint8 from 0 to 255, and this one holds float32."
        " Convert it with astype(numpy.uint8), after scaling it to 0..255",
    ),
    (
        np.zeros((4, 4, 4), np.uint8),
        BadInput,
        "item 0: an array of shape [4, 4, 4] is not one image. Give [height, width, 3] as RGB, or"
        " [height, width] as grey",
    ),
    (np.zeros((0, 4, 3), np.uint8), BadInput, "item 0: an array of shape [0, 4, 3] is not one"),
    (Image.new("RGB", (0, 4)), BadInput, "item 0: the image has no pixels. Leave it out"),
    (
        "https://example.org/a.png",
        BadInput,
        "https://example.org/a.png: this is a web address, and tfc fetches nothing. Download it"
        " first, and give the file or its bytes",
    ),
    (
        Path("missing.png"),
        BadInput,
        "missing.png: this file cannot be read: No such file or directory. Check the path; a"
        " relative one starts at the folder that the program runs in",
    ),
    ("a\0b", BadInput, "a\0b: this file cannot be read: embedded null"),
]


@pytest.mark.parametrize(("item", "error", "sentence"), SENTENCES, ids=range(len(SENTENCES)))
def test_says_what_is_wrong_with_an_item(
    item: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        encoder().encode([item])
    assert str(caught.value).startswith(sentence)
    assert type(caught.value) is error


def test_a_decompression_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadData) as caught:
        encoder().encode([saved(Image.fromarray(noise(20, 20)))])
    assert str(caught.value) == (
        "item 0: the image is too large to be opened (Image size (400 pixels) exceeds limit of"
        " 200 pixels, could be decompression bomb DOS attack)."
        " Scale or cut it to a common size first"
    )


def test_a_strip_that_would_become_huge_is_refused() -> None:
    strip = Image.new("RGB", (50_000, 1))
    made = ImageEncoder(image_steps_from_config(kind("CLIP")))
    with pytest.raises(BadData) as caught:
        made.encode([noise(4, 4), strip])
    assert str(caught.value) == (
        "item 1: an image of 1 x 50000 pixels (height x width) would become 224 x 11200000."
        " Scale or cut it to a common size first"
    )


def test_a_strip_that_would_vanish_is_refused() -> None:
    with pytest.raises(BadData, match=r"of 1 x 900 pixels .* become 0 x 100"):
        encoder(size={"shortest_edge": 80, "longest_edge": 100}).encode(
            [Image.new("RGB", (900, 1))]
        )


def test_every_damaged_file_gives_a_tfc_error() -> None:
    made = encoder(size=8)
    rng = np.random.default_rng(0)
    small = Image.fromarray(noise(16, 16))
    refused = 0
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"):
        data = np.frombuffer(saved(small, format=form), np.uint8)
        for _ in range(60):
            damaged = data[: rng.integers(1, len(data) + 1)].copy()
            places = rng.integers(0, len(damaged), 4)
            damaged[places] = rng.integers(0, 256, 4)
            try:
                made.encode([damaged.tobytes()])
            except BadData:  # no other error is right
                refused += 1
    assert 0 < refused < 9 * 60, "some damage only changes the picture"


def test_steps_that_do_not_fit_are_a_bad_artifact() -> None:
    good = ImagePreprocess(Resize("bilinear", 4, 4), None, None, None, None)
    for bad in (
        dataclasses.replace(good, resize=Resize("sharp", 4, 4)),
        dataclasses.replace(good, resize=Resize("bilinear", height=4)),
        dataclasses.replace(good, crop=[4]),
        dataclasses.replace(good, mean=[0.5, 0.5, 0.5]),
        dataclasses.replace(good, mean=[0.5], std=[0.5]),
    ):
        with pytest.raises(BadArtifact) as caught:
            ImageEncoder(bad)
        assert str(caught.value) == (
            "the steps for images do not fit together."
            " Export the checkpoint again with: tfc export --overwrite"
        )


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackage) as caught:
        encoder()
    assert str(caught.value) == (
        "the package 'PIL' is not installed. Install it with: pip install 'tfc[images]'"
    )
