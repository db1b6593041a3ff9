"""TotalSegmentator: a folder of nnU-Net trainings, `Dataset291_…` and others, → one model with all their structures.

    Dataset291_TotalSegmentator_part1_organs_1559subj/
        nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres/{dataset.json, plans.json, fold_0/…}

TotalSegmentator turns scans to RAS and resamples them itself, by a spline in three
dimensions whatever the voxels are like, before nnU-Net sees them: so every plan does (its
spline is cubic; that of TotalSegmentator is cubic or linear, by release).  Labels go back
as nnU-Net's do, by their scores.  Each training keeps its own encoder.  Where one holds only structures that finer ones hold
already (297 at 3 mm, 298 at 6 mm beside 291 to 295 at 1.5 mm), it becomes a model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from clseg.errors import UsageError, WeightsError
from clseg.network.plan import Plan, Resampling
from clseg.weights.importers.install import Part
from clseg.weights.importers.nnunet import Training, read_training


def number_of(training: Training) -> str:
    """`291` of a training in `Dataset291_…`; WeightsError where no folder is called so."""
    for folder in (training.folder, *training.folder.parents):
        if match := re.fullmatch(r"Dataset(\d+)_.*", folder.name):
            return match[1]
    told = f"{training.folder} lies in no folder Dataset291_… as TotalSegmentator names them."
    raise WeightsError(told, tip="Import it with `clseg weights import nnunet`.")


def chosen(trainings: Sequence[Training], datasets: str = "all") -> list[Training]:
    """The trainings of `datasets` ("all", or numbers such as "291,292"), by number; UsageError for one that is not there or there twice."""
    by_number: dict[str, Training] = {}
    for training in sorted(trainings, key=number_of):
        number = number_of(training)
        if number in by_number:
            told = f"Dataset {number} is there twice, as {by_number[number].folder.name} and {training.folder.name}."
            raise UsageError(told, tip="Choose one with --configuration.")
        by_number[number] = training
    if datasets == "all":
        return list(by_number.values())
    wanted = [word.strip().removeprefix("Dataset") for word in datasets.split(",") if word.strip()]
    for number in wanted:
        if number not in by_number:
            raise UsageError(f"There is no dataset {number}, there are {', '.join(by_number)}.")
    return [by_number[number] for number in wanted]


def models_of(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """Which trainings form a model together: "" the main one, a number each that adds no structure to finer ones."""
    main: list[Training] = []
    models: dict[str, list[Training]] = {"": main}
    held: set[str] = set()
    for training in sorted(trainings, key=lambda one: one.edge_mm):
        if held.issuperset(training.labels):
            models[number_of(training)] = [training]
            continue
        main.append(training)
        held.update(training.labels)
    main.sort(key=number_of)
    return models


def read_trainings(trainings: Sequence[Training]) -> list[Part]:
    """The parts of one model."""
    return [part for training in trainings for part in read_training(training, prefix=f"-{number_of(training)}", change=resampled_first)]


def resampled_first(plan: Plan) -> Plan:
    """nnU-Net's plan for scans that come in RAS and at the network's spacing already."""
    return replace(plan, orientation="RAS", normalise_first=False, image=Resampling(3, 0, "never"), answer=Resampling(1, 0, "never"))
