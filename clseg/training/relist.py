"""Relist: a decoder that `clseg update` or `clseg prune` has made takes the place of the earlier one, file and entry, in a manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clseg.errors import TrainingError, WeightsError
from clseg.io.files import sha256_of, writing
from clseg.manifest import Asset, Manifest
from clseg.network.checkpoint import read_header
from clseg.training.entries import refuse_to_unbind
from clseg.training.noted import noted


def is_of_one_decoder(run: Path) -> bool:
    """Whether the run in this folder is one of `clseg update` or `clseg prune`, by the recipe it has noted."""
    recipe = noted(run).get("recipe")
    return recipe is not None and not isinstance(recipe.get("decoder"), list)


def relist(run: Path, folder: Path, manifest: Path, *, sources: str) -> dict[str, Path]:
    """Copy the decoder of a finished run into `folder`, and let every entry of the file it was made from name it.

    Names, labels and models stay as they are; size, sha256 and source (`sources` and the
    file's name) are the new file's.  Returns the file by the decoder's name.
    Raises TrainingError when the run has not finished, WeightsError when the manifest does
    not list the very file that the run began with, lists the new one already, or lists
    decoders that were trained on the earlier one.
    """
    made = sorted((run / "weights").glob("*.safetensors"))
    if len(made) != 1 or not (run / "proof.json").is_file():
        raise TrainingError(f"The run in {run} has no finished decoder.", tip="Go on with the same command and --resume.")
    name, listing = made[0].stem, Manifest.read(manifest)
    before = _before(listing, name, _origin(run, made[0]), manifest)
    file = made[0] if folder.resolve() == made[0].parent.resolve() else folder / Path(before[0].file).name
    facts = {"bytes": made[0].stat().st_size, "sha256": sha256_of(made[0]), "sources": (f"{sources}{file.name}",)}
    if any(asset.sha256 == facts["sha256"] for asset in listing.assets):
        raise WeightsError(f"{manifest} lists the decoder that this run has made already.")
    after = {asset.name: replace(asset, **facts) for asset in before}
    refuse_to_unbind(listing.assets, after.values(), manifest)
    copied(made[0], file)
    Manifest(listing.models, tuple(after.get(asset.name, asset) for asset in listing.assets)).write(manifest)
    return {name: file}


def _origin(run: Path, made: Path) -> str:
    """sha256 of the file that a run has made its decoder of, by the decoder's card."""
    origin: str = read_header(made)["card"].get("update_of" if "decoder" in noted(run)["recipe"] else "pruned_from", "")
    return origin


def _before(listing: Manifest, name: str, origin: str, manifest: Path) -> list[Asset]:
    """The entries of the file that a run began with: several where some labels of it are listed apart."""
    found = [asset for asset in listing.assets if asset.kind == "decoder" and asset.sha256 == origin]
    if not found:
        raise WeightsError(
            f"{manifest} does not list the file of '{name}' that this run began with.",
            tip="Runs that build on each other are exported in the order in which they were made.",
        )
    return found


def copied(file: Path, copy: Path) -> Path:
    """A copy of the file, whole or not at all."""
    if copy.resolve() != file.resolve():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with writing(copy) as target:
            target.write(file.read_bytes())
    return copy
