"""Volume: a 3-D array and the affine that places it in the patient."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from clseg.errors import InputError

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

AIR_HU = -1024  # what stands where nothing was scanned


@dataclass(frozen=True)
class Header:
    """What a NIfTI file says about its grid beyond the one affine in use.

    `qform` and `sform` are 4×4 matrices (RAS+ mm) or None where the file has
    none; the codes are NIfTI-1 transform codes (0 unknown … 4 MNI).
    """

    qform: np.ndarray | None
    qform_code: int
    sform: np.ndarray | None
    sform_code: int


@dataclass(frozen=True)
class Volume:
    """A 3-D array with its voxel → patient matrix (RAS+, mm, as in NIfTI).

    `array` has shape (i, j, k); `affine` maps (i, j, k, 1) to millimetres with
    x towards the patient's left-to-Right, y posterior-to-Anterior, z
    inferior-to-Superior.  `header` keeps what is needed to write masks that lie
    on exactly the same grid as the file that was read.

    Raises InputError when the array is not 3-D or the affine cannot be inverted.
    """

    array: np.ndarray
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    header: Header | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise InputError(f"A volume has 3 dimensions, this array has {self.array.ndim} (shape {self.array.shape}).")
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise InputError(f"The affine must be an invertible 4×4 matrix, given: {affine.tolist()}.")
        object.__setattr__(self, "affine", affine)

    @property
    def shape(self) -> Shape:
        return self.array.shape  # type: ignore[return-value]

    @property
    def spacing(self) -> Spacing:
        """Edge lengths of a voxel along i, j, k in mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @property
    def voxel_mm3(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Where the axes point, e.g. 'RAS' or 'LPS' (nearest patient axes)."""
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))

    def like(self, array: np.ndarray) -> Volume:
        """Another array on the same grid; the shape must be the same."""
        if array.shape != self.array.shape:
            raise InputError(f"Expected an array of shape {self.array.shape} on this grid, given {array.shape}.")
        return replace(self, array=array)

    def same_grid(self, other: Volume, tolerance_mm: float = 1e-3) -> bool:
        """True when shape and affine agree (corner voxels within `tolerance_mm`)."""
        if self.shape != other.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, self.shape[0]) for j in (0, self.shape[1]) for k in (0, self.shape[2])])
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= tolerance_mm)
