"""Series: which of the images in a folder are the scan.

The rule, in this order: CT (or no modality given) before everything else, which is never taken by itself; no localizers;
axial before other planes; original before derived pictures (reformats, projections); most slices; lowest series number;
first UID.  Within a series the images of one size and direction that are most belong together; where most places are
taken more than once, because the series holds time points or reconstructions, so do those of one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clseg.errors import InputError, UsageError
from clseg.io.dicom.headers import Slice
from clseg.io.finding import NOTE, WARNING, Finding, Found, unheard

DUPLICATE_MM = 0.01  # images that lie closer together lie at the same place
_AXIAL = np.cos(np.radians(35))  # a gantry tilts by 30° at most
_SHOWN = 6


@dataclass(frozen=True)
class Series:
    """All images with one SeriesInstanceUID."""

    images: tuple[Slice, ...]

    @property
    def uid(self) -> str:
        return self.images[0].series

    @property
    def number(self) -> int | None:
        return self.images[0].number

    @property
    def modality(self) -> str:
        return self.images[0].modality

    @property
    def usable(self) -> tuple[Slice, ...]:
        """Images with a place in the patient that are no localizers."""
        return tuple(image for image in self.images if image.placed and not image.localizer)

    @property
    def title(self) -> str:
        """How the series is called in sentences: number, description, modality, size."""
        name = f"series {self.number}" if self.number is not None else f"series {self.uid}"
        told = f" '{self.images[0].description}'" if self.images[0].description else ""
        return f"{name}{told} ({self.modality or 'no modality'}, {len(self.images)} image{'' if len(self.images) == 1 else 's'})"


def choose(images: Sequence[Slice], place: Path, *, series: str | None = None, found: Found = unheard) -> tuple[Slice, ...]:
    """The images of the one CT volume at `place`: of the series called `series` (UID or number), or by the rule above.

    `found` hears what was chosen and what was left out.  Raises UsageError for a series that is not there, InputError
    where there is no CT.
    """
    listed = all_series(images)
    if not listed:
        raise InputError(f"'{place}' holds DICOM files without images.", tip="Give the folder that holds the slices of a CT.")
    chosen = _named(listed, series, place) if series else _best(listed, place)
    _refuse_others(chosen, place)
    if len(listed) > 1 and not series:
        found(Finding(NOTE, "series", f"{_capital(chosen.title)} was taken of {len(listed)} series, by the rule: CT, axial, original, most slices.", _others(listed, chosen)))
    if not chosen.modality:
        found(Finding(WARNING, "modality", "The DICOM files do not say their modality; they are taken for CT.", "Make sure that this is a CT."))
    return _one_volume(_usable(chosen, place, found), found)


def all_series(images: Sequence[Slice]) -> list[Series]:
    """The images by series, in the order of series numbers; the same image in two files counts once."""
    groups: dict[str, dict[Hashable, Slice]] = {}
    for image in images:
        key = (image.uid, image.frame) if image.uid else (image.path, image.frame)
        groups.setdefault(image.series, {}).setdefault(key, image)
    every = [Series(tuple(group.values())) for group in groups.values()]
    return sorted(every, key=lambda one: (one.number is None, one.number or 0, one.uid))


def _named(listed: Sequence[Series], wanted: str, place: Path) -> Series:
    fits = [one for one in listed if one.uid == wanted] or [one for one in listed if str(one.number) == wanted.strip()]
    if len(fits) == 1:
        return fits[0]
    if fits:
        uids = ", ".join(one.uid for one in fits[:_SHOWN])
        raise UsageError(f"{len(fits)} series in '{place}' have the number {wanted}.", tip=f"Name one by its UID: {uids}.")
    raise UsageError(f"There is no series '{wanted}' in '{place}'.", tip=f"There is: {_titles(listed)}.")


def _best(listed: Sequence[Series], place: Path) -> Series:
    candidates = [one for one in listed if one.modality in ("CT", "") and len(one.usable) > 1]
    if candidates:
        return min(candidates, key=_rank)
    if not any(one.modality in ("CT", "") for one in listed):
        raise InputError(f"'{place}' holds no CT but {_titles(listed)}.", tip="Give a CT; other modalities cannot be segmented.")
    raise InputError(
        f"'{place}' holds no CT with two or more slices that say where they lie (localizers and screenshots do not count), but {_titles(listed)}.",
        tip="Give the folder that holds the whole series.",
    )


def _rank(one: Series) -> tuple[bool, bool, bool, int, bool, int, str]:
    axial = sum(abs(image.normal[2]) > _AXIAL for image in one.usable) > len(one.usable) / 2
    derived = sum("DERIVED" in image.kind for image in one.usable) > len(one.usable) / 2
    return one.modality != "CT", not axial, derived, -len(one.usable), one.number is None, one.number or 0, one.uid


def _refuse_others(chosen: Series, place: Path) -> None:
    """InputError when a series that was named is no CT."""
    if chosen.modality not in ("CT", ""):
        raise InputError(f"{_capital(chosen.title)} in '{place}' is of modality {chosen.modality}, expected CT.", tip="Name a CT series with --series.")


def _usable(chosen: Series, place: Path, found: Found) -> tuple[Slice, ...]:
    scouts = sum(image.localizer for image in chosen.images)
    lost = len(chosen.images) - len(chosen.usable) - scouts
    if not chosen.usable:
        raise InputError(
            f"No image of {chosen.title} in '{place}' can be used: {scouts} are localizers, {lost} do not say where they lie (position, orientation, pixel spacing).",
            tip="Give the original CT series, not screenshots or localizers.",
        )
    if scouts:
        found(Finding(NOTE, "series", f"{scouts} localizer{'' if scouts == 1 else 's'} of the series {'was' if scouts == 1 else 'were'} left out."))
    if lost:
        found(Finding(WARNING, "series", f"{lost} of {len(chosen.images)} images do not say where they lie and were left out.", "Export the series again in full."))
    return chosen.usable


def _one_volume(images: tuple[Slice, ...], found: Found) -> tuple[Slice, ...]:
    """Those of one size and direction, and of one time point or reconstruction."""
    same = max(_grids(images), key=len)
    if len(same) < len(images):
        left = len(images) - len(same)
        found(Finding(WARNING, "series", f"{left} of {len(images)} images have another size, pixel spacing or direction and were left out.", "Put the images that are wanted into a folder of their own."))
    heights = Counter(round(float(image.position @ same[0].normal) / DUPLICATE_MM / 2) for image in same)
    if sum(count > 1 for count in heights.values()) <= len(heights) / 2:
        return same
    phases = len({image.phase for image in same})
    if phases < 2:
        return same
    one = _largest(same, lambda image: image.phase)
    found(Finding(WARNING, "4-D", f"The series holds {phases} volumes at the same place (time points or reconstructions); one of them with {len(one)} slices was taken.", "Export the volume that is wanted as a series of its own."))
    return one


def _grids(images: tuple[Slice, ...]) -> list[tuple[Slice, ...]]:
    """The images by size, pixel spacing (within 1e-3 mm) and direction (within 1e-3): each goes to the first group that it fits."""
    groups: list[list[Slice]] = []
    for image in sorted(images, key=lambda image: image.instance):
        group = next((group for group in groups if _fits(image, group[0])), None)
        if group is None:
            groups.append([image])
        else:
            group.append(image)
    return [tuple(group) for group in groups]


def _fits(one: Slice, other: Slice) -> bool:
    mine, theirs = (np.concatenate([each.row, each.column, each.pixel_mm]) for each in (one, other))
    return one.size == other.size and bool(np.abs(mine - theirs).max() < 1e-3)


def _largest(images: Sequence[Slice], key: Callable[[Slice], Hashable]) -> tuple[Slice, ...]:
    """The images with the commonest key; the first of them where several are as common."""
    commonest = Counter(key(image) for image in sorted(images, key=lambda image: image.instance)).most_common(1)[0][0]
    return tuple(image for image in images if key(image) == commonest)


def _others(listed: Sequence[Series], chosen: Series) -> str:
    return f"Another can be named with --series NUMBER or UID: {_titles([one for one in listed if one is not chosen])}."


def _titles(listed: Sequence[Series]) -> str:
    return "; ".join(one.title for one in listed[:_SHOWN]) + ("; …" if len(listed) > _SHOWN else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
