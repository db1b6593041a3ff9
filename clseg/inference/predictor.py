"""Predictor: slides a window over the scan and hands out finished slices, bottom to top.

Windows are computed in the order of their lowest slice.  Slices that no later
window touches are finished: they are averaged, handed out and forgotten, so
that the memory for class scores does not grow with the length of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch

from clseg.inference.engine import Engine, in_main_memory, main_memory, on_device
from clseg.inference.extent import Extent, LabelExtents
from clseg.inference.prepare import normalise
from clseg.inference.sideways import ACROSS, ALONG, hull, windows_seeing
from clseg.inference.window import gaussian, move_down, starts
from clseg.network.spec import EncoderSpec
from clseg.volume import AIR_HU

EMPTY_HU = -800.0  # a window without anything denser than this holds no tissue
CERTAIN = 10.0  # logit of background where nothing was computed
ROWS = 16  # finished slices that are handed out at once: their probabilities take as much memory as the sums


@dataclass(frozen=True)
class Slab:
    """Finished slices from `start`: per decoder probabilities (labels + 1, x, y, slices), background first."""

    start: int
    probabilities: Mapping[str, torch.Tensor]


class Predictor:
    """Sliding-window inference with a Gaussian-weighted mean of logits and one softmax per decoder."""

    def __init__(
        self,
        engine: Engine,
        *,
        step: float = 0.5,
        advance: Callable[[int], None] = lambda windows: None,
        label_extents: LabelExtents | None = None,
        bands: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.engine = engine
        self.bands = bands or {}
        self.label_extents = label_extents or {}
        self.step = step
        self.advance = advance
        self.spec: EncoderSpec = engine.model.spec
        self.weight = gaussian(self.spec.grid.patch)

    def windows(self, shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
        """First voxels of the windows along each axis of a scan of `shape` on the model's grid."""
        padded = [max(n, p) for n, p in zip(shape, self.spec.grid.patch, strict=True)]
        return tuple(starts(n, p, self.step) for n, p in zip(padded, self.spec.grid.patch, strict=True))  # type: ignore[return-value]

    def __call__(self, hu: torch.Tensor, extents: Mapping[str, Extent | None]) -> Iterator[Slab]:
        """Slabs of `hu` (x, y, z; HU on the model's grid) from the lowest slice to the highest.

        Decoders whose extent is None never run; the others run in windows that see
        their extent and their band, and are certain background elsewhere.  Beyond the extent of a label
        (`label_extents`) its probability is the background's.  Raises MemoryError when
        main memory is used up.
        """
        with main_memory():
            yield from self._slabs(hu, {name: extent for name, extent in extents.items() if extent is not None})

    def _slabs(self, hu: torch.Tensor, running: Mapping[str, Extent]) -> Iterator[Slab]:
        padded, offset = _pad(hu, self.spec.grid.patch)
        xs, ys, zs = self.windows(tuple(hu.shape))
        rolling = _Rolling(self._channels(running), padded.shape, self.weight, self.engine)
        along = {name: windows_seeing(zs, self.weight.shape[2], (low + offset[2], high - 1 + offset[2]), ALONG) for name, (low, high) in running.items()}
        for index, z in enumerate(zs):
            across = {name: self._across(name, running[name], xs, z, offset) for name, mine in along.items() if z in mine}
            self._row(padded, [(x, y) for x in xs for y in ys], z, across, rolling)
            end = zs[index + 1] if index + 1 < len(zs) else z + self.weight.shape[2]
            for first in range(z, end, ROWS):
                finished = rolling.mean(slice(first - z, min(first + ROWS, end) - z))
                for slab in _unpad(first, finished, offset, hu.shape):
                    _silence_outside(slab, running)
                    self._silence_labels(slab)
                    yield slab
                del finished
            if index + 1 < len(zs):
                rolling.forget(end - z)

    def _across(self, name: str, extent: Extent, xs: list[int], z: int, offset: list[int]) -> list[int]:
        """Where along x the windows begin in which a decoder runs, of those whose lowest slice is `z`."""
        px, _, pz = self.weight.shape
        rows = slice(max(extent[0], z - offset[2]), min(extent[1], z + pz - offset[2]))
        band = hull(self.bands[name][:, rows]) if name in self.bands else None
        return windows_seeing(xs, px, band and (band[0] + offset[0], band[1] + offset[0]), ACROSS)

    def _row(
        self, padded: torch.Tensor, places: list[tuple[int, int]], z: int, across: Mapping[str, list[int]], rolling: _Rolling
    ) -> None:
        """All windows whose lowest slice is `z`, in batches of those in which the same decoders run."""
        px, py, pz = self.weight.shape
        wanted = {x: [name for name, mine in across.items() if x in mine] for x, _ in places}
        for decoders, group in groupby(places, key=lambda place: wanted[place[0]]):
            pending: list[tuple[int, int, torch.Tensor]] = []
            for x, y in group:
                tile = padded[x : x + px, y : y + py, z : z + pz]
                if decoders and on_device(partial(_holds_tissue, tile), str(tile.device)):
                    pending.append((x, y, tile))
                if len(pending) >= self.engine.batch:
                    self._compute(pending, decoders, rolling)
                    pending = []
                self.advance(1)
            if pending:
                self._compute(pending, decoders, rolling)

    def _compute(self, pending: list[tuple[int, int, torch.Tensor]], decoders: list[str], rolling: _Rolling) -> None:
        tiles = on_device(partial(self._seen, [tile for _, _, tile in pending]), str(pending[0][2].device))
        for name, logits in self.engine(tiles, decoders):
            for (x, y, _), one in zip(pending, logits, strict=True):
                rolling.add(name, one, x, y)

    def _seen(self, tiles: list[torch.Tensor], device: str) -> torch.Tensor:
        """What the network sees of some windows: (windows, 1, x, y, z)."""
        return torch.stack([normalise(tile.to(device).float(), self.spec.intensity)[None] for tile in tiles])

    def _silence_labels(self, slab: Slab) -> None:
        """What a label has beyond its own extent is given to background, in place."""
        for name in slab.probabilities.keys() & self.label_extents.keys():
            probabilities, labels = slab.probabilities[name], self.engine.model.decoders[name].spec.labels
            for label, extent in self.label_extents[name].items():
                low, high = (max(0, bound - slab.start) for bound in extent or (0, 0))
                for beyond in (probabilities[..., :low], probabilities[..., high:]):
                    beyond[0] += beyond[labels.index(label) + 1]
                    beyond[labels.index(label) + 1] = 0

    def _channels(self, running: Mapping[str, Extent]) -> dict[str, int]:
        return {name: len(self.engine.model.decoders[name].spec.labels) + 1 for name in running}


class _Rolling:
    """Sums of weighted logits for as many slices as a window has; the lowest are the next to be finished.

    They are where the engine collects results, on its device as long as there is room.
    """

    def __init__(self, channels: Mapping[str, int], shape: torch.Size, weight: torch.Tensor, engine: Engine) -> None:
        depth = weight.shape[2]
        self.weight, self.engine = weight, engine
        self.sums: dict[str, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}
        engine.collecting.add(self)
        for name, count in channels.items():
            self.sums[name] = engine.zeros(count, shape[0], shape[1], depth)
            self.weights[name] = engine.zeros(shape[0], shape[1], depth)

    def add(self, name: str, logits: torch.Tensor, x: int, y: int) -> None:
        px, py, _ = self.weight.shape
        sums, weights = self.sums[name], self.weights[name]
        self.weight = self.weight.to(sums.device)
        sums[:, x : x + px, y : y + py].addcmul_(logits.to(sums.device), self.weight)
        weights[x : x + px, y : y + py].add_(self.weight)

    def mean(self, rows: slice) -> dict[str, torch.Tensor]:
        """Probabilities of some of the slices held, in main memory."""
        return {name: self.engine.collected(partial(self._mean, name, rows)) for name in self.sums}

    def forget(self, count: int) -> None:
        """The lowest `count` slices go, empty ones come on top."""
        for name, sums in self.sums.items():
            for channel in (*sums, self.weights[name]):
                move_down(channel.movedim(-1, 0), count)

    def _mean(self, name: str, rows: slice) -> torch.Tensor:
        sums, weights = self.sums[name][..., rows], self.weights[name][..., rows]
        mean = sums / weights.clamp(min=1e-6)
        mean[0].masked_fill_(weights == 0, CERTAIN)
        return in_main_memory(torch.softmax(mean, dim=0))

    def leave(self) -> None:
        for held in (self.sums, self.weights):
            held |= {name: one.cpu() for name, one in held.items()}


def _holds_tissue(tile: torch.Tensor, device: str) -> bool:
    return bool((tile.to(device) > EMPTY_HU).any())


def _pad(hu: torch.Tensor, patch: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    """Air around a scan that is smaller than the window; the scan lies in the middle."""
    before, pad = [], []
    for n, p in zip(hu.shape, patch, strict=True):
        missing = max(0, p - n)
        before.append(missing // 2)
        pad.append((missing // 2, missing - missing // 2))
    if not any(before) and not any(after for _, after in pad):
        return hu, before
    flat = [side for pair in reversed(pad) for side in pair]
    return on_device(lambda device: torch.nn.functional.pad(hu.to(device), flat, value=AIR_HU), str(hu.device)), before


def _unpad(start: int, probabilities: dict[str, torch.Tensor], offset: list[int], shape: torch.Size) -> Iterator[Slab]:
    """The part of a slab that lies in the scan, if any."""
    depth = next(iter(probabilities.values())).shape[-1] if probabilities else 0
    low, high = max(start, offset[2]), min(start + depth, offset[2] + shape[2])
    if low >= high:
        return
    x, y = (slice(o, o + n) for o, n in zip(offset[:2], shape[:2], strict=True))
    z = slice(low - start, high - start)
    yield Slab(low - offset[2], {name: p[:, x, y, z] for name, p in probabilities.items()})


def _silence_outside(slab: Slab, extents: Mapping[str, Extent]) -> None:
    """Certain background in the slices that windows reached beyond a decoder's extent, in place."""
    for name, probabilities in slab.probabilities.items():
        low, high = (max(0, bound - slab.start) for bound in extents[name])
        for beyond in (probabilities[..., :low], probabilities[..., high:]):
            beyond.zero_()
            beyond[0] = 1
