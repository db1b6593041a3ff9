"""Codes: SNOMED CT, sides and kinds of structures as DICOM says them."""

from __future__ import annotations

import pytest

from clseg.catalogue import Anatomy, Catalogue
from clseg.io.dicom.codes import category_of, code_of, label_of, regions_of, side_of

CATALOGUE = Catalogue.builtin()

SIDES = {"left": ("7771000", "SCT", "Left"), "right": ("24028007", "SCT", "Right")}


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("liver", ("10200004", "SCT", "Liver"), None),
        ("lung_left", ("39607008", "SCT", "Lung"), "left"),
        ("heart_ventricle_left", ("87878005", "SCT", "Left ventricle of heart"), None),
        ("lung_middle_lobe_right", ("72481006", "SCT", "Middle lobe of right lung"), None),
        ("lymph_node_station_neck_3_left", (str(CATALOGUE["lymph_node_station_neck_3_left"].id), "99CLSEG", "lymph_node_station_neck_3_left"), "left"),
    ],
)
def test_a_structure_has_a_code_and_a_side_where_the_code_does_not_say_it(name: str, code: tuple[str, str, str], side: str | None) -> None:
    """SNOMED CT where the catalogue has it, else the id in a scheme of our own."""
    anatomy = CATALOGUE[name]
    assert code_of(anatomy) == code
    assert side_of(anatomy) == (SIDES[side] if side else None)


@pytest.mark.parametrize(("name", "meaning", "rt_type"), [("liver", "Anatomical Structure", "ORGAN"), ("body", "Anatomical Structure", "EXTERNAL"), ("gtv_lung", "Morphologically Altered Structure", "GTV")])
def test_organs_bodies_and_lesions_are_told_apart(name: str, meaning: str, rt_type: str) -> None:
    """By the group in the catalogue."""
    category = category_of(CATALOGUE[name])
    assert (category.code[2], category.rt_type) == (meaning, rt_type)


def test_a_lesion_says_where_it_grows() -> None:
    """A tumour of either lung is in the lung, once; an organ is nowhere but in itself."""
    assert regions_of(CATALOGUE["gtv_lung"]) == (("39607008", "SCT", "Lung"),)
    assert regions_of(CATALOGUE["liver"]) == ()


def test_every_structure_fits_into_a_file() -> None:
    """Codes have at most 16 characters, meanings and labels 64, for all structures of the catalogue and one with an endless name."""
    endless = Anatomy(id=65000, name="x" * 100, groups=("custom",), decoder="custom")
    for anatomy in (*CATALOGUE, endless):
        value, scheme, meaning = code_of(anatomy)
        assert 0 < len(value) <= 16
        assert scheme in ("SCT", "99CLSEG")
        assert 0 < len(meaning) <= 64
        assert 0 < len(label_of(anatomy)) <= 64
