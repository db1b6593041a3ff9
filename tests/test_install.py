"""Facts about installing: parts become files, entries and cards of the user's own, or nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clseg.errors import OutputError, UsageError, WeightsError
from clseg.io.files import sha256_of
from clseg.manifest import FILE_NAME, Manifest
from clseg.network.checkpoint import load
from clseg.weights.cache import fetch, manifest
from clseg.weights.importers.install import Part, install, refuse_taken, regressors_of
from tests.conftest import tiny_checkpoints

LABELS = {"lungs": ("lung_left", "lung_right"), "trunk": ("body",)}


def parts() -> list[Part]:
    encoder, decoders = tiny_checkpoints(LABELS)
    return [Part("encoder", encoder), *(Part(name, one, ("encoder",)) for name, one in decoders.items())]


def test_parts_become_a_model_that_can_be_fetched(own_home: Path) -> None:
    """Three files under the model's name, with what they require and paint; each loads with the tensors that it had."""
    install("mine", parts(), description="of somebody", licence="CC0-1.0")
    listing = manifest()
    assert listing.labels_of("mine") == {"lung_left": ("mine-lungs",), "lung_right": ("mine-lungs",), "body": ("mine-trunk",)}
    assets = listing.assets_for("mine", ["body", "lung_left"])
    assert [(one.name, one.kind, one.requires) for one in assets] == [
        ("mine-encoder", "encoder", ()),
        ("mine-lungs", "decoder", ("mine-encoder",)),
        ("mine-trunk", "decoder", ("mine-encoder",)),
    ]
    for name, file in fetch(assets, offline=True).items():
        assert own_home in file.parents
        assert sha256_of(file) == listing.asset(name).sha256
        assert load(file).card["licence"] == "CC0-1.0"
    assert listing.model("mine").description == "of somebody"


def test_an_unstated_licence_is_unknown() -> None:
    """It stands so in manifest and card."""
    install("mine", parts(), description="", licence=" ")
    asset = manifest().asset("mine-encoder")
    assert (asset.licence, load(fetch([asset])[asset.name]).card["licence"]) == ("unknown", "unknown")


def test_a_taken_name_is_refused_and_nothing_changes(own_home: Path) -> None:
    """Also the names of what comes with the program."""
    install("mine", parts(), description="")
    before = (own_home / FILE_NAME).read_bytes()
    for name in ("mine", "starter"):
        with pytest.raises(UsageError, match=f"a model '{name}' already"):
            install(name, parts(), description="")
    assert (own_home / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("name", ["", "a/b", "-x", "ä", "two words"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    """Names of models are file names, too."""
    with pytest.raises(UsageError, match="cannot be called"):
        refuse_taken(name)


def test_a_failure_lists_nothing(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the last file leaves the manifest unwritten."""
    from clseg.weights import own

    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return place(*arguments)

    place = own._place
    monkeypatch.setattr(own, "_place", full)
    with pytest.raises(OutputError, match="No space left"):
        install("mine", parts(), description="")
    assert not (own_home / FILE_NAME).exists()
    monkeypatch.undo()
    monkeypatch.setenv("CLSEG_HOME", str(own_home))
    install("mine", parts(), description="")
    assert "mine" in [one.name for one in Manifest.read(own_home / FILE_NAME).models]


def test_a_part_that_does_not_answer_is_there_for_those_that_require_it() -> None:
    """The trunk supports the lungs: it is loaded for them, and nobody can ask for its structure."""
    encoder, lungs, trunk = parts()
    install("mine", [encoder, replace(lungs, requires=("encoder", "trunk")), replace(trunk, answers=False)], description="")
    listing = manifest()
    assert list(listing.labels_of("mine")) == ["lung_left", "lung_right"]
    kinds = {one.name.split(".")[0]: one.labels for one in listing.assets_for("mine", ["lung_left"])}
    assert kinds == {"mine-encoder": (), "mine-trunk": ("body",), "mine-lungs": ("lung_left", "lung_right")}


def test_a_regressor_of_another_model_can_serve() -> None:
    """That of starter comes along with whatever is asked of the new model; a model without one says so."""
    install("mine", parts(), description="", regressors=regressors_of("starter"))
    assert [one.kind for one in manifest().assets_for("mine", ["body"])] == ["encoder", "bodypart", "decoder"]
    install("bare", parts(), description="")
    with pytest.raises(UsageError, match="'bare' has no body-part regressor"):
        regressors_of("bare")


def test_two_parts_of_one_name_are_refused() -> None:
    """Also where only the case differs, which some file systems do not see."""
    encoder, lungs, trunk = parts()
    with pytest.raises(WeightsError, match="would be called 'lungs'"):
        install("mine", [encoder, lungs, replace(trunk, name="Lungs")], description="")
