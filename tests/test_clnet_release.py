"""Facts about the folders of CL-Net's authors: everything is found by what their configuration means, not by where it was."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from clseg.errors import WeightsError
from clseg.weights.importers.clnet_release import find_release
from tests.small_release import AUTHORS, TRAINER, Release, plans


def written(tmp_path: Path, **by_task: dict) -> Path:
    """A release whose configuration of the tasks named is changed."""
    release = Release()
    for key, changes in by_task.items():
        release.config[key].update(changes)
    return release.write(tmp_path)


def test_tasks_come_in_the_order_in_which_they_were_trained(tmp_path: Path) -> None:
    """MiniA (2) before MiniB (3), although the file lists them the other way; the encoder stands apart."""
    release = find_release(Release().write(tmp_path))
    assert [task.key for task in release.tasks] == ["MiniA", "MiniB"]
    assert release.encoder.key == "GeneralEncoder"
    assert list(release.heads) == ["Trunk", "Ribs", "Eyes", "Lens"]
    assert release.heads["Lens"][1].supporters == ("Eyes",)
    assert release.tasks[1].checkpoint.parent.name == "fold_0"


def test_any_folder_from_the_base_down_will_do(tmp_path: Path) -> None:
    """The base, `results`, `clNet` and `3d_fullres` are the same release; so is the configuration's own path."""
    base = Release().write(tmp_path / "x")
    config = base / "all_pred_cleaned.json"
    expected = find_release(base).tasks
    for folder in ("results", "results/clNet", "results/clNet/3d_fullres"):
        assert find_release(base / folder, config).tasks == expected
    assert find_release(config).tasks == expected


@pytest.mark.parametrize("path", [f"D:\\authors\\results\\clNet\\3d_fullres\\Task101_A\\{TRAINER}", f"results//clNet/3d_fullres/Task101_A/{TRAINER}/", None])
def test_paths_of_strangers_are_resolved_by_what_follows_results(tmp_path: Path, path: str | None) -> None:
    """A Windows path, a relative one and none at all lead to the folder that is here."""
    base = written(tmp_path, MiniA={"output_folder_name": path})
    assert find_release(base).tasks[0].checkpoint.is_relative_to(base / "results")


def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """`..` behind `results` could name any file of this machine."""
    base = written(tmp_path, MiniA={"output_folder_name": f"{AUTHORS}/../../../Task101_A/{TRAINER}"})
    with pytest.raises(WeightsError, match="does not lead into a folder"):
        find_release(base)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """A folder, a checkpoint, plans, organs, the configuration: each missing one is told by its name."""
    release = Release()
    base = release.write(tmp_path / "whole")
    folder = release.folder(base, "MiniA")
    for path, told in ((folder / "bpr_scores.json", "bpr_scores.json cannot be read"), (folder / "plans.json", "no plans in")):
        content = path.read_text()
        path.unlink()
        with pytest.raises(WeightsError, match=told):
            find_release(base)
        path.write_text(content)
    release.checkpoint(base, "MiniA").unlink()
    with pytest.raises(WeightsError, match="Task 'MiniA' has no checkpoint"):
        find_release(base)
    folder.rename(folder.with_name("elsewhere"))
    (folder.with_name("elsewhere") / "plans.json").unlink()
    with pytest.raises(WeightsError, match=r"folder of task 'MiniA', results/clNet/3d_fullres/Task101_A/.* is not below"):
        find_release(base)
    (base / "all_pred_cleaned.json").unlink()
    with pytest.raises(WeightsError, match=r"must hold one configuration \*_pred_cleaned.json, found 0"):
        find_release(base)


def test_two_configurations_are_one_too_many(tmp_path: Path) -> None:
    """Then the user says which, with --config."""
    base = Release().write(tmp_path)
    (base / "b_pred_cleaned.json").write_text((base / "all_pred_cleaned.json").read_text())
    with pytest.raises(WeightsError, match="found 2") as error:
        find_release(base)
    assert "--config" in str(error.value.tip)
    assert find_release(base, base / "b_pred_cleaned.json").heads


def test_checkpoints_are_searched_for_in_their_order(tmp_path: Path) -> None:
    """The name in the configuration; else final, best, latest, each first with the task's prefix; else another fold."""
    release = Release()
    base = release.write(tmp_path)
    fold = release.checkpoint(base, "MiniA").parent
    path = fold / "model_final_checkpoint.model"
    for name in ("MiniA_model_final_checkpoint.model", "model_best.model", "MiniA_model_latest.model"):
        path = path.rename(fold / name)
        assert find_release(base).tasks[0].checkpoint == path
    (path.parent.parent / "fold_4").mkdir()
    path = path.rename(path.parent.parent / "fold_4" / "model_final_checkpoint.model")
    assert find_release(base).tasks[0].checkpoint == path


def test_the_name_in_the_configuration_goes_first(tmp_path: Path) -> None:
    """Even where a final checkpoint is there too."""
    release = Release()
    release.config["MiniA"]["pretrain_model_name"] = "epoch_100.model"
    base = release.write(tmp_path)
    wanted = release.checkpoint(base, "MiniA").with_name("epoch_100.model")
    wanted.write_bytes(b"")
    assert find_release(base).tasks[0].checkpoint == wanted


# ---- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_that_of_its_own_task(tmp_path: Path) -> None:
    """3 mm slices for MiniA, 2 mm for MiniB; window, strides and intensities beside it."""
    first, second = find_release(Release().write(tmp_path)).tasks
    assert (first.plans.spacing_mm, second.plans.spacing_mm) == ((3.0, 1.5, 1.5), (2.0, 1.25, 1.25))
    assert (first.plans.patch, first.plans.strides) == ((8, 16, 16), ((1, 2, 2), (2, 2, 2)))
    assert (first.plans.low, first.plans.high, first.plans.mean, first.plans.sd) == (-200.0, 300.0, 20.0, 100.0)


@pytest.mark.parametrize("name", ["plans.pkl", "all/model_final_checkpoint.model.pkl"])
def test_plans_may_be_an_old_pickle(tmp_path: Path, name: str) -> None:
    """Without plans.json those of plans.pkl or of the file beside the checkpoint count, NumPy numbers and all."""
    release = Release()
    base = release.write(tmp_path)
    folder = release.folder(base, "MiniA")
    old = plans((4.0, 2.0, 2.0))
    old["plans_per_stage"] = {0: {**old["plans_per_stage"]["0"], "current_spacing": np.array([4.0, 2.0, 2.0])}}
    old["dataset_properties"]["intensityproperties"] = {0: {"mean": np.float32(5), "sd": np.float64(50), "percentile_00_5": -1, "percentile_99_5": 1}}
    (folder / "plans.json").unlink()
    (folder / name).write_bytes(pickle.dumps(old if name == "plans.pkl" else {"init": (None,), "plans": old}))
    read = find_release(base).tasks[0].plans
    assert (read.spacing_mm, read.mean, read.sd) == ((4.0, 2.0, 2.0), 5.0, 50.0)


@pytest.mark.parametrize("missing", [None, {"0": None}, {"0": {"mean": None}}])
def test_missing_intensities_are_the_authors_fallback(tmp_path: Path, missing: dict | None) -> None:
    """Clip to [-995, 1265], mean -187.85, sd 490.71 where plans have none."""
    release = Release()
    release.plans["MiniA"]["dataset_properties"]["intensityproperties"] = missing
    read = find_release(release.write(tmp_path)).tasks[0].plans
    assert (read.low, read.high, read.mean, read.sd) == (-995.0, 1265.0, -187.85, 490.71)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"normalization_schemes": {"0": "nonCT"}}, "normalises by 'nonCT'"),
        ({"num_modalities": 2}, "2 channels"),
        ({"use_mask_for_norm": {"0": True}}, "inside a mask"),
        ({"plans_per_stage": {}}, "not usable: KeyError"),
        ({"transpose_forward": [0, 1]}, "not usable: ValueError"),
    ],
)
def test_plans_that_are_not_understood_are_refused(tmp_path: Path, change: dict, told: str) -> None:
    """Other schemes, channels and masks, missing stages and short lists."""
    release = Release()
    release.plans["MiniA"].update(change)
    with pytest.raises(WeightsError, match=told):
        find_release(release.write(tmp_path))


# ---- heads ------------------------------------------------------------------------------------------------------------


def test_channels_are_labels_in_the_order_of_the_list(tmp_path: Path) -> None:
    """[3, 1] of three classes stays so; [3, 1, 2] is all of them, whose channels are the labels 1, 2, 3."""
    for number, (listed, expected) in enumerate((([3, 1], (3, 1)), ([3, 1, 2], (1, 2, 3)), (2, (2,)))):
        base = written(tmp_path / str(number), MiniA={"decoders": {"Trunk": listed}})
        assert find_release(base).heads["Trunk"][1].labels == expected


@pytest.mark.parametrize(
    ("shapes", "training", "expected"),
    [
        ({"enable_ema": True}, {"decoders": {"Trunk": [0.35, 0.3, 3e-4, 4, True, True, True]}}, True),
        ({"enable_ema": False}, {"decoders": {"Trunk": [0.35, 0.3, 3e-4, 4, True, True, True]}}, False),
        ({"enable_ema": True}, {"decoders": {"Trunk": [0.35, 0.3, 3e-4, 4, True, True, False]}}, False),
        ({"enable_ema": True}, {"decoders": {"all": [0.35, 0.3, 3e-4, 4, True, True, True]}}, False),
        ({"enable_ema": True}, {"decoders": None}, False),
        ({}, {"decoders": {"Trunk": [True]}}, False),
    ],
)
def test_the_moving_average_needs_both_settings_under_the_heads_own_name(tmp_path: Path, shapes: dict, training: dict, expected: bool) -> None:
    """enable_ema and the last entry of the head's own training setup; an entry `all` is not enough."""
    base = written(tmp_path, MiniA={"decoder_architecture_setup": {"Trunk": shapes}, "model_training_setup": training})
    assert find_release(base).heads["Trunk"][1].average is expected


def test_windows_of_a_head_go_before_those_of_all(tmp_path: Path) -> None:
    """The head's own patch, else that for all heads, else none: then the plans' counts."""
    for number, (patch, expected) in enumerate((({"Trunk": [4, 8, 8], "all": [8, 8, 8]}, (4, 8, 8)), ({"Trunk": None, "all": [8, 8, 8]}, (8, 8, 8)), ({"all": None}, None))):
        base = written(tmp_path / str(number), MiniA={"model_training_setup": {"patch_size": patch}})
        assert find_release(base).heads["Trunk"][1].patch == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Liver", (30 - 0.25 * 8, 50 + 0.25 * 8)),
        ("Liver_GTV", (28 - 1.0, 52 + 1.0)),
        ("Tumor", (27.0, 53.0)),
        ("lesions", (27.0, 53.0)),
        ("HN_LN", (27.0, 53.0)),
        ("HN_LNS", (28.0, 52.0)),
    ],
)
def test_where_a_head_is_asked(tmp_path: Path, name: str, expected: tuple[float, float]) -> None:
    """Organs: percentiles ∓ a quarter of the mean extent; tumours and lymph nodes, not stations: extremes ∓ sd."""
    ranges = {"percentile_00_5": 30, "percentile_99_5": 50, "min": 28, "max": 52, "mean": 8, "std": 1}
    base = written(tmp_path, MiniA={"decoders": {name: [1, 2]}, "bpr_range_for_decoders": {name: ranges}})
    assert find_release(base).heads[name][1].score_range == expected


def test_a_range_that_the_configuration_lacks_is_that_of_its_organs(tmp_path: Path) -> None:
    """Trunk: label 1 from 30 to 50, label 2 from 20 to 40, so 20 - 2 to 50 + 2."""
    assert find_release(Release().write(tmp_path)).heads["Trunk"][1].score_range == (18.0, 52.0)


@pytest.mark.parametrize(("low", "high", "expected"), [(-math.inf, 50, (None, 52.0)), (-math.inf, math.inf, None), (math.nan, 50, (None, 52.0))])
def test_open_ends_stay_open(tmp_path: Path, low: float, high: float, expected: tuple | None) -> None:
    """Infinity and NaN, which the authors' JSON may hold, mean that nobody knows an end."""
    ranges = {"percentile_00_5": low, "percentile_99_5": high, "mean": 8.0}
    base = written(tmp_path, MiniA={"bpr_range_for_decoders": {"Trunk": ranges}})
    assert find_release(base).heads["Trunk"][1].score_range == expected


def test_the_head_called_other_is_passed_over(tmp_path: Path) -> None:
    """The authors' program never loads it."""
    base = written(tmp_path, MiniA={"decoders": {"Trunk": [1, 2], "other": 3}})
    assert "other" not in find_release(base).heads


def test_contradictions_are_refused(tmp_path: Path) -> None:
    """One head in two tasks, a label that no organ has, two general encoders, labels that are no numbers."""
    with pytest.raises(WeightsError, match="lists the heads Trunk in more than one task"):
        find_release(written(tmp_path / "twice", MiniB={"decoders": {"Trunk": [1, 2]}, "supporting": {}}))
    release = Release()
    del release.organs["MiniA"]["3"]
    release.config["MiniA"]["bpr_range_for_decoders"] = {"Ribs": {"percentile_00_5": 0, "percentile_99_5": 1, "mean": 1}}
    with pytest.raises(WeightsError, match="'Ribs' paints label 3"):
        find_release(release.write(tmp_path / "unnamed"))
    with pytest.raises(WeightsError, match="and names 2"):
        find_release(written(tmp_path / "two", MiniB={"type": "GeneralEncoder"}))
    with pytest.raises(WeightsError, match="task 'MiniA' is not usable: ValueError"):
        find_release(written(tmp_path / "text", MiniA={"decoders": {"Trunk": "first"}}))


def test_the_configuration_must_be_a_json_object(tmp_path: Path) -> None:
    """Text that is no JSON, and a list."""
    base = Release().write(tmp_path)
    for text, told in (("{", "is not JSON"), ("[]", "expected a JSON object")):
        (base / "all_pred_cleaned.json").write_text(text)
        with pytest.raises(WeightsError, match=told):
            find_release(base)


def test_the_configuration_of_the_training_will_do(tmp_path: Path) -> None:
    """Ranges as text, setups by name, no types, no paths: the same heads; an entry `all` counts where all are trained."""
    release = Release()
    release.config["MiniA"]["decoder_architecture_setup"] = {"Trunk": {"enable_ema": True}, "Ribs": {"enable_ema": False}}
    release.config["MiniA"]["model_training_setup"] = {"decoders": {"Trunk": [0.3, True]}}
    expected = find_release(release.write(tmp_path))
    for key in release.config:
        for name in ("type", "output_folder_name", "stage", "train_order"):
            del release.config[key][name]
        release.config[key]["pretrain_model_name"] = None
    release.config["MiniA"] |= {"decoders": {"Trunk": "1-2", "Ribs": "3"}, "decoders_to_train": ["all"], "train_order": 1}
    release.config["MiniA"]["model_training_setup"] = {"decoders": {"all": {"lr": 0.1, "ema": True}}}
    release.config["MiniB"] |= {"decoders": {"Eyes": "1,2", "Lens": 3}, "train_order": 2}
    release.config = {"clnet_general_encoder": "Root", "Root": release.config.pop("GeneralEncoder"), **release.config}
    (tmp_path / "train.json").write_text(json.dumps(release.config))
    read = find_release(tmp_path, tmp_path / "train.json")
    assert (read.tasks, read.encoder.checkpoint) == (expected.tasks, expected.encoder.checkpoint)


def test_the_authors_own_miniature_is_understood(shared: Path) -> None:
    """Three tasks, five heads, the average for the stomach alone, the lens with a window of its own."""
    release = find_release(shared / "fixtures" / "official_clnet")
    heads = {name: head for name, (_, head) in release.heads.items()}
    assert {name: head.labels for name, head in heads.items()} == {"Trunk": (1, 2, 3), "Ribs": (4, 5), "Stomach": (6,), "Eyes": (1, 2), "Lens": (3,)}
    assert [name for name, head in heads.items() if head.average] == ["Stomach"]
    assert (heads["Lens"].patch, heads["Eyes"].patch) == ((24, 48, 48), (32, 64, 64))
    assert release.encoder.strides == ((1, 2, 2), *((2, 2, 2),) * 4)
    low, high = heads["Stomach"].score_range
    assert (low, high) == pytest.approx((33.04678 - 0.25 * 5.62791, 38.61757 + 0.25 * 5.62791), abs=1e-4)
    assert json.loads(release.config.read_text())["MiniA"]["output_folder_name"].startswith("/data/authors")


def test_both_configurations_of_the_miniature_say_the_same(shared: Path) -> None:
    """That of the training and what their parser made of it: the same encoder and tasks in every detail."""
    folder = shared / "fixtures" / "official_clnet"
    cleaned, training = find_release(folder), find_release(folder, folder / "cfg" / "mini_all.json")
    assert training.encoder == cleaned.encoder
    for mine, theirs in zip(training.tasks, cleaned.tasks, strict=True):
        assert [(head.name, head.labels, head.supporters, head.average) for head in mine.heads] == [
            (head.name, head.labels, head.supporters, head.average) for head in theirs.heads
        ]
        assert (mine.checkpoint, mine.plans, mine.organs) == (theirs.checkpoint, theirs.plans, theirs.organs)
        for one, other in zip(mine.heads, theirs.heads, strict=True):
            assert one.score_range == pytest.approx(other.score_range)
