"""What augmenting one patch costs, beside libraries that do the same; CPU seconds on one thread.

    python benchmarks/augmentation.py [--repeats 5]

Peers that are not installed are left out:

    pip install batchgeneratorsv2 torchio monai

Every row cuts 80³ voxels and one label map out of 140³, turned by up to 15° about each axis
and scaled by 0.8 to 1.25 (geometry), then blurs, adds noise, changes contrast and simulates
thick slices, each with probability 1 (intensity).  `synthesis` makes the patch from a label
map: deformation, tissue, scanner.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

import clseg

SOURCE, PATCH = 140, 80
DEGREES, SCALE = 15.0, (0.8, 1.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    image, labels = world()
    rows = []
    for name, make in (("clseg", ours), ("batchgeneratorsv2", batchgenerators), ("torchio", torchio), ("monai", monai)):
        try:
            geometry, intensity = make(image, labels)
        except ModuleNotFoundError as missing:
            rows.append(f"| {name} | not installed ({missing.name}) | |")
            continue
        number = clseg.__version__ if name == "clseg" else version(name)
        change = partial(intensity, geometry())
        rows.append(f"| {name} {number} | {cost(geometry, repeats):.3f} | {cost(change, repeats):.3f} |")
    print("| library | geometry, s | intensity, s |\n|---|---:|---:|")
    print("\n".join(rows))
    print(f"| clseg synthesis | {cost(synthesis(), repeats):.3f} | with geometry |")


def world() -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and a label map uint8 of SOURCE³ voxels."""
    rng = np.random.default_rng(0)
    labels = (np.indices((SOURCE,) * 3).sum(0) // 60).astype(np.uint8)
    return (rng.normal(0, 20, labels.shape) + 100 * labels).astype(np.int16), labels


def cost(work: Callable[[], object], repeats: int) -> float:
    """Seconds of CPU time per call, the median; the first call does not count."""
    seconds = []
    work()
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def ours(image: np.ndarray, labels: np.ndarray) -> tuple[Callable, Callable]:
    from clseg.recipe import AugmentRecipe, DatasetRecipe, DecoderRecipe, Recipe
    from clseg.training.augment import change_intensity, random_matrix
    from clseg.training.examples import Example
    from clseg.training.patches import Patches

    rule = AugmentRecipe(DEGREES, SCALE, 0.0, noise_probability=1.0, blur_probability=1.0, thick_slices_probability=1.0)
    example = Example("case", "one", image, {"d": labels}, {"d": (True,)}, {"d": ()})
    plan = Recipe(
        name="b", decoder=(DecoderRecipe("d", ("liver",)),), dataset=(DatasetRecipe("one", index="-"),), augment=rule
    )
    source = Patches([example], plan)
    rng = np.random.default_rng(0)
    middle = np.full(3, SOURCE / 2)
    return (
        lambda: source._cut(example, ["d"], middle, random_matrix(rng, rule))[0],
        lambda hu: change_intensity(hu, None, rng, rule, 3.0),
    )


def batchgenerators(image: np.ndarray, labels: np.ndarray) -> tuple[Callable, Callable]:
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    angle = np.radians(DEGREES)
    turn = SpatialTransform(
        (PATCH,) * 3, 0, False, p_rotation=1, rotation=(-angle, angle), p_scaling=1, scaling=SCALE, mode_seg="nearest"
    )
    steps = [
        GaussianNoiseTransform((0, 1)),
        GaussianBlurTransform((0.5, 1.0), benchmark=False),
        MultiplicativeBrightnessTransform((0.85, 1.15), False),
        SimulateLowResolutionTransform((0.5, 0.9), False, True, (0, 1)),
    ]

    def geometry() -> torch.Tensor:
        whole = {
            "image": torch.from_numpy(image[None]).float(),
            "segmentation": torch.from_numpy(labels[None].astype(np.int16)),
        }
        return turn(**whole)["image"]

    def intensity(patch: torch.Tensor) -> torch.Tensor:
        out = {"image": patch.clone()}
        for step in steps:
            out = step(**out)
        return out["image"]

    return geometry, intensity


def torchio(image: np.ndarray, labels: np.ndarray) -> tuple[Callable, Callable]:
    import torchio as tio

    turn = tio.Compose([tio.RandomAffine((*SCALE,), DEGREES), tio.CropOrPad(PATCH)])
    change = tio.Compose([tio.RandomNoise(0, (0, 25)), tio.RandomBlur((0.5, 1.0)), tio.RandomAnisotropy(2, (1.2, 2.5))])

    def geometry() -> torch.Tensor:
        subject = tio.Subject(
            ct=tio.ScalarImage(tensor=image[None].astype(np.float32)), labels=tio.LabelMap(tensor=labels[None])
        )
        return turn(subject)["ct"].data

    return geometry, lambda patch: change(tio.ScalarImage(tensor=patch)).data


def monai(image: np.ndarray, labels: np.ndarray) -> tuple[Callable, Callable]:
    from monai.transforms import (
        Compose,
        RandAffined,
        RandGaussianNoise,
        RandGaussianSmooth,
        RandScaleIntensity,
        RandSimulateLowResolution,
    )

    turn = RandAffined(
        ["ct", "labels"], spatial_size=(PATCH,) * 3, prob=1, rotate_range=(np.radians(DEGREES),) * 3, scale_range=((-0.2, 0.25),) * 3,
        mode=("bilinear", "nearest"), padding_mode="zeros",
    )  # fmt: skip
    change = Compose([
        RandGaussianNoise(1, 0, 25), RandGaussianSmooth(prob=1), RandScaleIntensity(0.15, prob=1), RandSimulateLowResolution(prob=1),
    ])  # fmt: skip
    whole = {"ct": torch.from_numpy(image[None]).float(), "labels": torch.from_numpy(labels[None]).float()}
    return lambda: turn(dict(whole))["ct"], change


def synthesis() -> Callable[[], object]:
    """A patch in the middle of a small torso of boxes."""
    from clseg.recipe import SynthesisRecipe
    from clseg.training.synthesis import Pose, build_atlas, synthesise
    from clseg.volume import Volume

    values = np.zeros((90, 70, 90), np.uint8)
    values[10:40, 10:60, 40:80], values[50:80, 10:60, 40:80], values[42:48, 12:22, :] = 1, 2, 3
    atlas = build_atlas(Volume(values, np.diag([3.0, 3.0, 3.0, 1.0])), ("liver", "spleen", "aorta"))
    pose, rng = Pose((PATCH,) * 3, (3.0,) * 3, np.zeros(3), np.eye(3)), np.random.default_rng(0)
    return lambda: synthesise(atlas, pose, SynthesisRecipe(), rng)


if __name__ == "__main__":
    main()
