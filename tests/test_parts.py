"""Facts about parts: decoders with a plan and decoders without are told apart, and only the latter need one grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clseg import Segmenter, segment
from clseg.errors import WeightsError
from clseg.inference.parts import Parts, load_parts
from clseg.manifest import Manifest
from clseg.network.checkpoint import Checkpoint
from clseg.network.plan import Plan, Scheme
from clseg.phantom import small_phantom
from clseg.review import Certainty
from clseg.weights.cache import fetch, manifest
from clseg.weights.importers.install import Part, install
from tests.conftest import tiny_checkpoints

PLAN = Plan("nnunet", (6.0, 6.0, 6.0), (16, 16, 16), Scheme("none"))


def parts_of(prefix: str, planned: dict[str, str], plain: dict[str, str], **options) -> list[Part]:
    """An encoder with decoders (name → its one structure), some with a plan."""
    encoder, decoders = tiny_checkpoints({name: (label,) for name, label in {**planned, **plain}.items()}, **options)
    made = [Part(f"encoder{prefix}", encoder)]
    for name, one in decoders.items():
        spec = replace(one.spec, plan=PLAN if name in planned else None)
        made.append(Part(name, Checkpoint("decoder", spec, one.tensors, one.encoder), (f"encoder{prefix}",)))
    return made


def loaded(*parts: Part, answering: set[str] | None = None) -> Parts:
    install("mine", parts, description="")
    listing = manifest()
    assets = listing.assets_for("mine", listing.labels_of("mine"))
    return load_parts(assets, fetch(assets, offline=True), answering or {asset.name for asset in assets if asset.kind == "decoder"})


def answering(models) -> list[list[str]]:
    return [list(model.slices) for model in models]


def test_an_encoder_with_both_kinds_is_in_both() -> None:
    """The same network, not a copy; each time the decoders of one kind answer."""
    found = loaded(*parts_of("", {"a": "liver"}, {"b": "spleen"}))
    assert (answering(found.models), answering(found.planned)) == ([["mine-b"]], [["mine-a"]])
    assert found.models[0].encoder is found.planned[0].encoder
    assert set(found.answering) == {"mine-a", "mine-b"}


@pytest.mark.parametrize(("plain", "hollow"), [({}, True), ({"b": "spleen"}, False)])
def test_networks_of_other_programs_are_read_when_they_are_needed(plain: dict[str, str], hollow: bool) -> None:
    """Decoders with a plan alone: their weights stay in the files; beside one of ours the encoder is there anyway."""
    assert [model.hollow for model in loaded(*parts_of("", {"a": "liver"}, plain)).planned] == [hollow]


def test_scans_in_several_threads_take_turns_with_such_networks(own_home: Path) -> None:
    """One Segmenter, three threads: weights that one scan lets go are not those that another computes with."""
    install("mine", parts_of("", {"a": "liver"}, {}), description="")
    segmenter = Segmenter(model="mine", offline=True)
    ct, _ = small_phantom()
    expected = segmenter(ct).mask("liver")
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: segmenter(ct).mask("liver"), range(3)))
    assert all(np.array_equal(one, expected) for one in found)


def test_without_decoders_of_ours_there_is_no_model_of_ours() -> None:
    """And the other way round."""
    assert loaded(*parts_of("", {"a": "liver"}, {})).models == ()


def test_only_those_asked_for_answer() -> None:
    """A decoder that was not asked for is in neither list of names."""
    found = loaded(*parts_of("", {"a": "liver", "c": "heart"}, {"b": "spleen"}), answering={"mine-c"})
    assert (answering(found.models), answering(found.planned)) == ([], [["mine-c"]])


def test_what_a_decoder_does_not_offer_has_no_name() -> None:
    """The manifest lists one of its two labels: the other keeps its channel, under a name that no structure has."""
    encoder, decoders = tiny_checkpoints({"a": ("liver", "spleen")})
    install("mine", [Part("encoder", encoder), Part("a", decoders["a"], ("encoder",))], description="")
    listed = manifest().assets_for("mine", ["liver"])
    silent = [replace(asset, labels=("spleen",)) if asset.kind == "decoder" else asset for asset in listed]
    parts = load_parts(silent, fetch(listed, offline=True), {"mine-a"})
    assert parts.labels == {"mine-a": ("", "spleen")}
    assert parts.spoken("another", ("liver", "spleen")) == ("liver", "spleen")


@pytest.mark.parametrize("planned", [False, True], ids=["ours", "planned"])
def test_what_a_decoder_does_not_offer_is_left_to_others(planned: bool, own_home: Path) -> None:
    """Two decoders know the spleen, the manifest lists it of one: its confidence is that of the decoder alone, beside the other or not."""
    names = {"a": ("liver", "spleen"), "b": ("spleen", "heart")}
    install("mine", parts_that_know(names, planned), description="")
    scan, _ = small_phantom()

    def found(*roi: str) -> Certainty:
        return segment(scan, roi, model="mine", device="cpu", offline=True).certainties["spleen"]

    both = found("liver", "spleen", "heart")
    file = own_home / "weights_manifest.json"
    listing = Manifest.read(file)
    silent = tuple(replace(asset, labels=("liver",)) if asset.name == "mine-a" else asset for asset in listing.assets)
    Manifest(listing.models, silent).write(file)
    assert found("liver", "spleen", "heart") == found("spleen") != both


def parts_that_know(names: dict[str, tuple[str, ...]], planned: bool) -> list[Part]:
    encoder, decoders = tiny_checkpoints(names)
    made = {name: replace(one, spec=replace(one.spec, plan=PLAN if planned else None)) for name, one in decoders.items()}
    return [Part("encoder", encoder), *(Part(name, one, ("encoder",)) for name, one in made.items())]


@pytest.mark.parametrize("kind", ["planned", "plain"])
def test_only_decoders_of_ours_need_one_grid(kind: str) -> None:
    """Two encoders at 6 and 5 mm: with plans each runs on its own grid, without they are refused together."""
    chosen = [({"a": "liver"}, {}), ({"b": "spleen"}, {})] if kind == "planned" else [({}, {"a": "liver"}), ({}, {"b": "spleen"})]
    both = [*parts_of("-1", *chosen[0]), *parts_of("-2", *chosen[1], spacing=(5.0, 5.0, 5.0), seed=1)]
    if kind == "planned":
        assert answering(loaded(*both).planned) == [["mine-a"], ["mine-b"]]
        return
    with pytest.raises(WeightsError, match="different grids"):
        loaded(*both)
