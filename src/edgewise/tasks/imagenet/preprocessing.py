"""Turn a photo's bytes into a model's input, or into a *model-ready* payload.

Every model sees the centre square of ``size / (size + 32)`` times the shorter side, resized to
``size`` x ``size`` with a bicubic filter. That is the evaluation of the EfficientNet-lite authors,
and their published accuracies depend on it. The work can be split between two machines: the ingress
crops, resizes and re-encodes (`make_ready`), and the destination only decodes. Cropping twice would
cost 4.7 points of accuracy, so a payload states the size for which it is ready.

EXIF orientation is ignored, as in the published evaluations. A model-ready payload has no EXIF
data, so both forms of a photo have the same orientation.
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
"""Larger images are refused before they are decoded: 192 MB of RGB is enough for one request."""

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


def _open(photo: bytes) -> Image.Image:
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
    if picture.width * picture.height > MAX_PIXELS:
        raise ImagesError(
            f"the image is refused: {picture.width} x {picture.height} pixels, "
            f"at most {MAX_PIXELS} in all are decoded"
        )
    return picture


def _rgb(picture: Image.Image) -> Image.Image:
    try:
        if "transparency" in picture.info:
            picture = picture.convert("RGBA")  # a palette with alpha converts to RGB only via RGBA
        return picture.convert("RGB")
    except _DECODE_ERRORS as error:
        raise ImagesError(f"the image cannot be decoded: {error}") from None


def crop_and_resize(photo: bytes, size: int, *, draft: bool = True) -> Image.Image:
    """The ``size`` x ``size`` RGB image that a model of that input size sees of a photo.

    With `draft`, a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and full scale at which the
    crop still has `size` pixels, which saves most of the decoding of a large photo. Raises
    ImagesError with the reason if the bytes cannot be decoded.
    """
    picture = _open(photo)
    if draft:
        # The crop is size / (size + 32) of the shorter side, so size + 32 keeps it >= size.
        picture.draft("RGB", (size + 32, size + 32))
    picture = _rgb(picture)
    from PIL import Image

    box = crop_box(picture.width, picture.height, size)
    return picture.crop(box).resize((size, size), Image.Resampling.BICUBIC)


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
    picture = _rgb(picture)
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
