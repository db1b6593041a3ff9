"""Contrast: a guess whether a CT was taken with a contrast agent, from even tissue that is brighter than any organ without it."""

from __future__ import annotations

import numpy as np

from clseg.volume import Volume

_COARSE_MM = 3.0
_EVEN_HU = 25.0  # standard deviation within 9 mm; spongy bone is rougher
_BRIGHT_HU = (130.0, 450.0)
_SOFT_HU = (-20.0, 130.0)
_YES, _NO = 0.006, 0.002  # share of bright even tissue in soft tissue


def guess_contrast(scan: Volume) -> str:
    """'probably with', 'probably without' or 'unclear'; early phases and thin slabs without large vessels are not noticed."""
    share = bright_share(scan)
    return "probably with" if share >= _YES else "probably without" if share <= _NO else "unclear"


def bright_share(scan: Volume) -> float:
    """Voxels of even bright tissue per voxel of soft tissue, on a grid of about 3 mm."""
    from scipy.ndimage import uniform_filter

    steps = tuple(slice(None, None, max(1, round(_COARSE_MM / edge))) for edge in scan.spacing)
    hu = scan.array[steps].astype(np.float32)
    mean = uniform_filter(hu, 3)
    spread = np.sqrt(np.maximum(0, uniform_filter(hu * hu, 3) - mean * mean))
    soft = np.count_nonzero((mean > _SOFT_HU[0]) & (mean < _SOFT_HU[1]))
    bright = np.count_nonzero((spread < _EVEN_HU) & (mean > _BRIGHT_HU[0]) & (mean < _BRIGHT_HU[1]))
    return bright / soft if soft else 0.0
