"""Segmentation: what `segment` returns: label maps on the scanner's grid and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clseg.catalogue import Anatomy
from clseg.errors import OutputError, UnknownName
from clseg.io.files import check_writable, prepare_folder, write_csv, write_json
from clseg.io.nifti import write_mask, write_structure
from clseg.io.segments import Segments
from clseg.measure import Statistics, measure, to_json, to_rows
from clseg.output import Output
from clseg.review import Certainty, Review, review, scattered
from clseg.review import to_json as review_json
from clseg.review import to_rows as review_rows
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume


@dataclass(frozen=True)
class Segmentation:
    """The structures found in one scan.

    `scan` is the CT as it was read.  `layers` are uint16 label maps of catalogue ids
    on its grid: a structure and its parts (body, skeleton, mandible) overlap, so they
    lie on different layers, parts later.  `wanted` is what was asked for;
    `out_of_range` are those that no slice of the scan can show.  `certainties` say how
    sure the network was, by structure; `confidence_map` is uint8 on the scan's grid, the
    probability × 255 of what was painted, where `Settings.confidence_map` asked for it.
    """

    scan: Volume
    layers: tuple[np.ndarray, ...]
    wanted: tuple[Anatomy, ...]
    out_of_range: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    certainties: Mapping[str, Certainty] = field(default_factory=dict)
    confidence_map: np.ndarray | None = None

    @property
    def names(self) -> dict[str, int]:
        """Structure name → id in the label maps, in the order of the catalogue."""
        return {a.name: a.id for a in self.wanted}

    @cached_property
    def labels(self) -> Volume:
        """One label map on the scan's grid; where structures overlap the part hides the whole."""
        return self.scan.like(self.segments.flat())

    def mask(self, name: str) -> np.ndarray:
        """Boolean mask of one structure, shape of the scan; UnknownName when it was not asked for."""
        if name not in self.names:
            from difflib import get_close_matches

            raise UnknownName("structure in this result", name, tuple(get_close_matches(name, self.names, 3)))
        return self.segments.mask(next(a for a in self.wanted if a.name == name))

    @property
    def present(self) -> tuple[Anatomy, ...]:
        """The structures that have at least one voxel."""
        return self.segments.present

    @cached_property
    def segments(self) -> Segments:
        """What writers of files need to know."""
        return Segments(self.scan, self.layers, self.wanted)

    def statistics(self) -> dict[str, Statistics]:
        """Volume, HU, place and completeness of every wanted structure; see `clseg.measure`."""
        return dict(self._statistics)

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        return measure(self.layers, self.scan, self.names, out_of_range=self.out_of_range)

    def review(self) -> dict[str, Review]:
        """How sure the network was of every wanted structure, and whether somebody should look at it; see `clseg.review`."""
        several = [a for a in self.present if a.single_component and (self._statistics[a.name].components or 0) > 1]
        return review(self._statistics, self.wanted, self.certainties, apart={a.name: scattered(self._cut(a)) for a in several})

    def _cut(self, anatomy: Anatomy) -> np.ndarray:
        """The mask of a structure in its box, or whole where several layers hold it."""
        holding = list(self.segments.pieces(anatomy))
        return np.ascontiguousarray(holding[0][0][holding[0][1]] == anatomy.id) if len(holding) == 1 else self.mask(anatomy.name)

    def save(
        self, output: str | os.PathLike[str], *, multilabel: bool = False, statistics: bool = False, preview: bool = False
    ) -> list[Path]:
        """Write everything and return the files, each of which appears whole or not at all.

        Statistics, a preview, a map of confidence or a label map that an earlier run left there and this
        one does not write are removed.  `output` is a folder (one `<structure>.nii.gz` per structure found, or with
        `multilabel` one `segmentation.nii.gz`), or a file name ending in .nii or
        .nii.gz for one label map; statistics and `run.json` then take its name as
        prefix, so that a loop over scans never overwrites its own results.
        """
        place = Output.at(Path(output), multilabel)
        watch = Stopwatch(list(self.stopwatch.laps))
        run, stale = place.beside("run.json"), place.stale(list(self.names))
        with watch.lap("write"):
            check_writable(prepare_folder(place.folder), self._bytes_needed(place))
            for file in (run, *stale):  # run.json first: where it stands, the results beside it are complete
                _remove(file)
            files = self._save_masks(place) + self._save_confidence(place)
        if statistics:
            with watch.lap("statistics"):
                files += self._save_statistics(place)
        if preview:
            with watch.lap("preview"):
                files.append(self._save_preview(place))
        files.append(run)
        write_json(run, self._run(files, watch))
        return files

    def _save_masks(self, place: Output) -> list[Path]:
        if place.multilabel:
            table = {a.id: (a.name, a.colour) for a in self.wanted}
            write_mask(place.multilabel, self.labels.array, self.scan, labels=table)
            names = place.labels
            write_json(names, self.names)
            return [place.multilabel, names]
        files = []
        for anatomy in self.wanted:
            file = place.mask(anatomy.name)
            if anatomy in self.present:
                self._save_structure(file, anatomy)
                files.append(file)
            elif file.is_file():
                _remove(file)  # an empty structure must not keep the mask of an earlier run
        return files

    def _save_structure(self, file: Path, anatomy: Anatomy) -> None:
        """One mask, straight from the only layer that holds the structure."""
        holding = list(self.segments.pieces(anatomy))
        if len(holding) == 1:
            layer, box = holding[0]
            write_structure(file, layer, anatomy.id, box, self.scan)
        else:
            write_mask(file, self.mask(anatomy.name), self.scan)

    def _save_statistics(self, place: Output) -> list[Path]:
        values, reviews = self.statistics(), self.review()
        json_file, csv_file = place.beside("statistics.json"), place.beside("statistics.csv")
        judged = review_json(reviews)
        write_json(json_file, {name: {**one, **judged[name]} for name, one in to_json(values).items()})
        (header, rows), (more, judgements) = to_rows(values), review_rows(reviews)
        write_csv(csv_file, [*header, *more], [[*row, *judgement] for row, judgement in zip(rows, judgements, strict=True)])
        return [json_file, csv_file]

    def _save_confidence(self, place: Output) -> list[Path]:
        if self.confidence_map is None:
            return []
        file = place.beside("confidence.nii.gz")
        write_mask(file, self.confidence_map, self.scan)
        return [file]

    def _save_preview(self, place: Output) -> Path:
        from clseg.report.preview import save_preview

        file = place.beside("preview.png")
        colours, names = {a.id: a.colour for a in self.wanted}, {a.id: a.name for a in self.wanted}
        save_preview(file, self.scan, self.layers, colours, names)
        return file

    def _bytes_needed(self, place: Output) -> int:
        """At most about this much will be written: nothing compresses a thousandfold, a structure to a few bits per voxel."""
        size = self.scan.array.size
        if place.multilabel and place.multilabel.suffix == ".nii":
            masks = size * (1 if max(self.names.values(), default=0) < 256 else 2)
        else:
            files = 1 if place.multilabel else len(self.present)
            masks = files * size // 900 + sum(one.voxels for there in self.segments.regions for one in there.values()) // 4
        masks += 0 if self.confidence_map is None else size // 4
        return 2_000_000 + masks  # the reports have room in two megabytes

    def _run(self, files: Sequence[Path], watch: Stopwatch) -> dict[str, Any]:
        """The run manifest: what came in, what was used, what came out."""
        empty = [a.name for a in self.wanted if a not in self.present]
        return {
            **self.facts,
            "structures": [a.name for a in self.present],
            "empty": empty,
            "out_of_range": sorted(self.out_of_range),
            "stages": [asdict(lap) for lap in watch.laps],
            "files": [file.name for file in files],
        }


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)  # another run into the same folder may have been faster
    except OSError as error:
        raise OutputError(f"The result of an earlier run '{file}' cannot be removed: {error.strerror}.") from error
