"""Preflight: everything that can be said about a scan before it is segmented, each fault with what mends it."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from clseg.errors import InputError
from clseg.inference.bodypart import CLEAR, Scores, score_scan, upside_down
from clseg.inference.contrast import guess_contrast
from clseg.inference.heart import look_at_chest
from clseg.io.check import check
from clseg.io.convert import to_volume
from clseg.io.files import read
from clseg.io.finding import FAULT, NOTE, WARNING, Finding
from clseg.io.peaks import judge_peaks, peaks
from clseg.spatial.orient import to_orientation
from clseg.spatial.orthonormal import to_orthonormal
from clseg.volume import Volume

if TYPE_CHECKING:
    from clseg.network.bodypart import SliceScorer

VERDICTS = {0: "good", 3: "usable with warnings", 1: "unusable"}

_TURN = (
    "Turn it round: python -c \"import nibabel as nib; n = nib.load('scan.nii.gz'); "
    "nib.save(nib.Nifti1Image(n.get_fdata()[{slices}].astype('int16'), n.affine), 'scan_turned.nii.gz')\", "
    "or convert it again from its DICOM series, e.g. with dcm2niix."
)


@dataclass(frozen=True)
class Preflight:
    """What was found: `facts` by topic (geometry, values, coverage, chest), and `findings`."""

    facts: dict[str, dict[str, Any]]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 good, 3 usable with warnings, 1 unusable."""
        levels = {finding.level for finding in self.findings}
        return 1 if FAULT in levels else 3 if WARNING in levels else 0

    @property
    def verdict(self) -> str:
        return VERDICTS[self.exit_code]

    def to_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "exit_code": self.exit_code, **self.facts, "findings": [asdict(finding) for finding in self.findings]}


def preflight(image: Any, *, series: str | None = None, scorer: SliceScorer | None = None) -> Preflight:
    """Look at a scan: a path, or whatever `segment` takes.

    The cheap part is what `segment` looks at, too (`read` and `check`); peaks of tissues and, with a `scorer` of body
    parts, coverage, head-foot and left-right come on top.  Raises UsageError when nothing is there.
    """
    facts: dict[str, dict[str, Any]] = {}
    findings: list[Finding] = []
    try:
        scan = read(image, series=series, found=findings.append) if isinstance(image, (str, os.PathLike)) else to_volume(image)
        facts["geometry"] = _geometry(scan)
        checked = check(scan)
    except InputError as error:
        return Preflight(facts, (*findings, Finding(FAULT, "scan", error.message, error.tip or "")))
    findings += checked.findings
    facts["values"] = _values(checked.volume)
    findings += judge_peaks(facts["values"]["peaks_hu"])
    if scorer is not None:
        straight = to_orthonormal(checked.volume) if checked.needs_orthonormal else checked.volume
        findings += _judge_body(straight, scorer, facts)
    return Preflight(facts, tuple(findings))


def _geometry(scan: Volume) -> dict[str, Any]:
    size = [round(length * edge, 1) for length, edge in zip(scan.shape, scan.spacing, strict=True)]
    return {"shape": list(scan.shape), "spacing_mm": [round(edge, 4) for edge in scan.spacing], "size_mm": size, "orientation": scan.orientation}


def _values(scan: Volume) -> dict[str, Any]:
    return {"lowest": float(scan.array.min()), "highest": float(scan.array.max()), "peaks_hu": peaks(scan.array), "contrast": guess_contrast(scan)}


def _judge_body(scan: Volume, scorer: SliceScorer, facts: dict[str, dict[str, Any]]) -> list[Finding]:
    """Coverage, head-foot and left-right from body-part scores."""
    scores = score_scan(scan, scorer)
    if upside_down(scores.raw):
        text = "The body lies upside down: its parts come from head to feet where the header says feet to head."
        return [Finding(WARNING, "orientation", text, _turn(scan, "SI"))]
    findings = [_coverage(scores, facts)]
    if float(np.ptp(scores.raw)) <= CLEAR:
        findings.append(Finding(NOTE, "orientation", "The scan is too short to tell whether head and feet are where the header says."))
        return findings
    chest = look_at_chest(to_orientation(scan, "RAS"), scores.values)
    if chest is None:
        return findings
    facts["chest"] = {"heart_left_mm": round(chest.heart_left_mm, 1), "right_lung_share": round(chest.right_share, 3)}
    if chest.swapped:
        text = f"The heart leans {-chest.heart_left_mm:.0f} mm to the right: left and right may be swapped (or it is pushed aside, or lies there by nature)."
        findings.append(Finding(WARNING, "orientation", text, f"Look at the liver; if it is on the left: {_turn(scan, 'LR')}"))
    return findings


def _turn(scan: Volume, ends: str) -> str:
    """The command that reverses the axis that runs between two ends of the patient, e.g. 'SI'."""
    return _TURN.format(slices=", ".join("::-1" if letter in ends else ":" for letter in scan.orientation))


def _coverage(scores: Scores, facts: dict[str, dict[str, Any]]) -> Finding:
    low, high = float(scores.values[0]), float(scores.values[-1])
    bottom, top = nearest_landmark(low), nearest_landmark(high)
    facts["coverage"] = {"lowest_score": round(low, 3), "highest_score": round(high, 3), "from": bottom, "to": top}
    return Finding(NOTE, "coverage", f"The scan reaches from about {bottom} to {top} (body-part scores {low:.2f}–{high:.2f}; 0 is the bottom of the pelvis, 1 the top of the head).")


def nearest_landmark(score: float) -> str:
    """The landmark of `clseg/data/landmarks.csv` whose height in the body is nearest, in words."""
    with files("clseg.data").joinpath("landmarks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return min(rows, key=lambda row: abs(float(row["height"]) - score))["name"].replace("_", " ")
