"""Label names inside a mask file: a Caret XML label table, as TotalSegmentator embeds it, so that its reader works too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from clseg.errors import InputError

Labels = Mapping[int, tuple[str, tuple[int, int, int]]]
"""id → (name, colour as 0–255 red, green, blue)"""

_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <Date><![CDATA[1970-01-01T00:00:00]]></Date>   '
    '<VolumeInformation Index="0">   <LabelTable>'
)
_TAIL = "  </LabelTable>  <StudyMetaDataLinkSet>  </StudyMetaDataLinkSet>  <VolumeType><![CDATA[Label]]></VolumeType>   </VolumeInformation></CaretExtension>"


def to_xml(labels: Labels) -> bytes:
    """The label table as Caret XML (UTF-8), ordered by id; the date is fixed, so that the same labels give the same bytes."""
    rows = [_row(key, *labels[key]) for key in sorted(labels)]
    return "\n".join([_HEAD, *rows, _TAIL]).encode()


def from_xml(xml: bytes) -> dict[int, str]:
    """id → name of a Caret XML label table; InputError when it is not one."""
    from xml.etree import ElementTree

    try:
        root = ElementTree.fromstring(xml.strip(b"\x00 \r\n\t"))
        return {int(row.attrib["Key"]): (row.text or "").strip() for row in root.iter("Label")}
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: no id, or an unknown encoding
        raise InputError(f"The label table embedded in the mask is damaged: {error}.") from error


def read_label_names(path: str | os.PathLike[str]) -> dict[int, str]:
    """id → name of a label map: from the table embedded in the file, else from `<name>.labels.json` or `labels.json` beside it.

    The JSON files hold {name: id} or {id: name}.  Empty when none of them says anything.
    """
    from clseg.io.nifti import extensions

    for content in extensions(path):
        if b"<CaretExtension" in content[:400]:
            return from_xml(content)
    return next((_from_json(sidecar) for sidecar in sidecars(Path(path)) if sidecar.is_file()), {})


def sidecars(path: Path) -> tuple[Path, Path]:
    """The files that may name the ids of a label map, the first that is there counts."""
    return path.with_name(_stem(path.name) + ".labels.json"), path.with_name("labels.json")


def read_label_table(path: str | os.PathLike[str]) -> dict[int, str]:
    """id → name of a file that names the ids of label maps; the background (0) may be among them.

    JSON holds {name: id} or {id: name}, or that under `labels`, as nnU-Net's
    dataset.json does.  CSV (or TSV) has the columns `id` and `name` (`label`, `index`,
    `value`, `structure` are understood), or two columns without a header.

    Raises UsageError when there is no file, InputError when it is neither.
    """
    from clseg.io.files import existing

    path = existing(path)
    return _from_json(path) if path.suffix.lower() == ".json" else _from_csv(path)


def _row(key: int, name: str, colour: tuple[int, int, int]) -> str:
    red, green, blue = (f"{part / 255:.6g}" for part in colour)
    text = name.replace("]]>", "]]]]><![CDATA[>")
    return f'<Label Key="{key}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="1.0"><![CDATA[{text}]]></Label>'


def _stem(name: str) -> str:
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return Path(name).stem


def _from_json(sidecar: Path) -> dict[int, str]:
    try:
        table = json.loads(sidecar.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError("it holds no object")
        table = table["labels"] if isinstance(table.get("labels"), dict) else table
        return _each_once(_pair(key, value) for key, value in table.items())
    except (OSError, ValueError) as error:
        raise InputError(f"'{sidecar}' is not a table of label names and ids: {error}.", tip='Give {"liver": 1, …} or {"1": "liver", …}.') from error


def _pair(key: str, value: object) -> tuple[int, str]:
    """The id and the name of an entry, whichever is the key; ValueError when none is an id."""
    id, name = (key, value) if isinstance(value, str) else (value, key)
    id = int(id) if isinstance(id, float) and id.is_integer() else id  # as tables of numbers write it
    if isinstance(id, (list, dict, bool)) or not _is_id(str(id)):
        raise ValueError(f"'{key}' stands beside {json.dumps(value)}")
    return int(str(id)), str(name)


def _each_once(pairs: Iterable[tuple[int, str]]) -> dict[int, str]:
    """id → name by id; ValueError when an id has two names, for one of them would be lost."""
    names: dict[int, str] = {}
    for id, name in pairs:
        if names.setdefault(id, name) != name:
            raise ValueError(f"the id {id} is called '{names[id]}' and '{name}'")
    return dict(sorted(names.items()))


def _from_csv(path: Path) -> dict[int, str]:
    import csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
            rows = [row for row in csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",") if row]
        if not rows:
            raise ValueError("it is empty")
        id, name = _columns(rows[0])
        return _each_once((int(row[id]), row[name].strip()) for row in rows[0 if _is_id(rows[0][id]) else 1 :])
    except (OSError, ValueError, LookupError, csv.Error) as error:
        reason = "a line has too few cells" if isinstance(error, LookupError) else error
        raise InputError(f"'{path}' is not a table of ids and names: {reason}.", tip="Give a CSV with the columns id and name, or JSON.") from error


def _columns(first: list[str]) -> tuple[int, int]:
    """Where id and name stand, by the header or else by which of two cells is a number."""
    words = [cell.strip().lower() for cell in first]
    ids = [n for n, word in enumerate(words) if word in ("id", "label", "index", "value", "label_id") or _is_id(word)]
    names = [n for n, word in enumerate(words) if word in ("name", "structure", "label_name")] or [n for n in range(len(words)) if n not in ids]
    if not ids or not names:
        raise ValueError(f"its first line is {','.join(first)}")
    return ids[0], names[0]


def _is_id(cell: str) -> bool:
    return cell.strip().isdecimal()
