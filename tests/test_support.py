"""Facts about feature-level supporting: easy decoders help a hard one, and never learn from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from clseg import segment
from clseg.errors import WeightsError
from clseg.inference import engine as engines
from clseg.network.checkpoint import load, save, supporter
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter
from clseg.network.support import SupportHead
from clseg.phantom import small_phantom

ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)
SPEC = EncoderSpec(
    (Level(8, ONE, THREE, 1), Level(8, TWO, THREE, 1), Level(16, TWO, THREE, 1)),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)
STAGES = (Stage(8, (8,), THREE), Stage(8, (8,), THREE))
EYES = Supporter("eyes", ("eye_left", "eye_right"), "0" * 64)
BRAIN = Supporter("brain", ("brain",), "1" * 64)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features() -> list[torch.Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return Encoder(SPEC)(noise(1, 1, 16, 16, 16))


def decoder(*labels: str, supporters: tuple[Supporter, ...] = (), seed: int = 1) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(DecoderSpec(STAGES, labels, supporters=supporters), SPEC)


# ---- one head ---------------------------------------------------------------------------------------------------------


def test_the_head_is_the_formula() -> None:
    """logits + gate · Conv1(LeakyReLU(IN(Conv3(concat(logits, supports))))), the gate 0.5 at first, the hidden width 2 × 7."""
    head = SupportHead(own=2, others=5)
    logits, supports = noise(2, 2, 6, 5, 4), [noise(2, 3, 6, 5, 4, seed=1), noise(2, 2, 6, 5, 4, seed=2)]
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "gate": (),
        "mix.conv.weight": (14, 7, 3, 3, 3),
        "mix.conv.bias": (14,),
        "mix.norm.weight": (14,),
        "mix.norm.bias": (14,),
        "head.weight": (2, 14, 1, 1, 1),
    }
    x = nn.functional.conv3d(torch.cat([logits, *supports], 1), head.mix.conv.weight, head.mix.conv.bias, padding=1)
    x = (x - x.mean((2, 3, 4), keepdim=True)) / (x.var((2, 3, 4), keepdim=True, unbiased=False) + 1e-5).sqrt()
    x = torch.where(x > 0, x, 0.01 * x)
    expected = logits + 0.5 * nn.functional.conv3d(x, head.head.weight)
    torch.testing.assert_close(head(logits, supports), expected, atol=1e-5, rtol=1e-4)


def test_the_last_convolution_may_have_a_bias() -> None:
    """With one of 2 and a gate of 0.5 every logit is 1 more than without."""
    torch.manual_seed(0)
    plain, biased = SupportHead(own=2, others=3), SupportHead(own=2, others=3, bias=True)
    biased.load_state_dict({**plain.state_dict(), "head.bias": torch.full((2,), 2.0)})
    logits, supports = noise(1, 2, 5, 4, 3), [noise(1, 3, 5, 4, 3, seed=1)]
    torch.testing.assert_close(biased(logits, supports), plain(logits, supports) + 1.0)
    spec = DecoderSpec(STAGES, ("lens",), supporters=(EYES,), support_bias=True)
    assert {"support.0.head.bias", "support.1.head.bias"} <= Decoder(spec, SPEC).state_dict().keys()


def test_a_closed_gate_gives_the_logits_untouched_and_computes_nothing() -> None:
    """At inference a gate of 0 hands back the very tensor, even one with -0.0 and NaN, and the convolutions do not run."""
    head = SupportHead(own=1, others=1)
    with torch.no_grad():
        head.gate.zero_()
    head.mix.register_forward_hook(pytest.fail)
    logits = torch.tensor([-0.0, float("nan"), 1.0, -1.0]).view(1, 1, 1, 2, 2)
    with torch.inference_mode():
        assert head(logits, [logits]) is logits
    head.requires_grad_(False)
    assert head(logits, [logits]) is logits


def test_a_gate_at_0_can_open_again() -> None:
    """While it learns, a closed gate gets a gradient."""
    head = SupportHead(own=1, others=1)
    with torch.no_grad():
        head.gate.zero_()
    logits, support = noise(1, 1, 4, 4, 4), noise(1, 1, 4, 4, 4, seed=1)
    out = head(logits, [support])
    assert torch.equal(out, logits)
    out[..., 0].sum().backward()
    assert head.gate.grad
    assert head.gate.grad.isfinite()


# ---- a decoder with heads ---------------------------------------------------------------------------------------------


def test_every_stage_has_a_head_and_its_gate_is_among_the_weights() -> None:
    """Two stages, two heads over 2 + 3 + 2 channels; a decoder without supporters has none and the weights it always had."""
    helped, alone = decoder("lens", supporters=(EYES, BRAIN)), decoder("lens")
    extra = helped.state_dict().keys() - alone.state_dict().keys()
    assert {name.split(".", 2)[1] for name in extra} == {"0", "1"}
    assert {"support.0.gate", "support.1.gate"} <= extra
    assert tuple(helped.support[0].mix.conv.weight.shape[:2]) == (14, 7)
    assert not any(name.startswith("support") for name in alone.state_dict())


def test_supporters_help_on_their_own_level() -> None:
    """Stage by stage: the head of a stage sees the supporters' logits of that stage; forward gives the finest."""
    helped, maps = decoder("lens", supporters=(EYES, BRAIN)), features()
    supports = [decoder(*one.labels, seed=seed).forward_deep(maps, 2) for seed, one in enumerate((EYES, BRAIN))]
    alone = decoder("lens")
    alone.load_state_dict({name: tensor for name, tensor in helped.state_dict().items() if not name.startswith("support")})
    plain, deep = alone.forward_deep(maps, 2), helped.forward_deep(maps, 2, supports)
    for level, head in enumerate(reversed(helped.support)):
        assert torch.equal(deep[level], head(plain[level], [s[level] for s in supports]))
        assert not torch.equal(deep[level], plain[level])
    assert torch.equal(helped(maps, [s[:1] for s in supports]), deep[0])


def test_closed_gates_leave_a_decoder_as_it_was() -> None:
    """With every gate at 0 the logits of all stages are those of the decoder before it was supported, bit for bit."""
    helped, maps = decoder("lens", supporters=(BRAIN,)).requires_grad_(False), features()
    for head in helped.support:
        head.gate.zero_()
    alone = decoder("lens").requires_grad_(False)
    alone.load_state_dict({name: tensor for name, tensor in helped.state_dict().items() if not name.startswith("support")})
    supports = [decoder("brain", seed=5).forward_deep(maps, 2)]
    for one, other in zip(helped.forward_deep(maps, 2, supports), alone.forward_deep(maps, 2), strict=True):
        assert torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_no_gradient_reaches_a_supporter() -> None:
    """Even of a supporter that could learn, no parameter has a gradient after backward; the supported decoder has one everywhere."""
    brain, eyes, helped = decoder("brain", seed=2), decoder(*EYES.labels, seed=3), decoder("lens", supporters=(EYES, BRAIN))
    maps = features()
    supports = [eyes.forward_deep(maps, 2), brain.forward_deep(maps, 2)]
    assert supports[0][0].requires_grad
    sum((level**2).sum() for level in helped.forward_deep(maps, 2, supports)).backward()
    assert all(p.grad is None for supporting in (brain, eyes) for p in supporting.parameters())
    assert all(p.grad is not None for p in helped.parameters())
    assert all(head.gate.grad for head in helped.support)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_logits_of_all_supporters_are_needed(count: int) -> None:
    """Fewer or more than the spec names are refused with the names."""
    maps = features()
    supports = [decoder("brain").forward_deep(maps, 1)] * count
    with pytest.raises(WeightsError, match=rf"supporters \(eyes, brain\), given those of {count}"):
        decoder("lens", supporters=(EYES, BRAIN))(maps, supports)
    if count:
        with pytest.raises(WeightsError, match=r"supporters \(none\)"):
            decoder("lens")(maps, supports)


# ---- the whole chain --------------------------------------------------------------------------------------------------


def list_supported(home: Path) -> None:
    """Add to the model "tiny" a decoder for the spleen that its `liver` decoder supports."""
    path = home / "weights_manifest.json"
    listing = json.loads(path.read_text())
    helper = load(home / "tiny" / "tiny-abdomen.safetensors")
    torch.manual_seed(0)
    spec = replace(helper.spec, labels=("spleen",), supporters=(supporter("abdomen", helper),))
    tensors = Decoder(spec, load(home / "tiny" / "tiny-encoder.safetensors").spec).state_dict()
    file = home / "tiny" / "hard.safetensors"
    save(file, replace(helper, spec=spec, tensors=tensors))
    listing["assets"]["hard"] = {
        **listing["assets"]["tiny-abdomen"],
        "file": "tiny/hard.safetensors",
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "sources": ["tiny/hard.safetensors"],
        "requires": ["tiny-encoder", "tiny-abdomen"],
        "labels": ["spleen"],
    }
    listing["models"]["tiny"]["assets"].append("hard")
    path.write_text(json.dumps(listing))


def test_asking_for_an_organ_brings_its_supporter_and_paints_the_organ_alone(tiny_model, monkeypatch) -> None:
    """`--roi spleen`: the liver's decoder is loaded and runs, but only the spleen's is asked, and only the spleen is in the result."""
    home = tiny_model({"trunk": ("body",), "abdomen": ("liver",)})
    list_supported(home)
    asked, loaded = set(), set()
    call = engines.Engine.__call__

    def noted(self, tiles, decoders):
        asked.update(decoders)
        loaded.update(self.model.decoders)
        return call(self, tiles, decoders)

    monkeypatch.setattr(engines.Engine, "__call__", noted)
    volume, _ = small_phantom()
    scan = replace(volume, array=volume.array[8:32, 4:24, 10:32])
    result = segment(scan, roi="spleen", model="tiny")
    assert (asked, loaded) == ({"hard"}, {"hard", "tiny-abdomen"})
    assert set(result.names) == {"spleen"}

    whole = segment(scan, roi=["spleen", "liver"], model="tiny")
    assert asked == {"hard", "tiny-abdomen"}
    assert set(whole.names) == {"spleen", "liver"}


def test_a_supporter_that_ends_at_a_coarser_level_is_upsampled() -> None:
    """Its one stage supports both of the other's: as it is at its own level, trilinearly upsampled above."""
    torch.manual_seed(2)
    short = Decoder(DecoderSpec(STAGES[:1], EYES.labels), SPEC)
    lens = decoder("lens", supporters=(EYES,))
    seen = features()
    with torch.no_grad():
        helping = short.forward_deep(seen, 2)
        assert [tuple(level.shape[2:]) for level in helping] == [(8, 8, 8)]
        fine, coarse = lens.forward_deep(seen, 2, [helping])
        doubled = nn.functional.interpolate(helping[0], scale_factor=2, mode="trilinear")
        same = lens.forward_deep(seen, 2, [[doubled, helping[0]]])
    assert torch.allclose(fine, same[0], atol=1e-5)
    assert torch.equal(coarse, same[1])


def test_a_shorter_decoder_hears_its_supporter_at_its_own_level_in_training_and_inference() -> None:
    """The supporter has a stage more: whether one level or two are asked for, the logits of the supported decoder are the same."""
    eyes, seen = decoder(*EYES.labels), features()
    torch.manual_seed(3)
    lens = Decoder(DecoderSpec(STAGES[:1], ("lens",), supporters=(EYES,)), SPEC)
    model = Model(Encoder(SPEC), {"eyes": eyes, "lens": lens}, {"lens": None})
    with torch.no_grad():
        ((_, once),) = model.logits(seen, ["lens"], depth=1)
        ((_, twice),) = model.logits(seen, ["lens"], depth=2)
        own = lens.forward_deep(seen, 1, [eyes.forward_deep(seen, 2)])[0]
    assert len(once) == len(twice) == 1
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[0], own)
