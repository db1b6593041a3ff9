"""Families: which structures are also counted together, and what stands for a member that was not asked for."""

from __future__ import annotations

import pytest

from clseg.catalogue import Catalogue
from clseg.families import Family, _builtin, families

CATALOGUE = Catalogue.builtin()
LEFT_LOBES = ("lung_upper_lobe_left", "lung_lower_lobe_left")
RIGHT_LOBES = ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right")


def found(*wanted: str) -> dict[str, Family]:
    return {family.name: family for family in families(wanted)}


def test_both_kidneys_are_one_family():
    """kidney_left and its partner are `kidneys`; a liver beside them changes nothing."""
    assert found("kidney_left", "kidney_right", "liver") == {"kidneys": Family("kidneys", ("kidney_left", "kidney_right"))}


def test_one_member_makes_no_family():
    """What was measured of kidney_left alone says all there is to say."""
    assert found("kidney_left", "vertebrae_L3", "rib_left_1") == {}


def test_a_lung_is_its_lobes_and_lungs_are_all_lobes():
    """Without lung_left and lung_right the lobes make up each of them, and both."""
    together = found(*LEFT_LOBES, *RIGHT_LOBES)
    assert together["lung_left"].members == LEFT_LOBES
    assert together["lung_right"].members == RIGHT_LOBES
    assert together["lungs"] == Family("lungs", LEFT_LOBES + RIGHT_LOBES)


def test_a_whole_that_was_asked_for_needs_no_lobes():
    """With lung_left asked for there is no family lung_left, and `lungs` takes the lung itself and the other's lobes."""
    together = found("lung_left", *LEFT_LOBES, *RIGHT_LOBES)
    assert "lung_left" not in together
    assert together["lungs"].members == ("lung_left", *RIGHT_LOBES)


def test_members_that_were_not_asked_for_are_missing():
    """Two of twelve left ribs: the other ten are missing of the left ones, 22 of all."""
    together = found("rib_left_1", "rib_left_2")
    assert together["ribs_left"].members == ("rib_left_1", "rib_left_2")
    assert (len(together["ribs_left"].missing), len(together["ribs"].missing)) == (10, 22)
    assert "ribs_right" not in together


def test_vertebrae_are_seven_twelve_five_and_s1():
    """All of them: nothing is missing of any part of the spine."""
    together = found(*(a.name for a in CATALOGUE.select(["vertebra"])))
    sizes = {name: (len(family.members), len(family.missing)) for name, family in together.items()}
    assert sizes == {"vertebrae": (25, 0), "vertebrae_cervical": (7, 0), "vertebrae_thoracic": (12, 0), "vertebrae_lumbar": (5, 0)}


def test_custom_pairs_are_told_by_the_catalogue():
    """A decoder of one's own with two sides: its pair is called without them, `_both` behind."""
    wanted = ("wing_left", "wing_right", "beak")
    assert families(wanted, CATALOGUE.with_structures(wanted)) == (Family("wing_both", ("wing_left", "wing_right")),)


def test_every_pair_of_organs_is_a_family():
    """Every partner in the catalogue has its family but single ribs and lymph node stations."""
    pairs = {frozenset(members) for members in _builtin().values() if len(members) == 2}
    lonely = {a.name for a in CATALOGUE if a.partner and frozenset({a.name, a.partner}) not in pairs}
    ribs = {a.name for a in CATALOGUE.select(["rib"])}
    assert {name for name in lonely - ribs if "lns" not in CATALOGUE[name].groups} == set()


@pytest.mark.parametrize("name", _builtin())
def test_members_of_a_family_exclude_each_other(name):
    """No member contains another, and none is listed twice; a family named like a structure is that structure's parts."""
    members = _builtin()[name]
    assert len(set(members)) == len(members) > 1
    assert not any(CATALOGUE.related(a, b) for a in members for b in members if a != b)
    if name in CATALOGUE:
        assert members == CATALOGUE.children(name)
