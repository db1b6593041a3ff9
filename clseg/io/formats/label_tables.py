"""Label tables: what the numbers of a label map mean and how they are coloured, for programs that do not read it from the map itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from clseg.catalogue import Anatomy
from clseg.io.files import writing

_RULE = "#" * 48
_ITKSNAP_HEAD = (
    _RULE,
    "# ITK-SnAP Label Description File",
    "# File format:",
    "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
    _RULE,
)


def write_itksnap(path: Path, anatomies: Sequence[Anatomy]) -> None:
    """A label description file of ITK-SNAP (Segmentation → Import Label Descriptions)."""
    rows = [_itksnap_row(0, (0, 0, 0), 0, "Clear Label"), *(_itksnap_row(a.id, a.colour, 1, a.name) for a in anatomies)]
    _write(path, [*_ITKSNAP_HEAD, *rows])


def write_slicer_colours(path: Path, anatomies: Sequence[Anatomy]) -> None:
    """A colour table of 3D Slicer (drag it into the window before the label map, or choose it in Volumes → Display)."""
    rows = [f"{a.id} {a.name} {' '.join(map(str, a.colour))} 255" for a in anatomies]
    _write(path, [f"# Color table file {path.name}", f"# {len(rows) + 1} values", "0 Background 0 0 0 0", *rows])


def _itksnap_row(id: int, colour: tuple[int, int, int], shown: int, name: str) -> str:
    red, green, blue = colour
    return f'{id:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"'


def _write(path: Path, lines: Iterable[str]) -> None:
    with writing(path, "w") as stream:
        stream.write("\n".join(lines) + "\n")


TABLE_WRITERS: Mapping[str, Callable[[Path, Sequence[Anatomy]], None]] = {"itksnap": write_itksnap, "slicer": write_slicer_colours}
