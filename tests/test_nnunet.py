"""Facts about importing nnU-Net v2: the same logits, its plan, its labels, its folds, and what is refused with a sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clseg.errors import UsageError, WeightsError
from clseg.network.checkpoint import build_decoder, build_encoder, fingerprint
from clseg.network.plan import Plan, Resampling, Scheme
from clseg.network.spec import Grid, Intensity
from clseg.weights.importers.install import Part
from clseg.weights.importers.nnunet import Training, find_trainings, labels_of, plan_of, read_training
from tests.small_nnunet import FACTS, checkpoint, dataset, logits, plans, weights, write_model

TOLERANCE = 1e-4  # of logits, float32


def only(folder: Path, **choice: Any) -> Training:
    (found,) = find_trainings(folder, **choice)
    return found


def answer(parts: list[Part], image: torch.Tensor) -> np.ndarray:
    """Logits (classes, …) of the first encoder and decoder for an image in their axes."""
    encoder, decoder = parts[0].checkpoint, parts[1].checkpoint
    with torch.inference_mode():
        return build_decoder(decoder, encoder.spec)(build_encoder(encoder)(image[None, None]))[0].numpy()  # type: ignore[arg-type]


IMAGE = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(5))


# ---- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("old", [False, True])
def test_the_imported_network_gives_the_same_logits(tmp_path: Path, kind: str, old: bool) -> None:
    """Both encoders, from both styles of plans, against the network computed from its tensors."""
    write_model(tmp_path, kind, plan=plans(kind, old=old))
    found = answer(read_training(only(tmp_path)), IMAGE)
    np.testing.assert_allclose(found, logits(weights(kind), IMAGE), atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_network_without_biases_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    """`conv_bias` false: convolutions and transposed ones lack theirs, heads have theirs."""
    home = write_model(tmp_path, kind, plan=plans(kind, bias=False))
    torch.save(checkpoint(weights(kind, bias=False)), home / "fold_0" / "checkpoint_final.pth")
    found = answer(read_training(only(tmp_path)), IMAGE)
    np.testing.assert_allclose(found, logits(weights(kind, bias=False), IMAGE), atol=TOLERANCE)


def test_wrappers_around_the_network_are_taken_off(tmp_path: Path) -> None:
    """Names with `module.` and `_orig_mod.` in front, of distributed and compiled training, mean the same."""
    home = write_model(tmp_path)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights().items()}
    torch.save(checkpoint(wrapped), home / "fold_0" / "checkpoint_final.pth")  # type: ignore[arg-type]
    np.testing.assert_array_equal(answer(read_training(only(tmp_path)), IMAGE), answer(read_training(only(write_model(tmp_path / "bare").parent)), IMAGE))


@pytest.mark.parametrize("name", ["plain", "resenc"])
@pytest.mark.parametrize("style", ["new", "old"])
def test_the_fixtures_give_their_reference_logits(shared: Path, tmp_path: Path, name: str, style: str) -> None:
    """What nnunetv2 itself said about a random window, within 1e-4, and the same winner everywhere; from either style of plans."""
    root = shared / "fixtures" / f"nnunetv2_{name}"
    (home,) = root.glob("nnUNetTrainer__*")
    copied = tmp_path / home.name
    copied.mkdir()
    (copied / "fold_0").symlink_to(home / "fold_0")
    (copied / "dataset.json").symlink_to(home / "dataset.json")
    (copied / "plans.json").symlink_to(home / "plans.json" if style == "new" else root / "variants" / "plans_old_style.json")
    with np.load(root / "reference" / "patch.npz") as reference:
        found = answer(read_training(only(tmp_path)), torch.from_numpy(reference["input"]))
        np.testing.assert_allclose(found[:, ::2, ::2, ::2], reference["logits_s2"], atol=TOLERANCE)
        assert np.array_equal(found.argmax(axis=0), reference["argmax"])


# ---- what is known about it -------------------------------------------------------------------------------------------


def test_the_parts_are_bound_and_carry_their_origin(tmp_path: Path) -> None:
    """An encoder and a decoder on it; the card names program, dataset, configuration, trainer, fold and the file's sha256."""
    home = write_model(tmp_path)
    encoder, decoder = read_training(only(tmp_path))
    assert (encoder.name, decoder.name, decoder.requires) == ("encoder", "organs", ("encoder",))
    assert decoder.checkpoint.encoder == fingerprint(encoder.checkpoint.tensors, encoder.checkpoint.spec)
    assert decoder.checkpoint.spec.labels == ("liver", "spleen")  # type: ignore[union-attr]
    import hashlib

    assert decoder.checkpoint.card == {
        "program": "nnU-Net v2",
        "source": f"{home.name}/fold_0/checkpoint_final.pth",
        "source_sha256": hashlib.sha256((home / "fold_0" / "checkpoint_final.pth").read_bytes()).hexdigest(),
        "dataset": "Dataset007_Mini",
        "configuration": "3d_fullres",
        "trainer": "nnUNetTrainer",
        "fold": "0",
    }


def test_the_plan_says_what_nnunet_does(tmp_path: Path) -> None:
    """Grid, window, CT scheme, resampling; nothing mirrors unless asked for."""
    write_model(tmp_path)
    plan = Plan("nnunet", (6.0, 6.0, 6.0), (8, 8, 8), Scheme("ct", -900.0, 700.0, 10.0, 200.0), image=Resampling(3, 0, "auto"), answer=Resampling(1, 0, "auto"))
    assert plan_of(only(tmp_path)) == plan
    assert read_training(only(tmp_path))[1].checkpoint.spec.plan == plan  # type: ignore[union-attr]
    assert read_training(only(tmp_path), mirror=True)[1].checkpoint.spec.plan.mirror_axes == (0, 1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("reader", "transpose", "orientation", "letters"),
    [
        ("SimpleITKIO", (0, 1, 2), "", "SPL"),
        ("NibabelIO", (0, 1, 2), "", "SPL"),
        ("NibabelIOWithReorient", (0, 1, 2), "RAS", "SAR"),
        ("SimpleITKIOWithReorient", (2, 0, 1), "RAS", "RSA"),
        ("SimpleITKIO", (1, 2, 0), "", "PLS"),
    ],
)
def test_reader_and_transpose_say_where_the_axes_point(tmp_path: Path, reader: str, transpose: tuple, orientation: str, letters: str) -> None:
    """The scan's letters are reversed to (z, y, x) and then transposed; as stored is taken for LPS by what learns on the encoder."""
    write_model(tmp_path, plan={**plans(), "image_reader_writer": reader, "transpose_forward": transpose})
    encoder, decoder = read_training(only(tmp_path))
    assert decoder.checkpoint.spec.plan.orientation == orientation  # type: ignore[union-attr]
    assert decoder.checkpoint.spec.plan.transpose == transpose  # type: ignore[union-attr]
    assert encoder.checkpoint.spec.grid == Grid(letters, (6.0, 6.0, 6.0), (8, 8, 8))
    assert encoder.checkpoint.spec.intensity == Intensity(-900.0, 700.0, 10.0, 200.0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("theirs", "mask", "scheme"),
    [
        ("ZScoreNormalization", False, Scheme("zscore")),
        ("ZScoreNormalization", True, Scheme("zscore", masked=True)),
        ("RescaleTo01Normalization", True, Scheme("rescale")),
        ("NoNormalization", False, Scheme("none")),
    ],
)
def test_other_normalisations_are_kept(tmp_path: Path, theirs: str, mask: bool, scheme: Scheme) -> None:
    """The plan has the scheme, and the encoder says that nothing can be learned on it."""
    write_model(tmp_path, plan=plans(normalization_schemes=[theirs], use_mask_for_norm=[mask]))
    encoder, decoder = read_training(only(tmp_path))
    assert decoder.checkpoint.spec.plan.scheme == scheme  # type: ignore[union-attr]
    assert encoder.checkpoint.spec.scheme == scheme.kind  # type: ignore[union-attr]


def test_older_names_of_the_intensities_are_known(tmp_path: Path) -> None:
    """`…_by_modality` is what `…_per_channel` was called."""
    old = plans()
    old["foreground_intensity_properties_by_modality"] = old.pop("foreground_intensity_properties_per_channel")
    write_model(tmp_path, plan=old)
    assert plan_of(only(tmp_path)).scheme.high == FACTS["percentile_99_5"]


def test_a_configuration_inherits(tmp_path: Path) -> None:
    """3d_lowres with a spacing of its own on top of 3d_fullres, itself on top of nothing."""
    both = plans()
    both["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "spacing": [12.0, 12.0, 12.0]}
    write_model(tmp_path, plan=both, configuration="3d_lowres")
    plan = plan_of(only(tmp_path))
    assert (plan.spacing_mm, plan.patch) == ((12.0, 12.0, 12.0), (8, 8, 8))


def test_labels_come_in_the_order_of_the_channels() -> None:
    """By number, whatever the order of the file; "ignore" is no channel; names become file names."""
    labels = {"ignore": 3, "spleen": 2, "tumour/edema ": 1, "background": 0}
    assert labels_of(dataset(labels=labels)) == ("tumour_edema", "spleen")


# ---- folds and files --------------------------------------------------------------------------------------------------


def test_several_folds_are_an_ensemble(tmp_path: Path) -> None:
    """Two encoders and two decoders, of one ensemble; fold_all is left aside where there are others."""
    write_model(tmp_path, folds=("fold_0", "fold_1", "fold_all"))
    parts = read_training(only(tmp_path))
    assert [part.name for part in parts] == ["encoder-fold_0", "organs-fold_0", "encoder-fold_1", "organs-fold_1"]
    assert parts[3].requires == ("encoder-fold_1",)
    assert {part.checkpoint.spec.plan.ensemble for part in parts[1::2]} == {"Dataset007_Mini 3d_fullres"}  # type: ignore[union-attr]


@pytest.mark.parametrize(("folds", "there"), [("1", ["fold_1"]), ("fold_all", ["fold_all"]), ("1,0", ["fold_1", "fold_0"])])
def test_folds_can_be_chosen(tmp_path: Path, folds: str, there: list[str]) -> None:
    """By number or name; one alone is no ensemble."""
    write_model(tmp_path, folds=("fold_0", "fold_1", "fold_all"))
    training = only(tmp_path, folds=folds)
    assert list(training.folds) == there
    assert bool(read_training(training)[1].checkpoint.spec.plan.ensemble) == (len(there) > 1)  # type: ignore[union-attr]


def test_a_training_on_everything_is_found(tmp_path: Path) -> None:
    """fold_all is taken where it is the only one."""
    write_model(tmp_path, folds=("fold_all",))
    assert list(only(tmp_path).folds) == ["fold_all"]


def test_a_fold_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The sentence lists those that are."""
    write_model(tmp_path)
    with pytest.raises(UsageError, match="no fold_3, it has fold_0"):
        find_trainings(tmp_path, folds="3")
    with pytest.raises(UsageError, match="it has fold_0"):
        find_trainings(tmp_path, folds=" ,")


def test_a_renamed_folder_knows_its_configuration_from_the_checkpoint(tmp_path: Path) -> None:
    """A folder called `best` is of the configuration that the checkpoint names."""
    write_model(tmp_path).rename(tmp_path / "best")
    assert only(tmp_path).configuration == "3d_fullres"


def test_nothing_and_the_wrong_file_name_are_told(tmp_path: Path) -> None:
    """An empty folder holds no model; a folder with checkpoint_best.pth alone says which file is missing, and takes it when named."""
    with pytest.raises(WeightsError, match="holds no nnU-Net v2 model"):
        find_trainings(tmp_path)
    write_model(tmp_path, name="checkpoint_best.pth")
    with pytest.raises(WeightsError, match=r"no fold_\*/checkpoint_final.pth"):
        find_trainings(tmp_path)
    assert list(only(tmp_path, checkpoint="checkpoint_best.pth").folds) == ["fold_0"]


def test_a_configuration_that_is_not_there_is_told(tmp_path: Path) -> None:
    """3d_lowres is asked for, 3d_fullres is there."""
    write_model(tmp_path)
    with pytest.raises(WeightsError, match="'3d_lowres', only of 3d_fullres"):
        find_trainings(tmp_path, configuration="3d_lowres")


# ---- what is refused --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "regions": ({}, {"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "region-based training"),
    "gaps": ({}, {"labels": {"background": 0, "liver": 2}}, "without gaps"),
    "no labels": ({}, {"labels": {"background": 0}}, "without gaps"),
    "channels": ({}, {"channel_names": {"0": "CT", "1": "PET"}}, "wants the channels"),
    "2-D": ({"patch_size": [8, 8]}, {}, "is 2-D"),
    "a cascade": ({"previous_stage": "3d_lowres"}, {}, "second stage of a cascade"),
    "another normalisation": ({"normalization_schemes": ["RGBTo01Normalization"]}, {}, "RGBTo01Normalization, clseg knows CTNormalization"),
    "another preprocessor": ({"preprocessor_name": "Other"}, {}, "Other, clseg knows DefaultPreprocessor"),
    "another resampling": ({"resampling_fn_data": "resample_torch_fornnunet"}, {}, "resample_torch_fornnunet"),
    "another rule of resampling": ({"resampling_fn_data_kwargs": {"order": 3, "separate_z_anisotropy_threshold": 9}}, {}, "separate_z_anisotropy_threshold = 9"),
    "cubic scores": ({"resampling_fn_probabilities_kwargs": {"order": 3}}, {}, "splines of order 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_with_a_sentence(tmp_path: Path, case: str) -> None:
    """Each kind of model that clseg would run wrongly is named, before any weights are read."""
    settings, facts, told = REFUSED[case]
    home = write_model(tmp_path)
    (home / "plans.json").write_text(json.dumps(plans(**settings)))
    (home / "dataset.json").write_text(json.dumps(dataset(**facts)))
    with pytest.raises(WeightsError, match=told):
        read_training(only(tmp_path))


def test_an_unknown_reader_and_a_circle_are_refused(tmp_path: Path) -> None:
    """Photographs, and a configuration that inherits from itself."""
    home = write_model(tmp_path)
    (home / "plans.json").write_text(json.dumps({**plans(), "image_reader_writer": "NaturalImage2DIO"}))
    with pytest.raises(WeightsError, match="NaturalImage2DIO, clseg knows SimpleITKIO"):
        read_training(only(tmp_path))
    (home / "plans.json").write_text(json.dumps(plans(inherits_from="3d_fullres")))
    with pytest.raises(WeightsError, match="inherits from itself"):
        read_training(only(tmp_path))


@pytest.mark.parametrize("key", ["spacing", "patch_size", "normalization_schemes", "architecture"])
def test_plans_that_lack_something_are_told(tmp_path: Path, key: str) -> None:
    """A key that is missing, or a number where a list is expected, is a WeightsError and no crash."""
    home = write_model(tmp_path)
    lacking = plans()
    del lacking["configurations"]["3d_fullres"][key]
    (home / "plans.json").write_text(json.dumps(lacking))
    with pytest.raises(WeightsError):
        read_training(only(tmp_path))
    (home / "plans.json").write_text(json.dumps(plans(**{key: 7})))
    with pytest.raises(WeightsError):
        read_training(only(tmp_path))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    """A file without network_weights, as nnU-Net v1 or anything else wrote it."""
    home = write_model(tmp_path)
    torch.save({"state_dict": weights()}, home / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(WeightsError, match="has no network_weights"):
        read_training(only(tmp_path))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def test_a_malicious_checkpoint_does_not_run(tmp_path: Path) -> None:
    """A call hidden beside true weights is refused by name, and did not happen."""
    home = write_model(tmp_path)
    torch.save({**checkpoint(weights()), "logging": Trap(tmp_path / "ran")}, home / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(WeightsError, match="posix.mkdir|nt.mkdir"):
        read_training(only(tmp_path))
    assert not (tmp_path / "ran").exists()
