"""A tiny dataset of synthetic scans with partial labels, and a recipe small enough to train in a test.

    dataset/a   label map: both lungs and the liver          (train)
    dataset/b   mask files: body, skeleton and the lungs     (train)
    dataset/c   mask file: body                              (val)

All scans are `small_phantom`s of 40 × 32 × 48 voxels of 6 mm.
"""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from clseg.phantom import small_phantom
from clseg.recipe import Recipe, read_recipe
from clseg.volume import Volume

LABEL_IDS = {"lung_left": 3, "lung_right": 7, "liver": 9}
SCANS = ("a", "b", "c")

TOML = """
name = "tiny"
description = "A test."
licence = "CC0-1.0"
seed = 7
threads = 1

[grid]
spacing_mm = [12.0, 12.0, 12.0]
patch = [16, 16, 16]

[encoder]
widths = [8, 16]
strides = [1, 2]
kernels = [3, 3]
convs = [1, 1]

[[decoder]]
name = "lungs"
labels = ["lung_left", "lung_right"]
widths = [8]
kernels = [3]
convs = [1]

[[decoder]]
name = "solid"
labels = ["liver", "skeleton"]
widths = [8]
kernels = [3]
convs = [1]

[[decoder]]
name = "body"
labels = ["body"]
widths = [8]
kernels = [1]
convs = [1]

[[dataset]]
name = "mapped"
index = "dataset/index.csv"
cases = ["a"]
kind = "painted"
licence = "CC0-1.0"

[[dataset]]
name = "masked"
index = "dataset/index.csv"
cases = ["b", "c"]
masks = { body = "body.nii.gz", skeleton = "skeleton.nii.gz", lung_left = "lungs.nii.gz:1", lung_right = "lungs.nii.gz:2" }

[optim]
iterations = 6
batch = 2
warmup = 2
precision = "float32"
checkpoint_every = 3
"""


@lru_cache
def scan(name: str) -> tuple[Volume, dict[str, np.ndarray]]:
    """CT and true masks of one of the SCANS."""
    return small_phantom(seed=SCANS.index(name))


def write_dataset(folder: Path) -> Path:
    """Write the dataset and `recipe.toml` into `folder`; returns the recipe's path."""
    root = folder / "dataset"
    for name in SCANS:
        (root / name).mkdir(parents=True)
        write_nifti(root / name / "ct.nii.gz", scan(name)[0].array, scan(name)[0])
    _write_label_map(root / "a")
    _write_masks(root / "b")
    write_nifti(root / "c" / "body.nii.gz", scan("c")[1]["body"], scan("c")[0])
    (root / "index.csv").write_text("case,split\na,train\nb,train\nc,val\n")
    (folder / "recipe.toml").write_text(TOML)
    return folder / "recipe.toml"


def tiny_recipe(folder: Path, **optim: Any) -> Recipe:
    """The dataset in `folder` (written if need be) and its recipe, with changes to [optim]."""
    path = folder / "recipe.toml"
    recipe = read_recipe(path if path.is_file() else write_dataset(folder))
    return dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, **optim))


def write_nifti(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write int16 CT or uint8 masks on the grid of `like`."""
    kind = np.uint8 if array.dtype == bool else array.dtype
    nib.save(nib.Nifti1Image(array.astype(kind), like.affine), path)


def _write_label_map(folder: Path) -> None:
    ct, masks = scan("a")
    values = np.zeros(ct.shape, np.uint8)
    for name, value in LABEL_IDS.items():
        values[masks[name]] = value
    write_nifti(folder / "labels.nii.gz", values, ct)
    # a name without a voxel: nobody knows whether it was absent or skipped
    (folder / "labels.json").write_text(json.dumps({**LABEL_IDS, "skeleton": 11}))


def _write_masks(folder: Path) -> None:
    ct, masks = scan("b")
    write_nifti(folder / "body.nii.gz", masks["body"], ct)
    write_nifti(folder / "skeleton.nii.gz", masks["skeleton"], ct)
    lungs = masks["lung_left"].astype(np.uint8) + 2 * masks["lung_right"].astype(np.uint8)
    write_nifti(folder / "lungs.nii.gz", lungs, ct)
