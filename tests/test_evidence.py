"""What is kept of a decoder is what it claimed, wherever it is cut and however it is packed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clseg.inference.evidence import Claim, Faint, Packed, Sheet, united

SHAPE = (6, 5, 8)


def claim(seed: int = 0, rows: slice = slice(2, 8)) -> Claim:
    """Noise in some slices: three ids, a few voxels where 7 is faint."""
    noise = np.random.default_rng(seed)
    shape = (*SHAPE[:2], rows.stop - rows.start)
    ids = noise.choice(np.array([0, 0, 0, 300, 7, 9], np.uint16), shape)
    faint = np.flatnonzero(noise.random(SHAPE) < 0.1)
    faint = faint[(faint % SHAPE[2] >= rows.start) & (faint % SHAPE[2] < rows.stop)].astype(np.uint8)
    box = (slice(0, SHAPE[0]), slice(0, SHAPE[1]), rows)
    return Claim(box, ids, noise.random(shape, np.float32), {7: Faint(faint, np.full(len(faint), 20, np.uint8))})


def whole(one: Claim) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities on the whole grid, probabilities only where something is claimed."""
    ids, strength = np.zeros(SHAPE, np.uint16), np.zeros(SHAPE, np.float32)
    ids[one.box], strength[one.box] = one.ids, np.where(one.ids > 0, one.strength, 0)
    return ids, strength


def same(one: Claim, other: Claim) -> bool:
    arrays = all(np.array_equal(a, b) for a, b in zip(whole(one), whole(other), strict=True))
    return arrays and all(np.array_equal(a, b) for a, b in zip(one.faint[7], other.faint[7], strict=True))


def test_packing_and_opening_gives_the_claim_back():
    """To the last bit of every probability."""
    assert same(Packed.of(claim()).opened(), claim())


def test_a_tight_claim_says_the_same_in_a_smaller_box():
    """Two voxels far from the border: a box of 2 × 1 × 3 around them; of nothing an empty one."""
    ids = np.zeros(SHAPE, np.uint16)
    ids[2, 3, 4] = ids[3, 3, 6] = 5
    every = tuple(slice(0, n) for n in SHAPE)
    tight = Claim(every, ids, np.ones(SHAPE, np.float32)).tight()
    assert tight.box == (slice(2, 4), slice(3, 4), slice(4, 7))
    assert np.array_equal(whole(tight)[0], ids)
    assert Claim(every, np.zeros_like(ids), np.ones(SHAPE, np.float32)).tight().ids.size == 0


def test_packed_is_small():
    """100 claimed voxels in a box of 1000: 6 bytes each and a bit for every voxel of the box."""
    ids = np.zeros((10, 10, 10), np.uint16)
    ids[0] = 1
    packed = Packed.of(Claim((slice(0, 10),) * 3, ids, np.ones(ids.shape, np.float32)))
    assert packed.nbytes == 600 + 125


@pytest.mark.parametrize("rows", [slice(0, 8), slice(0, 2), slice(3, 5), slice(7, 8), slice(2, 8)])
def test_a_cut_holds_what_lies_in_its_slices(rows):
    """Claims and faint voxels, nothing else."""
    cut, ids = claim().cut(rows, SHAPE[2]), whole(claim())[0]
    beyond = np.ones(SHAPE[2], bool)
    beyond[rows] = False
    ids[..., beyond] = 0
    assert np.array_equal(whole(cut)[0], ids)
    z = cut.faint[7].index % SHAPE[2]
    assert ((z >= rows.start) & (z < rows.stop)).all()
    assert len(z) == sum(rows.start <= at < rows.stop for at in claim().faint[7].index % SHAPE[2])


def test_chunks_that_were_cut_differently_are_united():
    """One chunk in slices 0–4–8, another in 0–3–8: sheets 0–3, 3–4, 4–8 with both decoders, which say what they said."""
    def sheets(name: str, seed: int, *edges: int) -> list[Sheet]:
        return [Sheet(slice(a, b), {name: claim(seed, slice(0, 8)).cut(slice(a, b), 8)}).packed() for a, b in pairwise(edges)]

    found = list(united([sheets("a", 1, 0, 4, 8), sheets("b", 2, 0, 3, 8)], 8))
    assert [(sheet.rows.start, sheet.rows.stop) for sheet in found] == [(0, 3), (3, 4), (4, 8)]
    for name, seed in (("a", 1), ("b", 2)):
        ids = sum(whole(sheet.claims[name].opened())[0] for sheet in found)
        assert np.array_equal(ids, whole(claim(seed, slice(0, 8)))[0])
