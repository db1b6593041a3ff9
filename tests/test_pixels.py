"""Stored values become HU in the smallest type that holds them."""

from __future__ import annotations

import numpy as np
import pytest

from clseg.io.dicom.headers import images
from clseg.io.dicom.pixels import Decoder
from clseg.volume import Volume
from tests.dicom_files import one_slice, store, write_enhanced


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "kind"),
    [
        ([0, 1000], 1, -1024, np.int16),
        ([0, 1000], 2, -1024, np.int16),
        ([0, 33791], 1, -1024, np.int16),
        ([0, 33792], 1, -1024, np.int32),
        ([0, 2**30], 4, 0, np.float32),
        ([0, 1000], 0.5, -1024, np.float32),
        ([0, 1000], 1, 0.25, np.float32),
    ],
)
def test_the_type_fits_the_values(tmp_path, stored, slope, intercept, kind):
    """int16 up to 32767, int32 above, float32 for fractions and what is larger; values are stored × slope + intercept."""
    image = one_slice(Volume(np.zeros((2, 1, 1), np.int16), np.eye(4)), 0, slope=slope, intercept=intercept)
    store(image, np.array(stored)[None, None], 1, 0)
    image.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    (one,) = images(tmp_path / "x.dcm")
    hu = Decoder().hu(one)
    assert hu.dtype == kind
    np.testing.assert_array_equal(hu, [np.array(stored) * slope + intercept])


def test_a_file_with_many_frames_is_decoded_once(tmp_path, monkeypatch):
    """Five frames in any order, one decoding; another file, another decoding."""
    from clseg.io.dicom import pixels

    calls, whole = [], pixels._frames
    monkeypatch.setattr(pixels, "_frames", lambda path: (calls.append(path), whole(path))[1])
    volume = Volume(np.arange(60, dtype=np.int16).reshape(4, 3, 5), np.eye(4))
    frames = images(write_enhanced(tmp_path / "a.dcm", volume))
    decoder = Decoder()
    for k in (3, 0, 4, 1, 2):
        np.testing.assert_array_equal(decoder.hu(frames[k]), volume.array[:, :, k].T)
    decoder.hu(images(write_enhanced(tmp_path / "b.dcm", volume))[0])
    assert [path.name for path in calls] == ["a.dcm", "b.dcm"]
