"""Asked: which structures a model is asked for, by their names, groups and synonyms."""

from __future__ import annotations

from collections.abc import Iterable

from clseg.catalogue import Anatomy, Catalogue
from clseg.errors import NotHeld, UsageError
from clseg.manifest import Manifest


def catalogue_of(listing: Manifest, model: str) -> Catalogue:
    """The built-in catalogue with the structures that this model alone knows."""
    return Catalogue.builtin().with_structures(listing.labels_of(model))


def asked(listing: Manifest, model: str, roi: Iterable[str]) -> tuple[Anatomy, ...]:
    """The structures of a model that `roi` means, in the order of their ids.

    UnknownName for a word that means nothing; NotHeld for what the model lacks, with another
    listed model that has it, if there is one.
    """
    try:
        return catalogue_of(listing, model).select(roi, among=listing.labels_of(model))
    except NotHeld as error:
        holder = next((one.name for one in listing.models if one.name != model and _has(listing, one.name, error.name)), None)
        tip = f"Model '{holder}' has it: --model {holder}." if holder else error.tip
        raise NotHeld(error.name, error.nearest, tip=tip) from None


def _has(listing: Manifest, model: str, token: str) -> bool:
    try:
        return bool(catalogue_of(listing, model).select([token], among=listing.labels_of(model)))
    except UsageError:
        return False
