"""Facts about slimming: channels without effect can go, everything fits afterwards, widths are what CPUs like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clseg.errors import RecipeError, TrainingError, WeightsError
from clseg.network.cost import cost
from clseg.network.decoder import Decoder
from clseg.network.spec import (
    DecoderSpec,
    EncoderSpec,
    Grid,
    Intensity,
    Level,
    Stage,
    Supporter,
    decoder_from_dict,
    to_dict,
)
from clseg.training.slim import Keep, StageKeep, channels, importance, measured, plan_widths, slice_tensors, slim

THREE, ONE = (3, 3, 3), (1, 1, 1)
PATCH = (16, 16, 16)
ENCODER = EncoderSpec(
    tuple(Level(width, stride, THREE, 1) for width, stride in ((8, (1, 1, 1)), (16, (2, 2, 2)), (24, (2, 2, 1)))),
    Grid("RAS", (3.0, 3.0, 3.0), PATCH),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)
SPEC = DecoderSpec((Stage(16, (16, 24), THREE), Stage(16, (8,), ONE)), ("liver", "spleen"))


def decoder(seed: int = 0, spec: DecoderSpec = SPEC) -> Decoder:
    """Random weights; norms are no identity."""
    torch.manual_seed(seed)
    network = Decoder(spec, ENCODER)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return network.double()


def features(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((8, 16, 16, 16), (16, 8, 8, 8), (24, 4, 4, 8))
    return [torch.randn(1, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def widths(keep: Keep) -> list[tuple[int, ...]]:
    return [tuple(map(len, stage.places)) for stage in keep.stages]


@torch.no_grad()
def kill(network: Decoder, stage: int, *, up: Sequence[int] = (), skip: Sequence[int] = (), conv: int = 0, outputs: Sequence[int] = ()) -> None:
    """Take the effect away: from `up` and `skip` by the weights that read them, from a convolution by scale and shift."""
    first = network.convs[stage][0].conv.weight
    width = network.ups[stage].weight.shape[1]
    first[:, list(up)] = 0
    first[:, [width + channel for channel in skip]] = 0
    norm = network.convs[stage][conv].norm
    norm.weight[list(outputs)] = 0
    norm.bias[list(outputs)] = 0


def without(dead: Sequence[int], width: int) -> tuple[int, ...]:
    return tuple(channel for channel in range(width) if channel not in dead)


EIGHT_UP, EIGHT_SKIP, EIGHT_OUT = (0, 2, 3, 5, 8, 9, 11, 15), (1, 3, 4, 6, 7, 10, 12, 14), (2, 3, 4, 9, 11, 17, 20, 23)


def test_channels_without_effect_are_found_and_cut_without_a_trace() -> None:
    """Eight dead channels of each place of a stage are the first that a plan takes; logits of every stage stay the same."""
    network = decoder()
    kill(network, 0, up=EIGHT_UP, skip=EIGHT_SKIP, conv=1, outputs=EIGHT_OUT)
    keep = plan_widths(network, ENCODER, 24 / channels(SPEC, ENCODER))
    stage = keep.stages[0]
    assert stage == StageKeep(without(EIGHT_UP, 16), without(EIGHT_SKIP, 16), (tuple(range(16)), without(EIGHT_OUT, 24)))
    assert widths(keep)[1] == (16, 8, 8)

    small, given_ = slim(network, ENCODER, keep), features()
    for before, after in zip(network.forward_deep(given_, 2), small.forward_deep(given_, 2), strict=True):
        assert float((before - after).detach().abs().max()) < 1e-6
    assert small.spec.stages[0] == Stage(8, (16, 16), THREE, without(EIGHT_SKIP, 16))


def test_a_dead_transposed_filter_has_no_importance() -> None:
    """Zero weights in `up` make channels of zero: they go first too."""
    network = decoder()
    with torch.no_grad():
        network.ups[1].weight[:, [0, 1, 2, 3, 4, 5, 6, 15]] = 0
    keep = plan_widths(network, ENCODER, 8 / channels(SPEC, ENCODER))
    assert keep.stages[1].up == (7, 8, 9, 10, 11, 12, 13, 14)
    assert torch.allclose(network(features()), slim(network, ENCODER, keep)(features()), atol=1e-6)


def test_keeping_everything_changes_nothing() -> None:
    """The same spec and the same bits, in tensors of its own."""
    network = decoder()
    same = slim(network, ENCODER, Keep.all(SPEC, ENCODER))
    assert same.spec == SPEC
    assert torch.equal(network(features()), same(features()))
    with torch.no_grad():
        same.ups[0].weight.zero_()
    assert bool(network.ups[0].weight.any())


def test_a_smaller_decoder_is_smaller_in_every_place() -> None:
    """Shapes by hand: inputs of the next layer, biases, norms and heads follow; the state fits a decoder of the new spec."""
    keep = Keep((StageKeep((1, 2), (0, 15), ((3, 4, 5), (0, 7))), StageKeep((4,), (), ((6, 7),))))
    small = slim(decoder(), ENCODER, keep)
    shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    assert shapes["ups.0.weight"] == (24, 2, 2, 2, 1)
    assert shapes["convs.0.0.conv.weight"] == (3, 4, 3, 3, 3)
    assert shapes["convs.0.0.norm.bias"] == shapes["convs.0.0.conv.bias"] == (3,)
    assert shapes["convs.0.1.conv.weight"] == (2, 3, 3, 3, 3)
    assert shapes["heads.0.weight"] == (3, 2, 1, 1, 1)
    assert shapes["ups.1.weight"] == (2, 1, 2, 2, 2)
    assert shapes["convs.1.0.conv.weight"] == (2, 1, 1, 1, 1)
    assert shapes["heads.1.weight"] == (3, 2, 1, 1, 1)
    assert small(features()).shape == (1, 3, 16, 16, 16)
    spec = decoder_from_dict(json.loads(json.dumps(to_dict(small.spec))))
    assert spec == small.spec
    Decoder(spec, ENCODER).load_state_dict(small.state_dict())


def test_a_skip_that_is_cut_twice_still_names_the_encoders_channels() -> None:
    """Keeping 2, 5, 7 of the encoder's and then the last two of those reads 5 and 7."""
    whole = Keep.all(SPEC, ENCODER)
    once = slim(decoder(), ENCODER, Keep((whole.stages[0], replace(whole.stages[1], skip=(2, 5, 7)))))
    there = Keep.all(once.spec, ENCODER)
    twice = slim(once, ENCODER, Keep((there.stages[0], replace(there.stages[1], skip=(1, 2)))))
    assert (once.spec.stages[1].skip, twice.spec.stages[1].skip) == ((2, 5, 7), (5, 7))
    direct = slim(decoder(), ENCODER, Keep((whole.stages[0], replace(whole.stages[1], skip=(5, 7)))))
    assert torch.equal(twice(features()), direct(features()))


def test_saved_weights_are_cut_like_the_decoder() -> None:
    """For late rewinding: the sliced state of the dense decoder is the state of the small one."""
    network = decoder()
    keep = plan_widths(network, ENCODER, 0.4)
    state = slim(network, ENCODER, keep).state_dict()
    sliced = slice_tensors(network.state_dict(), keep)
    assert state.keys() == sliced.keys()
    assert all(torch.equal(state[name], sliced[name]) for name in state)


def test_support_heads_are_left_alone() -> None:
    """They read logits only: the same tensors, and the same answer when dead channels go."""
    helped = replace(SPEC, supporters=(Supporter("lungs", ("lung_left",), "ab"),))
    network = decoder(spec=helped)
    kill(network, 0, outputs=EIGHT_UP)
    small = slim(network, ENCODER, plan_widths(network, ENCODER, 8 / channels(helped, ENCODER)))
    assert small.spec.supporters == helped.supporters
    before, after = network.support.state_dict(), small.support.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    supports = [[torch.ones(1, 2, 16, 16, 16, dtype=torch.float64)]]
    assert torch.allclose(network(features(), supports), small(features(), supports), atol=1e-6)


def test_mode_precision_and_gradients_stay_and_no_dice_are_rolled() -> None:
    """Evaluation mode, double precision and frozen parameters are taken over; the random state is as before."""
    network = decoder().eval()
    network.heads.requires_grad_(False)
    state = torch.random.get_rng_state()
    small = slim(network, ENCODER, plan_widths(network, ENCODER, 0.3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not small.training
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    frozen = {name for name, p in small.named_parameters() if not p.requires_grad}
    assert frozen == {"heads.0.weight", "heads.1.weight"}


@settings(max_examples=25)
@given(target=st.floats(0, 0.99), multiple=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 3), thrift=st.sampled_from([0.0, 0.5, 1.0]))
def test_widths_are_multiples_and_the_target_is_met_as_nearly_as_steps_allow(target: float, multiple: int, seed: int, thrift: float) -> None:
    """Every width is a multiple and at least one; channels gone miss the target by half a step at most, unless all is at the floor."""
    network = decoder(seed)
    keep = plan_widths(network, ENCODER, target, multiple, thrift=thrift)
    flat = [width for stage in widths(keep) for width in stage]
    assert all(width % multiple == 0 and width >= multiple for width in flat)
    total = channels(SPEC, ENCODER)
    if set(flat) != {multiple}:
        assert abs((total - keep.channels) - target * total) <= multiple / 2 + 1e-9
    assert plan_widths(network, ENCODER, target, multiple, thrift=thrift) == keep
    assert cost(slim(network, ENCODER, keep).spec, ENCODER, PATCH).parameters <= cost(SPEC, ENCODER, PATCH).parameters


@given(st.lists(st.floats(0, 0.95), min_size=2, max_size=2, unique=True))
def test_a_higher_target_keeps_part_of_what_a_lower_one_keeps(targets: list[float]) -> None:
    """Plans of one decoder are nested."""
    low, high = (plan_widths(decoder(), ENCODER, target, 4) for target in sorted(targets))
    for small, large in zip(high.stages, low.stages, strict=True):
        assert all(set(a) <= set(b) for a, b in zip(small.places, large.places, strict=True))


def test_odd_widths_are_rounded_down_and_narrow_ones_stay() -> None:
    """With a multiple of 8, twelve can only become eight, and four stays four."""
    spec = DecoderSpec((Stage(12, (12, 4), THREE), Stage(8, (4,), ONE)), ("liver",))
    keep = plan_widths(decoder(spec=spec), ENCODER, 0.9)
    assert widths(keep) == [(8, 8, 8, 4), (8, 8, 4)]


def test_a_multiple_per_stage() -> None:
    """The finest stage may go down to four channels while the coarse one stops at eight."""
    assert widths(plan_widths(decoder(), ENCODER, 0.95, (8, 4))) == [(8, 8, 8, 8), (4, 4, 4)]


def test_the_target_may_be_a_share_of_the_dense_decoder() -> None:
    """Half of the dense channels, asked of a decoder that has lost a quarter: a quarter more goes, in one step or in two."""
    network, total = decoder(), channels(SPEC, ENCODER)
    once = slim(network, ENCODER, plan_widths(network, ENCODER, 0.25, 1))
    keep = plan_widths(once, ENCODER, 0.5, 1, dense_channels=total)
    assert channels(once.spec, ENCODER) == round(0.75 * total)
    assert keep.channels == round(0.5 * total)
    done = plan_widths(once, ENCODER, 0.2, 1, dense_channels=total)
    assert done == Keep.all(once.spec, ENCODER)  # a quarter is gone already


def test_importance_is_shared_out() -> None:
    """Joined channels of a stage share 1 and so does every convolution; by hand: |weight| × |scale| at the finest head."""
    network = decoder()
    with torch.no_grad():
        network.convs[1][0].conv.weight.fill_(1.0)  # all filters alike, all inputs alike
        network.convs[1][0].norm.weight.copy_(torch.tensor([1.0, -2, 1, 1, 1, 1, 1, 0]))
        network.heads[1].weight.fill_(0.5)
    coarse, fine = importance(network)
    for stage in (coarse, fine):
        assert float(stage.up.sum() + stage.skip.sum()) == pytest.approx(1)
        assert [float(conv.sum()) for conv in stage.convs] == pytest.approx([1] * len(stage.convs))
    assert fine.convs[0].tolist() == pytest.approx([1 / 8, 2 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 0])


def test_measured_activations_weigh_the_skip() -> None:
    """A skip channel that is always zero counts for nothing once activations are measured."""
    network, given_ = decoder(), features()
    given_[0][:, 3] = 0
    with measured(network) as watch:
        network(given_)
        network(given_)
    joined = watch.joined
    assert [len(one) for one in joined] == [32, 24]
    assert joined[1][16:].tolist() == pytest.approx(given_[0].abs().mean(dim=(0, 2, 3, 4)).tolist())
    assert float(importance(network)[1].skip[3]) > 0
    assert float(importance(network, joined)[1].skip[3]) == 0
    keep = plan_widths(network, ENCODER, 1 / channels(SPEC, ENCODER), 1, activations=joined)
    assert keep.stages[1].skip == without((3,), 8)


def test_nothing_is_measured_without_a_run() -> None:
    """The measurement ends with its block, and one that never ran is an error."""
    network = decoder()
    with measured(network) as watch:
        pass
    network(features())
    with pytest.raises(WeightsError, match="No activation"):
        _ = watch.joined


def test_channels_that_are_not_there_are_refused() -> None:
    """Too many, doubled, unordered or no channels, no stage or one too many, and another number of convolutions."""
    network = decoder()
    whole = Keep.all(SPEC, ENCODER)
    first = whole.stages[0]
    for wrong in (replace(first, up=(16,)), replace(first, up=()), replace(first, skip=(1, 1)), replace(first, convs=((1, 0), first.convs[1]))):
        with pytest.raises(WeightsError, match="Stage 0 has"):
            slim(network, ENCODER, Keep((wrong, whole.stages[1])))
    for other in (Keep(()), Keep((*whole.stages, first)), Keep((replace(first, convs=first.convs[:1]), whole.stages[1]))):
        with pytest.raises(WeightsError, match="other stages"):
            slim(network, ENCODER, other)


def test_without_its_finest_stage_a_decoder_gives_the_logits_of_the_one_below() -> None:
    """The head of the coarser stage was there all along: its logits come out exactly, at half the size."""
    network, seen = decoder(), features()
    small = slim(network, ENCODER, Keep.all(SPEC, ENCODER).coarser())
    assert [stage.up for stage in small.spec.stages] == [16]
    with torch.no_grad():
        assert torch.equal(small(seen), network.forward_deep(seen, 2)[1])
    assert cost(small.spec, ENCODER, PATCH).flops < cost(SPEC, ENCODER, PATCH).flops


def test_a_coarser_decoder_is_made_narrower_like_any_other() -> None:
    """Widths are planned for the stages that are left."""
    small = slim(decoder(), ENCODER, Keep.all(SPEC, ENCODER).coarser())
    keep = plan_widths(small, ENCODER, 0.4, 8)
    assert len(keep.stages) == 1
    assert keep.channels < channels(small.spec, ENCODER)
    assert slim(small, ENCODER, keep)(features()).shape == (1, 3, 8, 8, 8)


def test_time_is_not_saved_where_a_folded_stage_joins() -> None:
    """A stage of 1×1×1 convolutions reads what is below and the skip as they are: only what its convolutions make is cut."""
    network = decoder()
    whole, last = (keep.stages[-1] for keep in (Keep.all(SPEC, ENCODER), plan_widths(network, ENCODER, 0.95, 1, save="time")))
    assert (last.up, last.skip) == (whole.up, whole.skip)
    assert len(last.convs[0]) < len(whole.convs[0])
    assert len(plan_widths(network, ENCODER, 0.95, 1, save="weights").stages[-1].up) < len(whole.up)


def test_biases_of_imported_decoders_are_cut_along() -> None:
    """Transposed convolutions with biases, as nnU-Net has them: half of the channels go without a trace of their biases."""
    network = decoder(spec=replace(SPEC, bias=True))
    keep = Keep.all(network.spec, ENCODER)
    keep = Keep((replace(keep.stages[0], up=tuple(range(0, 16, 2))), keep.stages[1]))
    small = slim(network, ENCODER, keep)
    assert torch.equal(small.ups[0].bias, network.ups[0].bias[::2])
    assert small(features()).shape == (1, 3, 16, 16, 16)


def test_settings_that_make_no_sense_are_refused() -> None:
    """A target of 1, multiples for another number of stages, weights that are not numbers."""
    network = decoder()
    for target, multiple in ((1.0, 8), (-0.1, 8), (0.5, 0), (0.5, (8,))):
        with pytest.raises(RecipeError, match="given"):
            plan_widths(network, ENCODER, target, multiple)
    with torch.no_grad():
        network.convs[0][0].norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="not a number"):
        plan_widths(network, ENCODER, 0.5)
