"""Pieces are counted slab by slab as if the mask were numbered at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from clseg.spatial import pieces
from clseg.spatial.pieces import count_pieces


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("slab", [1, 60, 1 << 22])
def test_slabs_do_not_matter(share, slab, monkeypatch):
    """Noise of 9 × 6 × 5 voxels in slabs of one plane, of two and at once: as many pieces as scipy finds."""
    monkeypatch.setattr(pieces, "_SLAB_VOXELS", slab)
    for seed in range(10):
        mask = np.random.default_rng(seed).random((9, 6, 5)) < share
        assert count_pieces(mask) == ndimage.label(mask, np.ones((3, 3, 3)))[1]


def test_a_horseshoe_is_one_piece(monkeypatch):
    """Two legs of one voxel that meet in the last plane only: two pieces in every slab before, one in all."""
    monkeypatch.setattr(pieces, "_SLAB_VOXELS", 1)
    mask = np.zeros((6, 1, 3), bool)
    mask[:, 0, 0] = mask[:, 0, 2] = mask[5] = True
    assert count_pieces(mask) == 1
    assert count_pieces(mask[:5]) == 2


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 1, 1)])
def test_nothing_has_no_pieces(shape):
    """Also where there is one plane; and all of it is one."""
    assert count_pieces(np.zeros(shape, bool)) == 0
    assert count_pieces(np.ones(shape, bool)) == 1
