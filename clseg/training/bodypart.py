"""Body-part training: a network learns the order of slices, landmarks set the scale, held-out scans are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clseg.errors import TrainingError
from clseg.inference.bodypart import head_first, score_slices, settle, smooth
from clseg.io.files import write_json
from clseg.network.bodypart import BodypartSpec, SliceScorer, save_bodypart
from clseg.recipe.bodypart import BodypartRecipe, OrderRecipe, ScorerOptimRecipe
from clseg.training.card import origin
from clseg.training.cases import find_cases
from clseg.training.cases.held_out import refuse_lost_split
from clseg.training.loop import Learner, learner
from clseg.training.run import Reports, alone, note_recipe, quicken
from clseg.training.slices import BODY_MM, SliceBatch, SliceDraws, SliceScan, known_landmarks, load_scan, read_by_eye
from clseg.training.stage import run_stage

SOFT = 0.03  # of the body: landmarks that lie further from the line than this (26 mm) pull less


def train_bodypart(recipe: BodypartRecipe, run: Path, *, resume: bool = False, reports: Reports | None = None) -> Path:
    """Train, calibrate, measure and export; returns the weights file `<run>/weights/bodypart.safetensors`.

    `run` receives recipe, metrics, the state to resume from, and `evaluation.json`.
    Raises KeyboardInterrupt when stopped, with the state saved, TrainingError when the
    training cases show no landmarks to calibrate with.
    """
    reports = reports or Reports()
    refuse_lost_split("validation_split", recipe.validation_split, recipe.dataset, recipe.folder)
    with alone(run):
        note_recipe(recipe, run, resume=resume, tell=reports.note)
        quicken(recipe.threads)
        scans = load_scans(recipe, run / "cache", reports)
        torch.manual_seed(recipe.seed)
        student = learner(Ordering(recipe), recipe.optim, "cpu")
        done = run_stage("bodypart", student, SliceDraws(scans, recipe), recipe.optim, run=run, reports=reports, resume=resume)
        scorer = calibrate(averaged(student), scans)
        unseen = load_scans(recipe, run / "cache", reports, recipe.validation_split)
        results = {"train": evaluate(scans, scorer, scans), "validation": evaluate(unseen, scorer, scans)}
        write_json(run / "evaluation.json", results)
        file = run / "weights" / "bodypart.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_bodypart(file, scorer, _card(recipe, scans, done, results["validation"]["summary"]))
        return file


def load_scans(recipe: BodypartRecipe, cache: Path, reports: Reports, split: str | None = None) -> list[SliceScan]:
    """Every case of the recipe (of `split`: default the recipe's) as slices, through the cache."""
    cases = [case for case in find_cases(recipe, split) if case.ct is not None]  # type: ignore[arg-type]
    by_eye = read_by_eye(recipe)
    scans = []
    for index, case in enumerate(cases):
        scans.append(load_scan(case, blank_spec(recipe), cache, by_eye.get(case.name)))
        reports.case(index + 1, len(cases), case.name)
        if reports.stop():
            raise KeyboardInterrupt
    return scans


def blank_spec(recipe: BodypartRecipe) -> BodypartSpec:
    """The network's shape and input, not calibrated."""
    rule = recipe.scorer
    return BodypartSpec(rule.widths, rule.size, rule.spacing_mm, rule.low_hu, rule.high_hu, rule.smooth_mm)


# ---- order ------------------------------------------------------------------------------------------------------------


class Ordering(nn.Module):
    """The scorer with its loss, as the training loop wants it."""

    decoders = ("order", "across")  # names of the losses

    def __init__(self, recipe: BodypartRecipe) -> None:
        super().__init__()
        self.scorer = SliceScorer(blank_spec(recipe))
        self.rule = recipe.order

    def forward(self, batch: SliceBatch, rule: ScorerOptimRecipe, device: str) -> dict[str, torch.Tensor]:
        raw = self.scorer(batch.images.to(device))
        losses = {"order": within(raw, batch, self.rule)}
        if self.rule.across > 0:
            losses["across"] = self.rule.across * across(raw, batch, self.rule)
        return losses


def order_errors(raw: torch.Tensor, heights_mm: torch.Tensor, rule: OrderRecipe) -> torch.Tensor:
    """(sigmoid(β·Δz) − sigmoid(α·Δs))² for all pairs of slices: (n, n). CL-Net's loss is the mean over the slices of one scan."""
    dz = heights_mm[:, None] - heights_mm[None, :]
    ds = raw[:, None] - raw[None, :]
    return (torch.sigmoid(rule.beta_per_mm * dz) - torch.sigmoid(rule.alpha * ds)) ** 2


def within(raw: torch.Tensor, batch: SliceBatch, rule: OrderRecipe) -> torch.Tensor:
    """Mean error of pairs from the same scan."""
    same = batch.scan[:, None] == batch.scan[None, :]
    return order_errors(raw, batch.z_mm, rule)[same].mean()


def across(raw: torch.Tensor, batch: SliceBatch, rule: OrderRecipe) -> torch.Tensor:
    """Mean error of pairs from different scans whose landmarks say where in the body they lie; 0 without such pairs."""
    known = ~batch.body_mm.isnan()
    pairs = (batch.scan[:, None] != batch.scan[None, :]) & known[:, None] & known[None, :]
    if not pairs.any():
        return raw.sum() * 0
    return order_errors(raw, batch.body_mm.nan_to_num(), rule)[pairs].mean()


def averaged(student: Learner) -> SliceScorer:
    """The scorer with the moving average of its weights, rounded as the file will hold them."""
    scorer = SliceScorer(student.network.scorer.spec)  # type: ignore[attr-defined]
    tensors = {name.removeprefix("scorer."): tensor.half().float() for name, tensor in student.average.tensors.items()}
    scorer.load_state_dict(tensors)
    return scorer.eval().requires_grad_(False)


# ---- scale ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What a scorer says of one scan: calibrated scores as they come (`raw`) and settled (`values`)."""

    scan: SliceScan
    raw: np.ndarray
    values: np.ndarray

    def at(self, z_mm: float) -> float:
        return float(np.interp(z_mm, self.scan.z_mm, self.values))

    def shows(self, z_mm: float) -> bool:
        return bool(self.scan.z_mm[0] <= z_mm <= self.scan.z_mm[-1])


def curve_of(scan: SliceScan, scorer: SliceScorer) -> Curve:
    spec = scorer.spec
    hu = torch.from_numpy(scan.slices.astype(np.float32) * ((spec.high_hu - spec.low_hu) / 255) + spec.low_hu)
    raw = score_slices(hu, scorer)
    return Curve(scan, raw, settle(raw, scan.z_mm.astype(float), spec))


def calibrate(scorer: SliceScorer, scans: Sequence[SliceScan]) -> SliceScorer:
    """The same scorer with the line that takes its numbers to 0 = pelvis bottom … 1 = head top, and the slopes it shows in training.

    Per landmark of trunk and head the median over all scans that show it; through these
    points a line, robustly (soft L1), so that no landmark and no dataset decides alone.
    Legs are left out: below the pelvis a score says "below", not how far.
    """
    plain = _with(scorer, gain=1.0, offset=0.0, slope=(0.0, float("inf")))
    curves = [curve_of(scan, plain) for scan in scans]
    nominal = {landmark.name: landmark.height for landmark in known_landmarks() if 0 <= landmark.height <= 1}
    usual = {name: value for name, value in _usual(curves).items() if name in nominal}
    if len(usual) < 2:
        raise TrainingError(
            f"Calibration needs at least two landmarks between pelvis and head in the training cases, found {len(usual)}.",
            tip="Give labels of hips, lungs, mandible …, or landmarks read by eye.",
        )
    gain, offset = _line([usual[name] for name in sorted(usual)], [nominal[name] for name in sorted(usual)])
    if not gain > 0:
        raise TrainingError(f"Scores fall from feet to head (gain {gain:.3g}), so the network has learnt no order.", tip="Train longer.")
    slopes = np.concatenate([_slopes(curve) for curve in curves if len(curve.scan.z_mm) > 2]) * gain
    low, high = np.percentile(slopes, [2, 98])
    return _with(scorer, gain=gain, offset=offset, slope=(max(float(low), 0.1 / BODY_MM), float(high)))


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and offset of the line through points, errors beyond SOFT counting less and less."""
    from scipy.optimize import least_squares

    start = np.polyfit(x, y, 1)
    found = least_squares(lambda line: line[0] * np.asarray(x) + line[1] - np.asarray(y), start, loss="soft_l1", f_scale=SOFT)
    return float(found.x[0]), float(found.x[1])


def _slopes(curve: Curve) -> np.ndarray:
    """Scores per mm along the smoothed curve."""
    step = float(curve.scan.z_mm[1] - curve.scan.z_mm[0])
    return np.diff(smooth(curve.raw, 10.0 / step)) / step


def _with(scorer: SliceScorer, **facts: Any) -> SliceScorer:
    copy = SliceScorer(dataclasses.replace(scorer.spec, **facts))
    copy.load_state_dict(scorer.state_dict())
    return copy.eval().requires_grad_(False)


# ---- measuring --------------------------------------------------------------------------------------------------------


def evaluate(scans: Sequence[SliceScan], scorer: SliceScorer, reference: Sequence[SliceScan] = ()) -> dict[str, Any]:
    """How well the scorer orders slices and finds landmarks.

    Per scan the Spearman correlation of scores with height, as they come and settled.
    Per landmark the error in mm: the difference between the score at the landmark and
    its nominal height (`error_mm`), or its median score in `reference` scans
    (`deviation_mm`), over the scan's own slope there.
    """
    nominal = {landmark.name: landmark.height for landmark in known_landmarks()}
    usual = _usual([curve_of(scan, scorer) for scan in reference])
    cases, errors = {}, []
    for scan in scans:
        curve = curve_of(scan, scorer)
        cases[scan.name] = {
            "slices": len(scan.z_mm),
            "height_mm": float(scan.z_mm[-1] - scan.z_mm[0]),
            "spearman_raw": head_first(curve.raw),
            "spearman": head_first(curve.values),
            "lowest": float(curve.values[0]),
            "highest": float(curve.values[-1]),
        }
        for name, z in scan.landmarks.items():
            if curve.shows(z):
                errors.append({"case": scan.name, "landmark": name, "score": curve.at(z), **_landmark_error(curve, name, z, nominal, usual)})
    return {"summary": _summary(cases, errors), "cases": cases, "landmarks": errors}


def _usual(curves: Sequence[Curve]) -> dict[str, float]:
    seen: dict[str, list[float]] = {}
    for curve in curves:
        for name, z in curve.scan.landmarks.items():
            if curve.shows(z):
                seen.setdefault(name, []).append(curve.at(z))
    return {name: float(np.median(values)) for name, values in seen.items()}


def _landmark_error(curve: Curve, name: str, z: float, nominal: dict[str, float], usual: dict[str, float]) -> dict[str, float | None]:
    reach = 30.0  # mm up and down over which the slope is taken
    low, high = max(z - reach, curve.scan.z_mm[0]), min(z + reach, curve.scan.z_mm[-1])
    rise = curve.at(high) - curve.at(low)
    mm_per_score = (high - low) / rise if rise > 0 else BODY_MM
    mm_per_score = float(np.clip(mm_per_score, BODY_MM / 3, BODY_MM * 3))
    deviation = (curve.at(z) - usual[name]) * mm_per_score if name in usual else None
    return {"error_mm": (curve.at(z) - nominal[name]) * mm_per_score, "deviation_mm": deviation}


def _summary(cases: dict[str, dict[str, Any]], errors: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(key: str) -> dict[str, float] | None:
        values = np.abs([error[key] for error in errors if error[key] is not None])
        if not values.size:
            return None
        return {"mean": float(values.mean()), "median": float(np.median(values)), "p95": float(np.percentile(values, 95)), "count": int(values.size)}

    known = {name: case for name, case in cases.items() if case["slices"] > 2}
    return {
        "scans": len(cases),
        "spearman_min": min((case["spearman"] for case in known.values()), default=None),
        "spearman_median": float(np.median([case["spearman"] for case in known.values()])) if known else None,
        "spearman_below_0_98": sorted(name for name, case in known.items() if case["spearman"] < 0.98),
        "spearman_raw_below_0_98": sorted(name for name, case in known.items() if case["spearman_raw"] < 0.98),
        "landmark_error_mm": spread("error_mm"),
        "landmark_deviation_mm": spread("deviation_mm"),
    }


def _card(recipe: BodypartRecipe, scans: Sequence[SliceScan], done: int, validation: dict[str, Any]) -> dict[str, Any]:
    """What a user must know about these weights before trusting them."""
    return {
        **origin(recipe, (d for d in recipe.dataset if d.weight > 0)),
        "iterations": done,
        "cases": sorted(scan.name for scan in scans),
        "validation": validation,
    }
