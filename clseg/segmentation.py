"""Segmentation: what `segment` returns: label maps on the scanner's grid and what is known about them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clseg.catalogue import Anatomy
from clseg.errors import UnknownName
from clseg.io.files import check_writable, prepare_folder, write_csv, write_json
from clseg.io.formats import Source
from clseg.io.segments import Segments
from clseg.measure import Statistics, measure, to_json, to_rows
from clseg.output import Output
from clseg.results import bytes_needed, check_possible, remove, write_results
from clseg.stopwatch import Stopwatch
from clseg.volume import Volume


@dataclass(frozen=True)
class Segmentation:
    """The structures found in one scan.

    `scan` is the CT as it was read.  `layers` are uint16 label maps of catalogue ids
    on its grid: a structure and its parts (body, skeleton, mandible) overlap, so they
    lie on different layers, parts later.  `wanted` is what was asked for;
    `out_of_range` are those whose decoders had no slice to run on.  `source` is the
    DICOM series of the scan, which DICOM results refer to; None for other scans.
    """

    scan: Volume
    layers: tuple[np.ndarray, ...]
    wanted: tuple[Anatomy, ...]
    out_of_range: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    source: Source = None

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
        return measure(self.layers, self.scan, self.names, out_of_range=self.out_of_range)

    def save(
        self,
        output: str | os.PathLike[str],
        *,
        multilabel: bool = False,
        statistics: bool = False,
        preview: bool = False,
        types: Iterable[str] | str | None = None,
        mesh: Iterable[str] | str = (),
        label_tables: Iterable[str] | str = (),
        bids: str | None = None,
    ) -> list[Path]:
        """Write everything and return the files, each of which appears whole or not at all.

        What an earlier run left there and this one does not write is removed where it would contradict it.  `output` is a
        folder (one `<structure>.nii.gz` per structure found, or with `multilabel` one `segmentation.nii.gz`), or a file
        name ending in .nii.gz, .nii, .nrrd or .seg.nrrd for one file; statistics and `run.json` then take its name as
        prefix, so that a loop over scans never overwrites its own results.

        `types` are formats (nifti, nrrd, seg.nrrd, dicom_seg, dicom_labelmap, dicom_rtstruct), `mesh` surfaces (stl, obj,
        ply) and `label_tables` tables for other programs (itksnap, slicer).  `bids` makes `output` a BIDS dataset of
        derivatives and is the name of the case: that of its file where it is named as BIDS wants it.

        Raises UsageError for words that are not known or do not go together, OutputError when a file cannot be written.
        """
        place = Output.at(Path(output), multilabel, types=types, mesh=mesh, label_tables=label_tables, bids=bids)
        check_possible(place, self.source)
        watch = Stopwatch(list(self.stopwatch.laps))
        run, stale = place.beside("run.json"), place.stale(list(self.names))
        with watch.lap("write"):
            check_writable(prepare_folder(place.folder), bytes_needed(self.segments, place))
            remove([run, *stale])  # run.json first: where it stands, the results beside it are complete
            files = write_results(self.segments, place, self.source)
        if statistics:
            with watch.lap("statistics"):
                files += self._save_statistics(place)
        if preview:
            with watch.lap("preview"):
                files.append(self._save_preview(place))
        files.append(run)
        write_json(run, self._run([place.within(file) for file in files], watch))
        return files

    def _save_statistics(self, place: Output) -> list[Path]:
        values = self.statistics()
        json_file, csv_file = place.beside("statistics.json"), place.beside("statistics.csv")
        write_json(json_file, to_json(values))
        write_csv(csv_file, *to_rows(values))
        return [json_file, csv_file]

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
