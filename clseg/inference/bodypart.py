"""Body-part scores: how high in the body every slice of a scan lies, 0 = bottom of the pelvis, 1 = top of the head.

Slices are scored one by one and the curve along z is smoothed.  Where its ends cannot be
true (arms above the head, a couch, metal) it is continued in a straight line, and what is
left becomes the nearest curve that rises everywhere as fast as bodies do.  So the order of
settled scores is right by construction; what the network itself knows of it is in the raw ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clseg.inference.prepare import onto_grid, place
from clseg.network.bodypart import BodypartSpec, SliceScorer
from clseg.network.spec import Grid
from clseg.spatial.resample import covering_shape, resample
from clseg.volume import Spacing, Volume

BATCH = 64  # slices at a time
THINNEST_MM = 3.0  # thinner slices are averaged to this before they are scored
CLEAR = 0.2  # span of scores, about a hand and a half of a body, from which on its direction is certain
SLOWEST_PER_MM = 0.5 / 880  # half of what the average body rises; flatter curves are the network's, not the body's
FALLS = -0.9  # correlation of scores with slice number below which a scan runs from head to feet, though it be short
ROUNDS = 40  # of projections; slopes are then right to a millionth
LONGEST_END_MM = 100.0  # more of an end than this is never disbelieved


@dataclass(frozen=True)
class Scores:
    """One score per slice of a scan, from the feet up as its header says.

    `z_mm` is the height above the centre of the lowest slice; `raw` what the network
    says, calibrated; `values` the same, smoothed, with implausible ends replaced.
    """

    z_mm: np.ndarray
    raw: np.ndarray
    values: np.ndarray


def score_scan(scan: Volume, scorer: SliceScorer) -> Scores:
    """Scores of all slices of a CT in HU, in any orientation."""
    slices, z_mm, _ = scan_slices(scan, scorer.spec, thinnest_mm=THINNEST_MM)
    raw = score_slices(slices, scorer)
    values = settle(raw, z_mm, scorer.spec)
    axis = "RAS".index("S")
    oriented = _upright(scan)
    heights = np.arange(oriented.shape[axis]) * oriented.spacing[axis]
    return Scores(heights, np.interp(heights, z_mm, raw), _line_interp(heights, z_mm, values, scorer.spec))


def score_grid(hu: torch.Tensor, spacing: Spacing, scorer: SliceScorer, orientation: str = "RAS") -> np.ndarray | None:
    """Scores of the slices along the last axis of `hu` (x, y, z) on a model's grid; None where that axis is not the body's.

    `hu` is what `clseg.inference.prepare.onto_grid` gives, in HU.
    """
    upright = to_ras(hu, spacing, orientation)
    if upright is None:
        return None
    raw = score_slices(frame(*upright, scorer.spec), scorer)
    z_mm = np.arange(len(raw)) * spacing[2]
    values = settle(raw, z_mm, scorer.spec)
    return values[::-1] if orientation[2] == "I" else values


def head_first(scores: np.ndarray) -> float:
    """Spearman correlation of scores (`raw` ones) with slice number: near 1 as it should be, near −1 where the header is upside down.

    0 for fewer than three slices, or when all scores are the same: nothing is known.
    """
    from scipy.stats import spearmanr

    if len(scores) < 3 or np.ptp(scores) == 0:
        return 0.0
    return float(spearmanr(np.arange(len(scores)), scores).statistic)


def upside_down(scores: np.ndarray) -> bool:
    """Whether a scan that covers enough of a body to say so runs from head to feet, against its header."""
    return len(scores) > 2 and float(np.ptp(scores)) > CLEAR and head_first(scores) < -0.5


# ---- slices -----------------------------------------------------------------------------------------------------------


def scan_slices(scan: Volume, spec: BodypartSpec, *, thinnest_mm: float = 0.0) -> tuple[torch.Tensor, np.ndarray, slice]:
    """Slices (n, x, y) in HU as the network wants them, centred on the body, their heights in mm, and which of the scan's they are.

    Slices without body at the ends of a scan are left out.
    """
    thickness = max(_upright(scan).spacing[2], thinnest_mm)
    oriented, placement = place(scan, Grid("RAS", (spec.spacing_mm, spec.spacing_mm, thickness), (1, 1, 1)))
    slices = frame(onto_grid(oriented.array, placement), placement.spacing, spec)
    part = placement.box[2]
    middle = (oriented.shape[2] - 1) / 2 * oriented.spacing[2]  # the two lattices are concentric
    heights = middle + (np.arange(part.start, part.stop) - (placement.lattice[2] - 1) / 2) * thickness
    return slices, heights, part


def frame(hu: torch.Tensor, spacing: Spacing, spec: BodypartSpec) -> torch.Tensor:
    """`hu` (x, y, z) → slices (z, size, size) of `spec.spacing_mm` around the middle, air where there was nothing."""
    target = (spec.spacing_mm, spec.spacing_mm, spacing[2])
    covering = covering_shape(tuple(hu.shape), spacing, target)  # type: ignore[arg-type]
    shape = (*(min(n, spec.size) for n in covering[:2]), hu.shape[2])
    small = resample(hu, spacing, shape, target).permute(2, 0, 1)
    canvas = torch.full((hu.shape[2], spec.size, spec.size), spec.low_hu)
    x, y = ((spec.size - n) // 2 for n in shape[:2])
    canvas[:, x : x + shape[0], y : y + shape[1]] = small
    return canvas


def to_ras(hu: torch.Tensor, spacing: Spacing, orientation: str) -> tuple[torch.Tensor, Spacing] | None:
    """`hu` with axes Right, Anterior, Superior; None when its last axis is not head-foot."""
    if orientation[2] not in "SI":
        return None
    if orientation[0] in "AP":
        hu, spacing, orientation = hu.transpose(0, 1), (spacing[1], spacing[0], spacing[2]), orientation[1::-1] + orientation[2]
    turned = [axis for axis, (mine, wanted) in enumerate(zip(orientation, "RAS", strict=True)) if mine != wanted]
    return (hu.flip(turned) if turned else hu), spacing


@torch.inference_mode()
def score_slices(slices: torch.Tensor, scorer: SliceScorer) -> np.ndarray:
    """Calibrated scores, float64 (n,), of slices (n, x, y) in HU."""
    spec = scorer.spec
    device = next(scorer.parameters()).device
    parts = [scorer(normalise(part, spec)[:, None].to(device)) for part in slices.split(BATCH)]
    return torch.cat(parts).double().cpu().numpy() * spec.gain + spec.offset


def normalise(hu: torch.Tensor, spec: BodypartSpec) -> torch.Tensor:
    """HU → [-1, 1]."""
    return (hu.clamp(spec.low_hu, spec.high_hu) - spec.low_hu) * (2 / (spec.high_hu - spec.low_hu)) - 1


def _upright(scan: Volume) -> Volume:
    from clseg.spatial.orient import to_orientation

    return to_orientation(scan, "RAS")


# ---- the curve along z ------------------------------------------------------------------------------------------------


def settle(raw: np.ndarray, z_mm: np.ndarray, spec: BodypartSpec) -> np.ndarray:
    """Scores smoothed along z (evenly spaced), with implausible ends replaced and rising plausibly throughout.

    A single slice stays as it is, and a scan that runs from head to feet keeps falling.
    """
    if len(raw) < 2:
        return raw.copy()
    step = float(z_mm[1] - z_mm[0])
    smoothed = smooth(raw, spec.smooth_mm / step)
    if upside_down(raw) or (np.ptp(raw) > CLEAR / 2 and head_first(raw) < FALLS):
        return smoothed
    slowest = min(max(spec.slope[0], SLOWEST_PER_MM), spec.slope[1])
    return plausible(straighten_ends(smoothed, step, spec.slope), step, (slowest, spec.slope[1]))


def plausible(values: np.ndarray, step_mm: float, slope: tuple[float, float]) -> np.ndarray:
    """The curve nearest to `values` (least squares) whose slopes (per mm) lie within `slope` everywhere.

    Rising fast enough and slowly enough are two isotonic regressions; Dykstra's alternating
    projections (Boyle and Dykstra, 1986) bring them together.
    """
    from scipy.optimize import isotonic_regression

    slow = slope[0] * step_mm * np.arange(len(values))
    if not np.isfinite(slope[1]):
        return isotonic_regression(values - slow).x + slow
    fast = slope[1] * step_mm * np.arange(len(values))
    curve, low_rest, high_rest = values, np.zeros(len(values)), np.zeros(len(values))
    for _ in range(ROUNDS):
        risen = isotonic_regression(curve + low_rest - slow).x + slow
        low_rest = curve + low_rest - risen
        curve = isotonic_regression(risen + high_rest - fast, increasing=False).x + fast
        high_rest = risen + high_rest - curve
    return _within(curve, step_mm, slope)


def _within(values: np.ndarray, step_mm: float, slope: tuple[float, float]) -> np.ndarray:
    """A curve with slopes within `slope` close to one that has them but for rounding: the mean of the lowest above and the highest below it."""
    apart = (np.arange(len(values))[:, None] - np.arange(len(values))[None, :]) * step_mm  # (here, there)
    least, most = np.where(apart > 0, slope[0], slope[1]), np.where(apart > 0, slope[1], slope[0])
    return ((values + least * apart).max(axis=1) + (values + most * apart).min(axis=1)) / 2



def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing, `sigma` in slices; at the ends the curve goes on as its point reflection, so that a line stays a line."""
    from scipy.ndimage import gaussian_filter1d

    if sigma < 1e-3 or len(values) < 2:
        return values.copy()
    reach = int(np.ceil(4 * sigma))
    longer = np.pad(values, reach, mode="reflect", reflect_type="odd")
    return gaussian_filter1d(longer, sigma, radius=reach)[reach:-reach]


def straighten_ends(values: np.ndarray, step_mm: float, slope: tuple[float, float]) -> np.ndarray:
    """The curve with both ends, where its slope is not in `slope` (per mm), continued in a straight line.

    At most LONGEST_END_MM of an end and never more than a third of the scan is replaced;
    where what lies next to an end is no better, the end stays as it is.  The line
    has the median slope of the plausible part.
    """
    slopes = np.diff(values) / step_mm
    good = (slopes >= slope[0]) & (slopes <= slope[1])
    most = min(int(LONGEST_END_MM / step_mm), len(slopes) // 3)
    if not good.any() or most < 1:
        return values.copy()
    typical = float(np.median(slopes[good]))
    out = values.copy()
    first = int(np.argmax(good))
    if 0 < first <= most:
        out[:first] = values[first] - typical * step_mm * np.arange(first, 0, -1)
    last = int(np.argmax(good[::-1]))
    if 0 < last <= most:
        out[-last:] = values[-last - 1] + typical * step_mm * np.arange(1, last + 1)
    return out


def _line_interp(at: np.ndarray, z_mm: np.ndarray, values: np.ndarray, spec: BodypartSpec) -> np.ndarray:
    """Linear interpolation; beyond the ends the curve goes on with its own typical slope where that is plausible."""
    out = np.interp(at, z_mm, values)
    if len(values) < 2:
        return out
    typical = float(np.median(np.diff(values) / np.diff(z_mm)))
    if spec.slope[0] <= typical <= spec.slope[1]:
        out += typical * (np.minimum(at - z_mm[0], 0) + np.maximum(at - z_mm[-1], 0))
    return out
