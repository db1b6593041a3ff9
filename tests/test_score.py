"""Facts about Dice on the model's grid: numbers that can be checked by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clseg.network.checkpoint import build_decoder, build_encoder, fingerprint
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model, assemble
from clseg.network.spec import Supporter
from clseg.training.examples import IGNORE, Example
from clseg.training.score import dice_of, mean_dice, spread
from tests.conftest import tiny_checkpoints

SHAPE = (16, 16, 32)


def rigged(labels: Sequence[str], says: int) -> tuple[Encoder, Decoder]:
    """An encoder, and a decoder that paints its label number `says` (0: background) everywhere."""
    encoder, decoders = tiny_checkpoints({"d": tuple(labels)})
    decoder = build_decoder(decoders["d"], encoder.spec)
    with torch.no_grad():
        last = decoder.convs[-1][-1].norm
        last.weight.zero_()
        last.bias.fill_(1.0)
        decoder.heads[-1].weight.zero_()
        decoder.heads[-1].weight[says] = 1.0
    return build_encoder(encoder), decoder


def example(target: np.ndarray | None, annotated: tuple[bool, ...] = (True, True), name: str = "case") -> Example:
    return Example(name, "set", np.zeros(SHAPE, np.int16), {"d": target}, {"d": annotated}, {"d": ()})


def half(label: int, other: int = 0) -> np.ndarray:
    """The lower half along z is `label`, the rest `other`."""
    target = np.full(SHAPE, other, np.uint8)
    target[..., :16] = label
    return target


def score(says: int, *examples: Example) -> dict[str, dict[str, float]]:
    encoder, decoder = rigged(("left", "right"), says)
    return dice_of(encoder, {"d": decoder}, examples)


def test_half_of_it_is_two_thirds() -> None:
    """Everything is painted left, half of it is: 2 · ½ / (1 + ½)."""
    assert score(1, example(half(1))) == {"left": {"case": pytest.approx(2 / 3)}}


def test_all_and_nothing() -> None:
    """What fills the scan scores 1 where it is painted, 0 where another label is."""
    everything = example(np.full(SHAPE, 2, np.uint8))
    assert score(2, everything) == {"right": {"case": 1.0}}
    assert score(1, everything) == {"right": {"case": 0.0}}
    assert score(0, everything) == {"right": {"case": 0.0}}


def test_two_structures_two_numbers() -> None:
    """Half left, half right, all painted left: 2/3 and 0, per case."""
    found = score(1, example(half(1, 2), name="a"), example(half(1, 0), name="b"))
    assert found == {"left": {"a": pytest.approx(2 / 3), "b": pytest.approx(2 / 3)}, "right": {"a": 0.0}}


def test_what_is_unknown_does_not_count() -> None:
    """Where the label is unknown nothing is right or wrong: the known half is painted rightly, all of it."""
    assert score(1, example(half(1, IGNORE))) == {"left": {"case": 1.0}}
    assert score(1, example(half(IGNORE, 0))) == {}


def test_what_is_not_annotated_is_not_scored() -> None:
    """A label that the case does not annotate, one without voxels, and a case without a target give no number."""
    assert score(1, example(half(1), annotated=(False, True))) == {}
    assert score(1, example(half(0))) == {}
    assert score(1, example(None)) == {}


def test_a_decoder_that_is_not_asked_is_not_scored() -> None:
    """Targets of other decoders are passed over."""
    encoder, decoder = rigged(("left", "right"), 1)
    assert dice_of(encoder, {"other": decoder}, [example(half(1))]) == {}


def test_supporters_help_and_are_not_scored() -> None:
    """A supported decoder is scored with its helpers' logits; the helper's own labels give no number."""
    root, decoders = tiny_checkpoints({"helper": ("body",)})
    helpers: Model = assemble(root, [("m-helper", decoders["helper"])])
    part = decoders["helper"]
    support = (Supporter("m-helper", ("body",), fingerprint(part.tensors, part.spec)),)
    spec = replace(part.spec, labels=("left", "right"), supporters=support)
    decoder = Decoder(spec, root.spec).eval().requires_grad_(False)
    scores = dice_of(helpers.encoder, {"d": decoder}, [example(half(1, 2))], helpers=helpers)
    assert set(scores) == {"left", "right"}
    with torch.no_grad():
        decoder.support[-1].head.weight.fill_(0.0)
        decoder.support[-1].head.weight[1] = 1e4
        decoder.support[-1].mix.norm.weight.zero_()
        decoder.support[-1].mix.norm.bias.fill_(1.0)
    certain = dice_of(helpers.encoder, {"d": decoder}, [example(half(1, 2))], helpers=helpers)
    assert certain == {"left": {"case": pytest.approx(2 / 3)}, "right": {"case": 0.0}}


def test_the_mean_is_over_structures_of_means_over_cases() -> None:
    """(1 + 0)/2 and 1/4: their mean is 3/8, not the mean of three numbers; of nothing it is 0."""
    assert mean_dice({"a": {"x": 1.0, "y": 0.0}, "b": {"x": 0.25}}) == 0.375
    assert mean_dice({"a": {}, "b": {"x": 0.25}}) == 0.25
    assert mean_dice({}) == 0.0


@given(st.integers(0, 30), st.integers(0, 40))
def test_cases_are_spread_evenly(there: int, wanted: int) -> None:
    """At most as many as wanted, all for 0, in their order, none twice, gaps of equal size to within one."""
    examples = [example(None, name=str(number)) for number in range(there)]
    chosen = [int(one.name) for one in spread(examples, wanted)]
    assert len(chosen) == (min(there, wanted) if wanted else there)
    gaps = [b - a for a, b in itertools.pairwise(chosen)]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
    assert not chosen or chosen[0] == 0
