"""Peer: nnU-Net v2's own predictor, in an environment of its own with the very torch that clseg uses here, or in one that is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NNUNET = "nnunetv2==2.8.1"
SIDE = Path(__file__).with_name("nnunet_side.py")
TORCH_WHEELS = "https://download.pytorch.org/whl/"
ELSE = "; or name an interpreter that holds nnunetv2 with --peer-python"
SAME = ("torch", "numpy")  # what both sides should have in the same version

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
    versions: dict[str, str | None]

    def command(self, *words: str | Path) -> list[str]:
        return [str(self.python), str(SIDE), *map(str, words)]

    @property
    def reader(self) -> str:
        """How it reads scans: as nnU-Net does unless told otherwise, or as TotalSegmentator does where SimpleITK is missing."""
        return "SimpleITKIO" if self.versions["SimpleITK"] else "NibabelIO"

    @property
    def others(self) -> dict[str, str | None]:
        """What it has in another version than this program."""
        return {name: self.versions[name] for name, mine in ours().items() if self.versions[name] != mine}

    def __str__(self) -> str:
        unlike = "".join(f", {name} {theirs} (clseg: {ours()[name]})" for name, theirs in self.others.items())
        return f"nnunetv2 {self.versions['nnunetv2']}, reads with {self.reader}{unlike}"


def ours() -> dict[str, str]:
    """The versions of SAME that run this program, as packages name them: torch itself adds its build to its version."""
    from importlib.metadata import version

    return {name: version(name) for name in SAME}


def peer_with(python: str) -> Peer:
    """The peer of an interpreter that holds nnunetv2, a path or a name; its torch may be another one, which the table says.

    RuntimeError when there is no such interpreter, or nothing of nnU-Net in it.
    """
    found = shutil.which(python)
    versions = _versions(Path(found)) if found else None
    if not found or versions is None:
        raise RuntimeError(f"--peer-python {python}: {'it cannot import nnunetv2, torch, numpy and scipy' if found else 'there is no such program'}.")
    return Peer(Path(found).absolute(), versions)


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
    peer = Peer(python, found)
    if peer.others:
        raise RuntimeError(f"The environment in {folder} has {peer.others}, this one {ours()}: a race needs the same.")
    return peer


def _make(folder: Path, python: Path) -> None:
    """torch first, and exactly ours, so that nothing after it brings a build with CUDA."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    mine = ours()
    exact, build = f"torch=={mine['torch']}", mine["torch"].partition("+")[2] or "cpu"
    if not _pip(python, exact) and not _pip(python, exact, "--index-url", TORCH_WHEELS + build):
        raise RuntimeError(f"pip finds no {exact}; install it into {folder} by hand{ELSE}.")
    if not _pip(python, "--no-deps", *BARE) or not _pip(python, f"numpy=={mine['numpy']}", *NEEDS):
        raise RuntimeError(f"pip could not install nnU-Net into {folder}, see above{ELSE}.")


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
