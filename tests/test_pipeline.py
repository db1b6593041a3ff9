"""segment(): one scan through the whole house, with a tiny network of random weights."""

from __future__ import annotations

import sys
from itertools import permutations, product

import numpy as np
import pytest

import clseg
from clseg import segment
from clseg.errors import ClsegError, InputError, UnknownName, UsageError, WeightsError
from clseg.io.nifti import write_volume
from clseg.phantom import small_phantom
from clseg.progress import Progress
from clseg.spatial.orient import to_orientation
from clseg.spatial.runs import LabelRuns
from clseg.volume import Header, Volume
from tests.lattice import CODES, dice, faint


class Told(Progress):
    """Notes what the library says."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.stages: list[str] = []

    def stage(self, name, total=None):
        self.stages.append(name)
        return super().stage(name, total)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def tiny(tiny_model):
    """A model with a whole, two sides and two strangers."""
    return tiny_model()


@pytest.fixture(scope="module")
def scan() -> Volume:
    """A small torso: 24 x 20 x 22 voxels of 6 mm, a sixth of a second to segment."""
    volume, _ = small_phantom()
    cut = volume.array[8:32, 4:24, 10:32]
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ (8, 4, 10)
    return Volume(np.asfortranarray(cut), affine)


def masks(result, code: str = "RAS") -> dict[str, np.ndarray]:
    """Every mask turned to the same axes, so that they can be compared in the patient."""
    return {name: np.ascontiguousarray(to_orientation(result.scan.like(result.mask(name)), code).array) for name in result.names}


# ---- the grid of the scan ---------------------------------------------------------------------------------------------


def test_the_result_lies_on_the_grid_of_the_scan(tiny, scan):
    """Shape, affine and header are those of the input; something is found, and every id was asked for."""
    header = Header(scan.affine, 1, scan.affine, 2)
    result = segment(Volume(scan.array, scan.affine, header), model="tiny")
    assert result.labels.same_grid(scan, tolerance_mm=0)
    assert result.labels.header is header
    assert set(result.names) == {"body", "lung_left", "lung_right", "liver", "spleen"}
    assert len(result.present) >= 3
    assert set(np.unique(result.labels.array)) <= {0, *result.names.values()}


@pytest.mark.parametrize("code", ["LAS", "RPS", "RAI", "LPI", "ARS", "SAR", "PIL", "ILA", "SLP"])
def test_flipped_and_permuted_copies_give_the_same_masks(tiny, scan, code):
    """The same voxels stored in another order are the same patient: masks agree voxel by voxel, on the grid of the copy."""
    copy = to_orientation(scan, code)
    straight, turned = segment(scan, model="tiny"), segment(copy, model="tiny")
    assert turned.labels.same_grid(copy, tolerance_mm=0)
    for name, mask in masks(straight).items():
        np.testing.assert_array_equal(masks(turned)[name], mask)


@pytest.mark.slow
def test_all_48_orders_give_the_same_masks(tiny, scan):
    """The same for every order of axes there is."""
    expected = masks(segment(scan, model="tiny"))
    for code in CODES:
        found = masks(segment(to_orientation(scan, code), model="tiny"))
        for name, mask in expected.items():
            np.testing.assert_array_equal(found[name], mask, err_msg=f"{name} in {code}")


def test_a_mirrored_patient_is_not_the_same_patient(tiny, scan):
    """Flipping the voxels but not the affine changes the answer, so the test above is one."""
    mirrored = Volume(scan.array[::-1], scan.affine)
    one, other = masks(segment(scan, model="tiny")), masks(segment(mirrored, model="tiny"))
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 5.0), (9.0, 7.0, 6.0)])
def test_finer_and_coarser_scans_get_masks_on_their_own_grid(tiny, spacing):
    """Anisotropic voxels, finer and coarser than the model's 6 mm."""
    shape = tuple(round(110 / s) for s in spacing)
    points = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1)
    array = np.where(np.linalg.norm(points, axis=-1) < 45, 40 + points[..., 0], -1000).astype(np.int16)
    volume = Volume(array, np.diag([*spacing, 1.0]))
    result = segment(volume, model="tiny")
    assert result.labels.array.shape == shape
    assert result.present


def body_by_threshold(scan, parts, task):
    """In place of the network: the body is what is denser than -300 HU, as a soft layer on the model's grid, restored."""
    from clseg.inference.merge import Layer
    from clseg.inference.prepare import onto_grid, place
    from clseg.inference.restore import restore

    catalogue = task.catalogue
    oriented, placement = place(scan, parts.grid)
    sure = 1 / (1 + np.exp(-(onto_grid(oriented.array, placement).numpy() + 300) / 150))
    labels = np.where(sure > 0.5, catalogue["body"].id, 0).astype(np.uint16)
    score = np.where(labels > 0, np.round(255 * sure), 0).astype(np.uint8)
    layer = Layer(labels, score, {catalogue["body"].id: [faint(labels, catalogue["body"].id, sure)]})
    return [restore(layer, placement, scan)], []


@pytest.mark.parametrize("tilt", [0.02, -0.1, 0.25])
@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR"])
def test_a_sheared_scan_gets_a_warning_and_masks_on_its_own_grid(tiny, scan, code, tilt, monkeypatch):
    """A tilted gantry, stored in any order: told in one sentence, and the body comes back where it is on the tilted grid."""
    from clseg.inference import infer

    monkeypatch.setattr(infer, "infer", body_by_threshold)
    affine = scan.affine.copy()
    affine[1, 2] = tilt * scan.spacing[2]
    sheared = to_orientation(Volume(scan.array, affine), code)
    told = Told()
    result = segment(sheared, "body", model="tiny", report=told)
    assert len([text for text in told.warnings if "right angles" in text]) == 1
    assert result.labels.same_grid(sheared, tolerance_mm=0)
    assert dice(result.mask("body"), sheared.array > -300) > 0.95


def test_a_scan_smaller_than_the_window_is_segmented(tiny):
    """Five slices of 6 mm with windows of sixteen."""
    array = np.full((20, 20, 5), -1000, np.int16)
    array[3:17, 3:17] = np.random.default_rng(0).integers(-150, 200, (14, 14, 5))
    result = segment(Volume(array, np.diag([6.0, 6.0, 6.0, 1.0])), model="tiny")
    assert result.labels.array.shape == (20, 20, 5)


# ---- the same again ---------------------------------------------------------------------------------------------------


def test_two_runs_give_the_same_bytes(tiny, scan, tmp_path):
    """Masks, label map and statistics of two runs are identical files."""
    write_volume(tmp_path / "ct.nii.gz", scan)
    for run in ("a", "b"):
        result = segment(tmp_path / "ct.nii.gz", model="tiny")
        result.save(tmp_path / run, statistics=True)
        result.save(tmp_path / run / "x.nii.gz")
    files = sorted(file.name for file in (tmp_path / "a").iterdir() if "run.json" not in file.name)
    assert "x.nii.gz" in files
    assert "statistics.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_one_segmenter_gives_for_every_scan_what_a_fresh_call_gives(tiny, scan, monkeypatch):
    """Two scans in turn: weights are loaded once, and the masks are those of `segment`."""
    from clseg import Segmenter

    other = Volume(scan.array[:, :, :12], scan.affine)
    expected = [segment(one, "lungs", model="tiny").labels.array for one in (scan, other)]
    loads, load = [], Segmenter._load
    monkeypatch.setattr(Segmenter, "_load", lambda self, files: loads.append(1) or load(self, files))
    segmenter = Segmenter("lungs", model="tiny")
    assert not loads
    for one, labels in zip((scan, other), expected, strict=True):
        np.testing.assert_array_equal(segmenter(one).labels.array, labels)
    assert len(loads) == 1


def test_a_path_and_its_volume_give_the_same(tiny, scan, tmp_path):
    """Reading the file first changes nothing; only a file has a sha256."""
    write_volume(tmp_path / "ct.nii.gz", scan)
    from_file, from_memory = segment(tmp_path / "ct.nii.gz", model="tiny"), segment(scan, model="tiny")
    np.testing.assert_array_equal(from_file.labels.array, from_memory.labels.array)
    assert len(from_file.facts["input"]["sha256"]) == 64
    assert from_memory.facts["input"]["sha256"] is None


def test_asking_for_less_changes_nothing_about_it(tiny, scan):
    """One decoder alone says what it says among others (no other competes with the body)."""
    everything, alone = segment(scan, model="tiny"), segment(scan, roi=["body"], model="tiny")
    assert list(alone.names) == ["body"]
    np.testing.assert_array_equal(alone.mask("body"), everything.mask("body"))
    assert set(alone.facts["model"]["weights"]) == {"tiny-encoder", "tiny-trunk"}


def test_what_else_a_model_holds_changes_nothing(tiny_model, own_home, scan):
    """The same decoders beside others: masks of what was asked for are the same bytes, for one that has no rival and for two that have."""
    few = {"trunk": ("body",), "lungs": ("lung_left", "lung_right")}
    tiny_model(few)
    before = masks(segment(scan, model="tiny"))
    tiny_model({**few, "abdomen": ("liver", "spleen"), "own": ("my_organ",)})
    after = masks(segment(scan, roi=["body", "lungs"], model="tiny"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("kind", [">i2", ">f4", ">f8"])
def test_byte_order_does_not_matter(tiny, scan, kind):
    """A big-endian array, as some files hold, gives the masks of the same numbers."""
    swapped = segment(Volume(scan.array.astype(kind), scan.affine), model="tiny")
    np.testing.assert_array_equal(swapped.labels.array, segment(scan, model="tiny").labels.array)


@pytest.mark.parametrize("pathological", [True, False, "yes", None])
def test_the_card_of_a_decoder_says_that_it_knows_pathological_cases(tiny_model, scan, monkeypatch, pathological):
    """Only `"pathological": true` does; the canvas hears of it."""
    from clseg.inference import infer, merge
    from clseg.network import checkpoint

    tiny_model()
    header = checkpoint.read_header

    def with_card(path):
        found = header(path)
        return {**found, "card": {"pathological": pathological}} if "lungs" in path.name else found

    heard = []

    class Canvas(merge.Canvas):
        def __post_init__(self):
            heard.append(self.question.pathological)
            super().__post_init__()

    monkeypatch.setattr(checkpoint, "read_header", with_card)
    monkeypatch.setattr(infer, "Canvas", Canvas)
    segment(scan, roi="lungs", model="tiny")
    assert heard == [frozenset({"tiny-lungs"}) if pathological is True else frozenset()]


def test_the_step_is_heeded(tiny, scan):
    """Half the step means more windows."""
    totals = []

    class Counted(Progress):
        def stage(self, name, total=None):
            if name == "Segmenting":
                totals.append(total)
            return super().stage(name, total)

    for step in (0.5, 0.25):
        segment(scan, roi=["body"], model="tiny", step=step, report=Counted())
    assert totals[0] < totals[1]


def test_roi_may_be_text_names_or_groups(tiny, scan):
    """One string, a list, a group and a synonym mean the same lungs."""
    asked = ["lungs", ["lung_left", "lung_right"], ["chest"], "lung_left,lung_right"]
    assert {tuple(segment(scan, roi=roi, model="tiny").names) for roi in asked} == {("lung_left", "lung_right")}


# ---- what is told -----------------------------------------------------------------------------------------------------


def test_stages_are_told_and_timed(tiny, scan):
    """What the user sees and what run.json says are the steps of a run in their order."""
    told = Told()
    result = segment(scan, model="tiny", report=told)
    assert told.stages == ["Reading", "Loading weights", "Preparing", "Locating", "Segmenting", "Cleaning", "Restoring"]
    assert [lap.stage for lap in result.stopwatch.laps] == ["read", "weights", "prepare", "locate", "segment", "clean", "restore"]


def test_the_facts_say_what_was_used(tiny, scan):
    """Versions, geometry, weights by sha256, device, step."""
    facts = segment(scan, model="tiny", device="cpu", step=0.7).facts
    assert facts["versions"]["clseg"] == clseg.__version__
    assert facts["input"]["shape"] == list(scan.shape)
    assert facts["input"]["orientation"] == "RAS"
    assert all(len(digest) == 64 for digest in facts["model"]["weights"].values())
    assert (facts["model"]["name"], facts["device"], facts["step"]) == ("tiny", "cpu", 0.7)


def test_decoders_out_of_range_are_reported(tiny, scan, monkeypatch):
    """Structures whose decoders had no slice are out of range, not absent."""
    from clseg.inference import infer

    monkeypatch.setattr(infer, "extents", lambda network, slices, *_: {n: None if "abdomen" in n else (0, slices) for n in network.decoders})
    result = segment(scan, model="tiny")
    assert result.out_of_range == {"liver", "spleen"}
    assert result.statistics()["liver"].status == "out_of_range"


def test_a_label_beyond_its_range_is_out_of_range_while_its_partner_is_painted(tiny, scan, monkeypatch):
    """No slice can show the right lung, and the left one may lie in the lower half: it is there, and nowhere else."""
    from clseg.inference import infer

    free = segment(scan, model="tiny")
    assert free.mask("lung_left").any()
    assert free.mask("lung_right").any()
    half = scan.shape[2] // 2
    monkeypatch.setattr(infer, "label_extents", lambda model, slices, scores: {"tiny-lungs": {"lung_left": (0, slices // 2), "lung_right": None}})
    limited = segment(scan, model="tiny", restore="nearest")
    assert limited.out_of_range == {"lung_right"}
    assert limited.mask("lung_left")[..., :half].any()
    assert not limited.mask("lung_left")[..., half:].any()
    assert np.array_equal(limited.mask("liver"), segment(scan, model="tiny", restore="nearest").mask("liver"))


def test_a_map_of_confidence_changes_no_label(tiny, scan):
    """The same masks and certainties with it and without; it lies on the scan's grid, and is less than certain where something was found."""
    plain, mapped = segment(scan, model="tiny"), segment(scan, model="tiny", confidence_map=True)
    assert plain.confidence_map is None
    assert all(np.array_equal(one, other) for one, other in zip(plain.layers, mapped.layers, strict=True))
    assert plain.certainties == mapped.certainties
    assert (mapped.confidence_map.dtype, mapped.confidence_map.shape) == (np.uint8, scan.shape)
    assert mapped.confidence_map[mapped.labels.array > 0].mean() < 255


def test_every_structure_that_was_found_has_a_certainty(tiny, scan):
    """All numbers lie between 0 and 1, the margin below the probability."""
    found = segment(scan, model="tiny")
    assert set(found.certainties) >= {anatomy.name for anatomy in found.present}
    for one in found.certainties.values():
        assert 0 <= one.margin <= one.probability <= 1
        assert one.boundary_entropy is None or 0 <= one.boundary_entropy <= 1
    assert {name: judged.confidence for name, judged in found.review().items()} == {
        name: found.certainties[name].margin if found.mask(name).any() else None for name in found.names
    }


def test_nothing_in_range_is_an_empty_result(tiny, scan, monkeypatch):
    """No decoder ran; everything is out of range, and nothing breaks."""
    from clseg.inference import infer

    monkeypatch.setattr(infer, "extents", lambda network, slices, *_: dict.fromkeys(network.decoders))
    result = segment(scan, model="tiny")
    assert not result.labels.array.any()
    assert result.out_of_range == set(result.names)


# ---- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("roi", "model"), [(["livre"], "tiny"), (["liver", "x"], "tiny"), ("liver", "tinny"), ([], "tiny"), ("brainstem", "tiny")])
def test_words_are_judged_before_the_image_is_read(tiny, roi, model):
    """A wrong name is told first, though the image does not exist either."""
    with pytest.raises(UsageError) as caught:
        segment("/nowhere/ct.nii.gz", roi=roi, model=model)
    assert "nowhere" not in caught.value.message


def test_a_typo_is_answered_with_the_nearest_names(tiny):
    """`livre` may have been liver."""
    with pytest.raises(UnknownName) as caught:
        segment("/nowhere/ct.nii.gz", roi="livre", model="tiny")
    assert "liver" in caught.value.nearest


def test_a_missing_image_is_a_usage_error(tiny):
    """With the path in the sentence."""
    with pytest.raises(UsageError, match=r"/nowhere/ct\.nii\.gz"):
        segment("/nowhere/ct.nii.gz", model="tiny")


@pytest.mark.parametrize("values", [(0, 255), (0.0, 1.0), (0, 2000)])
def test_what_is_not_hu_is_refused_before_weights_are_loaded(tiny, values, monkeypatch):
    """8-bit pictures, normalised values and MR are no CT; torch never sees them."""
    from clseg import Segmenter

    monkeypatch.setattr(Segmenter, "_load", lambda *_: pytest.fail("weights were loaded"))
    array = np.random.default_rng(0).uniform(*values, (20, 20, 20)).astype(np.float32)
    with pytest.raises(InputError, match="not Hounsfield units"):
        segment(Volume(array), model="tiny")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_a_usage_error(tiny, scan, device):
    """Rather than another device than the one asked for."""
    with pytest.raises(UsageError, match=device):
        segment(scan, model="tiny", device=device)


def test_damaged_weights_are_refused(tiny, scan):
    """One byte changed: the file's sha256 is not the manifest's, and nothing is loaded."""
    file = tiny / "tiny" / "tiny-lungs.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match=r"tiny-lungs.*sha256"):
        segment(scan, roi="lungs", model="tiny")
    assert segment(scan, roi="body", model="tiny").names == {"body": 1}


def test_nearest_neighbour_leaves_the_voxels_of_the_model(tiny, scan):
    """On a scan three times as fine every 3 x 3 x 3 voxels are alike by nearest neighbour, and not with smooth borders."""
    fine = Volume(np.asfortranarray(scan.array.repeat(3, 0).repeat(3, 1).repeat(3, 2)), scan.affine @ np.diag([1 / 3, 1 / 3, 1 / 3, 1]))

    def alike(way: str) -> bool:
        blocks = segment(fine, model="tiny", restore=way).labels.array.reshape(scan.shape[0], 3, scan.shape[1], 3, scan.shape[2], 3)
        return bool((blocks == blocks[:, :1, :, :1, :, :1]).all())

    assert (alike("nearest"), alike("smooth")) == (True, False)


def test_an_unknown_way_to_restore_is_refused_before_anything_is_read(tiny):
    """Even before the path that is not there."""
    with pytest.raises(UsageError, match="'linear', expected smooth or nearest"):
        segment("/nowhere/ct.nii.gz", model="tiny", restore="linear")


@pytest.mark.parametrize("step", [0.0, -1.0, 1.5])
def test_a_step_that_makes_no_sense_is_refused(tiny, scan, step):
    """In one sentence, not by running for ever."""
    with pytest.raises(UsageError, match="step"):
        segment(scan, model="tiny", step=step)


@pytest.mark.parametrize("fill", [-1000, 40])
def test_a_scan_of_one_value_is_refused(tiny, fill):
    """Air or water alone is no scan."""
    with pytest.raises(ClsegError, match="same value"):
        segment(Volume(np.full((8, 8, 8), fill, np.int16)), model="tiny")


# ---- the package ------------------------------------------------------------------------------------------------------


def test_importing_the_package_is_light():
    """`import clseg` brings neither torch nor numpy; names come when they are used."""
    import subprocess

    program = "import sys, clseg; print(sorted({'torch', 'numpy', 'nibabel'} & set(sys.modules)), 'segment' in clseg.__all__)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[]", "True"]
    assert clseg.segment is segment
    with pytest.raises(AttributeError, match="nothing"):
        clseg.nothing  # noqa: B018


def test_all_orders_of_axes_are_covered():
    """CODES has the 3! x 2³ orders of axes, so the test over them is complete."""
    assert len(set(CODES)) == len(list(permutations(range(3)))) * len(list(product((0, 1), repeat=3)))


def test_a_scan_against_its_header_is_told(monkeypatch):
    """When the body-part scores run from head to feet the user hears that organs may be missed; otherwise nothing is said."""
    from types import SimpleNamespace

    from clseg.inference import infer

    model = SimpleNamespace(slices={"lungs": (0.3, 0.7)}, label_slices={}, sideways={})
    parts, placement = SimpleNamespace(models=(model,), scorer=object(), labels={"lungs": ("lung_left",)}), SimpleNamespace(shape=(4, 4, 50), spacing=(3.0,) * 3, orientation="RAS")
    for ends, warned in (((0.9, 0.2), 1), ((0.2, 0.9), 0)):
        told = Told()
        monkeypatch.setattr(infer, "score_grid", lambda *_, ends=ends: np.linspace(*ends, 50))
        assert infer.slices_in_reach(parts, None, placement, told, ["lung_left", "lung_right"]).decoders["lungs"] is not None
        assert len([text for text in told.warnings if "upside down" in text]) == warned


# ---- networks of other programs ---------------------------------------------------------------------------------------


def test_what_decoders_with_a_plan_found_stays_and_ours_take_what_is_free(monkeypatch) -> None:
    """On one layer the earlier result has the voxel; another layer is not touched; each side's structures count as looked for."""
    from clseg.catalogue import Catalogue
    from clseg.inference import infer
    from clseg.inference.parts import Parts

    row = lambda *ids: LabelRuns.of(np.array(ids, np.uint16).reshape(-1, 1, 1))  # noqa: E731
    monkeypatch.setattr(infer, "planned", lambda *_: ({1: row(5, 5, 0, 0), 2: row(0, 7, 0, 0)}, {"liver"}))
    monkeypatch.setattr(infer, "house", lambda *_: ({0: row(1, 1, 1, 0), 1: row(0, 6, 6, 6)}, {"body"}))
    wanted = tuple(Catalogue.builtin()[name] for name in ("body", "liver", "spleen"))
    parts = Parts(("house",), None, frozenset(), ("planned",))
    layers, unreachable = infer.infer(Volume(np.zeros((4, 1, 1), np.int16)), parts, infer.Task(wanted, Catalogue.builtin()))
    assert [np.asarray(layer).ravel().tolist() for layer in layers] == [[1, 1, 1, 0], [5, 5, 6, 6], [0, 7, 0, 0]]
    assert unreachable == ["spleen"]


# ---- images in memory and DICOM ---------------------------------------------------------------------------------------


def test_images_in_memory_give_the_same_masks(tiny, scan):
    """A Volume, a nibabel image, a SimpleITK image and (array, affine) of one scan; run.json names no file."""
    import nibabel as nib
    import SimpleITK as sitk

    lps = np.diag([-1.0, -1, 1, 1]) @ scan.affine
    itk = sitk.GetImageFromArray(np.ascontiguousarray(scan.array.transpose(2, 1, 0)))
    itk.SetSpacing(scan.spacing)
    itk.SetDirection((lps[:3, :3] / scan.spacing).ravel())
    itk.SetOrigin(lps[:3, 3])
    expected = masks(segment(scan, model="tiny"))
    for image in (nib.Nifti1Image(scan.array, scan.affine), itk, (scan.array, scan.affine)):
        result = segment(image, model="tiny")
        assert result.facts["input"]["path"] is None
        assert masks(result).keys() == expected.keys()
        assert all(np.array_equal(mask, expected[name]) for name, mask in masks(result).items())


def test_a_dicom_series_gives_the_same_masks(tiny, scan, tmp_path):
    """Of two series the one that is named; what reading noticed is told."""
    from tests.dicom_files import write_series

    write_series(tmp_path / "a", scan, series=1)
    write_series(tmp_path / "b", Volume(np.repeat(scan.array, 2, axis=2), scan.affine), series=2)
    expected, told = masks(segment(scan, model="tiny")), Told()
    result = segment(tmp_path, model="tiny", series="1", report=told)
    assert all(np.array_equal(mask, expected[name]) for name, mask in masks(result).items())
    assert result.read_from == (str(tmp_path), "1")
    write_series(tmp_path / "b", scan, lambda k, image: delattr(image, "Modality"), series=2)
    segment(tmp_path, model="tiny", series="2", report=told)
    assert any("do not say their modality" in sentence for sentence in told.warnings)


def test_dicom_results_refer_to_the_series_that_was_segmented(tiny, scan, tmp_path):
    """From Python as on the command line: of two series the one that was named; a scan that is no DICOM is refused."""
    from pydicom import dcmread

    from tests.dicom_files import ROOT, in_study, write_series

    for series in (1, 2):
        write_series(tmp_path / "scans" / str(series), scan, in_study, series=series)
    segment(tmp_path / "scans", model="tiny", series="2").save(tmp_path / "out", types="dicom_rtstruct")
    study = dcmread(tmp_path / "out" / "segmentation.rtstruct.dcm").ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == f"{ROOT}.2"
    with pytest.raises(UsageError, match="needs a DICOM series"):
        segment(scan, model="tiny").save(tmp_path / "other", types="dicom_rtstruct")


def test_a_map_of_confidence_that_was_asked_for_is_there(tiny, scan, tmp_path, monkeypatch):
    """Also where no decoder was in range: 255 everywhere, as where nothing was computed."""
    import nibabel as nib

    from clseg.inference import infer

    monkeypatch.setattr(infer, "extents", lambda network, slices, *_: dict.fromkeys(network.decoders))
    result = segment(scan, model="tiny", confidence_map=True)
    assert result.present == ()
    result.save(tmp_path)
    written = np.asanyarray(nib.load(tmp_path / "confidence.nii.gz").dataobj)
    assert (written.shape, np.unique(written).tolist()) == (scan.shape, [255])
