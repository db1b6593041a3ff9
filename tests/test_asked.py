"""Facts about what a model is asked for: it has it, another model has it, or nobody knows the word."""

from __future__ import annotations

import pytest

from clseg.asked import asked, catalogue_of
from clseg.errors import NotHeld, UnknownName
from clseg.manifest import Asset, Manifest, Model


def decoder(name: str, *labels: str) -> Asset:
    return Asset(name, "decoder", f"{name}.safetensors", 10, "0" * 64, "CC0", requires=("encoder",), labels=labels)


LISTING = Manifest(
    tuple(Model(name, "", "CC0", ("encoder", part)) for name, part in (("house", "one"), ("house_experimental", "two"), ("mine", "three"))),
    (Asset("encoder", "encoder", "encoder.safetensors", 10, "1" * 64, "CC0"), decoder("one", "liver", "kidney_left"), decoder("two", "pancreas", "rib_left_1"), decoder("three", "pancreas", "widget")),
)


def test_names_and_groups_become_structures() -> None:
    assert [anatomy.name for anatomy in asked(LISTING, "house", ["kidneys", "liver"])] == ["kidney_left", "liver"]


@pytest.mark.parametrize("token", ["pancreas", "ribs"])
def test_another_model_that_has_it_is_named(token: str) -> None:
    """The first that is listed; the sentence names what this one lacks."""
    with pytest.raises(NotHeld, match=f"does not hold '{token}'; the nearest it holds: ") as caught:
        asked(LISTING, "house", ["liver", token])
    assert caught.value.tip == "Model 'house_experimental' has it: --model house_experimental."


def test_what_no_model_has() -> None:
    """The tip is that of the catalogue; a word that nobody knows stays one."""
    with pytest.raises(NotHeld) as caught:
        asked(LISTING, "house", ["brain"])
    assert "clseg rois" in caught.value.tip
    with pytest.raises(UnknownName):
        asked(LISTING, "house", ["tongs"])


def test_names_of_a_models_own_are_of_that_model_alone() -> None:
    assert "widget" in catalogue_of(LISTING, "mine")
    assert "widget" not in catalogue_of(LISTING, "house")
    assert [anatomy.name for anatomy in asked(LISTING, "mine", ["widget"])] == ["widget"]
