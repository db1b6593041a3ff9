"""Which images belong to the scan, by the rule that is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import InputError, UsageError
from clseg.io.dicom.headers import Slice
from clseg.io.dicom.series import all_series, choose

PLACE = Path("study")


def image(z: float = 0.0, **changes: object) -> Slice:
    """An axial CT image of series 1 at height `z`."""
    plain = Slice(
        path=Path(f"{z}.dcm"), frame=0, uid="", series="1", number=1, description="", modality="CT", kind=("ORIGINAL", "PRIMARY", "AXIAL"), size=(8, 8),
        position=np.array([0.0, 0, z]), row=np.array([1.0, 0, 0]), column=np.array([0.0, 1, 0]), pixel_mm=(1.0, 1.0), slope=1.0, intercept=0.0, rescaled=True,
        instance=int(z), phase=("",),
    )  # fmt: skip
    return replace(plain, **changes)


def images(count: int, **changes: object) -> list[Slice]:
    return [image(float(z), path=Path(f"{changes.get('series', '1')}-{z}"), **changes) for z in range(count)]


CORONAL = {"row": np.array([1.0, 0, 0]), "column": np.array([0.0, 0, -1])}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"count": 3}, {"count": 9, "modality": "MR"}),
        ({"count": 3}, {"count": 9, "modality": ""}),
        ({"count": 3}, {"count": 9, **CORONAL}),
        ({"count": 3}, {"count": 9, "kind": ("DERIVED", "SECONDARY", "MPR")}),
        ({"count": 3}, {"count": 9, "kind": ("ORIGINAL", "PRIMARY", "LOCALIZER")}),
        ({"count": 9}, {"count": 3}),
        ({"count": 3, "number": 2}, {"count": 3, "number": 10}),
        ({"count": 3, "number": 2}, {"count": 3, "number": None}),
        ({"count": 3, **CORONAL}, {"count": 9, "position": None}),
    ],
    ids=["CT before MR", "CT before unknown", "axial", "original", "no localizer", "most slices", "lowest number", "numbered", "with a place"],
)
def test_each_part_of_the_rule(better, worse):
    """Whichever comes first in the folder, the better of two series is taken."""
    one, other = images(series="9", **better), images(series="5", **worse)
    for listed in (one + other, other + one):
        assert {chosen.series for chosen in choose(listed, PLACE)} == {"9"}


def test_the_same_image_twice_counts_once():
    """Two files with one SOPInstanceUID; frames of one file have the same UID and are different all the same."""
    (series,) = all_series([image(0, uid="a"), image(0, uid="a", path=Path("copy")), image(0, uid="a", frame=1)])
    assert len(series.images) == 2


def test_a_few_slices_from_two_acquisitions_stay_together():
    """Acquisitions 1 and 2 overlap by one slice: all stay, for most places are taken once; if most are taken twice, one acquisition stays."""
    first, second = images(5, phase=("1",)), [image(z, phase=("2",), path=Path(f"b{z}")) for z in range(4, 9)]
    assert len(choose(first + second, PLACE)) == 10
    both = first + [image(z, phase=("2",), path=Path(f"c{z}")) for z in range(1, 5)]
    assert {one.phase for one in choose(both, PLACE)} == {("1",)}


def test_directions_may_differ_in_their_last_digits():
    """Slices whose direction flickers by 1e-5 around 0.125 stay together; one turned by half a degree does not."""
    flickering = [image(z, row=np.array([np.sqrt(1 - c * c), c, 0]), path=Path(f"{z}")) for z in range(6) for c in [0.125 + (-1) ** z * 1e-5]]
    turned = image(9, row=np.array([np.sqrt(1 - 0.1337**2), 0.1337, 0]))
    assert [one.position[2] for one in choose([*flickering, turned], PLACE)] == [0, 1, 2, 3, 4, 5]


def test_names_that_mean_nothing():
    """An unknown series lists what is there; no images, and a series with no usable image, are InputErrors."""
    with pytest.raises(UsageError, match="no series 'x'") as refusal:
        choose(images(3), PLACE, series="x")
    assert "series 1 (CT, 3 images)" in refusal.value.tip
    with pytest.raises(InputError, match="without images"):
        choose([], PLACE)
    with pytest.raises(InputError, match="2 do not say where they lie"):
        choose(images(2, position=None), PLACE, series="1")
