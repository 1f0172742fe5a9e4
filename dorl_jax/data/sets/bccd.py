"""BCCD: fields of view with boxes, and a table of the kinds of leucocytes in them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from dorl_jax.data.images import inspect_image
from dorl_jax.data.listing import Row
from dorl_jax.data.sets.archives import files_of
from dorl_jax.data.sets.base import DataSet
from dorl_jax.data.sets.parts import Box
from dorl_jax.data.tables import opened_csv
from dorl_jax.errors import InputError, name_some

_WORDS = {
    "NEUTROPHIL": "neutrophil",
    "LYMPHOCYTE": "lymphocyte",
    "MONOCYTE": "monocyte",
    "EOSINOPHIL": "eosinophil",
    "BASOPHIL": "basophil",
}
_IMAGES, _BOXES, _TABLE = "JPEGImages", "Annotations", "labels.csv"
_STEM = "BloodImage_"


def _read(roots: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """Boxes say where a leucocyte is, the table which kinds a field shows.

    A box has a label where the table names one kind, as many times as there are boxes. Other fields are left out.
    """
    images = [
        path
        for path in files_of(roots, (".jpg",))
        if path.parent.name == _IMAGES and (path.parent.parent / _BOXES).is_dir() and path.name.startswith(_STEM)
    ]
    if not images:
        return [], []
    folders = {path.parent for path in images}
    if len(folders) > 1:
        raise InputError(f"BCCD is there {len(folders)} times: {name_some(sorted(folders))}; name one of them")
    tables = [path for path in files_of(roots, (".csv",)) if path.name == _TABLE]
    if not tables:
        raise InputError(
            f"no {_TABLE} beside {images[0].parent}: the kinds of the cells are in the companion table, see `get`"
        )
    kinds = _kinds(tables[0])
    if any(_kinds(table) != kinds for table in tables[1:]):
        raise InputError(f"{tables[0]} and {name_some(tables[1:])} differ; leave one")
    rows: list[Row] = []
    unclear = 0
    for image in images:
        boxes = _boxes(image.parent.parent / _BOXES / f"{image.stem}.xml")
        named = kinds.get(int(image.stem.removeprefix(_STEM)), [])
        if not boxes or len(named) != len(boxes) or len(set(named)) != 1:
            unclear += 1
            continue
        facts = inspect_image(image)
        frame = Box(0, 0, facts.width, facts.height)
        for number, box in enumerate(boxes, 1):
            rows.append(
                Row(
                    file=image.name if len(boxes) == 1 else f"{image.name}#{number}",
                    image=box.with_margin(frame).of(image),
                    label=named[0],
                    group=image.stem,
                    where=str(image),
                )
            )
    notes = []
    if unclear:
        notes.append(f"{unclear} fields of BCCD are left out: which box is which kind of leucocyte is not said.")
    return rows, notes


def _kinds(table: Path) -> dict[int, list[str]]:
    """Number of the field -> the kinds of its leucocytes. The columns are "", "Image", "Category"."""
    kinds: dict[int, list[str]] = {}
    with opened_csv(table) as file:
        reader = csv.DictReader(file, restval="", strict=True)
        if not {"Image", "Category"} <= set(reader.fieldnames or ()):
            raise InputError(f"{table} has no columns Image and Category: it is not the table of BCCD")
        for row in reader:
            if not row["Image"].strip():
                continue
            where = f"{table}, line {reader.line_num}"
            if not row["Image"].strip().isdigit():
                raise InputError(f"{where}: {row['Image']!r} is no number of a field")
            named = [name.strip() for name in row["Category"].split(",") if name.strip()]
            unknown = [name for name in named if name not in _WORDS]
            if unknown:
                raise InputError(f"{where}: unknown kind {unknown[0]!r}; there are {name_some(_WORDS)}")
            kinds[int(row["Image"])] = named
    return kinds


def _boxes(path: Path) -> list[Box]:
    """The boxes of leucocytes from left to right; none where there is no file."""
    if not path.is_file():
        return []
    try:
        objects = ElementTree.parse(path).getroot().iter("object")
        corners = [
            [int(float(item.findtext(f"bndbox/{name}", "")) + 0.5) for name in ("xmin", "ymin", "xmax", "ymax")]
            for item in objects
            if item.findtext("name") == "WBC"
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path} is no file of boxes (Pascal VOC): {error}") from error
    return sorted((Box(*values) for values in corners), key=lambda box: (box.left, box.top))


BCCD = DataSet(
    name="bccd",
    title="BCCD Dataset, with the kinds of leucocytes of the companion table",
    homepage="https://github.com/Shenggan/BCCD_Dataset",
    get="clone github.com/Shenggan/BCCD_Dataset (BCCD/JPEGImages/BloodImage_00000.jpg, BCCD/Annotations/*.xml), and "
    "put dataset-master/labels.csv of kaggle.com/datasets/paultimothymooney/blood-cells beside it",
    download_urls=("https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip",),
    reader=_read,
    words=_WORDS,
    licence="MIT",
)
