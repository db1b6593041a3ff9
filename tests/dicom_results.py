"""What tests of DICOM results share: series with every kind of geometry, structures found in them, and readers of results that use none of clseg's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from clseg.catalogue import Catalogue
from clseg.io.dicom.source import SourceSeries, source_of
from clseg.io.files import read
from clseg.io.segments import Segments
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume
from tests.dicom_files import in_study, place_of, write_enhanced, write_series

SHAPE = (13, 11, 9)  # 143 pixels a plane: no multiple of 8
NAMES = ("body", "lung_left", "spleen", "liver", "lymph_node_station_neck_3_left", "gtv_lung")


def straight(step: tuple[float, float, float] = (2.0, 2.0, 3.0)) -> np.ndarray:
    """RAS+ affine of axial slices in DICOM's usual axes."""
    affine = np.diag([-step[0], -step[1], step[2], 1.0])
    affine[:3, 3] = 20.5, 15.25, -10.75
    return affine


def turned(x: float, y: float, z: float, step: tuple[float, float, float] = (2.0, 2.5, 3.0)) -> np.ndarray:
    """The same, turned about the patient's axes by angles in degrees."""
    affine = straight(step)
    for axis, angle in enumerate(np.radians([x, y, z])):
        turn, (a, b) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        affine[:3, :3] = turn @ affine[:3, :3]
    return affine


def tilted(degrees: float) -> np.ndarray:
    affine = straight()
    affine[1, 2] = np.tan(np.radians(degrees)) * affine[2, 2]
    return affine


def scan_on(affine: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> Volume:
    """HU that differ from voxel to voxel."""
    return Volume((np.arange(np.prod(shape)).reshape(shape) % 1999 - 999).astype(np.int16), affine)


def series(affine: np.ndarray, keep: Callable[[int], bool] = lambda k: True) -> Callable[[Path], Path]:
    """Writes the slices that are kept into a folder."""

    def write(folder: Path) -> Path:
        write_series(folder, scan_on(affine), lambda k, image: in_study(k, image) if keep(k) else False)
        return folder

    return write


def multi_frame(folder: Path) -> Path:
    """One file with its frames in a mixed order."""
    folder.mkdir(exist_ok=True)
    return write_enhanced(folder / "all.dcm", scan_on(turned(10, 5, 0)), lambda image: in_study(0, image), order=[4, 0, 8, 2, 6, 1, 7, 3, 5])


def moved(by_mm: dict[int, float]) -> Callable[[Path], Path]:
    """A straight series with slices that lie a little above (below) their even places."""

    def write(folder: Path) -> Path:
        def change(k: int, image: Dataset) -> None:
            in_study(k, image)
            x, y, z = place_of(scan_on(straight()), k)[0]
            image.ImagePositionPatient = [x, y, f"{float(z) + by_mm.get(k, 0):.4f}"]

        write_series(folder, scan_on(straight()), change)
        return folder

    return write


SERIES: dict[str, Callable[[Path], Path]] = {
    "straight": series(straight()),
    "anisotropic": series(straight((0.7, 1.3, 5.0))),
    "oblique": series(turned(17, -8, 31)),
    "feet first": series(turned(0, 180, 0)),
    "prone, feet first": series(turned(180, 0, 0)),
    "coronal": series(turned(90, 0, 0)),
    "decreasing": series(straight((2.0, 2.0, -3.0))),
    "gantry tilt": series(tilted(20)),
    "gantry tilt the other way": series(tilted(-11)),
    "missing slice": series(straight(), lambda k: k != 4),
    "multi-frame": multi_frame,
}


def found_in(scan: Volume) -> Segments:
    """A body with a hole in which an island lies, organs in it that touch the scan's edges and each other at corners, and a spleen that was not found."""
    catalogue = Catalogue.builtin()
    body, organs = np.zeros(scan.shape, np.uint16), np.zeros(scan.shape, np.uint16, order="F")
    body[1:12, 1:10, 1:8] = catalogue["body"].id
    body[3:10, 3:8, 2:6] = 0
    body[5:8, 5:7, 3:5] = catalogue["body"].id
    organs[0:4, 0:3, 0:3] = catalogue["liver"].id
    organs[4:6, 3:5, 1:3] = catalogue["liver"].id  # touches the first piece at a corner
    organs[7:11, 2:9, 2:7] = catalogue["lung_left"].id
    organs[8, 4, 3:5] = organs[9, 6, 3] = catalogue["gtv_lung"].id
    organs[-1, -1, -1] = catalogue["lymph_node_station_neck_3_left"].id
    return Segments(scan, (body, organs), tuple(catalogue[name] for name in NAMES))


def segments_of(path: Path) -> Segments:
    return found_in(read(path))


def seg_masks(data: Dataset, scan: Volume) -> dict[str, np.ndarray]:
    """Name → mask on the scan's grid of a DICOM SEG, frame by frame through pydicom; fails where a pixel lies more than 1e-3 mm from a voxel's centre."""
    labels = {int(item.SegmentNumber): item.SegmentLabel for item in data.SegmentSequence}
    masks = {label: np.zeros(scan.shape, bool) for label in labels.values() if label != "Background"}
    for pixels, group in zip(data.pixel_array.reshape(-1, data.Rows, data.Columns), data.PerFrameFunctionalGroupsSequence, strict=True):
        ijk = voxels_of(frame_points(data, group), scan)
        numbers = _numbers(data, group, pixels)
        for number in numbers:
            here = pixels == number if data.SegmentationType == "LABELMAP" else pixels > 0
            assert not masks[labels[number]][tuple(ijk[here].T)].any()  # a pixel is said once
            masks[labels[number]][tuple(ijk[here].T)] = True
    return masks


def frame_points(data: Dataset, group: Dataset) -> np.ndarray:
    """Where the pixels (rows, columns, 3) of a frame lie, LPS mm, by the equation of the standard (C.7.6.2.1-1)."""
    shared = data.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    row, column = np.meshgrid(np.arange(data.Rows), np.arange(data.Columns), indexing="ij")
    along = column[..., None] * between_columns * cosines[:3] + row[..., None] * between_rows * cosines[3:]
    return np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) + along


def voxels_of(points: np.ndarray, scan: Volume) -> np.ndarray:
    """Index (i, j, k) of the voxel at every point (LPS mm)."""
    ijk = voxel_places(points, scan)
    whole = np.rint(ijk).astype(int)
    assert np.abs((ijk - whole) * scan.spacing).max() < 1e-3
    return whole


def voxel_places(points: np.ndarray, scan: Volume) -> np.ndarray:
    """Points (…, 3) in LPS mm as voxels (i, j, k), by what SimpleITK says of the origin and of points 1 m along the axes."""
    import SimpleITK as sitk

    image = sitk.Image(*map(int, scan.shape), sitk.sitkUInt8)
    lps = np.diag([-1.0, -1, 1]) @ scan.affine[:3]
    image.SetOrigin(lps[:, 3])
    image.SetSpacing(scan.spacing)
    image.SetDirection((lps[:, :3] / scan.spacing).ravel())
    said = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in ([0.0, 0, 0], *(1000 * np.eye(3)).tolist())])
    return said[0] + points / 1000 @ (said[1:] - said[0])


def _numbers(data: Dataset, group: Dataset, pixels: np.ndarray) -> list[int]:
    if data.SegmentationType == "LABELMAP":
        return [int(number) for number in np.unique(pixels) if number]
    holder = group if "SegmentIdentificationSequence" in group else data.SharedFunctionalGroupsSequence[0]
    return [int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)]


def rtstruct_masks(data: Dataset, scan: Volume) -> dict[str, np.ndarray]:
    """Name → mask on the scan's grid of an RTSTRUCT: contours filled plane by plane, where they overlap by even and odd."""
    from skimage.measure import points_in_poly

    masks = {}
    for name, contours in rtstruct_contours(data):
        mask = masks[name] = np.zeros(scan.shape, bool)
        for points, _ in contours:
            ijk = voxel_places(points, scan)
            k = round(ijk[0, 2])
            assert np.abs((ijk[:, 2] - k) * scan.spacing[2]).max() < 1e-3
            low, high = np.floor(ijk[:, :2].min(axis=0) + 0.6).astype(int), np.ceil(ijk[:, :2].max(axis=0) + 0.4).astype(int)
            box = mask[low[0] : high[0], low[1] : high[1], k]
            box ^= points_in_poly(np.argwhere(np.ones(box.shape)) + low, ijk[:, :2]).reshape(box.shape)
    return masks


def rtstruct_contours(data: Dataset) -> Iterator[tuple[str, list[tuple[np.ndarray, Dataset]]]]:
    """Name and contours of every ROI, a contour as its points (n, 3) and its item."""
    names = {int(roi.ROINumber): roi.ROIName for roi in data.StructureSetROISequence}
    for roi in data.ROIContourSequence:
        yield names[int(roi.ReferencedROINumber)], [(np.array(item.ContourData, float).reshape(-1, 3), item) for item in roi.ContourSequence]


def real_case(shared: Path, folder: Path) -> tuple[Segments, SourceSeries]:
    """A real CT as a DICOM series, with its labels in the axes in which the series is read."""
    case = shared / "data" / "totalsegmentator_tests" / "example_ct"
    write_series(folder / "in", to_orientation(read(case / "ct.nii.gz"), "LPS"), in_study)
    scan, labels = read(folder / "in"), read(case / "labels.nii.gz")
    names, catalogue = json.loads((case / "labels.json").read_text()), Catalogue.builtin()
    table = np.zeros(max(names.values()) + 1, np.uint16)
    known = {name: id for name, id in names.items() if name in catalogue}
    table[list(known.values())] = [catalogue[name].id for name in known]
    turned = to_orientation(Volume(table[labels.array], labels.affine), scan.orientation)
    assert turned.same_grid(scan, tolerance_mm=0.01)
    return Segments(scan, (np.ascontiguousarray(turned.array),), tuple(a for a in catalogue if a.name in known)), source_of(folder / "in")
