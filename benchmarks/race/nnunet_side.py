"""nnU-Net's side, run by the interpreter of the peer's own environment; it imports nothing of clseg.

    nnunet_side.py make FOLDER [FOLDER …]                         random weights for a folder with plans.json and dataset.json
    nnunet_side.py predict CT OUT --model FOLDER [--model …]      as TotalSegmentator does: model after model in one process, then merged
    nnunet_side.py versions
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

BACKGROUND = 2.5  # added to the background's logits, so that most of a scan is background as in real life


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folders", type=Path, nargs="+")
    predicting = commands.add_parser("predict")
    predicting.add_argument("ct", type=Path)
    predicting.add_argument("out", type=Path)
    predicting.add_argument("--model", type=Path, action="append", required=True)
    predicting.add_argument("--step", type=float, default=0.5)
    predicting.add_argument("--threads", type=int, default=2)
    predicting.add_argument("--device", default="cpu")
    predicting.add_argument("--workers", action="store_true", help="its usual way with worker processes, not the leaner one without")
    commands.add_parser("versions")
    given = parser.parse_args()
    if given.command == "make":
        for seed, folder in enumerate(given.folders):
            make(folder, seed)
    elif given.command == "predict":
        predict(given)
    else:
        versions()


def make(folder: Path, seed: int) -> None:
    """fold_0/checkpoint_final.pth with nnU-Net's own initialisation."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(seed)
    plans = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    network = get_network_from_plans(
        plans["network_class_name"], plans["arch_kwargs"], plans["_kw_requires_import"], 1, len(labels), deep_supervision=True
    )
    with torch.no_grad():
        network.decoder.seg_layers[-1].bias[0] = BACKGROUND
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres", "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    (folder / "fold_0").mkdir(exist_ok=True)
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")


def predict(given: argparse.Namespace) -> None:
    """One label map a model, `<i>.nii.gz`, and where there are several the merged one: later models write over earlier ones."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(given.model, 1):
        predictor = nnUNetPredictor(
            tile_step_size=given.step, use_gaussian=True, use_mirroring=False, device=torch.device(given.device), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
        files = [[[str(given.ct)]], [str(given.out / str(number))]]
        if given.workers:
            predictor.predict_from_files(*files, num_processes_preprocessing=1, num_processes_segmentation_export=1)
        else:
            predictor.predict_from_files_sequential(*files)
    if len(given.model) > 1:
        merge(given.model, given.out)


def merge(models: list[Path], out: Path) -> None:
    import nibabel as nib
    import numpy as np

    merged, offset = None, 0
    for number, model in enumerate(models, 1):
        image = nib.load(out / f"{number}.nii.gz")
        labels = np.asanyarray(image.dataobj)
        merged = np.zeros(labels.shape, np.uint8) if merged is None else merged
        np.copyto(merged, (labels + offset).astype(np.uint8), where=labels > 0)
        offset += len(json.loads((model / "dataset.json").read_text())["labels"]) - 1
    nib.save(nib.Nifti1Image(merged, image.affine), out / "merged.nii.gz")


def versions() -> None:
    """Of what it runs with; SimpleITK, which may be missing, is null then: nibabel reads as well."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {name: version(name) for name in ("nnunetv2", "torch", "numpy", "scipy")}
    try:
        found["SimpleITK"] = version("SimpleITK")
    except PackageNotFoundError:
        found["SimpleITK"] = None
    print(json.dumps(found))


if __name__ == "__main__":
    main()
