"""Facts about batches on their way between processes."""

from __future__ import annotations

import torch

from clseg.training.parcel import pack, unpack
from tests.test_loop import patch


def test_what_is_packed_comes_out() -> None:
    """Three patches that teach both decoders, one and the other: the same images, targets and annotation, in the same order."""
    batch = [patch(0.1, "dense", "pair"), patch(0.9, "pair"), patch(-0.5, "dense")]
    batch[1].targets["pair"] = batch[1].targets["pair"] + 1
    found = unpack(pack(batch))
    assert [one.annotated for one in found] == [one.annotated for one in batch]
    for one, other in zip(found, batch, strict=True):
        assert torch.equal(one.image, other.image)
        assert list(one.targets) == list(other.targets)
        assert all(torch.equal(one.targets[name], other.targets[name]) for name in one.targets)


def test_two_tensors_change_hands() -> None:
    """However many decoders a patch teaches."""
    parcel = pack([patch(0.1, "dense", "pair"), patch(0.9, "dense", "pair")])
    assert (tuple(parcel.images.shape), tuple(parcel.targets.shape)) == ((2, 1, 8, 8, 8), (4, 8, 8, 8))
