"""Turn a photo's bytes into a model's input, or into a *model-ready* payload.

Every model sees the centre square of ``size / (size + 32)`` times the shorter side, resized to
``size`` x ``size`` with a bicubic filter. That is the evaluation of the EfficientNet-lite authors,
and their published accuracies depend on it. The work can be split between two machines: the ingress
crops, resizes and re-encodes (`make_ready`), and the destination only decodes. Cropping twice would
cost 4.7 points of accuracy, so a payload states the size for which it is ready.

The orientation that a camera notes in EXIF is applied, so a phone's photo stands upright. A
model-ready payload is turned already and has no EXIF data, so both forms show the same.

A photo is untrusted: its header alone decides whether it is decoded (`MAX_PIXELS`, `MEMORY_MAX`).
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from edgewise.errors import ImagesError, MissingExtra

if TYPE_CHECKING:
    from PIL import Image

Channels = Literal["rgb", "bgr"]
"""``rgb``: (x - 127) / 128 each, EfficientNet-lite. ``bgr``: minus the means below, SqueezeNet."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are decoded. The list is closed: every further decoder is code that untrusted bytes
reach."""

MAX_PIXELS = 64_000_000
"""Larger photos are refused: a camera's has at most 50 million, and decoding takes CPU time."""
MAX_SIDE = 65_535
"""Pixels. JPEG's own limit; Pillow keeps a pointer for every row."""
MEMORY_MAX = 256_000_000
"""Bytes that one photo may take while it is decoded; a photo that needs more is refused. That is
enough for a square PNG of 28 million pixels, a WebP of 12 million, a progressive JPEG of 42
million, and any other JPEG of `MAX_PIXELS`, which is decoded at a fraction of its size."""
BYTES_PER_PIXEL = 4
"""Pillow's, for RGB too."""
WEBP_BYTES_PER_PIXEL = 12
"""That libwebp takes besides: two canvases, and the copy that Pillow reads."""

_ORIENTATION = 0x0112
"""The EXIF tag."""

READY_QUALITY = 92
"""JPEG quality of the model-ready form, with 4:4:4 chroma: the lowest measured quality without a
loss of accuracy beyond the noise (quality 85 or subsampled chroma cost 1–3 points)."""

_BGR_MEANS = np.array([104.006, 116.669, 122.679], dtype=np.float32)

# Exceptions of Pillow's decoders on malformed bytes.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def crop_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """The centre square that a model of input ``size`` sees: left, top, right, bottom in pixels."""
    side = max(1, int(size / (size + 32) * min(width, height)))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def _open(photo: bytes, draft: int | None = None) -> Image.Image:
    """Open a photo, without decoding it; `draft` is as in `crop_and_resize`, in pixels.

    Raises ImagesError if it is no photo, or too large.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("live", "pillow") from None
    if not photo:
        raise ImagesError("the image cannot be decoded: it has 0 bytes")
    try:
        picture = Image.open(io.BytesIO(photo), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImagesError(f"the image is refused: {error}") from None
    except _DECODE_ERRORS:
        raise ImagesError(
            f"the image cannot be decoded: expected {', '.join(FORMATS)}, "
            f"got {len(photo)} bytes that begin with {photo[:8]!r}"
        ) from None
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImagesError(
            f"the image is refused: {width} x {height} pixels, at most {MAX_PIXELS} in all and "
            f"{MAX_SIDE} a side are decoded"
        )
    if draft is not None:
        picture.draft("RGB", (draft, draft))
    needed = _memory_needed(picture, width * height)
    if needed > MEMORY_MAX:
        raise ImagesError(
            f"the image is refused: to decode {width} x {height} pixels of {picture.format} takes "
            f"{needed / 1e6:.0f} MB, at most {MEMORY_MAX / 1e6:.0f} are allowed"
        )
    return picture


def _memory_needed(picture: Image.Image, pixels: int) -> int:
    """Bytes for decoding a photo of so many `pixels`, and for its centre square as RGB."""
    square = min(picture.size) ** 2
    # A quarter more than the square as RGB: what it is converted from, a part of which is freed.
    needed = BYTES_PER_PIXEL * (picture.width * picture.height + square + square // 4)
    if picture.format == "WEBP":
        needed += WEBP_BYTES_PER_PIXEL * pixels
    elif "progressive" in picture.info:  # libjpeg keeps all coefficients, of two bytes each
        needed += 2 * len(picture.getbands()) * pixels
    return needed


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):  # grey in 16 bits, which Pillow would clip to white
        from PIL import Image

        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # a palette with alpha converts to RGB only via RGBA
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture, turned or mirrored as EXIF's `orientation` says."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation; 1, upright, if there is none that can be read."""
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except (*_DECODE_ERRORS, KeyError, TypeError):
        return 1
    return found if isinstance(found, int) else 1


def crop_and_resize(photo: bytes, size: int, *, draft: bool = True) -> Image.Image:
    """The ``size`` x ``size`` RGB image that a model of that input size sees of a photo.

    With `draft`, a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and full scale at which the
    crop still has `size` pixels, which saves most of the decoding of a large photo. Raises
    ImagesError with the reason if the bytes cannot be decoded.
    """
    # The crop is size / (size + 32) of the shorter side, so size + 32 keeps it >= size.
    picture = _open(photo, size + 32 if draft else None)
    from PIL import Image

    box = crop_box(picture.width, picture.height, size)
    try:
        # Cropped before anything is converted, and turned last: that takes the least memory.
        square = picture.crop(box)
        orientation = _orientation(picture)
        del picture
        small = _rgb(square).resize((size, size), Image.Resampling.BICUBIC)
    except _DECODE_ERRORS as error:
        raise ImagesError(f"the image cannot be decoded: {error}") from None
    return _upright(small, orientation)


def encode(picture: Image.Image, quality: int = READY_QUALITY, subsampling: int = 0) -> bytes:
    """JPEG bytes of an image; ``subsampling`` 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def make_ready(photo: bytes, size: int) -> bytes:
    """The model-ready form of a photo: what a model of input ``size`` sees, as JPEG q92 4:4:4.

    Raises ``ImagesError`` with the reason when the photo cannot be decoded.
    """
    return encode(crop_and_resize(photo, size))


def sample_photo() -> bytes:
    """A JPEG of 500 x 375 pixels, the usual size in ImageNet, for warming up without a photo.

    Its pixels are noise, so that decoding takes as long as it can.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("live", "pillow") from None
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    return encode(Image.fromarray(pixels))


def to_picture(payload: bytes, size: int, ready_size: int | None = None) -> Image.Image:
    """Decode a payload of either form to the ``size`` x ``size`` RGB image that a model reads.

    `ready_size` is the input size for which the payload was cropped and resized, None for an
    original photo. A model-ready payload is never cropped again; one made for another size is only
    resized, which costs accuracy. Raises ImagesError if it cannot be decoded or does not have the
    size it claims.
    """
    if ready_size is None:
        return crop_and_resize(payload, size)
    picture = _open(payload)
    if picture.size != (ready_size, ready_size):
        raise ImagesError(
            f"the payload says it is model-ready for {ready_size}: "
            f"expected {ready_size} x {ready_size} pixels, got {picture.width} x {picture.height}"
        )
    try:
        picture.load()
        picture = _rgb(picture)
    except _DECODE_ERRORS as error:
        raise ImagesError(f"the image cannot be decoded: {error}") from None
    if ready_size == size:
        return picture
    from PIL import Image

    return picture.resize((size, size), Image.Resampling.BICUBIC)


def to_array(picture: Image.Image, channels: Channels) -> npt.NDArray[np.float32]:
    """The image as a 1 x 3 x H x W float32 batch, normalised as in the model's training."""
    pixels = np.asarray(picture, dtype=np.float32)
    if channels == "rgb":
        pixels = (pixels - np.float32(127)) * np.float32(1 / 128)
    else:
        pixels = pixels[:, :, ::-1] - _BGR_MEANS
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis])
