"""From the scan to what a planned network sees, and the way back, in one place so that both agree."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from clseg.inference.engine import on_device
from clseg.inference.planned.body import Body, Bounds
from clseg.inference.planned.resample import new_shape, resample
from clseg.network.plan import Plan, Scheme
from clseg.spatial.orient import to_orientation, undo_orientation
from clseg.volume import Shape, Spacing, Volume


@dataclass(frozen=True)
class View:
    """Where a network looks, all in its own axes.

    `scan_shape` are the voxels of the scan, of `spacing` mm; `bounds` is the box of them
    that is looked at, which becomes `shape` voxels of the plan's spacing.
    """

    plan: Plan
    scan_shape: Shape
    spacing: Spacing
    bounds: Bounds

    @property
    def box(self) -> tuple[slice, slice, slice]:
        return tuple(slice(*bound) for bound in self.bounds)  # type: ignore[return-value]

    @property
    def cropped(self) -> Shape:
        """Voxels of the box in the scan."""
        return tuple(last - first for first, last in self.bounds)  # type: ignore[return-value]

    @property
    def shape(self) -> Shape:
        """Voxels of the box on the network's grid."""
        return new_shape(self.cropped, self.spacing, self.plan.spacing_mm)


def network_axes(scan: Volume, plan: Plan) -> tuple[np.ndarray, Spacing]:
    """The scan's values in the network's axes (a view) and its spacing there."""
    oriented = to_orientation(scan, plan.orientation) if plan.orientation else scan
    array = oriented.array.transpose(2, 1, 0).transpose(plan.transpose)
    zyx = oriented.spacing[::-1]
    return array, tuple(zyx[axis] for axis in plan.transpose)  # type: ignore[return-value]


def scan_axes(array: np.ndarray, like: Volume, plan: Plan) -> np.ndarray:
    """Inverse of `network_axes` for an array of the scan's size: the axes of `like` (a view)."""
    oriented = array.transpose(np.argsort(plan.transpose)).transpose(2, 1, 0)
    return undo_orientation(oriented, like, plan.orientation) if plan.orientation else oriented


def look(scan: Volume, plan: Plan, body: Body | None = None) -> View | None:
    """Where the network looks in the scan, None where the decoder's organs cannot be in it.

    `body` is that of the scan where several plans ask for it.  Plans with equal `sight`
    that look at the same box have equal views.
    """
    array, spacing = network_axes(scan, plan)
    bounds: Bounds | None = whole(array.shape)  # type: ignore[arg-type]
    if plan.crop == "nonzero":
        bounds = nonzero_bounds(array)
    elif plan.crop == "body":
        bounds = (body or Body(scan)).bounds(plan)
    return bounds and View(plan.sight, array.shape, spacing, bounds)  # type: ignore[arg-type]


def whole(shape: Shape) -> Bounds:
    return tuple((0, n) for n in shape)  # type: ignore[return-value]


def nonzero_bounds(array: np.ndarray) -> Bounds:
    """The box of all that is not 0; the whole where there is nothing."""
    found = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        rows = np.flatnonzero((array != 0).any(axis=others))
        if not rows.size:
            return whole(array.shape)  # type: ignore[arg-type]
        found.append((int(rows[0]), int(rows[-1]) + 1))
    return tuple(found)  # type: ignore[return-value]


def prepare(scan: Volume, view: View, device: str = "cpu") -> torch.Tensor:
    """What the network sees: float32, three axes, of `view.shape`, on `device`, or in main memory where that has no room."""
    return on_device(partial(_prepared, scan, view), device)


def _prepared(scan: Volume, view: View, device: str) -> torch.Tensor:
    plan = view.plan
    values = network_axes(scan, plan)[0][view.box]
    small = values.dtype == np.int16 and device != "cpu"  # travels as it is, half as many bytes
    array = np.ascontiguousarray(values, dtype=np.int16 if small else np.float32)
    image = torch.from_numpy(array if array.flags.writeable else array.copy()).to(device).float()
    if plan.normalise_first:
        image = normalise(image, plan.scheme)
    image = resample(image, view.shape, plan.image, view.spacing, plan.spacing_mm)
    return image if plan.normalise_first else normalise(image, plan.scheme)


def normalise(image: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """HU → network input by the plan's scheme, float32."""
    if scheme.kind == "ct":
        return image.clamp(scheme.low, scheme.high).sub_(scheme.mean).div_(scheme.sd)
    if scheme.kind == "zscore":
        return _zscore(image, scheme.masked)
    if scheme.kind == "rescale":
        shifted = image - image.min()
        return shifted / shifted.max().clamp(min=1e-8)
    return image


def _zscore(image: torch.Tensor, masked: bool) -> torch.Tensor:
    """Mean 0 and standard deviation 1, of all voxels or of those inside the filled nonzero mask alone; others stay as they are."""
    if not masked:
        return (image - image.mean()) / image.std(correction=0).clamp(min=1e-8)
    from scipy import ndimage

    inside = torch.from_numpy(ndimage.binary_fill_holes((image != 0).cpu().numpy())).to(image.device)
    known = image[inside]
    out = image.clone()
    out[inside] = (known - known.mean()) / known.std(correction=0).clamp(min=1e-8)
    return out
