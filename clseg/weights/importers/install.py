"""Install: imported checkpoints as a model of the user's own, with files, manifest entries and cards."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clseg.errors import UsageError, WeightsError
from clseg.io.files import sha256_of
from clseg.manifest import Asset, Manifest, Model
from clseg.network.checkpoint import Checkpoint, save

UNKNOWN = "unknown"  # the licence, where nobody said


@dataclass(frozen=True)
class Part:
    """A weights file to be: its name after the model's, its content, the names of the parts that it requires.

    One that does not answer is not listed in the model: it is there for those that
    require it.
    """

    name: str
    checkpoint: Checkpoint
    requires: tuple[str, ...] = ()
    answers: bool = True


def install(
    model: str,
    parts: Sequence[Part],
    *,
    description: str,
    licence: str = UNKNOWN,
    regressors: Mapping[Asset, Path] | None = None,
    home: Path | None = None,
) -> Manifest:
    """Write the parts into the user's folder and list them as `model`; returns the user's manifest.

    A part is called `<model>-<name>`; `regressors` are body-part regressors of other
    models, with their files, that serve this one too.  Raises UsageError when the
    model's name is taken or cannot be one, OutputError when the folder cannot be
    written; then nothing is listed.
    """
    from clseg.weights.own import add

    refuse_taken(model, home=home)
    _refuse_repeats(parts)
    licence = licence.strip() or UNKNOWN
    with tempfile.TemporaryDirectory(prefix="clseg-import-") as folder:
        files = {part.name: (_asset(model, part, licence, Path(folder)), Path(folder) / f"{part.name}.safetensors") for part in parts}
        listed = dict(files[part.name] for part in parts if part.answers)
        needed = dict(files[part.name] for part in parts if not part.answers) | dict(regressors or {})
        return add(Model(model, description, licence, tuple(asset.name for asset in regressors or {})), listed, needed, home=home)


def regressors_of(model: str, *, home: Path | None = None) -> dict[Asset, Path]:
    """The body-part regressors of an installed model with their files; UsageError when it has none."""
    from clseg.weights.cache import fetch, manifest

    found = [asset for asset in manifest(home=home).listed(model) if asset.kind == "bodypart"]
    if not found:
        raise UsageError(f"The model '{model}' has no body-part regressor.", tip="The model starter has one.")
    files = fetch(found, home=home)
    return {asset: files[asset.name] for asset in found}


def refuse_taken(model: str, *, home: Path | None = None) -> None:
    """UsageError when there is a model of this name, or a name cannot be so."""
    from clseg.weights.cache import manifest

    try:
        Model(model, "", UNKNOWN)
    except WeightsError as error:
        raise UsageError(f"A model cannot be called '{model}': {error.message}") from error
    listing = manifest(home=home)
    if any(one.name == model for one in listing.models):
        raise UsageError(f"There is a model '{model}' already.", tip="Give the import another --name.")


def _refuse_repeats(parts: Sequence[Part]) -> None:
    names = [part.name.casefold() for part in parts]  # some file systems do not tell cases apart
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise WeightsError(f"Two parts of the model would be called '{twice}'.")


def _asset(model: str, part: Part, licence: str, folder: Path) -> Asset:
    """The part's file, written into `folder`, and its entry."""
    file = folder / f"{part.name}.safetensors"
    checkpoint = part.checkpoint
    save(file, replace(checkpoint, card={**checkpoint.card, "licence": licence}))
    return Asset(
        name=f"{model}-{part.name}",
        kind=checkpoint.kind,
        file=file.name,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        licence=licence,
        requires=tuple(f"{model}-{name}" for name in part.requires),
        labels=tuple(getattr(checkpoint.spec, "labels", ())),
    )
