"""Check: is this volume a CT that can be segmented, and what must be mended first?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from clseg.errors import InputError
from clseg.io.finding import WARNING, Finding
from clseg.spatial.crop import filled_slices
from clseg.spatial.orient import to_orientation
from clseg.spatial.padding import sampled, zeros_around
from clseg.volume import AIR_HU, Volume
from clseg.words import number_of

_SPACING_MM = (0.05, 20.0)
_NOT_FINITE_SHARE = 0.01
_CLIP = (-32768, 32767)
_SHEAR = 1e-3  # largest cosine between two axes that counts as a right angle
_STEEPEST = 45.0  # degrees by which an axis may leave the right angle
_COLD = -30  # HU; what is below is air, lung or fat
_THICK_MM = 10.0
_THIN_MM = 20.0
_GAP = 200  # HU; between a padding value and the coldest that was measured

_OFFSET = "they look like a CT stored with 1024 added"
_HU_TIP = (
    "Convert the original DICOM series again with rescale slope and intercept applied and without a window, e.g. with dcm2niix; "
    "in Hounsfield units air is about -1000, fat -100, water 0 and bone above 300."
)
_WINDOW_TIP = "Export the scan again without a window."
_MR_TIP = "If it is an MR or PET scan, leave it: clseg knows CT only."
_AGAIN_TIP = "Convert the scan again from its DICOM series, e.g. with dcm2niix, or give the DICOM folder itself."
_STRAIGHTEN_TIP = "Nothing needs to be done; giving the DICOM folder itself avoids the resampling."


@dataclass(frozen=True)
class CheckedScan:
    """A CT that may be segmented.

    `volume` is the scan with faulty voxels mended; `findings` are warnings, each with what mends it; `needs_orthonormal`
    is True when the axes of the grid are not at right angles, so that it must be resampled to a grid whose axes are.
    """

    volume: Volume
    findings: tuple[Finding, ...]
    needs_orthonormal: bool

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as sentences."""
        return tuple(finding.text for finding in self.findings)


def check(volume: Volume) -> CheckedScan:
    """Refuse what is not a CT in Hounsfield units, mend what can be mended, and say what was done.

    Raises InputError for one slice, an absurd voxel size, axes far from right angles, more than 1 % voxels without a number, and values that are not HU.
    """
    _refuse_flat(volume)
    _refuse_spacing(volume)
    _refuse_shear(volume)
    mended, findings = _mend(volume)
    findings += _judge_values(mended.array)
    findings += _judge_padding(mended.array) + _judge_ends(mended) + _judge_grid(mended)
    sheared = _is_sheared(mended.affine)
    if sheared:
        findings.append(_warning("affine", "The axes of the scan are not at right angles; it is resampled to a grid whose axes are, and the result is brought back.", _STRAIGHTEN_TIP))
    return CheckedScan(mended, tuple(findings), sheared)


def _warning(topic: str, text: str, mend: str) -> Finding:
    return Finding(WARNING, topic, text, mend)


# ---- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_flat(volume: Volume) -> None:
    if min(volume.shape) < 2:
        raise InputError(
            f"The scan has {' × '.join(map(str, volume.shape))} voxels, expected at least 2 along every axis.",
            tip="Give the whole scan, not a single slice.",
        )


def _refuse_spacing(volume: Volume) -> None:
    low, high = _SPACING_MM
    if min(volume.spacing) < low or max(volume.spacing) > high:
        raise InputError(
            f"The voxels measure {' × '.join(f'{edge:g}' for edge in volume.spacing)} mm, expected edges between {low:g} and {high:g} mm.",
            tip="The header may be damaged or in another unit than mm; convert the scan again from its DICOM series.",
        )


def _refuse_shear(volume: Volume) -> None:
    angle = float(np.degrees(np.arcsin(min(1.0, _largest_cosine(volume.affine)))))
    if angle > _STEEPEST:
        raise InputError(f"The axes of the scan leave the right angle by {angle:.0f}°, expected at most {_STEEPEST:g}°.", tip=_AGAIN_TIP)


# ---- mending ----------------------------------------------------------------------------------------------------------


def _mend(volume: Volume) -> tuple[Volume, list[Finding]]:
    """Air where there is no number, and no values outside 16 bits."""
    array, findings = volume.array, []
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        bad = array.size - int(np.count_nonzero(finite))
        if bad > _NOT_FINITE_SHARE * array.size:
            raise InputError(f"{bad / array.size:.1%} of the voxels hold no number (NaN or infinity), expected at most {_NOT_FINITE_SHARE:.0%}.", tip=_HU_TIP)
        if bad:
            array = np.where(finite, array, np.asarray(AIR_HU, array.dtype))
            findings.append(_warning("values", f"{number_of(bad, 'voxel')} without a number (NaN or infinity) {'was' if bad == 1 else 'were'} replaced by air ({AIR_HU} HU).", _AGAIN_TIP))
    low, high = array.min(), array.max()
    if low < _CLIP[0] or high > _CLIP[1]:
        array = np.clip(array, max(_CLIP[0], int(low)), min(_CLIP[1], int(high)))
        findings.append(_warning("values", f"Values from {low:g} to {high:g} were cut to {_CLIP[0]}…{_CLIP[1]} HU.", _HU_TIP))
    return (volume if array is volume.array else replace(volume, array=array)), findings


# ---- values -----------------------------------------------------------------------------------------------------------


def _judge_values(array: np.ndarray) -> list[Finding]:
    """Refuse values that cannot be HU (see `_why_not_hu`); warn about those that are HU of a strange kind."""
    low, high = float(array.min()), float(array.max())
    sample = sampled(array)
    reason, tip = _why_not_hu(_without_padding(sample), low, high)
    if not reason and _has_offset_beside_padding(sample):
        reason, tip = _OFFSET, _offset_tip()
    if reason:
        raise InputError(f"The values run from {low:g} to {high:g} and are not Hounsfield units: {reason}.", tip=tip)
    findings = []
    if _share(sample, -np.inf, _COLD) < 0.02 and _share(sample, 300, np.inf) > 0.3:
        findings.append(_warning("values", "There is hardly any air or fat and much that would be bone: make sure that this is a CT and not an MR or PET scan.", _MR_TIP))
    if low > -500 and _share(sample, low, low) > 0.1:
        findings.append(_warning("values", f"No value is below {low:g} HU and many are exactly that: the scan seems to have been exported with a window, and air cannot be told from tissue.", _WINDOW_TIP))
    if high < 500 and _share(sample, high, high) > 0.005:
        findings.append(_warning("values", f"No value is above {high:g} HU and many are exactly that: the scan seems to have been exported with a window, and bone cannot be told from contrast.", _WINDOW_TIP))
    return findings


def _why_not_hu(sample: np.ndarray, low: float, high: float) -> tuple[str, str]:
    """The reason why values are not HU and what to do, or two empty strings.

    What tells a CT from other pictures: something is colder than water.  Air, lung or fat make up at least 1 % of
    nearly every CT, even of a crop inside the body; MR, PET and 8-bit pictures have none, or a trace of undershoot
    from resampling.
    """
    cold = _share(sample, -np.inf, _COLD)
    if low == high:
        return "every voxel has the same value", _HU_TIP
    if high - low <= 30:
        return "they look normalised (0 to 1, or to unit variance)", _HU_TIP
    if low >= 0 and high <= 300:
        return "they look like an 8-bit picture, made with a window", _HU_TIP
    if cold < 0.001 and _has_offset(sample):
        return _OFFSET, _offset_tip()
    if cold < 0.001:
        return "there is no air and no fat; it may be an MR or PET scan", _HU_TIP
    if cold < 0.02 and _share(sample, -2, 2) > 0.3:
        return "there is hardly any air or fat, and the background is 0; it may be an MR or PET scan", _HU_TIP
    if _share(sample, -200, 300) < 0.001:
        return "there is no soft tissue (-200 to 300 HU)", _HU_TIP
    return "", ""


def _has_offset(sample: np.ndarray) -> bool:
    """True for air near 0 and tissue near 1024 with less between them (in a crop: for tissue near 1024 alone)."""
    tissue = _share(sample, 824, 1324)
    if tissue < 0.05 or sample.max() > 5200:
        return False
    return float(np.median(sample)) >= 824 or _share(sample, -100, 324) > _share(sample, 400, 750) < tissue


def _has_offset_beside_padding(sample: np.ndarray) -> bool:
    """The same where the only cold value stands for what lies outside the field of view."""
    inside = sample[sample > sample.min()]
    apart = inside.size > 0 and inside.min() > sample.min() + _GAP
    return apart and _share(inside, -np.inf, _COLD) < 0.001 and _has_offset(inside)


def _without_padding(sample: np.ndarray) -> np.ndarray:
    """The sample without the one value below all air that some scanners write outside their field of view."""
    lowest = sample.min()
    inside = sample[sample > lowest]
    return inside if lowest < -1100 and inside.size and inside.size < 0.95 * sample.size else sample


def _offset_tip() -> str:
    return (
        "Subtract it: python -c \"import nibabel as nib; n = nib.load('scan.nii.gz'); "
        "nib.save(nib.Nifti1Image((n.get_fdata() - 1024).astype('int16'), n.affine), 'scan_hu.nii.gz')\", "
        "or convert the DICOM series again with the rescale intercept applied."
    )


def _share(sample: np.ndarray, low: float, high: float) -> float:
    """The share of values in [low, high]."""
    return float(np.count_nonzero((sample >= low) & (sample <= high)) / sample.size)


# ---- grid -------------------------------------------------------------------------------------------------------------


def _judge_padding(array: np.ndarray) -> list[Finding]:
    """A word about zeros around the scan (see `clseg.spatial.padding`)."""
    padding = zeros_around(array)
    if padding is None:
        return []
    share = np.count_nonzero(padding) / array.size
    text = f"Around the scan {share:.0%} of the voxels are exactly 0, which is water: they are taken for padding, and for air ({AIR_HU} HU)."
    return [_warning("values", text, f"Fill what lies outside of the scan with {AIR_HU} when it is resampled or masked.")]


def _judge_ends(volume: Volume) -> list[Finding]:
    """A word about slices at the ends in which nothing was scanned."""
    standing = to_orientation(volume, "RAS").array
    kept = filled_slices(standing)
    below, above = kept.start, standing.shape[2] - kept.stop
    if not below and not above:
        return []
    text = f"{number_of(below, 'slice')} at the lower end and {above} at the upper end hold one value only: nothing is looked for in them."
    return [_warning("coverage", text, "")]


def _judge_grid(volume: Volume) -> list[Finding]:
    findings = []
    header = volume.header
    if header is not None and header.sform_code <= 0 and header.qform_code <= 0:
        findings.append(_warning("orientation", "The file does not say how the patient lies (qform and sform are not set): left and right may be swapped.", _AGAIN_TIP))
    elif header is not None and header.sform_code > 0 and header.qform_code > 0 and _disagree(header.sform, header.qform, volume):
        findings.append(_warning("orientation", "The two positions in the file's header (qform and sform) disagree; the sform is used.", _AGAIN_TIP))
    if max(volume.spacing) > _THICK_MM:
        findings.append(_warning("spacing", f"The voxels are {max(volume.spacing):g} mm long: small structures cannot be seen.", "Give a reconstruction with thinner slices, if there is one."))
    extent = min(length * edge for length, edge in zip(volume.shape, volume.spacing, strict=True))
    if extent < _THIN_MM:
        findings.append(_warning("coverage", f"The scan is only {extent:.0f} mm thick: structures are told by their surroundings, results may be poor.", "Give the whole scan."))
    return findings


def _disagree(one: np.ndarray, other: np.ndarray, volume: Volume) -> bool:
    """True when two affines put a corner of the volume more than a voxel apart."""
    return not Volume(volume.array, one).same_grid(Volume(volume.array, other), tolerance_mm=max(volume.spacing))


def _is_sheared(affine: np.ndarray) -> bool:
    return _largest_cosine(affine) > _SHEAR


def _largest_cosine(affine: np.ndarray) -> float:
    """Between any two axes of the grid; 0 where all are at right angles."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())
