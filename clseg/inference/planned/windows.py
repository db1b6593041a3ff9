"""Windows of the planned path: as far apart as nnU-Net and CL-Net place them, with their Gaussian.

Not those of `clseg.inference.window`: these round and weigh as the other programs do, to the last voxel.
"""

from __future__ import annotations

import math

import numpy as np

from clseg.errors import UsageError
from clseg.volume import Shape


def starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of the windows along an axis: as few as a distance of `step` · `patch` allows, evenly spread."""
    if not 0 < step <= 1:
        raise UsageError(f"The step is a share of the window between 0 and 1, given {step}.")
    count = math.ceil((size - patch) / (step * patch)) + 1
    return [round(i * (size - patch) / max(1, count - 1)) for i in range(count)]


def gaussian(patch: Shape) -> np.ndarray:
    """Weight of every voxel of a window, float32 `patch`: a Gaussian of an eighth of the edge around voxel patch // 2, at most 1.

    Bit for bit what `scipy.ndimage.gaussian_filter` makes of a single point, which is the product of one curve
    per axis, multiplied first axis first.
    """
    curves = [_curve(n) for n in patch]
    weight = curves[0][:, None, None] * curves[1][:, None] * curves[2]
    weight = (weight / weight.max()).astype(np.float32)
    weight[weight == 0] = weight[weight > 0].min()
    return weight


def _curve(n: int) -> np.ndarray:
    """A point in the middle of `n` voxels, blurred; the curve ends four standard deviations away, its sum was 1 before the window cut it."""
    sd = n / 8
    radius = int(4 * sd + 0.5)
    offsets = np.arange(-radius, radius + 1)
    values = np.exp(-0.5 / (sd * sd) * offsets**2)
    values /= values.sum()
    place = offsets + n // 2
    inside = (place >= 0) & (place < n)
    curve = np.zeros(n)
    curve[place[inside]] = values[inside]
    return curve
