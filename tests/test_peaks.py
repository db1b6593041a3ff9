"""Peaks of tissues are found where they are, and doubted where they should not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clseg.io.files import read
from clseg.io.peaks import judge_peaks, peaks, tissues

SHARED = Path(__file__).parents[2] / "shared"


def mixture(air: float = -1000, fat: float = -100, soft: float = 45, noise: float = 12) -> np.ndarray:
    """Half air, a fifth fat, three tenths soft tissue, with noise; 100,000 voxels."""
    means = np.repeat([air, fat, soft], [50_000, 20_000, 30_000])
    return (means + np.random.default_rng(0).normal(0, noise, means.size)).astype(np.int16).reshape(100, 100, 10)


def test_three_tissues_have_three_peaks():
    """Each within a bin of 5 HU of where it was put."""
    found = peaks(mixture())
    assert list(found) == ["air", "fat", "soft tissue"]
    for name, hu in (("air", -1000), ("fat", -100), ("soft tissue", 45)):
        assert found[name] == pytest.approx(hu, abs=5)
    assert judge_peaks(found) == []


def test_what_is_not_there_has_no_peak():
    """Without fat there is none, and lungs (a broad heap from -950 to -750) are not taken for air."""
    random = np.random.default_rng(0)
    lungs = np.concatenate([random.uniform(-950, -750, 40_000), random.normal(45, 12, 60_000)]).reshape(100, 100, 10)
    found = peaks(lungs)
    assert (found["air"], found["fat"]) == (None, None)


@pytest.mark.parametrize(("shift", "names"), [(60, ["air", "fat", "soft tissue"]), (-60, ["air", "fat"]), (0, [])])
def test_shifted_scales_are_doubted(shift, names):
    """60 HU too many or too few, as after a wrong intercept, move peaks out of their places; each warning names its tissue and what to do."""
    findings = judge_peaks(peaks(mixture(-1000 + shift, -100 + shift, 60 + shift if shift > 0 else 45 + shift)))
    assert [name for name in ("air", "fat", "soft tissue") for f in findings if f"peak of {name} " in f.text] == names
    assert all(f.level == "warning" and "dcm2niix" in f.mend for f in findings)


def test_padding_and_noise_do_no_harm():
    """-3024 outside the field of view is nothing; with 60 HU of noise peaks are found in their places or not at all."""
    padded = mixture()
    padded[:20] = -3024
    assert judge_peaks(peaks(padded)) == []
    assert judge_peaks(peaks(mixture(noise=60))) == []


def test_the_table_is_in_order():
    """Sound places lie inside the windows that are searched."""
    for tissue in tissues():
        assert tissue.window[0] < tissue.sound[0] < tissue.sound[1] < tissue.window[1]


def test_real_scans_are_sound():
    """Every tenth of the shared CTs has no peak out of place."""
    paths = sorted((SHARED / "data").glob("*/*/ct.nii.gz"))[::10]
    if not paths:
        pytest.skip("the shared CTs are not here")
    assert [(path, finding.text) for path in paths for finding in judge_peaks(peaks(read(path).array))] == []
