"""The engine encodes once for all decoders, and gives way step by step when memory runs out, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from clseg.errors import UsageError
from clseg.inference import predictor
from clseg.inference.engine import Engine, choose_device, main_memory
from clseg.inference.predictor import Predictor
from clseg.network.checkpoint import supporter
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model, assemble
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage
from tests.conftest import TINY_LABELS, ScarceDevice, tiny_checkpoints, tiny_network

ACCELERATOR = "cpu:0"  # torch's CPU by another name, so that the engine sees a device from which it can give way
ALL = ["trunk", "lungs", "abdomen"]


class Scarce(torch.nn.Module):
    """An encoder whose memory holds `holds` windows as long as `engine` runs on an accelerator."""

    def __init__(self, encoder: Encoder, holds: int) -> None:
        super().__init__()
        self.encoder, self.spec, self.holds = encoder, encoder.spec, holds
        self.engine: Engine | None = None
        self.seen: list[int] = []

    def forward(self, tiles: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(len(tiles))
        if self.engine and self.engine.device != "cpu" and len(tiles) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return self.encoder(tiles)


def tiles(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def scarce_engine(holds: int, device: str = ACCELERATOR, batch: int = 4) -> tuple[Engine, list[str], Scarce]:
    model = tiny_network()
    encoder = Scarce(model.encoder, holds)
    told: list[str] = []
    encoder.engine = engine = Engine(replace(model, encoder=encoder), device, batch=batch, notify=told.append)
    return engine, told, encoder


def answers(engine: Engine, batch: torch.Tensor, decoders: list[str] = ALL) -> dict[str, torch.Tensor]:
    return dict(engine(batch, decoders))


def test_one_encoder_pass_serves_all_decoders():
    """Three decoders, one batch: the encoder ran once, and every decoder answered in the order asked."""
    engine, _, encoder = scarce_engine(holds=4)
    found = answers(engine, tiles(4), ["lungs", "trunk", "abdomen"])
    assert encoder.seen == [4]
    assert {name: tuple(logits.shape) for name, logits in found.items()} == {
        "lungs": (4, 3, 16, 16, 16), "trunk": (4, 2, 16, 16, 16), "abdomen": (4, 3, 16, 16, 16)
    }  # fmt: skip
    assert list(found) == ["lungs", "trunk", "abdomen"]


def test_only_the_wanted_decoders_run():
    """A decoder nobody asked for gives no answer."""
    engine, _, _ = scarce_engine(holds=4)
    assert list(answers(engine, tiles(1), ["lungs"])) == ["lungs"]


def supported_network() -> Model:
    """The tiny network, where the lungs are supported by the trunk and the abdomen by both."""
    root, parts = tiny_checkpoints(TINY_LABELS)
    for name, helpers in {"lungs": ["trunk"], "abdomen": ["lungs", "trunk"]}.items():
        spec = replace(parts[name].spec, supporters=tuple(supporter(helper, parts[helper]) for helper in helpers))
        torch.manual_seed(len(helpers))
        parts[name] = replace(parts[name], spec=spec, tensors=Decoder(spec, root.spec).state_dict())
    return assemble(root, parts.items())


def test_supporters_run_unasked_and_unheard():
    """The abdomen alone is asked: trunk and lungs run once each for it and give no answer of their own."""
    model = supported_network()
    runs: list[str] = []
    for name, decoder in model.decoders.items():
        decoder.ups[0].register_forward_hook(lambda *_, name=name: runs.append(name))
    found = answers(Engine(model, batch=4, notify=pytest.fail), tiles(4), ["abdomen"])
    assert list(found) == ["abdomen"]
    assert runs == ["trunk", "lungs", "abdomen"]
    alone = dict(Engine(model, batch=4, notify=pytest.fail)(tiles(4), ALL))
    assert torch.equal(found["abdomen"], alone["abdomen"])


def test_a_decoder_answers_the_same_whether_it_supports_another_or_not():
    """Trunk and lungs beside the abdomen they support: the bits of a model without it."""
    model = supported_network()
    smaller = replace(model, decoders={name: model.decoders[name] for name in ("trunk", "lungs")})
    both = answers(Engine(model, batch=2, notify=pytest.fail), tiles(2))
    before = answers(Engine(smaller, batch=2, notify=pytest.fail), tiles(2), ["trunk", "lungs"])
    assert all(torch.equal(both[name], before[name]) for name in before)


def test_supporters_run_wherever_the_decoder_they_support_does():
    """The trunk's own range ends below the lungs' upper window, and there it supports them all the same."""
    model = supported_network()
    hu = torch.rand(16, 16, 32, generator=torch.Generator().manual_seed(0)) * 1000 - 500
    engine = Engine(model, notify=pytest.fail)
    runs: list[str] = []
    model.decoders["trunk"].ups[0].register_forward_hook(lambda *_: runs.append("trunk"))
    apart = list(Predictor(engine, step=1.0)(hu, {"trunk": (0, 16), "lungs": (0, 32)}))
    assert len(runs) == 2
    alone = list(Predictor(engine, step=1.0)(hu, {"trunk": None, "lungs": (0, 32)}))
    assert all(set(slab.probabilities) == {"lungs"} for slab in alone)
    for one, other in zip(apart, alone, strict=True):
        assert torch.equal(one.probabilities["lungs"], other.probabilities["lungs"])
    assert (torch.cat([slab.probabilities["trunk"] for slab in apart], -1)[0, ..., 16:] == 1).all()


def test_windows_do_not_know_their_neighbours_in_the_batch():
    """Four windows at once give what each gives alone."""
    engine, _, _ = scarce_engine(holds=4)
    together = answers(engine, tiles(4))
    for index, tile in enumerate(tiles(4)):
        for name, alone in answers(engine, tile[None]).items():
            torch.testing.assert_close(together[name][index], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("holds", "steps", "batch", "device", "results"),
    [
        (4, [], 4, ACCELERATOR, ACCELERATOR),
        (2, ["with 2 windows"], 2, ACCELERATOR, ACCELERATOR),
        (1, ["with 2 windows", "with 1 window"], 1, ACCELERATOR, ACCELERATOR),
        (0, ["with 2 windows", "with 1 window", "main memory", "the CPU"], 1, "cpu", "cpu"),
    ],
)
def test_out_of_memory_gives_way_step_by_step(holds, steps, batch, device, results):
    """Smaller batches, then results in main memory, then the CPU; each step is told, and the numbers stay the same."""
    expected = answers(Engine(tiny_network(), "cpu", batch=4, notify=pytest.fail), tiles(4))
    engine, told, _ = scarce_engine(holds)
    found = answers(engine, tiles(4))
    assert len(told) == len(steps)
    for sentence, step in zip(told, steps, strict=True):
        assert step in sentence
        assert ACCELERATOR in sentence
    assert (engine.batch, engine.device, engine.results) == (batch, device, results)
    for name in ALL:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_memory_that_a_library_does_not_get_gives_way_too(words):
    """Where cuBLAS, cuDNN or the driver ask for memory torch raises a plain RuntimeError: the batch is halved as for its own allocator's."""
    engine, told, encoder = scarce_engine(holds=4)

    def fail(_, inputs):
        if len(inputs[0]) > 2:
            raise RuntimeError(words)

    encoder.encoder.register_forward_pre_hook(fail)
    assert answers(engine, tiles(4)).keys() == set(ALL)
    assert [sentence.partition(": ")[2] for sentence in told] == ["going on with 2 windows at a time."]


def test_what_was_learned_is_kept_for_the_next_windows():
    """After giving way once, the next call does not run into the wall again."""
    engine, told, encoder = scarce_engine(holds=2)
    answers(engine, tiles(4))
    encoder.seen.clear()
    answers(engine, tiles(4))
    assert len(told) == 1
    assert encoder.seen == [2, 2]


def test_out_of_memory_on_the_cpu_is_raised():
    """There is nothing to give way to."""
    engine, told, encoder = scarce_engine(holds=0, device="cpu")
    encoder.engine = replace_device(engine)
    with pytest.raises(torch.OutOfMemoryError):
        answers(engine, tiles(1))
    assert told == []


WORDS = [
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 800000000000 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate 800000000000 bytes.",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("device", ["cpu", ACCELERATOR])
def test_main_memory_used_up_is_a_memory_error(words, device):
    """torch raises a plain RuntimeError for it; there is nothing to give way to, whatever the device."""
    engine, told, encoder = scarce_engine(holds=4, device=device)

    def fail(*_):
        raise RuntimeError(words)

    encoder.encoder.register_forward_hook(fail)
    with pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        answers(engine, tiles(1))
    assert told == []


def test_torchs_own_words_for_it_are_known():
    """A tensor larger than any machine's memory: the words that this version of torch has for it."""
    with pytest.raises(MemoryError), main_memory():
        torch.empty(1 << 60, dtype=torch.uint8)


def test_sums_too_large_for_main_memory_are_a_memory_error(monkeypatch):
    """Not only the network needs memory: the predictor's sums do, too."""

    def fail(*_):
        raise RuntimeError(WORDS[0])

    monkeypatch.setattr(predictor, "_Rolling", fail)
    engine, _, _ = scarce_engine(holds=4)
    with pytest.raises(MemoryError):
        list(Predictor(engine)(torch.zeros(16, 16, 16), {"lungs": (0, 16)}))


def replace_device(engine: Engine) -> Engine:
    """An engine that says it is elsewhere, so that the scarce encoder fails although the true one is on the CPU."""
    other = object.__new__(Engine)
    other.__dict__ = {**engine.__dict__, "device": "elsewhere"}
    return other


def test_a_device_too_full_for_the_weights_gives_way_to_the_cpu(monkeypatch):
    """When not even the weights fit, the CPU takes over and says so."""
    moved = []

    def to(self: Model, device: str) -> Model:
        moved.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("injected")
        return self

    monkeypatch.setattr(Model, "to", to)
    told: list[str] = []
    engine = Engine(tiny_network(), ACCELERATOR, notify=told.append)
    assert moved == [ACCELERATOR, "cpu"]
    assert (engine.device, engine.results) == ("cpu", "cpu")
    assert "CPU" in told[0]
    assert answers(engine, tiles(1)).keys() == set(ALL)


class Failing:
    """Makes something at the second try; the first finds no memory on the device."""

    def __init__(self) -> None:
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.tries == 1:
            raise torch.OutOfMemoryError("injected")
        return "made"


class Keeper:
    """Keeps results somewhere."""


def test_what_is_collected_is_let_go_with_the_scan() -> None:
    """An engine holds nobody's sums: when the slabs are through they are gone, though the engine stays for the next scan."""
    engine = Engine(tiny_network(), "cpu", notify=pytest.fail)
    slabs = Predictor(engine)(torch.zeros(16, 16, 16), {"lungs": (0, 16)})
    next(slabs)
    assert len(engine.collecting) == 1
    assert list(slabs) == []
    assert len(engine.collecting) == 0


def test_results_for_which_the_device_has_no_room_go_to_main_memory() -> None:
    """What is made of results is made anew there, who keeps some is told to leave, and one sentence is said."""
    engine, told, _ = scarce_engine(holds=4)
    left: list[str] = []
    keeper = Keeper()
    keeper.leave = lambda: left.append(engine.results)
    engine.collecting.add(keeper)
    assert engine.collected(Failing()) == "made"
    assert (engine.results, engine.device, left) == ("cpu", ACCELERATOR, ["cpu"])
    assert told == [f"Out of memory on {ACCELERATOR}: collecting results in main memory."]
    assert str(engine.zeros(2, 3).device) == "cpu"


def test_main_memory_has_nothing_to_give_way_to() -> None:
    """On the CPU the error goes on its way."""
    engine, told, _ = scarce_engine(holds=4, device="cpu")
    with pytest.raises(torch.OutOfMemoryError):
        engine.collected(Failing())
    assert told == []


@pytest.mark.parametrize("fails_at", range(1, 18))
def test_a_scan_whose_results_have_to_leave_the_device_is_segmented_alike(fails_at: int, scarce_device: ScarceDevice) -> None:
    """Wherever memory runs out, while windows are cut, computed, added up or averaged, the probabilities are those of the CPU."""
    scan = 800 * torch.randn(16, 16, 40, generator=torch.Generator().manual_seed(3))
    extents = {name: (0, 40) for name in ALL}
    expected = list(Predictor(Engine(tiny_network(), "cpu", notify=pytest.fail))(scan, extents))
    scarce_device.fail(fails_at, fails_at + 1)  # main memory first, then the CPU
    found = list(Predictor(Engine(tiny_network(), ACCELERATOR, notify=lambda told: None))(scan, extents))
    assert scarce_device.failed
    for one, other in zip(found, expected, strict=True):
        for name in ALL:
            torch.testing.assert_close(one.probabilities[name], other.probabilities[name], atol=1e-6, rtol=1e-5)


def test_sums_that_leave_in_the_middle_of_a_window_are_added_to() -> None:
    """A window for which there is no room: its neighbours' sums go to main memory, where it is added to them."""
    scan = 800 * torch.randn(16, 16, 40, generator=torch.Generator().manual_seed(3))
    expected = list(Predictor(Engine(tiny_network(), "cpu", notify=pytest.fail))(scan, {"lungs": (0, 40)}))
    engine, left = Engine(tiny_network(), ACCELERATOR, batch=1, notify=lambda told: None), []
    run, calls = engine._run, iter(range(100))

    def scarce(tiles: torch.Tensor, decoders: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        if engine.results != "cpu" and next(calls) == 2:
            raise torch.OutOfMemoryError("injected")
        yield from run(tiles, decoders)

    engine._run = scarce  # type: ignore[method-assign]
    with patch.object(torch.Tensor, "cpu", lambda self: left.append(1) or self.clone()):  # as from a device
        found = list(Predictor(engine)(scan, {"lungs": (0, 40)}))
    assert left
    assert engine.results == "cpu"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.probabilities["lungs"], other.probabilities["lungs"], atol=1e-6, rtol=1e-5)


def test_other_errors_are_not_swallowed():
    """An error that is not about memory goes on its way."""
    engine, told, _ = scarce_engine(holds=4)
    with pytest.raises(RuntimeError, match="channels"):
        answers(engine, torch.zeros(1, 2, 16, 16, 16))
    assert told == []


def test_a_strided_stem_answers_at_the_resolution_of_the_window():
    """Logits of an encoder that halves at once are brought up to the window, trilinearly."""
    levels = (Level(8, (2, 2, 2), (3, 3, 3), 1), Level(8, (2, 2, 2), (3, 3, 3), 1))
    spec = EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)), Intensity(-1000, 1000, 0, 500))
    encoder = Encoder(spec).eval().requires_grad_(False)
    decoder = Decoder(DecoderSpec((Stage(8, (8,), (3, 3, 3)),), ("body",)), spec).eval().requires_grad_(False)
    engine = Engine(Model(encoder, {"trunk": decoder}, {"trunk": None}), notify=pytest.fail)
    found = answers(engine, tiles(2), ["trunk"])["trunk"]
    assert tuple(found.shape) == (2, 2, 16, 16, 16)
    coarse = decoder(encoder(tiles(2)))
    assert tuple(coarse.shape[2:]) == (8, 8, 8)
    torch.testing.assert_close(found, torch.nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear"), atol=1e-5, rtol=1e-4)


# ---- devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """`machine(gpus, mps)`: pretend to be a machine with so many GPUs."""

    def pretend(gpus: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(("gpus", "mps", "expected"), [(0, False, "cpu"), (1, False, "cuda"), (0, True, "mps"), (2, True, "cuda")])
def test_auto_takes_the_fastest_there_is(machine, gpus, mps, expected):
    """CUDA before Apple's GPU before the CPU."""
    machine(gpus, mps)
    assert choose_device("auto") == expected


@pytest.mark.parametrize("wanted", ["cpu", "cuda", "cuda:0", "cuda:1", "mps"])
def test_a_device_that_is_there_is_used_as_named(machine, wanted):
    """With two GPUs, numbers 0 and 1 are there."""
    machine(2, True)
    assert choose_device(wanted) == wanted


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_an_error(machine, wanted):
    """No silent fall back to the CPU when a GPU was asked for by name."""
    machine()
    with pytest.raises(UsageError, match="not available") as caught:
        choose_device(wanted)
    assert "auto" in caught.value.tip


def test_a_gpu_beyond_the_last_is_an_error(machine):
    """Two GPUs have the numbers 0 and 1."""
    machine(2)
    with pytest.raises(UsageError, match="cuda:2"):
        choose_device("cuda:2")


@pytest.mark.parametrize("wanted", ["gpu", "", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps:0", "auto:1", "tpu", "cuda:1:2"])
def test_words_that_name_no_device_are_an_error(machine, wanted):
    """The message says what was given and what is expected."""
    machine(8, True)
    with pytest.raises(UsageError, match=f"Unknown device '{wanted}', expected auto, cpu, cuda, cuda:N or mps"):
        choose_device(wanted)
