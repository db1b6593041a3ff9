"""The whole chain on real CTs, to the voxel: reading, windows, merging, cleaning, restoring and writing together.

`tests/voxel_counts.csv` holds what the shipped starter found when it was last changed on purpose.  After such a change:

    python -m tests.test_voxel_counts
"""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg import segment
from tests.conftest import SHARED

TABLE = Path(__file__).with_name("voxel_counts.csv")
HEADER = ["case", "structure", "voxels"]
CASES = ("openkbp/pt_207", "lidc_idri/LIDC-IDRI-0314")
TOLERANCE = 0.005  # of the count; processors round differently, which moves a voxel here and there
LEAST = 2  # voxels that any count may differ by


def counted(case: str, output: Path) -> dict[str, int]:
    """Voxels of every mask that the program writes for a case of ../shared/data."""
    segment(SHARED / "data" / case / "ct.nii.gz", offline=True, device="cpu").save(output)
    masks = sorted(output.glob("*.nii.gz"))
    return {file.name[: -len(".nii.gz")]: int(np.count_nonzero(nib.load(file).dataobj)) for file in masks}


def expected() -> dict[str, dict[str, int]]:
    """Case → structure → voxels."""
    found: dict[str, dict[str, int]] = {}
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["case"], {})[row["structure"]] = int(row["voxels"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_structure_has_the_voxels_that_it_had(shared, tmp_path, case):
    """The same structures as in the table, each within half a percent of its voxels."""
    known, found = expected()[case], counted(case, tmp_path)
    assert found.keys() == known.keys()
    off = {name: (count, found[name]) for name, count in known.items() if abs(found[name] - count) > max(LEAST, TOLERANCE * count)}
    assert off == {}


if __name__ == "__main__":
    import tempfile

    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for name in CASES:
            with tempfile.TemporaryDirectory() as folder:
                table.writerows([name, structure, voxels] for structure, voxels in counted(name, Path(folder)).items())
