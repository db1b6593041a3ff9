"""Peaks: where air, fat and soft tissue lie in the histogram of a CT, and whether they lie where they should."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from clseg.io.finding import WARNING, Finding
from clseg.spatial.padding import sampled

_BIN_HU = 5
_NEAR_HU = 17.5  # seven bins around a peak
_LEAST = 0.02  # of all voxels in the window, or there is no such tissue

_TIP = "Convert the scan again from its DICOM series with rescale slope and intercept applied, e.g. with dcm2niix, or give the DICOM folder itself."


@dataclass(frozen=True)
class Tissue:
    """Where the peak of a tissue is looked for, and where it lies in a sound CT; HU.

    It is a peak when the bins around it hold at least the share `sharpness` of the window.
    """

    name: str
    window: tuple[float, float]
    sound: tuple[float, float]
    sharpness: float


def tissues() -> tuple[Tissue, ...]:
    """The table `clseg/data/tissues.csv`."""
    with files("clseg.data").joinpath("tissues.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(Tissue(r["tissue"], (float(r["from_hu"]), float(r["to_hu"])), (float(r["lowest_peak_hu"]), float(r["highest_peak_hu"])), float(r["sharpness"])) for r in rows)


def peaks(array: np.ndarray) -> dict[str, float | None]:
    """HU of the peak of every tissue, ± 2.5; None where there is none that is sharp."""
    values = sampled(array)
    return {tissue.name: _peak(values, tissue) for tissue in tissues()}


def judge_peaks(found: dict[str, float | None]) -> list[Finding]:
    """A warning for every peak that does not lie where it should."""
    findings = []
    for tissue in tissues():
        peak, (low, high) = found[tissue.name], tissue.sound
        if peak is not None and not low <= peak <= high:
            findings.append(Finding(WARNING, "values", f"The peak of {tissue.name} lies at {peak:g} HU, expected {low:g} to {high:g}: the scan may not be in HU, or be a cone-beam CT.", _TIP))
    return findings


def _peak(values: np.ndarray, tissue: Tissue) -> float | None:
    low, high = tissue.window
    counts, edges = np.histogram(values, bins=np.arange(low, high + _BIN_HU, _BIN_HU))
    total = counts.sum()
    if total < max(1, _LEAST * values.size):
        return None
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], mode="same")
    top = int(smooth.argmax())
    at = edges[top] + _BIN_HU / 2
    near = np.abs(edges[:-1] + _BIN_HU / 2 - at) < _NEAR_HU
    inside = 2 <= top < len(counts) - 2  # at the border it is the flank of a neighbour
    return float(at) if inside and counts[near].sum() >= tissue.sharpness * total else None
