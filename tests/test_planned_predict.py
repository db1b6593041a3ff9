"""Facts about planned prediction: the weighted mean over windows, flips and folds, handed out row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from clseg.inference.engine import Engine
from clseg.inference.planned.predict import Source, predict, window_count
from clseg.inference.planned.windows import gaussian, starts
from clseg.network.plan import Plan, Scheme
from tests.conftest import ScarceDevice, tiny_network

PLAN = Plan("nnunet", (6.0, 6.0, 6.0), (16, 16, 16), Scheme("none"))
LABELS = {"lungs": ("lung_left", "lung_right")}
IMAGE = torch.randn(25, 18, 16, generator=torch.Generator().manual_seed(3))


def engine(seed: int = 0, labels=LABELS) -> Engine:
    return Engine(tiny_network(labels, seed=seed), "cpu", notify=pytest.fail)


def whole(image: torch.Tensor, plan: Plan, answers, **options) -> dict[str, np.ndarray]:
    """All rows together, which must follow on each other."""
    found = list(predict(image, plan, answers, **options))
    assert [rows.start for rows in found] == list(np.cumsum([0, *(next(iter(r.scores.values())).shape[1] for r in found)])[:-1])
    return {name: torch.cat([rows.scores[name] for rows in found], dim=1).numpy() for name in found[0].scores}


def by_hand(image: torch.Tensor, network, step: float = 0.5, function=lambda logits: logits) -> np.ndarray:
    """The mean over all windows in one array."""
    weight = torch.from_numpy(gaussian((16, 16, 16)))
    sums, weights = torch.zeros(3, *image.shape), torch.zeros(image.shape)
    for z in starts(image.shape[0], 16, step):
        for y in starts(image.shape[1], 16, step):
            for x in starts(image.shape[2], 16, step):
                there = (slice(z, z + 16), slice(y, y + 16), slice(x, x + 16))
                with torch.inference_mode():
                    logits = network.decoders["lungs"](network.encoder(image[there][None, None]))[0]
                sums[(slice(None), *there)] += function(logits) * weight
                weights[there] += weight
    return (sums / weights).numpy()


@pytest.mark.parametrize("step", [0.5, 0.8])
def test_logits_are_averaged_with_the_gaussian(step: float) -> None:
    """Rolling rows give what one array for everything gives."""
    one = engine()
    found = whole(IMAGE, PLAN, {"lungs": [Source(one, "lungs")]}, step=step)["lungs"]
    np.testing.assert_allclose(found, by_hand(IMAGE, one.model, step), atol=1e-4)


def test_probabilities_are_averaged_where_the_plan_says_so() -> None:
    """Softmax first, then the mean: channels add up to 1, and it is not the softmax of the mean."""
    one = engine()
    found = whole(IMAGE, replace(PLAN, averaged="probabilities"), {"lungs": [Source(one, "lungs")]})["lungs"]
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(found, by_hand(IMAGE, one.model, function=lambda logits: logits.softmax(dim=0)), atol=1e-5)


def test_sums_are_let_go_with_the_scan() -> None:
    """The engine stays, what it collected does not: sums of large networks would add up from one to the next."""
    one = engine()
    rows = predict(IMAGE, PLAN, {"lungs": [Source(one, "lungs")]})
    next(rows)
    assert len(one.collecting) == 1
    list(rows)
    assert len(one.collecting) == 0


@pytest.mark.parametrize("flipped", [(), (0, 2)], ids=["plain", "flips"])
@pytest.mark.parametrize("fails_at", range(1, 13))
def test_sums_that_leave_the_device_are_the_same(fails_at: int, flipped: tuple[int, ...], scarce_device: ScarceDevice) -> None:
    """Two folds on a device (torch's CPU by another name) whose memory runs out, wherever that is."""
    plan = replace(PLAN, mirror_axes=flipped, averaged="probabilities")
    expected = whole(IMAGE, plan, {"lungs": [Source(engine(seed), "lungs") for seed in (0, 1)]})["lungs"]
    scarce_device.fail(fails_at, fails_at + 1)  # main memory first, then the CPU
    folds = [Engine(tiny_network(LABELS, seed=seed), "cpu:0", notify=lambda told: None) for seed in (0, 1)]
    found = whole(IMAGE, plan, {"lungs": [Source(fold, "lungs") for fold in folds]})["lungs"]
    assert scarce_device.failed
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_flips_of_one_window_may_lie_on_both_sides() -> None:
    """Results that leave the device between two flips: the total goes along.  What is on the device is marked by torch's `meta`, which mixes with nothing."""
    one = Engine(tiny_network(LABELS), "cpu:0", batch=1, notify=lambda told: None)
    run, calls = one._run, iter(range(1000))

    def scarce(tiles: torch.Tensor, decoders: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        if one.results != "cpu" and next(calls) == 5:
            raise torch.OutOfMemoryError("injected")
        for name, logits in run(tiles, decoders):
            yield name, logits.to("meta") if one.results != "cpu" else logits

    def moved(self: torch.Tensor, where: object = None, *more: object, **options: object) -> torch.Tensor:
        if self.is_meta and where is not None and torch.device(where).type == "cpu":  # type: ignore[arg-type]
            return torch.zeros(self.shape)
        return to(self, where, *more, **options) if where is not None else to(self, *more, **options)

    to = torch.Tensor.to
    one._run = scarce  # type: ignore[method-assign]
    one.results = "meta"
    with patch.object(torch.Tensor, "cpu", lambda self: torch.zeros(self.shape) if self.is_meta else self), patch.object(torch.Tensor, "to", moved):
        rows = list(predict(IMAGE, replace(PLAN, mirror_axes=(0, 1, 2)), {"lungs": [Source(one, "lungs")]}))
    assert one.results == "cpu"
    assert all(not scores.is_meta for row in rows for scores in row.scores.values())


def test_folds_are_averaged() -> None:
    """Two networks, one answer: the mean of what each says alone."""
    first, second = engine(1), engine(2)
    both = whole(IMAGE, PLAN, {"lungs": [Source(first, "lungs"), Source(second, "lungs")]})["lungs"]
    np.testing.assert_allclose(both, (by_hand(IMAGE, first.model) + by_hand(IMAGE, second.model)) / 2, atol=1e-4)


def test_flips_are_averaged() -> None:
    """Mirrored along axes 0 and 2: the mean over the four flips, each turned back."""
    one = engine()
    image = IMAGE[:16, :16]
    found = whole(image, replace(PLAN, mirror_axes=(0, 2)), {"lungs": [Source(one, "lungs")]})["lungs"]
    flips = [(), (0,), (2,), (0, 2)]
    each = [np.flip(by_hand(image.flip(axes), one.model), [axis + 1 for axis in axes]) for axes in flips]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-4)


def test_a_small_image_lies_in_the_middle_of_zeros() -> None:
    """5 rows in a window of 16: 5 zeros before (floor), 6 behind; only the image's rows come out."""
    one = engine()
    found = whole(IMAGE[:5], PLAN, {"lungs": [Source(one, "lungs")]})["lungs"]
    padded = torch.nn.functional.pad(IMAGE[:5], (0, 0, 0, 0, 5, 6))
    assert found.shape == (3, 5, 18, 16)
    np.testing.assert_allclose(found, by_hand(padded, one.model)[:, 5:10], atol=1e-4)


def test_decoders_of_one_encoder_share_its_passes() -> None:
    """Two answers on one encoder and a third on another: every encoder runs once a window."""
    shared, other = engine(labels={"lungs": ("lung_left", "lung_right"), "trunk": ("body",)}), engine(1)
    passes = {"shared": 0, "other": 0}

    def counting(name: str):
        def count(*_):
            passes[name] += 1

        return count

    shared.model.encoder.register_forward_hook(counting("shared"))
    other.model.encoder.register_forward_hook(counting("other"))
    answers = {"a": [Source(shared, "lungs")], "b": [Source(shared, "trunk")], "c": [Source(other, "lungs")]}
    told: list[int] = []
    found = whole(IMAGE, PLAN, answers, advance=told.append)
    assert passes == {"shared": 6, "other": 6}  # 3 × 2 × 1 windows
    assert sum(told) == window_count(tuple(IMAGE.shape), PLAN, 0.5, answers) == 12
    assert {name: len(scores) for name, scores in found.items()} == {"a": 3, "b": 2, "c": 3}
    np.testing.assert_allclose(found["a"], by_hand(IMAGE, shared.model), atol=1e-4)
