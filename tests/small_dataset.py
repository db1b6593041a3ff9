"""A tiny dataset of synthetic scans with partial labels, and a recipe small enough to train in a test.

    dataset/a   label map: both lungs and the liver          (train)
    dataset/b   mask files: body, skeleton and the lungs     (train)
    dataset/c   mask file: body                              (val)

`write_base_model` trains what `learn`, `update` and `prune` start from.  All scans are `small_phantom`s of 40 × 32 × 48 voxels of 6 mm.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from clseg.phantom import small_phantom
from clseg.recipe import LearnRecipe, PruneRecipe, Recipe, UpdateRecipe, read_recipe
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

# what `learn`, `update` and `prune` have in common: six cheap steps, judged on what they learned from
GROW = """
name = "more"
description = "A test."
licence = "CC0-1.0"
seed = 7
threads = 1
probe = "probe.nii.gz"

[[dataset]]
name = "mapped"
index = "dataset/index.csv"
cases = ["a"]

[[dataset]]
name = "masked"
index = "dataset/index.csv"
cases = ["b", "c"]
masks = { body = "body.nii.gz", skeleton = "skeleton.nii.gz", lung_left = "lungs.nii.gz:1", lung_right = "lungs.nii.gz:2" }

[optim]
iterations = 6
batch = 2
rate = 0.02
warmup = 2
average = 0.5
precision = "float32"
checkpoint_every = 2

[validation]
split = "train"
cases = 1
"""

LADDER = """
[ladder]
structured = [0.5]
unstructured = [0.5, 0.9]
multiple = [2]
iterations = 2
rate = 0.01
recovery = 3
allowed_loss = 1.0
"""

BODY = """
[[decoder]]
name = "body"
labels = ["body"]
widths = [8]
kernels = [1]
convs = [1]
"""

SOLID = """
[[decoder]]
name = "solid"
labels = ["liver", "skeleton"]
widths = [8]
kernels = [3]
convs = [1]
supporters = ["lungs"]

[support]
iterations = 3
"""

OLD = """
[[old]]
name = "kept"
index = "dataset/index.csv"
cases = ["b"]
masks = { lung_left = "lungs.nii.gz:1", lung_right = "lungs.nii.gz:2" }
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


def without_results(recipe: Recipe) -> Recipe:
    """A recipe without the datasets that clseg has to make first, which no clean checkout has."""
    return dataclasses.replace(recipe, dataset=tuple(one for one in recipe.dataset if one.format != "results"))


def tiny_recipe(folder: Path, **optim: Any) -> Recipe:
    """The dataset in `folder` (written if need be) and its recipe, with changes to [optim]."""
    path = folder / "recipe.toml"
    recipe = read_recipe(path if path.is_file() else write_dataset(folder))
    return dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, **optim))


def write_base_model(folder: Path, home: Path) -> None:
    """Train the decoder `lungs` on an encoder for a moment, and list both in `home` as the model "tiny"; the dataset is in `folder`.

    A small part of scan c is written beside the dataset, for probes.
    """
    from clseg.training.export import list_in_manifest
    from clseg.training.pretrain import pretrain

    recipe = tiny_recipe(folder, iterations=30, rate=0.02, average=0.5, checkpoint_every=100)
    recipe = dataclasses.replace(recipe, decoder=recipe.decoder[:1])
    files = pretrain(recipe, folder / "runs" / "base")
    (home / "tiny").mkdir(parents=True)
    for file in files.values():
        shutil.copy(file, home / "tiny")
    list_in_manifest(home / "weights_manifest.json", recipe, files, sources="tiny/")
    ct = scan("c")[0]
    write_nifti(folder / "probe.nii.gz", np.asfortranarray(ct.array[8:32, 4:24, 12:36]), ct)


def learn_recipe(folder: Path, *parts: str, **changes: Any) -> LearnRecipe:
    """A recipe of `clseg learn` on the model "tiny", made of GROW and `parts`, with other values for whole fields."""
    return dataclasses.replace(read_recipe(written(folder, GROW, 'model = "tiny"', *parts), LearnRecipe), **changes)


def update_recipe(folder: Path, *parts: str, decoder: str = "lungs", **changes: Any) -> UpdateRecipe:
    """A recipe of `clseg update` likewise."""
    text = written(folder, GROW, f'model = "tiny"\ndecoder = "{decoder}"', *parts)
    return dataclasses.replace(read_recipe(text, UpdateRecipe), **changes)


def prune_recipe(folder: Path, *parts: str, **changes: Any) -> PruneRecipe:
    """A recipe of `clseg prune` likewise."""
    return dataclasses.replace(read_recipe(written(folder, GROW, "", *(parts or (LADDER,))), PruneRecipe), **changes)


def written(folder: Path, start: str, keys: str, *parts: str) -> Path:
    """The recipe as `grow.toml` in `folder`; `keys` stand before the first table."""
    path = folder / "grow.toml"
    path.write_text("\n".join([keys, start, *parts]), encoding="utf-8")
    return path


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
