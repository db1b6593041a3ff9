"""What a run will hold in main memory, worked out from shapes before anything is computed, and how it is made to fit.

Counted is all that the process holds at once, stage by stage: what it holds already
(program, weights, the scan), what a stage needs, and what it leaves for later stages.
Decoders of the house run in chunks, of which each has a pass over the scan to itself;
imported ones in portions.  Everything else is as small as it can be by itself.

The numbers are upper bounds of what usually happens; how much of a scan decoders claim
is known only afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clseg.catalogue import Anatomy, Catalogue
from clseg.errors import UsageError
from clseg.footprint import in_words
from clseg.inference.extent import Extent
from clseg.inference.hearing import NEAR_MM, bonds
from clseg.inference.merge import depths
from clseg.inference.predictor import ROWS
from clseg.network.cost import window_bytes
from clseg.spatial.resample import BLOCK as RESAMPLED
from clseg.volume import Volume
from clseg.words import number_of

if TYPE_CHECKING:
    from clseg.inference.parts import Parts
    from clseg.inference.planned.run import Answer
    from clseg.inference.prepare import Placement

SLACK = 96 << 20  # what the allocator keeps and small things need
SPARE = 32 << 20  # by less than that two processes differ in what they hold before the first stage
FAINT_SHARE = 0.3  # of the voxels of a layer; more are never between yes and no
CANVAS = 3 + 5 * FAINT_SHARE  # bytes per voxel and layer: id, probability, and of faint ones an index and a probability
EVIDENCE = 6 + 1 / 4 + 5 * FAINT_SHARE  # the same of what is kept of decoders: id and probability as it was, bits of boxes
LARGEST_TILES = 56 << 20  # of restoring: bands, tiles, and slices that are being filled
SPOKEN = 1 / 4  # bytes per voxel of a network's answer: the probability where it has a label
RUNS = 1 / 4  # bytes per voxel and layer of a map of the scan, kept as runs; in real ones 0.02 to 0.1

Chunk = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of a run, the most bytes that it holds beside what the process held before, and what they are."""

    name: str
    bytes: int
    what: str


@dataclass(frozen=True)
class Plan:
    """`held` bytes before the first stage; the stages; decoders that run together, a pass over the scan for each chunk of them.

    `share` is what one portion of imported decoders may hold in unfinished scores (None: as much as they like); `before` is
    what was held before.
    """

    held: int
    stages: tuple[Stage, ...]
    chunks: tuple[Chunk, ...] = ()
    share: int | None = None
    before: str = "program, weights and scan"

    @property
    def peak(self) -> int:
        """The most that the process will hold."""
        return self.held + SLACK + max((stage.bytes for stage in self.stages), default=0)

    def lines(self, limit: int | None = None) -> list[str]:
        """The plan for people."""
        told = f"Memory: {in_words(self.peak)} at most" + (f" of {in_words(limit)} allowed" if limit else "")
        passes = f"; {number_of(sum(map(len, self.chunks)), 'decoder')} in {len(self.chunks)} pass{'es' * (len(self.chunks) != 1)}" if self.chunks else ""
        rows = [f"  {stage.name:<8} {in_words(self.held + stage.bytes):>9}  {stage.what}" for stage in self.stages]
        return [told + passes, f"  {'before':<8} {in_words(self.held):>9}  {self.before}", *rows]


def refused(limit: int, least: int) -> UsageError:
    """What to raise where nothing fits: it names what is enough for the next process, too, which may hold a little more than this one."""
    return UsageError(
        f"This run does not fit into {in_words(limit)} of memory; it takes at least {in_words(least + SPARE)}.",
        tip="Raise --max-memory, ask for fewer structures with --roi, or cut the scan to what is needed.",
    )


@dataclass(frozen=True)
class Maps:
    """Label maps on the grid of a scan: the bytes of their runs, and of what is drawn from them to be measured and written.

    Nothing is kept of slices that do not cross the `body` (shares of the scan's axes).
    """

    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    scan: Volume
    body: tuple[float, float, float] = (1.0, 1.0, 1.0)
    confidence: bool = False

    @property
    def layers(self) -> int:
        return len(depths(self.wanted, self.catalogue))

    @property
    def bytes(self) -> int:
        return int(RUNS * self.layers * self.scan.array.size * self.body[2])

    @property
    def sure(self) -> int:
        """The map of confidence, where one is wanted: 255 where nothing was found, so that all of it is touched."""
        return self.scan.array.size if self.confidence else 0

    @property
    def drawn(self) -> int:
        """The voxels of one map where its slices are not those of the model: it is drawn as a whole before its runs are found."""
        from clseg.spatial.orient import axis_order

        return 0 if axis_order(self.scan)[2] == 2 else 2 * self.scan.array.size

    @property
    def written(self) -> int:
        """The mask of the largest structure, and its values where they cannot be counted."""
        values = 2 * self.scan.array.itemsize if self.scan.array.dtype.kind == "f" else 0
        return int(self.scan.array.size * (1 + values) * math.prod(self.body))


@dataclass(frozen=True)
class Tilted:
    """What a scan takes whose axes are not at right angles: all is done to a straightened copy, and every map is brought back.

    `maps` are those of the copy, `given` is the scan.
    """

    maps: Maps
    given: Volume

    before = "program, weights, scan and its straightened copy"

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """Bringing back, map by map, each drawn as a whole on both grids; and writing."""
        back = replace(self.maps, scan=self.given, body=(1.0, 1.0, 1.0))
        drawn = 2 * (self.maps.scan.array.size + self.given.array.size)
        both = self.maps.bytes + self.maps.sure + back.bytes + back.sure
        return (
            Stage("return", both + drawn, "label maps of the copy, and of the scan on its own grid"),
            Stage("write", back.bytes + back.sure + back.written, "files and statistics"),
        )


# ---- the house's own decoders -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class House:
    """All that the plan of a run of the house's decoders depends on; `given` is the scan where `scan` is its straightened copy."""

    parts: Parts
    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    placement: Placement
    scan: Volume
    held: int
    batch: int = 1
    confidence: bool = False
    given: Volume | None = None

    def plan(self, limit: int | None, reach: Mapping[str, Extent | None] | None = None) -> Plan:
        """In as few chunks as the limit allows; `reach` says which decoders run, where that is known.

        UsageError when not even the smallest chunks fit.
        """
        groups = self._groups(reach)
        at_once = self._with((tuple(name for group in groups for name in group),))
        if limit is None or at_once.peak <= limit:
            return at_once
        smallest = self._with(tuple(map(tuple, groups)))
        if min(smallest.peak, at_once.peak) > limit:
            raise refused(limit, min(smallest.peak, at_once.peak))
        return self._with(self._packed(groups, limit - self.held - SLACK - self._segment(((),) * 2)))

    def _packed(self, groups: Sequence[Sequence[str]], room: int) -> tuple[Chunk, ...]:
        """Neighbouring groups together as long as their scores have room."""
        chunks: list[Chunk] = []
        for group in groups:
            longer = (*chunks[-1], *group) if chunks else tuple(group)
            if chunks and self._scores(longer) <= room:
                chunks[-1] = longer
            else:
                chunks.append(tuple(group))
        return tuple(chunks)

    def _groups(self, reach: Mapping[str, Extent | None] | None) -> list[list[str]]:
        """Decoders that must be heard together, those of the same slices next to each other."""
        mine = [name for model in self.parts.models for name in model.slices if reach is None or reach[name] is not None]
        labels = {name: self.parts.labels[name] for name in mine}
        found = bonds(labels, [a.name for a in self.wanted], self.catalogue, self.parts.pathological)
        return sorted(found, key=lambda group: min((reach[name] or (0, 0) for name in group), default=(0, 0))) if reach else found

    def _with(self, chunks: tuple[Chunk, ...]) -> Plan:
        size = math.prod(self.placement.shape)
        maps = Maps(self.wanted, self.catalogue, self.scan, body_shares(self.placement, self.scan), self.confidence)
        canvas, sure = int(CANVAS * maps.layers * size), self._sure
        passes = f", {max(map(len, chunks), default=0)} decoders at a time" if len(chunks) > 1 else ""
        stages = (
            Stage("prepare", 4 * size + self._resampling(), f"{_by(self.placement.shape)} voxels of the model"),
            Stage("segment", self._segment(chunks), f"scores of open slices, a window{passes}"),
            Stage("clean", canvas + sure + 9 * size, "pieces of the largest structure"),
            Stage("restore", canvas + sure + maps.bytes + maps.drawn + maps.sure + canvas // 2 + LARGEST_TILES, f"{number_of(maps.layers, 'label map')} of the scan"),
            Stage("write", maps.bytes + maps.sure + maps.written, "files and statistics"),
        )
        return _brought_back(Plan(self.held, stages, chunks), maps, self.given)

    @property
    def _sure(self) -> int:
        """The map of confidence on the model's grid."""
        return math.prod(self.placement.shape) if self.confidence else 0

    def _segment(self, chunks: tuple[Chunk, ...]) -> int:
        """The most while the decoders of these chunks run, one chunk after the other, and are merged."""
        size, layers = math.prod(self.placement.shape), len(depths(self.wanted, self.catalogue))
        kept = int((EVIDENCE if len(chunks) > 1 else 0) * layers * size)
        scores = max(map(self._scores, chunks), default=0)
        return 4 * size + int(CANVAS * layers * size) + self._sure + kept + scores + self._window()

    def _window(self) -> int:
        found = []
        for model in self.parts.models:
            running = [model.decoders[name].spec for name in model.with_supporters(model.slices)]
            found.append(window_bytes(model.spec, running, model.spec.grid.patch))
        return self.batch * max(found, default=0)

    def _scores(self, chunk: Chunk) -> int:
        """Sums of the slices that windows still touch, probabilities of those handed out, and what is made of one decoder's."""
        patch = self.parts.grid.patch
        x, y, _ = (max(n, p) for n, p in zip(self.placement.shape, patch, strict=True))
        channels = [len(self.parts.labels[name]) + 1 for name in chunk]
        waiting = ROWS + 3 * int(NEAR_MM / self.placement.spacing[2]) if self._lesions(chunk) else 0
        open_slices = 4 * x * y * patch[2] * (sum(channels) + len(channels) + 1)
        handed_out = 4 * x * y * (ROWS + waiting) * sum(channels)
        worked_on = 4 * x * y * ROWS * (3 * max(channels, default=0) + 2 * len(channels) + 6)
        return open_slices + handed_out + worked_on

    def _lesions(self, chunk: Chunk) -> bool:
        return bool(self.parts.pathological) and any(
            name in self.catalogue and self.catalogue[name].hosts for decoder in chunk for name in self.parts.labels[decoder]
        )

    def _resampling(self) -> int:
        """Blocks of the scan as they are and in floating point, and what two of three resampled axes leave."""
        place = self.placement
        shrinks = sorted(t / s for s, t in zip(place.scan_spacing, place.spacing, strict=True))
        return int(12 * min(RESAMPLED, self.scan.array.size) + 4 * math.prod(place.shape) * max(1.0, shrinks[0]))


def body_shares(placement: Placement, scan: Volume) -> tuple[float, float, float]:
    """How much of every axis of the scan the body takes."""
    from clseg.spatial.orient import axis_order

    shares = [min(1.0, (part.stop - part.start) / n) for part, n in zip(placement.box, placement.lattice, strict=True)]
    return tuple(shares[axis] for axis in axis_order(scan, placement.orientation))  # type: ignore[return-value]


# ---- decoders with a plan of another program --------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """All that the plan of a run of imported decoders depends on; `groups` of them share windows, `given` is as in `House`."""

    groups: Sequence[Sequence[Answer]]
    wanted: Sequence[Anatomy]
    catalogue: Catalogue
    scan: Volume
    held: int
    confidence: bool = False
    given: Volume | None = None

    def plan(self, limit: int | None, default: int) -> Plan:
        """Portions as large as the limit allows, of `default` bytes of scores at most."""
        from clseg.inference.planned.run import unfinished

        largest = max((unfinished(answer) for group in self.groups for answer in group), default=0)
        everything = max((sum(map(unfinished, group)) for group in self.groups), default=0)
        wanted = self._with(max(largest, min(everything, default)))
        if limit is None or wanted.peak <= limit:
            return wanted
        smallest = self._with(largest)
        if smallest.peak > limit:
            raise refused(limit, smallest.peak)
        room = limit - smallest.peak + self._with(largest).stages[1].bytes - self._with(0).stages[1].bytes
        return self._with(max(largest, min(everything, default, int(room / _HANDED_OUT))))

    def _with(self, share: int) -> Plan:
        from clseg.inference.planned.run import engines_in_memory

        maps = Maps(self.wanted, self.catalogue, self.scan, confidence=self.confidence)
        boxes = [(math.prod(group[0].view.cropped), math.prod(group[0].view.shape), len(group)) for group in self.groups]
        kept = int(sum((RUNS + SPOKEN) * box * count for box, _, count in boxes))  # of every answer
        finished = max(((2 * count + 4) * box for box, _, count in boxes), default=0)  # what is being collected, and one answer on the scan's axes
        prepare = max((4 * (2 * box + grid) for box, grid, _ in boxes), default=0)
        segment = max((4 * 2 * grid + 4 * box for box, grid, _ in boxes), default=0) + finished + _EXPORT + int(_HANDED_OUT * share) + self._window()
        loaded = [[engine.model for engine in engines_in_memory(self.groups, number)] for number in range(len(self.groups))]
        segment += max((sum(model.bytes for model in models if model.hollow) for models in loaded), default=0)  # others are held already
        stages = (
            Stage("prepare", kept + prepare, f"the largest of {len(self.groups)} views of the scan" if len(self.groups) > 1 else "the scan as the networks see it"),
            Stage("segment", kept + segment, f"scores of open rows {in_words(share)}, weights, a window, label maps of {number_of(sum(n for *_, n in boxes), 'network')}"),
            Stage("compose", kept + maps.bytes + maps.sure + _EXPORT, f"{number_of(maps.layers, 'label map')} of the scan"),
            Stage("write", maps.bytes + maps.sure + maps.written, "files and statistics"),
        )
        return _brought_back(Plan(self.held, stages, share=share), maps, self.given)

    def _window(self) -> int:
        found = []
        for group in self.groups:
            for source in (source for answer in group for source in answer.sources):
                model = source.engine.model
                running = [model.decoders[name].spec for name in model.with_supporters([source.decoder])]
                found.append(window_bytes(model.spec, running, group[0].view.plan.patch))
        return max(found, default=0)


_HANDED_OUT = 1.6  # sums, and what is handed out and worked on of them
_EXPORT = 64 << 20  # voxels of the scan that scores are brought to at a time


def _brought_back(plan: Plan, maps: Maps, given: Volume | None) -> Plan:
    """The plan, whose last stage is writing, for a scan that was straightened, if it was."""
    if given is None:
        return plan
    tilted = Tilted(maps, given)
    return replace(plan, stages=(*plan.stages[:-1], *tilted.stages), before=tilted.before)


def _by(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
