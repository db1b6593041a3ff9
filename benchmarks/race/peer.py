"""Peer: nnU-Net v2's own predictor in an environment of its own, with the very torch that clseg uses here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NNUNET = "nnunetv2==2.8.1"
SIDE = Path(__file__).with_name("nnunet_side.py")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"

# Installed without what they ask for: timm would bring torchvision and with it another torch.
BARE = (NNUNET, "acvl-utils==0.2.6", "batchgenerators==0.25.5", "batchgeneratorsv2", "dynamic-network-architectures==0.4.4", "fft-conv-pytorch")
# What they really need for a prediction, by name.
NEEDS = (
    "SimpleITK", "scipy", "scikit-image", "scikit-learn", "nibabel", "blosc2", "connected-components-3d", "einops", "future",
    "graphviz", "imagecodecs", "matplotlib", "pandas", "requests", "seaborn", "threadpoolctl", "tifffile", "tqdm", "yacs",
)  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """The interpreter of the environment, and the versions of what is in it."""

    python: Path
    versions: dict[str, str]

    def command(self, *words: str | Path) -> list[str]:
        return [str(self.python), str(SIDE), *map(str, words)]


def peer_at(folder: Path, say: Callable[[str], None]) -> Peer:
    """The environment in `folder`, made when it is not there yet (1 GB, some minutes).

    RuntimeError when it cannot be made, or holds another torch or numpy than runs this program.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _versions(python) is None:
        say(f"Making an environment with {NNUNET} in {folder} …")
        _make(folder, python)
    found = _versions(python)
    if found is None:
        raise RuntimeError(f"The environment in {folder} has no working nnU-Net: delete the folder, or give another one with --peer.")
    import numpy
    import torch

    ours = {"torch": torch.__version__, "numpy": numpy.__version__}
    if other := {name: found[name] for name in ours if found[name] != ours[name]}:
        raise RuntimeError(f"The environment in {folder} has {other}, this one {ours}: a race needs the same.")
    return Peer(python, found)


def _make(folder: Path, python: Path) -> None:
    """torch first, and exactly ours, so that nothing after it brings a build with CUDA."""
    import numpy
    import torch

    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    exact = f"torch=={torch.__version__}"
    if not _pip(python, exact) and not _pip(python, exact, "--index-url", CPU_WHEELS):
        raise RuntimeError(f"pip finds no {exact}; install it into {folder} by hand.")
    if not _pip(python, "--no-deps", *BARE) or not _pip(python, f"numpy=={numpy.__version__}", *NEEDS):
        raise RuntimeError(f"pip could not install nnU-Net into {folder}; see above.")


def _pip(python: Path, *words: str) -> bool:
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *words])
    return done.returncode == 0


def _versions(python: Path) -> dict[str, str] | None:
    if not python.is_file():
        return None
    done = subprocess.run([str(python), str(SIDE), "versions"], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def make_weights(peer: Peer, folders: Sequence[Path]) -> None:
    """Random weights for folders that have none."""
    if any(not (folder / "fold_0/checkpoint_final.pth").is_file() for folder in folders):
        subprocess.run(peer.command("make", *folders), check=True)
