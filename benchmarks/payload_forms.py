"""What each payload form costs in bytes, CPU and accuracy, on a folder of labelled photos.

    python benchmarks/payload_forms.py DIR --sample 300 --json payload_forms.json

A photo can travel as it is, or cropped and resized at the ingress as the destination's model
would do it and encoded again. For every model and form this prints, over the photos:

* bytes: median payload;
* crop, encode: median CPU of the ingress, for decoding + cropping + resizing, and for encoding;
* decode: median CPU of the destination, from the payload to the model's input;
* top-1, and its change against the original with a 95 % interval, paired by photo.

CPU is that of the thread (``time.thread_time``), so other processes on the machine blur it less
than they would wall-clock time. Runs on one thread. Needs prepared models (``edgewise models
prepare``).
"""

from __future__ import annotations

import io
import math
import platform
import statistics
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from edgewise.cli.failures import in_one_line
from edgewise.errors import BadInput

with in_one_line():
    from PIL import Image

    from edgewise.tasks.imagenet import zoo
    from edgewise.tasks.imagenet.images import load_images
    from edgewise.tasks.imagenet.preprocessing import crop_and_resize, encode, to_array, to_picture

OTHER_SIZE = 160
"""The size of the form that was made for another model."""


class Form(msgspec.Struct, frozen=True):
    """One way of sending a photo to a model of input ``size``."""

    name: str
    crop: Callable[[bytes, int], Image.Image] | None
    """What the ingress does with the photo; None: nothing, the original travels."""
    encode: Callable[[Image.Image], bytes] | None
    decode: Callable[[bytes, int], Image.Image]


def _webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _ready(payload: bytes, size: int) -> Image.Image:
    return to_picture(payload, size, model_ready=size)


def _ready_other(payload: bytes, size: int) -> Image.Image:
    return to_picture(payload, size, model_ready=OTHER_SIZE)


FORMS = (
    Form("original", None, None, crop_and_resize),
    Form(
        "original, decoded in full",
        None,
        None,
        lambda photo, size: crop_and_resize(photo, size, draft=False),
    ),
    Form("JPEG q92 4:4:4 (model-ready)", crop_and_resize, encode, _ready),
    Form("JPEG q85 4:4:4", crop_and_resize, lambda p: encode(p, 85, 0), _ready),
    Form("JPEG q85 4:2:0", crop_and_resize, lambda p: encode(p, 85, 2), _ready),
    Form("WebP q80", crop_and_resize, _webp, _ready),
    Form("q92 4:4:4, cropped twice", crop_and_resize, encode, crop_and_resize),
    Form(
        f"q92 4:4:4 made for {OTHER_SIZE}",
        lambda photo, _: crop_and_resize(photo, OTHER_SIZE),
        encode,
        _ready_other,
    ),
    Form(
        "raw pixels, zlib",
        crop_and_resize,
        lambda p: zlib.compress(p.tobytes(), 1),
        lambda payload, size: Image.frombytes("RGB", (size, size), zlib.decompress(payload)),
    ),
)


class Result(msgspec.Struct, frozen=True):
    """One row of the table. Times are CPU seconds, ``change`` and ``half_width`` shares of 1."""

    model: str
    form: str
    photos: int
    bytes: float
    crop_s: float
    encode_s: float
    decode_s: float
    accuracy: float
    change: float
    half_width: float


def _run(model: zoo.OnnxModel, photo: bytes, form: Form) -> tuple[int, float, float, float, int]:
    """Bytes, crop, encode and decode seconds, and the class answered, for one photo."""
    size, crop_s, encode_s, payload = model.card.size, 0.0, 0.0, photo
    if form.crop is not None and form.encode is not None:
        start = time.thread_time()
        picture = form.crop(photo, size)
        cropped = time.thread_time()
        payload = form.encode(picture)
        encode_s, crop_s = time.thread_time() - cropped, cropped - start
    start = time.thread_time()
    batch = to_array(form.decode(payload, size), model.card.channels)
    decode_s = time.thread_time() - start
    return len(payload), crop_s, encode_s, decode_s, int(model.predict(batch)[0].argmax())


def _summary(model: str, form: str, rows: list[Any], right: Any, base: Any) -> Result:
    difference = right.astype(float) - base
    # Agresti and Min's interval for paired shares: the plain one has no width where, by luck,
    # no photo changed sides.
    n, net, changed = len(rows) + 2, float(difference.sum()), float(abs(difference).sum())
    half_width = 1.96 * math.sqrt(changed + 1 - net**2 / n) / n
    size, crop_s, encode_s, decode_s = (statistics.median(row[i] for row in rows) for i in range(4))
    return Result(
        model=model,
        form=form,
        photos=len(rows),
        bytes=size,
        crop_s=crop_s,
        encode_s=encode_s,
        decode_s=decode_s,
        accuracy=float(right.mean()),
        change=float(difference.mean()),
        half_width=half_width,
    )


def _table(model: str, results: list[Result]) -> Table:
    table = Table(title=f"{model}, {results[0].photos} photos", title_justify="left")
    table.add_column("form")
    for heading in ("bytes", "crop ms", "encode ms", "decode ms", "top-1 %", "change (95 %)"):
        table.add_column(heading, justify="right")
    for row in results:
        table.add_row(
            row.form,
            f"{row.bytes:,.0f}",
            f"{1000 * row.crop_s:.2f}",
            f"{1000 * row.encode_s:.2f}",
            f"{1000 * row.decode_s:.2f}",
            f"{100 * row.accuracy:.1f}",
            "-"
            if row.form == FORMS[0].name
            else f"{100 * row.change:+.1f} ± {100 * row.half_width:.1f}",
        )
    return table


def main(
    images: Annotated[str, typer.Argument(metavar="DIR", help="Labelled photos, or 'builtin'.")],
    sample: Annotated[
        int | None, typer.Option(min=2, help="Only this many photos, evenly spaced.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--model", help="Model to run; may be repeated.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the results here.")] = None,
) -> None:
    """Bytes, CPU and accuracy of each payload form, on labelled photos."""
    try:
        photos = load_images(images)
        models = [zoo.load(name) for name in names or ("lite0-128", "lite0-224", "lite2")]
    except BadInput as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if sample is not None and sample < len(photos):
        photos = photos[:: len(photos) // sample][:sample]
    console = Console()
    typer.echo(photos.describe(), err=True)
    results: list[Result] = []
    for model in models:
        rows: dict[str, list[Any]] = {form.name: [] for form in FORMS}
        right: dict[str, list[bool]] = {form.name: [] for form in FORMS}
        for photo in track(photos, model.card.name, console=Console(stderr=True)):
            data = photo.read()
            for form in FORMS:
                *costs, answer = _run(model, data, form)
                rows[form.name].append(costs)
                right[form.name].append(answer == photo.label)
        base = np.array(right[FORMS[0].name], dtype=float)
        of_model = [
            _summary(model.card.name, form.name, rows[form.name], np.array(right[form.name]), base)
            for form in FORMS
        ]
        results.extend(of_model)
        console.print(_table(model.card.name, of_model))
    if json is not None:
        document = {
            "command": "python benchmarks/payload_forms.py DIR",
            "data": photos.describe().rpartition(" (")[0],
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")},
            },
            "results": results,
        }
        json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


if __name__ == "__main__":
    with in_one_line():
        typer.run(main)
