"""Sliding a window and streaming slabs gives what one look at the whole scan would, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.inference import predictor as module
from clseg.inference.predictor import Predictor, Slab
from clseg.inference.prepare import normalise
from clseg.network.spec import EncoderSpec, Grid, Intensity, Level

RULE = Intensity(-1000.0, 1000.0, 0.0, 500.0)
SLOPES = {"trunk": (0.3, -0.9), "lungs": (0.1, 1.3, -0.4)}


class Pointwise:
    """An engine whose networks are 1 x 1 x 1: logit k of a voxel is slope k times its input.

    `seen` notes the decoders of every batch, `windows` how many windows each ran on.
    """

    def __init__(self, patch: tuple[int, int, int], slopes: dict[str, tuple[float, ...]] = SLOPES, batch: int = 1) -> None:
        levels = (Level(8, (1, 1, 1), (1, 1, 1), 1), Level(8, (1, 1, 1), (1, 1, 1), 1))
        decoders = {n: SimpleNamespace(spec=SimpleNamespace(labels=tuple(map(str, s[1:])))) for n, s in slopes.items()}
        self.model = SimpleNamespace(spec=EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), patch), RULE), decoders=decoders)
        self.slopes, self.batch = slopes, batch
        self.seen: list[tuple[str, ...]] = []
        self.windows = dict.fromkeys(slopes, 0)
        self.collecting: set[object] = set()
        self.zeros = torch.zeros

    def collected(self, made: Callable[[], torch.Tensor]) -> torch.Tensor:
        return made()

    def __call__(self, tiles: torch.Tensor, decoders: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        wanted = tuple(decoders)
        assert wanted, "an encoder pass without a decoder is wasted"
        assert len(tiles) <= self.batch
        assert tuple(tiles.shape[1:]) == (1, *self.model.spec.grid.patch)
        self.seen.append(wanted)
        for name in wanted:
            self.windows[name] += len(tiles)
            yield name, tiles * torch.tensor(self.slopes[name]).view(1, -1, 1, 1, 1)


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A scan without air: HU from -500 to 500."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1000 - 500


def everywhere(hu: torch.Tensor, names: Iterable[str] = SLOPES) -> dict[str, tuple[int, int]]:
    return {name: (0, hu.shape[2]) for name in names}


def whole(hu: torch.Tensor, name: str) -> torch.Tensor:
    """The answer without any window."""
    return torch.softmax(normalise(hu, RULE)[None] * torch.tensor(SLOPES[name]).view(-1, 1, 1, 1), dim=0)


def joined(slabs: Iterable[Slab], name: str) -> torch.Tensor:
    return torch.cat([slab.probabilities[name] for slab in slabs], dim=-1)


sizes = st.tuples(*[st.integers(1, 20)] * 3)
patches = st.tuples(*[st.integers(2, 9)] * 3)


@settings(max_examples=30)
@given(shape=sizes, patch=patches, step=st.floats(0.1, 1.0), batch=st.integers(1, 5))
def test_windows_and_slabs_give_the_answer_for_the_whole(shape, patch, step, batch):
    """For every shape (also smaller than the window), step and batch: the same probabilities as in one piece."""
    hu = noise(shape)
    slabs = list(Predictor(Pointwise(patch, batch=batch), step=step)(hu, everywhere(hu)))
    for name in SLOPES:
        torch.testing.assert_close(joined(slabs, name), whole(hu, name), atol=1e-5, rtol=1e-5)


@settings(max_examples=30)
@given(shape=sizes, patch=patches, step=st.floats(0.1, 1.0))
def test_slabs_come_in_order_without_gap_and_every_slice_once(shape, patch, step):
    """Every slab begins where the one before ended, the first at 0, the last ends at the top."""
    hu = noise(shape)
    end = 0
    for slab in Predictor(Pointwise(patch), step=step)(hu, everywhere(hu)):
        assert slab.start == end
        for name, slopes in SLOPES.items():
            assert tuple(slab.probabilities[name].shape[:3]) == (len(slopes), *shape[:2])
        depths = {p.shape[-1] for p in slab.probabilities.values()}
        assert len(depths) == 1
        end += depths.pop()
        assert end > slab.start
    assert end == shape[2]


@settings(max_examples=30)
@given(shape=sizes, patch=patches, step=st.floats(0.1, 1.0), batch=st.integers(1, 5))
def test_progress_counts_every_window_once(shape, patch, step, batch):
    """The units reported are the windows announced, whether they were computed or skipped."""
    hu = noise(shape)
    hu[: shape[0] // 2] = -1000
    done: list[int] = []
    predictor = Predictor(Pointwise(patch, batch=batch), step=step, advance=done.append)
    list(predictor(hu, everywhere(hu)))
    xs, ys, zs = predictor.windows(shape)
    assert sum(done) == len(xs) * len(ys) * len(zs)


def test_slabs_are_streamed():
    """The first slab is out after the windows of the first two rows, not after all ten."""
    hu = noise((8, 8, 88))
    engine = Pointwise((8, 8, 8))
    slabs = iter(Predictor(engine, step=1.0)(hu, everywhere(hu)))
    next(slabs)
    assert len(engine.seen) <= 2
    assert sum(1 for _ in slabs) == 10
    assert len(engine.seen) == 11


@pytest.mark.parametrize("length", [16, 64, 256])
def test_memory_does_not_grow_with_the_length_of_the_scan(length, monkeypatch):
    """The sums hold as many slices as a window has: 8, however long the scan."""
    held = []

    class Watched(module._Rolling):
        def forget(self, count: int) -> None:
            held.append({name: tuple(array.shape) for name, array in self.sums.items()})
            super().forget(count)

    monkeypatch.setattr(module, "_Rolling", Watched)
    hu = noise((10, 12, length))
    list(Predictor(Pointwise((8, 8, 8)), step=0.5)(hu, everywhere(hu)))
    assert len(held) == length // 4 - 2  # after every window but the last
    assert all(shapes == {"trunk": (2, 10, 12, 8), "lungs": (3, 10, 12, 8)} for shapes in held)


def test_windows_in_air_are_skipped_and_certain_background():
    """Tissue in one of three windows: only that is computed, and elsewhere background has all the probability."""
    hu = torch.full((8, 8, 24), -1000.0)
    hu[:, :, 8:16] = noise((8, 8, 8))
    engine = Pointwise((8, 8, 8))
    found = joined(Predictor(engine, step=1.0)(hu, everywhere(hu)), "lungs")
    assert engine.windows == {"trunk": 1, "lungs": 1}
    torch.testing.assert_close(found[..., 8:16], whole(hu, "lungs")[..., 8:16], atol=1e-5, rtol=1e-5)
    outside = torch.cat([found[..., :8], found[..., 16:]], dim=-1)
    assert outside[0].min() > 0.999


def test_a_window_with_one_voxel_of_lung_is_computed():
    """The threshold is for air alone: -790 HU is emphysema, not air."""
    hu = torch.full((8, 8, 8), -1000.0)
    hu[3, 3, 3] = -790.0
    engine = Pointwise((8, 8, 8))
    list(Predictor(engine)(hu, everywhere(hu)))
    assert engine.windows["lungs"] == 1


def test_a_scan_of_air_has_no_structures_and_no_encoder_pass():
    """All slices come out, as background, and the network never ran."""
    hu = torch.full((10, 10, 30), -1000.0)
    engine = Pointwise((8, 8, 8))
    found = joined(Predictor(engine)(hu, everywhere(hu)), "trunk")
    assert engine.seen == []
    assert tuple(found.shape) == (2, 10, 10, 30)
    assert found[0].min() > 0.999


def test_a_decoder_without_extent_never_runs():
    """It has no windows and no place in the slabs."""
    hu = noise((8, 8, 24))
    engine = Pointwise((8, 8, 8))
    slabs = list(Predictor(engine)(hu, {"trunk": (0, 24), "lungs": None}))
    assert engine.windows["lungs"] == 0
    assert all(set(slab.probabilities) == {"trunk"} for slab in slabs)


@pytest.mark.parametrize(("extent", "windows"), [((0, 8), 1), ((8, 16), 1), ((7, 9), 2), ((0, 24), 3), ((16, 24), 1)])
def test_windows_that_only_border_on_an_extent_are_not_computed(extent, windows):
    """Three windows side by side at 0, 8 and 16: an extent that ends where a window begins does not wake it."""
    hu = noise((8, 8, 24))
    engine = Pointwise((8, 8, 8))
    list(Predictor(engine, step=1.0)(hu, {"trunk": (0, 24), "lungs": extent}))
    assert engine.windows == {"trunk": 3, "lungs": windows}


def test_no_decoder_at_all_gives_no_slabs():
    """When every decoder is out of range nothing is computed."""
    engine = Pointwise((8, 8, 8))
    assert list(Predictor(engine)(noise((8, 8, 24)), {"trunk": None, "lungs": None})) == []
    assert engine.seen == []


@settings(max_examples=40)
@given(low=st.integers(0, 29), length=st.integers(1, 30), depth=st.integers(3, 30), step=st.floats(0.2, 1.0))
def test_a_decoder_runs_and_paints_in_its_extent_only(low, length, depth, step):
    """Inside its slices it says what it would say for the whole, outside it is certain background."""
    low, high = min(low, depth - 1), min(depth, low + length)
    high = max(high, low + 1)
    hu = noise((8, 8, depth))
    engine = Pointwise((8, 8, 8))
    predictor = Predictor(engine, step=step)
    found = joined(predictor(hu, {"trunk": (0, depth), "lungs": (low, high)}), "lungs")
    torch.testing.assert_close(found[..., low:high], whole(hu, "lungs")[..., low:high], atol=1e-5, rtol=1e-5)
    outside = [*range(low), *range(high, depth)]
    assert (found[0][..., outside] == 1).all()
    assert (found[1:][..., outside] == 0).all()
    pad = max(0, 8 - depth) // 2
    meeting = [z for z in predictor.windows(hu.shape)[2] if z < high + pad and z + 8 > low + pad]
    inner = [z for z in meeting if z >= low + pad and z + 8 <= high + pad]
    assert len(inner) <= engine.windows["lungs"] <= len(meeting)


def test_a_window_that_sees_an_extent_only_at_its_edge_is_not_computed_where_the_next_sees_it_well():
    """Windows of 16 at 0, 8 and 16: slice 13 lies in the first two, nearer to the middle of the second, which is enough."""
    hu = noise((16, 16, 32))
    for extent, windows in (((13, 14), 1), ((12, 20), 1), ((12, 21), 2), ((11, 20), 2), ((11, 21), 3), ((0, 32), 3)):
        engine = Pointwise((16, 16, 16))
        list(Predictor(engine)(hu, {"trunk": None, "lungs": extent}))
        assert engine.windows["lungs"] == windows, extent


@pytest.mark.parametrize("batch", [1, 4])
def test_a_decoder_runs_in_the_windows_that_see_its_band(batch):
    """Windows at 0, 8 and 16 along x, in two rows: lungs in the middle of the lower row, and of no known place in the upper; the trunk everywhere."""
    hu = noise((24, 8, 16))
    engine = Pointwise((8, 8, 8), batch=batch)
    band = np.full((2, 16), np.nan)
    band[:, :8] = [[10.0], [13.0]]
    found = joined(Predictor(engine, step=1.0, bands={"lungs": band})(hu, everywhere(hu)), "lungs")
    assert engine.windows == {"trunk": 6, "lungs": 1 + 3}
    expected = whole(hu, "lungs")
    torch.testing.assert_close(found[8:16, :, :8], expected[8:16, :, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[..., 8:], expected[..., 8:], atol=1e-5, rtol=1e-5)
    assert min(found[0, :8, :, :8].min(), found[0, 16:, :, :8].min()) > 0.999


def test_only_slices_of_its_extent_tell_a_decoders_band():
    """In the slices below its extent the body lies elsewhere, which does not matter."""
    hu = noise((24, 8, 16))
    engine = Pointwise((8, 8, 16))
    band = np.where(np.arange(16) < 8, [[1.0], [3.0]], [[18.0], [22.0]])
    list(Predictor(engine, step=1.0, bands={"lungs": band})(hu, {"trunk": None, "lungs": (8, 16)}))
    assert engine.windows["lungs"] == 1


def test_a_band_follows_a_scan_that_is_smaller_than_the_window():
    """Four voxels in the middle of a window of eight."""
    hu = noise((4, 8, 8))
    engine = Pointwise((8, 8, 8))
    found = joined(Predictor(engine, bands={"lungs": np.array([[1.0] * 8, [2.0] * 8])})(hu, everywhere(hu)), "lungs")
    torch.testing.assert_close(found, whole(hu, "lungs"), atol=1e-5, rtol=1e-5)


def test_beyond_its_extent_a_label_is_background():
    """Label 1.3 of the lungs may lie in slices 2 and 3 of 6: elsewhere background has its share, and label -0.4 the same as ever."""
    hu, plain = noise((4, 4, 6)), Pointwise((4, 4, 4))
    before = torch.cat([slab.probabilities["lungs"] for slab in Predictor(plain)(hu, everywhere(hu))], dim=-1)
    limited = Predictor(plain, label_extents={"lungs": {"1.3": (2, 4)}})
    after = torch.cat([slab.probabilities["lungs"] for slab in limited(hu, everywhere(hu))], dim=-1)
    assert torch.equal(after[..., 2:4], before[..., 2:4])
    assert torch.equal(after[2], before[2])
    for beyond in (slice(0, 2), slice(4, 6)):
        assert not after[1, ..., beyond].any()
        assert torch.equal(after[0, ..., beyond], before[0, ..., beyond] + before[1, ..., beyond])


def test_a_label_without_a_slice_is_nowhere():
    """An extent of None leaves nothing of the label; other decoders are as they were."""
    hu, plain = noise((4, 4, 6)), Pointwise((4, 4, 4))
    before = list(Predictor(plain)(hu, everywhere(hu)))
    after = list(Predictor(plain, label_extents={"lungs": {"-0.4": None}})(hu, everywhere(hu)))
    assert not any(slab.probabilities["lungs"][2].any() for slab in after)
    assert all(torch.equal(one.probabilities["trunk"], other.probabilities["trunk"]) for one, other in zip(before, after, strict=True))


def test_where_windows_overlap_the_nearer_middle_counts_more():
    """Two windows of 8 over 12 voxels, one saying 0 and the other 1: at their seam the answers meet halfway, before it the first rules."""

    class Opinions(Pointwise):
        def __call__(self, tiles, decoders):
            yield "trunk", torch.stack([torch.zeros(1, 8, 1, 1), torch.full((1, 8, 1, 1), float(len(self.seen)))], dim=1)
            self.seen.append(("trunk",))

    hu = noise((12, 1, 1))
    found = joined(Predictor(Opinions((8, 1, 1), {"trunk": (0.0, 1.0)}), step=0.5)(hu, {"trunk": (0, 1)}), "trunk")
    mean = torch.logit(found[1, :, 0, 0])
    torch.testing.assert_close(mean[:4], torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean[8:], torch.ones(4), atol=1e-5, rtol=0)
    assert 0 < mean[4] < mean[5] < 0.5 < mean[6] < mean[7] < 1
    torch.testing.assert_close(mean[4] + mean[7], torch.tensor(1.0), atol=1e-5, rtol=0)
