"""Segments: structures and where they lie, as format writers get them."""

from __future__ import annotations

import numpy as np
import pytest

from clseg.catalogue import Anatomy, Catalogue
from clseg.io.segments import Segments
from clseg.volume import Volume


@pytest.fixture
def segments() -> Segments:
    """A body of 3×3×3 voxels with a liver of two voxels on a layer of its own; a spleen was looked for and not found."""
    catalogue = Catalogue.builtin()
    wanted = (catalogue["body"], catalogue["spleen"], catalogue["liver"])
    body, organs = np.zeros((4, 4, 4), np.uint16), np.zeros((4, 4, 4), np.uint16)
    body[:3, :3, :3] = catalogue["body"].id
    organs[1, 1, 1:3] = catalogue["liver"].id
    return Segments(Volume(np.zeros((4, 4, 4), np.int16)), (body, organs), wanted)


def named(segments: Segments, name: str) -> Anatomy:
    return next(a for a in segments.wanted if a.name == name)


def test_present_are_the_structures_with_voxels(segments: Segments) -> None:
    """A structure that was looked for and has no voxel is not present."""
    assert [a.name for a in segments.present] == ["body", "liver"]


def test_masks_overlap_where_a_part_lies_in_its_whole(segments: Segments) -> None:
    """The body keeps its 27 voxels although two of them are liver."""
    assert segments.mask(named(segments, "body")).sum() == 27
    assert segments.mask(named(segments, "liver")).sum() == 2
    assert not segments.mask(named(segments, "spleen")).any()


def test_the_flat_map_shows_the_part(segments: Segments) -> None:
    """In one map the liver hides two of the body's voxels."""
    flat = segments.flat()
    ids, counts = np.unique(flat, return_counts=True)
    found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert found == {0: 64 - 27, named(segments, "body").id: 25, named(segments, "liver").id: 2}
    assert flat.dtype == np.uint16


def test_pieces_say_layer_and_box(segments: Segments) -> None:
    """The liver lies on the second layer, in the smallest box around its two voxels."""
    [(layer, box)] = segments.pieces(named(segments, "liver"))
    assert layer is segments.layers[1]
    assert box == (slice(1, 2), slice(1, 2), slice(1, 3))


def test_a_structure_on_two_layers_is_cut_out_whole(segments: Segments) -> None:
    """Two voxels on the second layer, one more on the first: a box of 1×1×4 voxels with three of them."""
    liver = named(segments, "liver")
    mask, box = segments.cut(liver)
    assert (mask.tolist(), box) == ([[[True, True]]], (slice(1, 2), slice(1, 2), slice(1, 3)))
    segments.layers[0][1, 1, 3] = liver.id
    segments.layers[1][1, 1, 0:3] = liver.id, 0, liver.id
    mask, box = Segments(segments.scan, segments.layers, segments.wanted).cut(liver)
    assert (mask.tolist(), box) == ([[[True, False, True, True]]], (slice(1, 2), slice(1, 2), slice(0, 4)))
