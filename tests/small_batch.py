"""A folder of small scans, some of them spoilt, for tests of batches; and what a batch has left as one dictionary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clseg.io.nifti import write_volume
from clseg.phantom import small_phantom
from clseg.volume import Volume

TIMES = ("stages", "command", "threads", "device")  # what may differ in run.json of two runs that give the same


def write_scans(folder: Path, count: int = 3) -> list[Path]:
    """`s00.nii.gz`, `s01.nii.gz` …: torsos of 14 to 20 slices, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, _ = small_phantom()
    files = [folder / f"s{number:02d}.nii.gz" for number in range(count)]
    for number, file in enumerate(files):
        array = volume.array[8:32, 4:24, 12 + number % 4 : 29 + number % 3] + np.int16(number)
        write_volume(file, Volume(np.asfortranarray(array), volume.affine))
    return files


def spoil(files: list[Path]) -> None:
    """The first file becomes empty, the second half a file, the third a file of text."""
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:2000])
    files[2].write_text("no scan")


def left_in(output: Path) -> dict[str, object]:
    """All files below `output` by name: their bytes, and of run.json what does not depend on time, words and machine."""
    found: dict[str, object] = {}
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        name = file.relative_to(output).as_posix()
        found[name] = file.read_bytes()
        if file.name == "run.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key not in TIMES}
    return found
