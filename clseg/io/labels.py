"""Label names inside a mask file: a Caret XML label table, as TotalSegmentator embeds it, so that its reader works too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
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
    path = Path(path)
    for sidecar in (path.with_name(_stem(path.name) + ".labels.json"), path.with_name("labels.json")):
        if sidecar.is_file():
            return _from_json(sidecar)
    return {}


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
        pairs = [(int(key), name) if isinstance(name, str) else (int(name), key) for key, name in table.items()]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"'{sidecar}' is not a table of label names and ids: {error}.") from error
    return dict(sorted(pairs))
