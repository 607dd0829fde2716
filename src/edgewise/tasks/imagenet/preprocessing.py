"""From the bytes of a photo to the numbers a model reads, and to the *model-ready* payload.

Every classifier of the ladder sees the centre square of ``size / (size + 32)`` times the shorter
side, resized to ``size`` x ``size`` with a bicubic filter (the evaluation of the EfficientNet-lite
authors; their published accuracies need exactly this). The two halves can run on different
machines: the ingress crops, resizes and re-encodes (``make_ready``), the destination only decodes.
Cropping twice costs 4.7 points of accuracy, so a payload says for which size it is ready.

EXIF orientation is ignored, here and in the published evaluations alike; a model-ready payload
carries no EXIF, so both forms of one photo are seen the same way up.
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
"""What is decoded. A closed list: every further decoder is code that strangers' bytes reach."""

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: 192 MB of RGB is enough for one request."""

READY_QUALITY = 92
"""JPEG quality of the model-ready form, with 4:4:4 chroma: the smallest of those measured whose
accuracy change was within the noise (quality 85 or subsampled chroma cost 1-3 points)."""

_BGR_MEANS = np.array([104.006, 116.669, 122.679], dtype=np.float32)

# What Pillow's decoders raise on bytes that are not what they claim to be.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def crop_box(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """The centre square a model of input ``size`` looks at: left, top, right, bottom in pixels."""
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
            picture = picture.convert("RGBA")  # a palette with alpha goes to RGB by this way only
        return picture.convert("RGB")
    except _DECODE_ERRORS as error:
        raise ImagesError(f"the image cannot be decoded: {error}") from None


def crop_and_resize(photo: bytes, size: int, *, draft: bool = True) -> Image.Image:
    """The ``size`` x ``size`` RGB picture that a model of that input size sees of a photo.

    With ``draft``, a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and full scale that still
    holds the crop at ``size`` pixels; that saves most of the decoding of a large photo.
    Raises ``ImagesError`` with the reason when the bytes cannot be decoded.
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
    """JPEG bytes of a picture; ``subsampling`` 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def make_ready(photo: bytes, size: int) -> bytes:
    """The model-ready form of a photo: what a model of input ``size`` sees, as JPEG q92 4:4:4.

    Raises ``ImagesError`` with the reason when the photo cannot be decoded.
    """
    return encode(crop_and_resize(photo, size))


def sample_photo() -> bytes:
    """A JPEG of 500 x 375 pixels, as ImageNet's photos mostly are; noise, so no decoder can skip.

    For warming up where no photo is at hand.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("live", "pillow") from None
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    return encode(Image.fromarray(pixels))


def to_picture(payload: bytes, size: int, ready_size: int | None = None) -> Image.Image:
    """Decode a payload of either form into the ``size`` x ``size`` RGB picture a model reads.

    ``ready_size`` is the input size for which the payload was cropped and resized, ``None`` for
    an original photo. A model-ready payload is never cropped; one made for another size is only
    resized (which costs accuracy: a payload is bound to the model it was made for).
    Raises ``ImagesError`` when it cannot be decoded or does not have the size it claims.
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
    """A 1 x 3 x H x W float32 batch of one, normalised as the model was trained."""
    pixels = np.asarray(picture, dtype=np.float32)
    if channels == "rgb":
        pixels = (pixels - np.float32(127)) * np.float32(1 / 128)
    else:
        pixels = pixels[:, :, ::-1] - _BGR_MEANS
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis])
