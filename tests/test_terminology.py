"""Terminology: every structure has terms, and a side is said once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clseg.catalogue import Catalogue
from clseg.io.terminology import terms_of, words

CATALOGUE = Catalogue.builtin()


def said(name: str) -> list[str | None]:
    """Meanings of kind, type, side, region and region's side."""
    terms = terms_of(CATALOGUE[name])
    return [code and code.meaning for code in (terms.kind, terms.type, terms.side, terms.region, terms.region_side)]


@pytest.mark.parametrize(
    ("name", "meanings"),
    [
        ("liver", ["Anatomical Structure", "Liver", None, None, None]),
        ("kidney_left", ["Anatomical Structure", "Kidney", "Left", None, None]),
        ("heart_atrium_left", ["Anatomical Structure", "Left atrium", None, None, None]),
        ("lung_middle_lobe_right", ["Anatomical Structure", "Middle lobe of right lung", None, None, None]),
        ("lymph_node_station_neck_3_left", ["Anatomical Structure", "Lymph node", "Left", None, None]),
        ("gtv_lung", ["Morphologically Altered Structure", "Neoplasm", None, "Lung", None]),
        ("gtv_sarcoma", ["Morphologically Altered Structure", "Neoplasm", None, None, None]),
        ("gtv_oropharynx", ["Morphologically Altered Structure", "Neoplasm", None, None, None]),
        ("kidney_cyst_left", ["Morphologically Altered Structure", "Cyst", None, "Kidney", "Left"]),
        ("hip_left", ["Tissue", "Tissue", "Left", None, None]),
    ],
)
def test_terms_of_organs_lesions_and_what_has_none(name, meanings):
    """A side is a modifier where the concept leaves it open; a lesion's region is said where its hosts agree."""
    assert said(name) == meanings


def test_partners_differ_in_their_side_alone_or_in_their_concept():
    """No two structures of a pair have the same terms, anywhere in the catalogue."""
    pairs = [(a, CATALOGUE[a.partner]) for a in CATALOGUE if a.partner]
    assert len(pairs) > 100
    assert [a.name for a, b in pairs if terms_of(a) == terms_of(b)] == []


def test_a_structure_of_ones_own_is_a_tissue():
    """It has no concept and no partner; its side is said all the same."""
    own = replace(CATALOGUE["liver"], name="my_organ", id=10001, snomed=None, side="left", groups=("custom",))
    terms = terms_of(own)
    assert (terms.kind, terms.type, terms.side) == (words()["tissue"], words()["tissue"], words()["left"])
