"""Writing one mask per structure of a large scan, against the usual way: one gzip file per structure through nibabel.

    python benchmarks/writing.py [--ct ../shared/data/lidc_idri/LIDC-IDRI-0314/ct.nii.gz] [--repeats 3] [--structures 60]

A CT is resampled to 512 × 512 × 300 voxels of 0.8 × 0.8 × 1 mm and segmented by the starter; lumpy balls of the sizes in
the catalogue are painted beside what it found until there are as many structures as asked for.  Both ways write the same
masks in turns, each time in a fork of its own whose peak of memory beyond the scene is noted.  Seconds are wall times,
their minima are compared; statistics of the same structures are timed too.  Masks are read back by nibabel and SimpleITK.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from clseg import segment
from clseg.catalogue import Anatomy, Catalogue
from clseg.io.files import read
from clseg.segmentation import Segmentation
from clseg.spatial.resample import resample
from clseg.spatial.runs import LabelRuns
from clseg.stopwatch import peak_memory_mib
from clseg.volume import Volume

SHAPE, SPACING = (512, 512, 300), (0.8, 0.8, 1.0)
CT = Path(__file__).parents[2] / "shared/data/lidc_idri/LIDC-IDRI-0314/ct.nii.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, default=CT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--structures", type=int, default=60)
    given = parser.parse_args()
    scene = crowded(segment(large(given.ct), offline=True), given.structures)
    print(f"{len(scene.present)} structures in {len(scene.layers)} layers of {' × '.join(map(str, SHAPE))} voxels; least of {given.repeats} runs")
    ways = {"nibabel": the_usual_way, "clseg": lambda one, folder: one.save(folder), "statistics": lambda one, folder: one.statistics()}
    laps: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, way in ways.items():
            laps[name].append(measured(way, scene))
            print(f"  {name:12s} {laps[name][-1][0]:7.2f} s")
    best = {name: (min(run[0] for run in runs), max(run[1] for run in runs), runs[0][2]) for name, runs in laps.items()}
    for name, (seconds, mib, size) in best.items():
        print(f"{name:12s} {seconds:7.2f} s   {mib:7.0f} MiB beyond the scene   {size / 1e6:6.1f} MB")
    print(f"clseg takes {best['clseg'][0] / best['nibabel'][0]:.3f} of the time of the usual way")
    check(scene)


def large(path: Path) -> Volume:
    """The CT with the same number of voxels for everybody."""
    import torch

    scan = read(path)
    values = resample(torch.from_numpy(scan.array.astype(np.float32)), scan.spacing, SHAPE, SPACING)
    affine = scan.affine.copy()
    affine[:3, :3] *= np.array(SPACING) / scan.spacing
    return Volume(np.asfortranarray(values.round().numpy().astype(np.int16)), affine)


def crowded(found: Segmentation, count: int) -> Segmentation:
    """The segmentation with lumpy balls where nothing was found, as further structures."""
    catalogue, random = Catalogue.builtin(), np.random.default_rng(1)
    layers = [np.asarray(layer) for layer in found.layers]
    wanted = list(found.present)
    for anatomy in catalogue:
        depth = catalogue.depth(anatomy.name)
        if len(wanted) < count and anatomy not in wanted and 0 < depth < len(layers) and paint(layers[depth], anatomy, random):
            wanted.append(anatomy)
    return Segmentation(found.scan, tuple(layers), tuple(sorted(wanted, key=lambda one: one.id)))


def paint(layer: np.ndarray, anatomy: Anatomy, random: np.random.Generator) -> bool:
    """A lumpy ellipsoid of about the structure's typical size at a place in the middle of the scan; False where nothing is free."""
    radii = (np.clip(anatomy.typical_ml, 2, 1500) * 750 / np.pi) ** (1 / 3) * random.uniform(0.6, 1.6, 3)  # mm
    centre = np.array(SHAPE) * SPACING * random.uniform(0.25, 0.75, 3)
    box = tuple(slice(max(0, int((c - 1.3 * r) / s)), int((c + 1.3 * r) / s) + 1) for c, r, s in zip(centre, radii, SPACING, strict=True))
    x, y, z = np.ix_(*[np.arange(n)[part] * s for n, part, s in zip(SHAPE, box, SPACING, strict=True)])
    depth = sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), centre, radii, strict=True))
    free = (depth + 0.15 * np.sin(x / 4) * np.sin(y / 5) * np.sin(z / 6) < 1) & (layer[box] == 0)
    layer[box][free] = anatomy.id
    return bool(free.any())


def the_usual_way(one: Segmentation, folder: str) -> None:
    for anatomy in one.present:
        layer = next(layer for layer, there in zip(one.layers, one.segments.regions, strict=True) if anatomy.id in there)
        image = nib.Nifti1Image((layer == anatomy.id).astype(np.uint8), one.scan.affine)
        nib.save(image, f"{folder}/{anatomy.name}.nii.gz")


def measured(way: Callable[[Segmentation, str], object], scene: Segmentation) -> tuple[float, float, int]:
    """Seconds, MiB beyond what was held before, and bytes written, in a process of its own that knows the scene's arrays alone."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(way, scene, there))
    child.start()
    result = here.recv()
    child.join()
    return result


def _measure(way: Callable[[Segmentation, str], object], scene: Segmentation, answer) -> None:
    layers = scene.layers if way is the_usual_way else tuple(map(LabelRuns.of, scene.layers))  # type: ignore[arg-type]
    fresh = Segmentation(scene.scan, layers, scene.wanted)  # has looked at nothing yet
    with tempfile.TemporaryDirectory() as folder:
        if way is the_usual_way:
            fresh.present  # noqa: B018  the usual way knows what it has to write
        held, began = peak_memory_mib(), time.perf_counter()
        way(fresh, folder)
        seconds = time.perf_counter() - began
        answer.send((seconds, peak_memory_mib() - held, sum(file.stat().st_size for file in Path(folder).iterdir())))


def check(scene: Segmentation) -> None:
    """The files hold the masks, for nibabel and for SimpleITK, and a second run gives the same bytes."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        for folder in (one, other):
            scene.save(folder)
        for anatomy in scene.present:
            file, mask = f"{one}/{anatomy.name}.nii.gz", scene.mask(anatomy.name)
            assert np.array_equal(np.asanyarray(nib.load(file).dataobj), mask), file
            assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(file)).T, mask), file
            assert digest(file) == digest(f"{other}/{anatomy.name}.nii.gz"), file
    print("all masks are what nibabel and SimpleITK read, and have the same bytes the second time")


def digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
