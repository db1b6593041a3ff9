"""Segmentation: what `segment` returns: label maps on the scanner's grid and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clseg.catalogue import Anatomy, Catalogue
from clseg.errors import UnknownName
from clseg.families import families
from clseg.io.files import check_writable, prepare_folder, write_json
from clseg.io.formats import Source
from clseg.io.nifti import write_mask
from clseg.io.segments import Segments
from clseg.measure import FamilyStatistics, Statistics, measure, measure_families
from clseg.output import Output
from clseg.radiomics import Features, features
from clseg.report.statistics import CLSEG, Measured, check_format, save_statistics
from clseg.results import Outputs, bytes_needed, check_possible, find_source, remove, write_results
from clseg.review import Certainty, Review, review, scattered
from clseg.spatial.padding import scanned
from clseg.spatial.runs import LabelRuns
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume

BORDER_MM = 1.5  # half a voxel of most networks: by that much a mask may miss where padding begins


@dataclass(frozen=True)
class Segmentation:
    """The structures found in one scan.

    `scan` is the CT as it was read.  `layers` are label maps of catalogue ids on its
    grid, uint16 arrays or `LabelRuns` (np.asarray makes arrays of them): a structure and
    its parts (body, skeleton, mandible) overlap, so they lie on different layers, parts later.  `wanted` is what was asked for;
    `out_of_range` are those that no slice of the scan can show.  DICOM results refer to
    `source`, the DICOM series of the scan; where it is None, to that in `read_from`, the
    path of the scan and the series that was named.
    `certainties` say how sure the network was, by structure; `confidence_map` is uint8
    on the scan's grid, the probability × 255 of what was painted, where
    `Settings.confidence_map` asked for it.
    """

    scan: Volume
    layers: tuple[np.ndarray | LabelRuns, ...]
    wanted: tuple[Anatomy, ...]
    out_of_range: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    source: Source = None
    certainties: Mapping[str, Certainty] = field(default_factory=dict)
    confidence_map: np.ndarray | None = None
    read_from: tuple[str, str | None] | None = None

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
        return Segments(self.scan, self.layers, self.wanted, self.facts.get("model", {}).get("name", ""))

    def statistics(self) -> dict[str, Statistics]:
        """Volume, HU, place and completeness of every wanted structure; see `clseg.measure`."""
        return dict(self._statistics)

    @cached_property
    def _statistics(self) -> dict[str, Statistics]:
        return measure(self.layers, self.scan, self.names, out_of_range=self.out_of_range, scanned=scanned(self.scan, BORDER_MM))

    def families(self, statistics: Mapping[str, Statistics] | None = None) -> dict[str, FamilyStatistics]:
        """The same of both kidneys, all ribs and the like, every voxel once; `statistics` are those above, if they are at hand."""
        found = families(self.names, Catalogue.builtin().with_structures(self.names))
        return measure_families(self.layers, self.scan, self.names, found, statistics or self.statistics()) if found else {}

    def radiomics(self) -> dict[str, Features]:
        """First-order and shape features of every wanted structure; see `clseg.radiomics`."""
        return {anatomy.name: self._features(anatomy) for anatomy in self.wanted}

    def measured(self, *, radiomics: bool = False) -> Measured:
        """All that `save` writes into the statistics."""
        statistics = self.statistics()
        return Measured(statistics, self.families(statistics), self.radiomics() if radiomics else {}, self.review())

    def review(self) -> dict[str, Review]:
        """How sure the network was of every wanted structure, and whether somebody should look at it; see `clseg.review`."""
        return dict(self._review)

    @cached_property
    def _review(self) -> dict[str, Review]:
        several = [a for a in self.present if a.single_component and (self._statistics[a.name].components or 0) > 1]
        return review(self._statistics, self.wanted, self.certainties, apart={a.name: scattered(self.segments.cut(a)[0]) for a in several})

    def save(self, output: str | os.PathLike[str], **outputs: Any) -> list[Path]:
        """Write everything and return the files, each of which appears whole or not at all.

        What an earlier run left there and this one does not write is removed where it would contradict it.  `output` is a
        folder (one `<structure>.nii.gz` per structure found, or with `multilabel` one `segmentation.nii.gz`), or a file
        name ending in .nii.gz, .nii, .nrrd or .seg.nrrd for one file; statistics and `run.json` then take its name as
        prefix, so that a loop over scans never overwrites its own results.

        All else is a field of `clseg.results.Outputs`: `multilabel`, `types`, `mesh`, `label_tables`, `bids`,
        `statistics`, `stats_format`, `radiomics`, `preview`.

        Raises UsageError for words that are not known or do not go together, OutputError when a file cannot be written.
        """
        wish = Outputs(**outputs)
        place = wish.at(Path(output))
        source = self.source or (find_source(place.types, *self.read_from) if self.read_from else None)
        check_possible(place, source)
        watch = Stopwatch(list(self.stopwatch.laps))
        run, stale = place.beside("run.json"), place.stale(list(self.names))
        with watch.lap("write"):
            check_writable(prepare_folder(place.folder), bytes_needed(self.segments, place) + (0 if self.confidence_map is None else self.scan.array.size // 4))
            remove([run, *stale])  # run.json first: where it stands, the results beside it are complete
            files = write_results(self.segments, place, source) + self._save_confidence(place)
        if wish.statistics:
            with watch.lap("statistics"):
                files += save_statistics(place, self.measured(radiomics=wish.radiomics), format=wish.stats_format)
        if wish.preview:
            with watch.lap("preview"):
                files.append(self._save_preview(place))
        files.append(run)
        write_json(run, self._run([place.within(file) for file in files], watch))
        return files

    def save_statistics(
        self, output: str | os.PathLike[str], *, stats_format: str = CLSEG, radiomics: bool = False, measured: Measured | None = None
    ) -> list[Path]:
        """Write the statistics alone, as `save` would, and return the files; those of an earlier run that this one does not write are removed.

        `measured` is what the method of that name gave, if it is at hand.
        """
        check_format(stats_format)
        place = Output.at(Path(output), False)
        check_writable(prepare_folder(place.folder), 1_000_000)
        files = save_statistics(place, measured or self.measured(radiomics=radiomics), format=stats_format)
        remove(file for file in place.statistics if file not in files)
        return files

    def _features(self, anatomy: Anatomy) -> Features:
        """Radiomics of one structure, which do not depend on where in the patient it lies; all None for one that was not found."""
        if anatomy not in self.present:
            return features(np.zeros(self.scan.shape, bool), self.scan)
        mask, box = self.segments.cut(anatomy)
        return features(mask, Volume(self.scan.array[box], self.scan.affine))

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

    def _run(self, files: Sequence[str], watch: Stopwatch) -> dict[str, Any]:
        """The run manifest: what came in, what was used, what came out."""
        empty = [a.name for a in self.wanted if a not in self.present]
        return {
            **self.facts,
            "structures": [a.name for a in self.present],
            "empty": empty,
            "out_of_range": sorted(self.out_of_range),
            "stages": [asdict(lap) for lap in watch.laps],
            "files": list(files),
        }
