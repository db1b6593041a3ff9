"""Slices of scans to learn their order from: read once into a compact cache, drawn and changed at random."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from clseg.errors import RecipeError
from clseg.inference.bodypart import scan_slices
from clseg.io.check import check
from clseg.network.bodypart import BodypartSpec
from clseg.recipe.bodypart import BodypartRecipe, SliceAugmentRecipe
from clseg.spatial.crop import BODY_HU
from clseg.spatial.orient import to_orientation
from clseg.training.cases import Case, read_grid, read_masks
from clseg.training.kept import kept

BODY_MM = 880.0  # pelvis bottom to head top of an adult of 1.70 m: what a score of 1 stands for where mm are needed
SEEN_MM = 4.0  # a structure that comes closer than this to the end of a scan may go on beyond it


@dataclass(frozen=True)
class Landmark:
    """A height that can be read from labels: the lowest (`edge` bottom) or highest voxel of `structures`, or only by eye.

    `height` is where it lies in the average body, 0 = pelvis bottom, 1 = head top.
    """

    name: str
    structures: tuple[str, ...]
    edge: str
    height: float


@dataclass(frozen=True)
class SliceScan:
    """Slices of one scan, from the feet up.

    `slices` uint8 (n, size, size), 0 … 255 for the network's −1 … 1; `body` the body's
    mask, packed to bits along the last axis; `z_mm` heights above the centre of the
    scan's lowest slice; `present` per annotated structure the slices (n) that show it;
    `landmarks` heights in mm.
    """

    name: str
    dataset: str
    weight: float
    slices: np.ndarray
    body: np.ndarray
    z_mm: np.ndarray
    present: Mapping[str, np.ndarray]
    landmarks: Mapping[str, float]

    @property
    def bottom_mm(self) -> float | None:
        """Height of z = 0 above the pelvis bottom of the average body, from landmarks; None without."""
        nominal = {landmark.name: landmark.height * BODY_MM for landmark in known_landmarks()}
        shifts = [nominal[name] - z for name, z in self.landmarks.items()]
        return float(np.median(shifts)) if shifts else None


def known_landmarks() -> tuple[Landmark, ...]:
    """The table `clseg/data/landmarks.csv`."""
    with files("clseg.data").joinpath("landmarks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Landmark(row["name"], tuple(s for s in row["structures"].split(";") if s), row["edge"], float(row["height"])) for row in rows
    )


def landmarks_of(present: Mapping[str, np.ndarray], z_mm: np.ndarray) -> dict[str, float]:
    """Heights (mm) of the landmarks that the structures in view show; those cut by the scan's end are left out."""
    found = {}
    for landmark in known_landmarks():
        ends = []
        for name in landmark.structures:
            rows = np.flatnonzero(present[name]) if name in present else np.array([], int)
            if rows.size:
                ends.append(float(z_mm[rows[0] if landmark.edge == "bottom" else rows[-1]]))
        if not ends:
            continue
        z = min(ends) if landmark.edge == "bottom" else max(ends)
        if z_mm[0] + SEEN_MM <= z <= z_mm[-1] - SEEN_MM:
            found[landmark.name] = z
    return found


def read_by_eye(recipe: BodypartRecipe) -> dict[str, dict[str, float]]:
    """Case → landmark → height in mm, from the recipe's CSV; RecipeError when it is not usable."""
    if not recipe.landmarks:
        return {}
    path = recipe.folder / recipe.landmarks
    known = {landmark.name for landmark in known_landmarks()}
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["landmark"] not in known:
                    raise RecipeError(f"The landmark '{row['landmark']}' in {path} is not known.", tip=f"Known: {', '.join(sorted(known))}.")
                found.setdefault(row["case"], {})[row["landmark"]] = float(row["z_mm"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"The landmarks {path} need the columns case, landmark and z_mm: {error}.") from error
    return found


# ---- reading ----------------------------------------------------------------------------------------------------------


def load_scan(case: Case, spec: BodypartSpec, cache: Path, by_eye: Mapping[str, float] | None = None) -> SliceScan:
    """The slices of `case`, from the cache when they are there, made and cached otherwise."""
    arrays = kept(cache / f"{_key(case, spec)}.npz", lambda: _arrays(case, spec))
    present = {key[8:]: value for key, value in arrays.items() if key.startswith("present/")}
    landmarks = landmarks_of(present, arrays["z_mm"]) | dict(by_eye or {})
    dataset = case.dataset
    return SliceScan(case.name, dataset.name, dataset.weight, arrays["slices"], arrays["body"], arrays["z_mm"], present, landmarks)


def _key(case: Case, spec: BodypartSpec) -> str:
    """Everything that decides what the slices look like, as a short hash."""
    parts = [case.dataset.ct, case.dataset.labels, case.dataset.masks]
    facts = [case.name, case.facts(), [spec.size, spec.spacing_mm, spec.low_hu, spec.high_hu], parts]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _arrays(case: Case, spec: BodypartSpec) -> dict[str, np.ndarray]:
    ct = check(read_grid(case)).volume
    hu, z_mm, part = scan_slices(ct, spec)
    share = (hu.clamp(spec.low_hu, spec.high_hu) - spec.low_hu) / (spec.high_hu - spec.low_hu)
    arrays = {
        "slices": (share * 255).round().to(torch.uint8).numpy(),
        "body": np.packbits(_body(hu.numpy()), axis=-1),
        "z_mm": z_mm.astype(np.float32),
    }
    wanted = {name for landmark in known_landmarks() for name in landmark.structures}
    for name, mask in read_masks(case, wanted, ct).items():
        arrays[f"present/{name}"] = slices_with(mask, ct)[part]
    return arrays


def slices_with(mask: np.ndarray, ct: object) -> np.ndarray:
    """Which of the scan's slices, from the feet up, show the mask: bool (n,)."""
    return to_orientation(ct.like(mask.astype(np.uint8)), "RAS").array.any(axis=(0, 1))  # type: ignore[attr-defined]


def _body(hu: np.ndarray) -> np.ndarray:
    """Mask (n, x, y) of the large dense parts of every slice, filled."""
    from scipy import ndimage

    masks = np.zeros(hu.shape, bool)
    for mask, slice_hu in zip(masks, hu, strict=True):
        parts, count = ndimage.label(ndimage.binary_opening(slice_hu > BODY_HU, iterations=2))
        if count:
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            mask[:] = ndimage.binary_fill_holes(np.isin(parts, np.flatnonzero(sizes >= sizes.max() / 4)))
    return masks


# ---- drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceBatch:
    """Slices (n, 1, size, size) in [-1, 1], their scan's number in the batch, height in the scan and height in the body (NaN: unknown), mm."""

    images: torch.Tensor
    scan: torch.Tensor
    z_mm: torch.Tensor
    body_mm: torch.Tensor


@dataclass(frozen=True)
class SliceDraws:
    """Batches of slices of `batch` scans; the same iteration always gives the same batch.

    A dataset is drawn by its weight, a scan within it evenly, and its slices evenly
    over the whole scan or over one stretch of it.
    """

    scans: Sequence[SliceScan]
    recipe: BodypartRecipe
    bottoms: tuple[float | None, ...] = field(init=False)
    shares: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        counts: dict[str, int] = {}
        for scan in self.scans:
            counts[scan.dataset] = counts.get(scan.dataset, 0) + 1
        weights = np.array([scan.weight / counts[scan.dataset] * (len(scan.z_mm) > 1) for scan in self.scans])
        if not weights.sum() > 0:
            raise RecipeError("No scan of the recipe has two slices to put in order.")
        object.__setattr__(self, "shares", weights / weights.sum())
        object.__setattr__(self, "bottoms", tuple(scan.bottom_mm for scan in self.scans))

    def batch(self, iteration: int) -> SliceBatch:
        rng = np.random.default_rng([self.recipe.seed, iteration])
        images, numbers, heights, places = [], [], [], []
        for number, index in enumerate(rng.choice(len(self.scans), self.recipe.optim.batch, p=self.shares)):
            scan = self.scans[index]
            rows = self._rows(scan, rng)
            images.append(change(scan, rows, rng, self.recipe.augment, self.recipe.scorer.spacing_mm, self._hu()))
            heights.append(scan.z_mm[rows])
            bottom = self.bottoms[index]
            places.append(scan.z_mm[rows] + (np.nan if bottom is None else bottom))
            numbers += [number] * len(rows)
        z, body = (torch.from_numpy(np.concatenate(parts).astype(np.float32)) for parts in (heights, places))
        return SliceBatch(torch.cat(images), torch.tensor(numbers), z, body)

    def _rows(self, scan: SliceScan, rng: np.random.Generator) -> np.ndarray:
        rule = self.recipe.order
        low, high = float(scan.z_mm[0]), float(scan.z_mm[-1])
        if rng.random() < 0.5 and high - low > rule.window_mm:
            low = rng.uniform(low, high - rule.window_mm)
            high = low + rule.window_mm
        return np.abs(scan.z_mm[None] - rng.uniform(low, high, rule.slices)[:, None]).argmin(axis=1)

    def _hu(self) -> float:
        return self.recipe.scorer.high_hu - self.recipe.scorer.low_hu


def change(
    scan: SliceScan, rows: np.ndarray, rng: np.random.Generator, rule: SliceAugmentRecipe, spacing_mm: float, width_hu: float
) -> torch.Tensor:
    """Slices `rows`, changed as one scan by `rule`: float32 (n, 1, size, size) in [-1, 1]; `width_hu` is what 2 stand for."""
    images = torch.from_numpy(scan.slices[rows].astype(np.float32) / 255)[:, None]  # 0 is air
    size = images.shape[-1]
    if rng.random() < rule.clear_outside_probability:
        images = images * torch.from_numpy(np.unpackbits(scan.body[rows], axis=-1, count=size))[:, None]
    images = F.grid_sample(images, _grid(rng, rule, spacing_mm, images), align_corners=False)
    tissue = images > 0.02
    changed = images * rng.uniform(*rule.contrast) + rng.uniform(-1, 1) * rule.shift_hu / width_hu
    images = torch.where(tissue, changed, images)
    noise = torch.Generator().manual_seed(int(rng.integers(2**31)))
    spread = torch.rand((len(rows), 1, 1, 1), generator=noise) * rule.noise_hu / width_hu
    images = images + torch.randn(images.shape, generator=noise) * spread
    if rng.random() < rule.crop_probability:
        images = images * _window(rng, rule, size)
    return images.clamp(0, 1) * 2 - 1


def _grid(rng: np.random.Generator, rule: SliceAugmentRecipe, spacing_mm: float, images: torch.Tensor) -> torch.Tensor:
    angle = np.radians(rng.uniform(-rule.rotation_deg, rule.rotation_deg))
    scale = np.exp(rng.uniform(*np.log(rule.scale)))
    side = -1.0 if rng.random() < rule.mirror_probability else 1.0
    shift = rng.uniform(-rule.shift_mm, rule.shift_mm, 2) / (spacing_mm * images.shape[-1] / 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    turn[1] *= side  # grid_sample's second axis is the array's first: left-right
    theta = torch.from_numpy(np.concatenate([turn, shift[:, None]], axis=1).astype(np.float32))
    return F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)


def _window(rng: np.random.Generator, rule: SliceAugmentRecipe, size: int) -> torch.Tensor:
    """A mask (size, size) of a field of view smaller than the slice: a box, or the disc in it."""
    edges = (rng.uniform(*rule.crop, 2) * size).astype(int).clip(2)
    starts = [int(rng.integers(0, size - edge + 1)) for edge in edges]
    axes = [(torch.arange(size) - start - (edge - 1) / 2) / (edge / 2) for start, edge in zip(starts, edges, strict=True)]
    if rng.random() < 0.5:
        return ((axes[0][:, None] ** 2 + axes[1][None] ** 2) <= 1).float()
    return ((axes[0].abs()[:, None] <= 1) & (axes[1].abs()[None] <= 1)).float()
