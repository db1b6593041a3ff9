"""Facts about plans: they survive being stored in a decoder's spec, refuse nonsense, and leave older fingerprints alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clseg.errors import WeightsError
from clseg.network.plan import Plan, Resampling, Scheme, plan_from_dict
from clseg.network.spec import DecoderSpec, Stage, decoder_from_dict, to_dict

CT = Scheme("ct", -1000.0, 700.0, 10.0, 200.0)
PLAN = Plan("nnunet", (3.0, 1.5, 1.5), (16, 32, 32), CT, "RAS", (2, 0, 1), mirror_axes=(0, 2), ensemble="folds", score_range=(None, 80.0))


def test_a_decoder_with_a_plan_survives_json() -> None:
    """decoder_from_dict undoes to_dict for a decoder with a plan, through JSON text."""
    spec = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), ("liver",), True, bias=True, plan=PLAN)
    assert decoder_from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


def test_a_decoder_of_ours_says_nothing_about_plans() -> None:
    """Without a plan and extra biases the stored spec has the fields that it had before there were plans."""
    spec = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), ("liver",))
    assert set(to_dict(spec)) == {"stages", "labels", "last_activation"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "other"}, "nnunet, clnet"),
        ({"crop": "tight"}, "nonzero, body, none"),
        ({"averaged": "votes"}, "logits, probabilities"),
        ({"export": "cubic"}, "linear, nearest"),
        ({"orientation": "RAX"}, "three letters"),
        ({"orientation": "RLS"}, "three letters"),
        ({"transpose": (0, 0, 1)}, "once each"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "positive"),
        ({"patch": (8, 8)}, "three sizes"),
        ({"mirror_axes": (0, 3)}, "mirrors"),
        ({"mirror_axes": (1, 1)}, "mirrors"),
        ({"crop": "body"}, "turns the scan to LPS, given 'RAS'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change: dict[str, Any], told: str) -> None:
    """Each wrong field is refused with the values that would be right."""
    with pytest.raises(WeightsError, match=told):
        replace(PLAN, **change)


def test_a_scheme_and_a_resampling_are_checked() -> None:
    """An unknown scheme, an empty window of intensities, an unknown rule and splines of order 6 are refused."""
    for wrong in (lambda: Scheme("histogram"), lambda: Scheme("ct", 1.0, 1.0), lambda: Resampling(3, 0, "maybe"), lambda: Resampling(6)):
        with pytest.raises(WeightsError):
            wrong()


@pytest.mark.parametrize("part", [None, "scheme", "image"])
def test_a_missing_or_unknown_field_is_refused(part: str | None) -> None:
    """The stored plan has just its fields, at the top and in its parts."""
    for spoil in (lambda fields: fields.pop(next(iter(fields))), lambda fields: fields.update(colour="red")):
        data = to_dict(PLAN)
        spoil(data if part is None else data[part])
        with pytest.raises(WeightsError, match="has the fields"):
            plan_from_dict(data)


def test_sight_forgets_what_concerns_one_decoder_alone() -> None:
    """Decoders that differ in ensemble, export and range look through the same windows; another spacing is another sight."""
    other = replace(PLAN, ensemble="", export="nearest", score_range=None)
    assert other.sight == PLAN.sight
    assert replace(PLAN, spacing_mm=(3.0, 3.0, 3.0)).sight != PLAN.sight
