"""Examples: cases on the model's grid, with one target map per decoder, kept in a compact cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg import recipe as recipes
from clseg.errors import InputError
from clseg.inference.prepare import Placement, onto_grid, place
from clseg.io.check import check
from clseg.io.files import read
from clseg.network.spec import Grid
from clseg.recipe import DecoderRecipe, Recipe
from clseg.spatial.orient import to_orientation
from clseg.spatial.orthonormal import from_orthonormal, to_orthonormal
from clseg.spatial.resample import covering_shape
from clseg.training.cases import Case, read_masks, read_unknown
from clseg.training.kept import kept
from clseg.training.synthesis import Atlas, resampled
from clseg.training.synthesis.store import load_atlas
from clseg.volume import Shape, Spacing, Volume

EXAMPLE_FORMAT = 2  # raised when the same files give other arrays, so that old caches are not used; 2: boxes in steps of 8 voxels
IGNORE = 255  # nothing is known
OPEN = 254  # background, or a structure beyond the end where its contours stop
POINTS = 2000  # voxels kept per structure as possible patch centres


@dataclass(frozen=True)
class Example:
    """One case on the model's grid.

    `hu` int16 (x, y, z).  `targets[decoder]` uint8 of the same shape: 0 background,
    1…K the decoder's labels, 254 background or one of the labels with open ends, 255
    unknown; None where nothing is in view, which is then all that is known: labels that are
    annotated are absent.  `annotated[decoder]` one bool per label.  `points[decoder]` voxels
    (n, 3) per label, for foreground sampling.  Decoders without `points` have
    nothing to find here and learn only what background looks like.

    A synthetic case has no `hu` but an `atlas`, from which patches are made; its
    targets are the label map as it is, before any deformation.
    """

    name: str
    dataset: str
    hu: np.ndarray | None
    targets: dict[str, np.ndarray | None]
    annotated: dict[str, tuple[bool, ...]]
    points: dict[str, tuple[np.ndarray, ...]]
    atlas: Atlas | None = None

    def shape(self, spacing_mm: Spacing) -> Shape:
        """Voxels on the model's grid."""
        if self.hu is not None or self.atlas is None:
            return self.hu.shape  # type: ignore[union-attr]
        return covering_shape(self.atlas.shape, (self.atlas.spacing_mm,) * 3, spacing_mm)


def load_example(case: Case, recipe: Recipe, cache: Path) -> Example:
    """The example of `case`, from the cache when it is there, made and cached otherwise."""
    if case.dataset.synthetic:
        return _synthetic(case, recipe, cache)
    return _example(case, recipe, kept(cache / f"{_key(case, recipe)}.npz", lambda: _arrays(case, recipe)))


def _key(case: Case, recipe: Recipe) -> str:
    """Everything that decides what an example looks like, as a short hash."""
    parts = recipes.to_dict(recipe)
    facts = [
        case.name,
        case.facts(),
        parts["grid"],
        [[d.name, d.labels, d.open_ends] for d in recipe.decoder],
        [case.dataset.ct, case.dataset.labels, case.dataset.masks, case.dataset.absent_above],
        *([EXAMPLE_FORMAT] if EXAMPLE_FORMAT > 1 else []),  # the first format had no number
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _arrays(case: Case, recipe: Recipe) -> dict[str, np.ndarray]:
    if case.ct is None:
        raise InputError(
            f"The {case} has no CT.", tip="With synthetic = true in its [[dataset]] CTs are made from the label map."
        )
    checked = check(read(case.ct))
    ct = checked.volume
    straight = to_orthonormal(ct) if checked.needs_orthonormal else ct
    grid = Grid(recipe.grid.orientation, recipe.grid.spacing_mm, recipe.grid.patch)
    oriented, placement = place(straight, grid)

    def share(mask: np.ndarray) -> np.ndarray:
        """How much of every model voxel a mask on the CT's grid fills."""
        upright = mask if straight is ct else from_orthonormal(mask.astype(np.uint8), ct, straight)
        return _mask_onto_grid(upright, straight, placement, grid.orientation)

    arrays = {"hu": onto_grid(oriented.array, placement).round().clamp(-32768, 32767).numpy().astype(np.int16)}
    wanted = {label for decoder in recipe.decoder for label in decoder.labels}
    wanted |= set(case.dataset.absent_above.values())
    masks = {name: share(mask) for name, mask in read_masks(case, wanted, ct).items()}
    unknown = read_unknown(case, ct)
    for decoder in recipe.decoder:
        known = [label in masks for label in decoder.labels]
        if any(known):
            arrays[f"target/{decoder.name}"] = _target(decoder, masks, arrays["hu"].shape)
            arrays[f"known/{decoder.name}"] = np.array(known)
        elif landmarks := _landmarks(decoder, case, masks):
            arrays[f"target/{decoder.name}"] = _absent_above(landmarks)
            arrays[f"known/{decoder.name}"] = np.ones(len(known), bool)
        if unknown is not None and f"target/{decoder.name}" in arrays:
            arrays[f"target/{decoder.name}"][share(unknown) >= 0.5] = IGNORE
    return arrays


def _landmarks(decoder: DecoderRecipe, case: Case, masks: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Masks above whose lowest slices no label of this decoder can be; empty when that is not known for all of them."""
    rules = case.dataset.absent_above
    if not all(label in rules for label in decoder.labels):
        return []
    seen = {name for name, mask in masks.items() if (mask >= 0.5).any()}  # an empty landmark tells nothing
    found = [masks[rules[label]] for label in decoder.labels if rules[label] in seen]
    return found if len(found) == len(decoder.labels) else []


def _absent_above(landmarks: list[np.ndarray]) -> np.ndarray:
    """Background above the highest of the landmarks' lowest slices, unknown below (z is the last axis, RAS)."""
    target = np.full(landmarks[0].shape, IGNORE, np.uint8)
    lowest = max(int(np.flatnonzero((mask >= 0.5).any(axis=(0, 1)))[0]) for mask in landmarks)
    target[:, :, lowest:] = 0
    return target


def _mask_onto_grid(mask: np.ndarray, ct: Volume, placement: Placement, orientation: str) -> np.ndarray:
    """Share of every model voxel that the mask fills, float16 (x, y, z)."""
    oriented = to_orientation(ct.like(mask.astype(np.uint8)), orientation)
    return onto_grid(oriented.array, placement).numpy().astype(np.float16)


def _target(decoder: DecoderRecipe, masks: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Per voxel the label that fills most of it, if it fills half; unknown beyond open ends."""
    target = np.zeros(shape, np.uint8)
    best = np.full(shape, 0.5, np.float16)
    for index, label in enumerate(decoder.labels, start=1):
        if label in masks:
            stronger = masks[label] >= best
            target[stronger] = index
            best = np.where(stronger, masks[label], best)
    for label, end in decoder.open_ends.items():
        if label in masks:
            _forget_beyond(target, decoder.labels.index(label) + 1, end)
    return target


def _forget_beyond(target: np.ndarray, index: int, end: str) -> None:
    """Mark background below and/or above the labelled extent of a structure as OPEN (z is the last axis, RAS)."""
    rows = np.flatnonzero((target == index).any(axis=(0, 1)))
    if rows.size == 0:
        return
    for name, part in (("inferior", slice(0, rows[0])), ("superior", slice(rows[-1] + 1, None))):
        if end in (name, "both"):
            beyond = target[:, :, part]
            beyond[beyond == 0] = OPEN


def _example(case: Case, recipe: Recipe, stored: dict[str, np.ndarray]) -> Example:
    targets: dict[str, np.ndarray | None] = {}
    annotated: dict[str, tuple[bool, ...]] = {}
    points: dict[str, tuple[np.ndarray, ...]] = {}
    for decoder in recipe.decoder:
        if f"target/{decoder.name}" in stored:
            target = stored[f"target/{decoder.name}"]
            known = stored[f"known/{decoder.name}"]
            targets[decoder.name] = target
            absent = [label in case.dataset.absent for label in decoder.labels]
            annotated[decoder.name] = tuple(bool(k or a) for k, a in zip(known, absent, strict=True))
            places = tuple(_some_points(target == i + 1) for i in range(len(decoder.labels)))
            points[decoder.name] = places if any(len(p) for p in places) else ()
        elif any(label in case.dataset.absent for label in decoder.labels):
            targets[decoder.name] = None
            annotated[decoder.name] = tuple(label in case.dataset.absent for label in decoder.labels)
            points[decoder.name] = ()
    return Example(case.name, case.dataset.name, stored["hu"], targets, annotated, points)


def open_labels(recipe: Recipe) -> dict[str, tuple[bool, ...]]:
    """Per decoder, which of its labels have open ends."""
    return {decoder.name: tuple(label in decoder.open_ends for label in decoder.labels) for decoder in recipe.decoder}


def _synthetic(case: Case, recipe: Recipe, cache: Path) -> Example:
    """A case whose CT is made up anew for every patch; what its label map names and does not show is absent."""
    wanted = {label for decoder in recipe.decoder for label in decoder.labels}
    atlas = load_atlas(case, recipe.grid.orientation, wanted, cache)
    ids = resampled(atlas.ids, (atlas.spacing_mm,) * 3, recipe.grid.spacing_mm)
    targets: dict[str, np.ndarray | None] = {}
    annotated: dict[str, tuple[bool, ...]] = {}
    points: dict[str, tuple[np.ndarray, ...]] = {}
    for decoder in recipe.decoder:
        known = tuple(label in atlas.names or label in case.dataset.absent for label in decoder.labels)
        if any(known):
            target = atlas.lookup(decoder.labels)[ids]
            places = tuple(_some_points(target == i + 1) for i in range(len(decoder.labels)))
            targets[decoder.name], annotated[decoder.name] = target, known
            points[decoder.name] = places if any(len(p) for p in places) else ()
    return Example(case.name, case.dataset.name, None, targets, annotated, points, atlas)


def _some_points(mask: np.ndarray) -> np.ndarray:
    flat = np.flatnonzero(mask)
    step = max(1, len(flat) // POINTS)
    return np.stack(np.unravel_index(flat[::step], mask.shape), axis=1).astype(np.int16)
