"""Facts about slabs: large windows take less memory, with the numbers of the plain way."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from clseg.inference.engine import Engine
from clseg.network import slabs
from clseg.network.blocks import Conv, ConvNormAct, Up
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.slabs import LAST, Joined, Whole
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

ROOT = Path(__file__).parents[1]
ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)
WINDOW = (1, 1, 12, 8, 12)


def network(decoders: int = 1, *, block: str = "plain", skip: tuple[int, ...] | None = None, kernel: tuple[int, int, int] = THREE, step: tuple[int, int, int] = TWO) -> Model:
    """16, 24 and 32 channels on windows of 12 × 8 × 12 voxels, the same weights every time."""
    torch.manual_seed(3)
    levels = (Level(16, ONE, THREE, 2), Level(24, step, THREE, 2), Level(32, TWO, THREE, 2))
    encoder = EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), (12, 8, 12)), Intensity(-1000, 1000, 0, 500), block=block)
    stages = (Stage(24, (24, 24), kernel), Stage(16, (16, 16), kernel, skip))
    parts = {f"d{i}": Decoder(DecoderSpec(stages, (f"l{i}",), bias=True), encoder) for i in range(decoders)}
    return Model(Encoder(encoder), parts, dict.fromkeys(parts))


def window() -> torch.Tensor:
    return torch.randn(WINDOW, generator=torch.Generator().manual_seed(4))


def answers(model: Model) -> dict[str, torch.Tensor]:
    return {name: logits.clone() for name, logits in Engine(model, notify=pytest.fail)(window(), model.decoders)}


@pytest.fixture
def every_convolution(monkeypatch):
    """From now on nothing is too small for slabs, which are as thin as can be; what is computed so is noted, with where it is written."""
    done: list[tuple[tuple[int, ...], bool]] = []
    plain = slabs.convolved

    def noted(conv: nn.Conv3d, source: slabs.Source, out: torch.Tensor | None = None) -> torch.Tensor:
        done.append((source.shape, out is not None))
        return plain(conv, source, out)

    def start() -> list[tuple[tuple[int, ...], bool]]:
        monkeypatch.setattr(slabs, "LARGE", 0)
        monkeypatch.setattr(slabs, "HELD", 1)
        monkeypatch.setattr(slabs, "convolved", noted)
        return done

    return start


@pytest.mark.parametrize("held", [1, 20_000, 1 << 20])
@pytest.mark.parametrize(("kernel", "length"), [(THREE, 7), ((1, 3, 3), 7), ((5, 1, 3), 9), ((3, 3, 1), 2)])
@torch.inference_mode()
def test_row_by_row_is_as_all_at_once(monkeypatch, kernel, length, held) -> None:
    """Slabs of the fewest rows, of some, and of all; kernels with 0, 1 and 2 rows beside; also where the result lies on its input."""
    monkeypatch.setattr(slabs, "HELD", held)
    conv = Conv(16, 16, kernel, padding=tuple(k // 2 for k in kernel))
    x = torch.randn(1, 16, length, 6, 5).contiguous(memory_format=LAST)
    expected = nn.functional.conv3d(x, conv.weight, conv.bias, padding=conv.padding)
    torch.testing.assert_close(slabs.convolved(conv, Whole(x)), expected, atol=1e-5, rtol=1e-5)
    over = slabs.convolved(conv, Whole(x), x)
    assert over is x
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("stride", "over"), list(product([TWO, (1, 2, 2), (3, 2, 1)], [False, True])))
@torch.inference_mode()
def test_nothing_needs_to_be_joined(monkeypatch, stride, over) -> None:
    """Grown from below and skip, a few rows at a time: the convolution of the two side by side, also written over the skip."""
    monkeypatch.setattr(slabs, "HELD", 1)
    up, conv = Up(20, 8, stride), Conv(24, 16, THREE, padding=ONE)
    below = torch.randn(1, 20, 6, 4, 5)
    skip = torch.randn(1, 16, *(n * s for n, s in zip((6, 4, 5), stride, strict=True))).contiguous(memory_format=LAST)
    expected = conv(torch.cat([up(below), skip], dim=1))
    found = slabs.convolved(conv, Joined(below, up, skip, nn.Identity(), 24), skip if over else None)
    assert (found is skip) == over
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"decoders": 3},
        {"block": "residual"},
        {"skip": (0, 3, 4, 9)},
        {"skip": (), "decoders": 2},
        {"kernel": (1, 3, 3)},
        {"step": (1, 2, 2)},
    ],
)
def test_a_network_says_the_same_in_slabs(every_convolution, form) -> None:
    """One decoder or three, residual, pruned skips, flat kernels, uneven steps: the logits of the plain way."""
    model = network(**form)
    plain = answers(model)
    done = every_convolution()
    found = answers(model)
    assert len(done) >= 2 + 4 * len(plain)
    for name, logits in plain.items():
        torch.testing.assert_close(found[name], logits, atol=1e-4, rtol=1e-4)


def test_the_last_decoder_alone_writes_over_the_skips(every_convolution) -> None:
    """Of two decoders the first leaves the features as they are; each decoder joins twice and convolves twice more in place."""
    model, done = network(2), every_convolution()
    answers(model)
    first, last = done[-8:-4], done[-4:]
    assert [shape[1] for shape, _ in last] == [48, 24, 32, 16]
    assert [over for _, over in first] == [False, True, False, True]
    assert [over for _, over in last] == [True] * 4


@torch.inference_mode()
def test_features_stay_where_nobody_spends_them(every_convolution) -> None:
    """Asked as everywhere but in the engine, a decoder changes nothing of its input; with `spend` the list is empty afterwards."""
    model, done = network(), every_convolution()
    features = model.encoder(window())
    before = [one.clone() for one in features]
    decoder = model.decoders["d0"]
    found = decoder(features)
    assert all(map(torch.equal, features, before))
    assert torch.equal(decoder.forward_deep(features, 1, spend=True)[0], found)
    assert (features, len(done)) == ([], 3 + 4 + 4)


def test_what_supports_another_leaves_the_features_for_it() -> None:
    """Asked for b, which a supports, then a: a runs first; b is the one that uses up what is there, for a is not run again."""
    model = network(2)
    spent = []
    for name, decoder in model.decoders.items():
        plain = decoder.forward_deep
        decoder.forward_deep = lambda *given, spend, name=name, plain=plain: (spent.append((name, spend)), plain(given[0], given[1], spend=spend))[1]
    bound = Model(model.encoder, model.decoders, model.slices, {"d1": ("d0",)})
    with torch.inference_mode():
        assert [name for name, _ in bound.logits(model.encoder(window()), ["d1", "d0"], spend=True)] == ["d1", "d0"]
        assert spent == [("d0", False), ("d1", True)]
        spent.clear()
        assert len(list(model.logits(model.encoder(window()), ["d1", "d0", "d1"], spend=True))) == 3
    assert spent == [("d1", False), ("d0", False), ("d1", False)]  # whoever comes twice needs them twice


def test_small_windows_gradients_and_hooks_go_the_plain_way(every_convolution) -> None:
    """No slab below 64 MiB, in training and `no_grad`, for several windows at once, or where somebody listens to the layers."""
    model = network()
    assert not slabs.are_worthwhile(32, 80**3)
    assert slabs.are_worthwhile(64, 112 * 112 * 128)
    assert not slabs.are_worthwhile(8, 10**9)
    done = every_convolution()
    decoder = model.decoders["d0"]
    decoder(model.encoder(window()))
    with torch.no_grad():
        decoder(model.encoder(window()))
    with torch.inference_mode():
        model.encoder(window().expand(2, -1, -1, -1, -1))
        assert done == []
        seen = []
        decoder.convs[1][0].register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
        decoder(model.encoder(window()))
    assert seen == [32]
    assert [shape[1] for shape, _ in done[-3:]] == [48, 24, 16]


def test_a_window_that_strides_do_not_divide_is_joined_at_once(every_convolution) -> None:
    """What comes up is cropped to what the skip has, which slabs do not do."""
    model = network()
    decoder = Decoder(DecoderSpec((Stage(24, (24,), THREE), Stage(16, (16,), THREE)), ("l",), mismatch="crop"), model.spec)
    done = every_convolution()
    with torch.inference_mode():
        assert decoder(model.encoder(torch.randn(1, 1, 13, 8, 10))).shape == (1, 2, 13, 8, 10)
    assert [shape[1] for shape, _ in done] == [16, 24, 32]  # the encoder's own


def test_one_channel_is_marked_as_last() -> None:
    """A first convolution to 16 channels hands them on last without turning them; the input stays as it is."""
    block, x = ConvNormAct(1, 16, THREE), window()
    strides = x.stride()
    with torch.inference_mode():
        found = block(x)
    assert found.is_contiguous(memory_format=LAST)
    assert x.stride() == strides
    torch.testing.assert_close(found, block(x).detach(), atol=1e-5, rtol=1e-4)


MEASURED = """
import sys
import torch
from clseg.inference.engine import Engine
from clseg.network.cost import window_bytes
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

def held(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
patch, widths, decoders = (96, 96, 112), (32, 48, 64), int(sys.argv[1])
levels = tuple(Level(w, (1 + (i > 0),) * 3, (3, 3, 3), 2) for i, w in enumerate(widths))
encoder = EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), patch), Intensity(-1000, 1000, 0, 500))
specs = [DecoderSpec(tuple(Stage(w, (w, w), (3, 3, 3)) for w in (48, 32)), ("a", "b", "c")) for _ in range(decoders)]
parts = {str(i): Decoder(spec, encoder) for i, spec in enumerate(specs)}
engine = Engine(Model(Encoder(encoder), parts, dict.fromkeys(parts)), notify=print)
for edge in ((16, 16, 16), patch):  # the libraries are there after the first
    open("/proc/self/clear_refs", "w").write("5")
    before = held("VmRSS")
    for name, logits in engine(torch.randn(1, 1, *edge), parts):
        pass
print(held("VmHWM") - before, window_bytes(encoder, specs, patch))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells what a process holds now")
@pytest.mark.parametrize(("decoders", "maps"), [(1, 2.5), (2, 3.5)])
def test_a_window_takes_what_the_plan_says(decoders, maps) -> None:
    """A map of 32 channels at full resolution has 126 MiB: about two of them with one decoder, three with two, where six were held; the plan is above, by a third at most."""
    done = subprocess.run([sys.executable, "-c", MEASURED, str(decoders)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    measured, planned = map(int, done.stdout.split())
    assert measured < maps * 4 * 32 * 96 * 96 * 112
    assert measured <= planned <= 1.5 * measured
