"""A Segmentation from masks that are there already: names, grids, overlaps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from clseg.errors import InputError, UsageError
from clseg.io.nifti import write_mask, write_volume
from clseg.masks import read_segmentation
from clseg.progress import Progress
from clseg.segmentation import Segmentation
from clseg.volume import Volume
from tests.dicom_files import write_series

SHAPE = (12, 10, 8)
AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1]])


class Heard(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def scan() -> Volume:
    """Air of -1000 HU, 100 HU where i is 4 or more."""
    array = np.full(SHAPE, -1000, np.int16, order="F")
    array[4:] = 100
    array[4:, ::2] = 50
    array[0, 0, 0] = 1500  # bone, or it would look exported with a window
    return Volume(array, AFFINE)


def box(i: slice, j: slice = slice(2, 4), k: slice = slice(2, 4)) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[i, j, k] = 1
    return array


LIVER, SPLEEN = box(slice(4, 6)), box(slice(8, 10))


def write(folder: Path, **masks: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in masks.items():
        write_mask(folder / f"{name}.nii.gz", array, scan())
    return folder


def voxels(result: Segmentation) -> dict[str, int | None]:
    return {name: one.voxels for name, one in result.statistics().items()}


def test_a_folder_of_masks_is_measured_on_its_ct(tmp_path):
    """Two boxes of 8 voxels of 12 mm³: 96 mm³ each; half of them hold 100 HU, half 50."""
    found = read_segmentation(write(tmp_path, liver=LIVER, spleen=SPLEEN), scan()).statistics()
    assert {name: (one.volume_mm3, one.hu_mean) for name, one in found.items()} == {"liver": (pytest.approx(96), 75), "spleen": (pytest.approx(96), 75)}
    assert list(found) == ["spleen", "liver"]  # in the order of their ids


def test_names_are_understood_and_unknown_ones_kept(tmp_path):
    """Synonyms become the catalogue's names; a name for two things, and one that nobody knows, stay."""
    folder = write(tmp_path, **{"Hepar": LIVER, "oesophagus": SPLEEN, "kidney": LIVER, "my lesion 7": SPLEEN, "vertebra_L3": LIVER})
    assert set(read_segmentation(folder, scan()).names) == {"liver", "esophagus", "kidney", "my lesion 7", "vertebrae_L3"}


def test_two_masks_of_one_structure_are_refused(tmp_path):
    """liver and Hepar: both files are named."""
    with pytest.raises(InputError, match="'Hepar' and 'liver' of .* both mean liver"):
        read_segmentation(write(tmp_path, liver=LIVER, Hepar=SPLEEN), scan())


def test_masks_may_overlap_and_share_layers_where_they_do_not(tmp_path):
    """Body, liver and tumour overlap, the spleen lies in the body beside the liver: three layers, every voxel counted for each."""
    folder = write(tmp_path, body=box(slice(3, 11), slice(1, 9), slice(1, 7)), liver=LIVER, spleen=SPLEEN, gtv_liver=box(slice(4, 5)))
    result = read_segmentation(folder, scan())
    assert voxels(result) == {"body": 8 * 8 * 6, "liver": 8, "spleen": 8, "gtv_liver": 4}
    assert len(result.layers) == 3
    assert int((result.labels.array == result.names["body"]).sum()) == 8 * 8 * 6 - 16  # the part hides the whole


def test_an_empty_mask_is_absent(tmp_path):
    """A file of zeros: looked for and not found, all numbers None."""
    found = read_segmentation(write(tmp_path, liver=LIVER, spleen=np.zeros(SHAPE, np.uint8)), scan()).statistics()
    assert (found["spleen"].status, found["spleen"].voxels) == ("absent", None)


def test_a_label_map_is_read_at_once(tmp_path):
    """Ids of another program become the catalogue's; ids without a name are left out, and said so."""
    array = LIVER * 5 + SPLEEN * 1 + box(slice(4, 6), slice(6, 8)) * 9
    write_mask(tmp_path / "seg.nii.gz", array.astype(np.uint16), scan())
    (tmp_path / "seg.labels.json").write_text('{"Liver": 5, "spleen": 1, "aorta": 3}')
    heard = Heard()
    result = read_segmentation(tmp_path / "seg.nii.gz", scan(), report=heard)
    assert voxels(result) == {"liver": 8, "spleen": 8, "aorta": None}
    assert heard.warnings == [f"Left out, as nothing names them: id 9 of '{tmp_path / 'seg.nii.gz'}'."]


def test_roi_chooses_and_reads_nothing_else(tmp_path):
    """A damaged spleen does not matter when only the liver is asked for; what is not there is a wrong call."""
    folder = write(tmp_path, liver=LIVER)
    (folder / "spleen.nii.gz").write_bytes(b"no mask")
    assert voxels(read_segmentation(folder, scan(), roi="liver")) == {"liver": 8}
    with pytest.raises(UsageError, match="There is no mask of 'aorta' in "):
        read_segmentation(folder, scan(), roi="aorta")


@pytest.mark.parametrize(
    ("roi", "said"),
    [
        ("spleen", "There is no mask of 'spleen' in '{}'; the nearest there are: kidney_right, liver, spot."),
        ("kidney_left", "There is no mask of 'kidney_left' in '{}'; the nearest there are: kidney_right, liver, spot."),
        ("livr", "There is no mask of 'livr' in '{}'; the nearest there are: liver, "),
        ("Sport", "There is no mask of 'Sport' in '{}'; the nearest there are: spot, "),
        ("", "No structure was asked for; expected at least one structure or group."),
    ],
)
def test_who_asks_for_another_mask_is_told_which_there_are(tmp_path, roi, said):
    """Known or not: the nearest masks in the sentence, all of them in the tip, by the names that --roi knows; no word of models."""
    folder = write(tmp_path / "masks", Hepar=LIVER, kidney_right=SPLEEN, spot=LIVER)
    with pytest.raises(UsageError) as caught:
        read_segmentation(folder, scan(), roi=roi)
    assert said.format(folder) in caught.value.message
    assert sorted(caught.value.tip.removeprefix("The masks there are: ").rstrip(".").split(", ")) == ["kidney_right", "liver", "spot"]


def test_of_many_masks_the_tip_names_a_dozen(tmp_path):
    """Thirteen are twelve names and how many there are in all."""
    folder = write(tmp_path, **{f"own_{letter}": LIVER for letter in "abcdefghijklm"})
    with pytest.raises(UsageError) as caught:
        read_segmentation(folder, scan(), roi="liver")
    assert caught.value.tip.count("own_") == 12
    assert caught.value.tip.endswith(" … (13 in all).")


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAR", "PIL"])
def test_a_turned_grid_is_turned_back(tmp_path, code):
    """The same masks with their axes in another order and direction give the same statistics."""
    image = nib.Nifti1Image(LIVER, AFFINE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code))
    (tmp_path / code).mkdir()
    nib.save(image.as_reoriented(turn), tmp_path / code / "liver.nii.gz")
    straight = read_segmentation(write(tmp_path / "straight", liver=LIVER), scan()).statistics()
    assert read_segmentation(tmp_path / code, scan()).statistics() == straight


def test_another_shape_is_refused(tmp_path):
    """12 × 10 × 8 voxels on a CT of 12 × 10 × 9: both are told."""
    taller = Volume(np.zeros((12, 10, 9), np.int16), AFFINE)
    with pytest.raises(InputError, match=r"liver\.nii\.gz' lies on another grid than the CT: 12 × 10 × 8 voxels of 2 × 2 × 3 mm against 12 × 10 × 9"):
        read_segmentation(write(tmp_path, liver=LIVER), taller)


def test_a_moved_grid_is_refused_with_its_distance(tmp_path):
    """3 mm along x and 4 along y: 5 mm apart. 0.05 mm, as from rounding, is let pass."""
    folder = write(tmp_path, liver=LIVER)
    moved = AFFINE.copy()
    moved[:2, 3] += (3, 4)
    with pytest.raises(InputError, match="corners are up to 5 mm apart"):
        read_segmentation(folder, Volume(scan().array, moved))
    moved[:2, 3] = AFFINE[:2, 3] + 0.05
    assert voxels(read_segmentation(folder, Volume(scan().array, moved))) == {"liver": 8}


def test_without_a_ct_masks_must_agree_among_themselves(tmp_path):
    """Volumes and no HU; a mask that lies elsewhere than the first is refused."""
    folder = write(tmp_path, liver=LIVER, spleen=SPLEEN)
    found = read_segmentation(folder).statistics()
    assert {(one.voxels, one.hu_mean, one.status) for one in found.values()} == {(8, None, "complete")}
    write_mask(folder / "aorta.nii.gz", LIVER, Volume(scan().array, np.eye(4)))
    with pytest.raises(InputError, match="lies on another grid than the other masks"):
        read_segmentation(folder)


def test_the_ct_among_its_masks_is_no_mask(tmp_path):
    """ct.nii.gz in the folder of masks, as some people keep it."""
    write_volume(write(tmp_path, liver=LIVER) / "ct.nii.gz", scan())
    assert voxels(read_segmentation(tmp_path, tmp_path / "ct.nii.gz")) == {"liver": 8}


def test_the_ct_may_be_a_dicom_folder(tmp_path):
    """Masks as NIfTI from the series, rows of which run the other way: the same HU."""
    plain = Volume(scan().array, np.diag([-2.0, -2.0, 3.0, 1.0]))  # the axes of DICOM, LPS
    write_series(tmp_path / "dicom", plain)
    (tmp_path / "masks").mkdir()
    image = nib.Nifti1Image(LIVER, plain.affine)
    nib.save(nib.as_closest_canonical(image), tmp_path / "masks" / "liver.nii.gz")
    found = read_segmentation(tmp_path / "masks", tmp_path / "dicom").statistics()["liver"]
    assert (found.voxels, found.hu_mean, found.hu_min, found.hu_max) == (8, 75, 50, 100)


def test_what_is_not_hu_is_measured_with_a_warning(tmp_path):
    """An image of 0 to 255, which `clseg -i` refuses: intensities are those of the file."""
    heard = Heard()
    picture = Volume((scan().array.clip(max=100) + 1000) // 5, AFFINE)
    found = read_segmentation(write(tmp_path, liver=LIVER), picture, report=heard).statistics()["liver"]
    assert found.hu_mean == 215
    assert len(heard.warnings) == 1
    assert "are not Hounsfield units" in heard.warnings[0]
    assert heard.warnings[0].endswith("Intensities are those of the file.")


def test_what_our_run_did_not_look_for_is_out_of_range(tmp_path):
    """run.json beside the masks: spleen absent, kidney_left out of range, although neither has a file."""
    folder = write(tmp_path, liver=LIVER)
    (folder / "run.json").write_text(json.dumps({"structures": ["liver"], "empty": ["spleen", "kidney_left"], "out_of_range": ["kidney_left"]}))
    found = read_segmentation(folder, scan()).statistics()
    assert {name: one.status for name, one in found.items()} == {"liver": "complete", "spleen": "absent", "kidney_left": "out_of_range"}


def test_nothing_but_absent_masks_and_no_ct_has_no_grid(tmp_path):
    """Only the spleen, which has no file, is asked for, and there is no CT."""
    folder = write(tmp_path, liver=LIVER)
    (folder / "run.json").write_text(json.dumps({"empty": ["spleen"], "out_of_range": []}))
    with pytest.raises(InputError, match="nothing says what the grid is"):
        read_segmentation(folder, roi="spleen")
    assert read_segmentation(folder, scan(), roi="spleen").statistics()["spleen"].status == "absent"


def test_lobes_are_taken_together(tmp_path):
    """Two overlapping lobes of 8 voxels that share 4 make a left lung of 12; the right one is missing of the lungs."""
    folder = write(tmp_path, lung_upper_lobe_left=box(slice(4, 6)), lung_lower_lobe_left=box(slice(5, 7)))
    families = read_segmentation(folder, scan()).families()
    assert (families["lung_left"].voxels, families["lung_left"].status) == (12, "complete")
    assert (families["lungs"].voxels, families["lungs"].status, families["lungs"].missing) == (12, "partial", ("lung_right",))
