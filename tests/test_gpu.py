"""What only a GPU shows: half precision says what single precision says, memory that really runs out gives way, and training is that of a CPU.

Run by hand on a machine with CUDA: `python -m pytest -m gpu tests/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import clseg
from clseg.inference.engine import Engine
from clseg.inference.planned.export import Export
from clseg.inference.planned.prepare import View
from clseg.inference.predictor import Predictor
from clseg.network.blocks import _normalised
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model
from clseg.network.plan import Plan, Scheme
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage
from clseg.phantom import small_phantom
from clseg.training.loop import Step, learner, train
from clseg.training.network import fresh
from clseg.training.patches import Patch, Patches
from clseg.volume import Volume
from clseg.weights.importers.install import install
from clseg.weights.importers.nnunet import find_trainings, read_training
from tests.conftest import tiny_network
from tests.small_nnunet import plans, write_model
from tests.test_engine import supported_network
from tests.test_loop import example as bright_bone
from tests.test_loop import recipe as learned
from tests.test_patches import both, synthetic
from tests.test_patches import recipe as boxes_recipe
from tests.test_recorded import BATCHES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ONE, TWO = (1, 1, 1), (2, 2, 2)
INTENSITY = Intensity(-1000, 1000, 0, 500)


def network(block: str = "plain", first: tuple[int, int, int] = ONE, skip: tuple[int, ...] | None = None, width: int = 8) -> Model:
    """Two levels and a decoder with one stage, random weights."""
    levels = (Level(width, first, (3, 3, 3), 1), Level(2 * width, TWO, (3, 3, 3), 2))
    spec = EncoderSpec(levels, Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)), INTENSITY, block=block)
    torch.manual_seed(0)
    decoder = Decoder(DecoderSpec((Stage(width, (width,), (3, 3, 3), skip),), ("body",)), spec)
    return Model(Encoder(spec).eval().requires_grad_(False), {"trunk": decoder.eval().requires_grad_(False)}, {"trunk": None})


NETWORKS = {
    "several decoders": tiny_network,
    "supporters": supported_network,
    "residual": lambda: network("residual"),
    "halved at once": lambda: network(first=TWO),
    "pruned": lambda: network(skip=(0, 3, 5)),
}


def tiles(count: int, edge: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, edge, edge, edge, generator=torch.Generator().manual_seed(1))


def answers(engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: logits.cpu() for name, logits in engine(batch, list(engine.model.decoders))}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_gpu_says_what_the_cpu_says(kind: str) -> None:
    """Logits of about 1 in half precision: three digits are the same, in float32, window by window."""
    expected = answers(Engine(NETWORKS[kind](), "cpu", notify=pytest.fail), tiles(3))
    found = answers(Engine(NETWORKS[kind](), "cuda", notify=pytest.fail), tiles(3))
    for name, logits in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], logits, atol=0.02, rtol=0.02)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """700 MiB of the GPU for this process."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((700 << 20) / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_memory_that_really_runs_out_gives_way() -> None:
    """Four windows of 96³ with 32 channels hold 216 MB a feature map in half precision, several at once: fewer windows at a time, the same logits."""
    expected = answers(Engine(network(width=32), "cpu", notify=pytest.fail), tiles(1, 96))["trunk"]
    told: list[str] = []
    engine = Engine(network(width=32), "cuda", notify=told.append)
    found = answers(engine, tiles(1, 96).expand(8, -1, -1, -1, -1).contiguous())["trunk"]
    assert told
    assert all(sentence.startswith("Out of memory on cuda: going on with ") for sentence in told)
    assert engine.device == "cuda"
    for one in found:
        torch.testing.assert_close(one, expected[0], atol=0.02, rtol=0.02)


def scan(length: int = 40) -> torch.Tensor:
    return 800 * torch.randn(24, 20, length, generator=torch.Generator().manual_seed(3))


def probabilities(device: str, hu: torch.Tensor) -> tuple[list[torch.Tensor], Engine]:
    """Slab by slab those of a network with three decoders."""
    model = tiny_network()
    engine = Engine(model, device, notify=pytest.fail)
    extents = {name: (0, hu.shape[2]) for name in model.slices}
    return [one for slab in Predictor(engine)(hu, extents) for one in slab.probabilities.values()], engine


def test_sums_are_kept_on_the_gpu() -> None:
    """A scan that is there already: probabilities come to main memory, averaged, and are those of the CPU to three digits."""
    expected, _ = probabilities("cpu", scan())
    found, engine = probabilities("cuda", scan().cuda())
    assert engine.results == "cuda"
    for one, other in zip(found, expected, strict=True):
        assert not one.is_cuda
        torch.testing.assert_close(one, other, atol=0.01, rtol=0.01)


@pytest.mark.usefixtures("little_memory")
def test_sums_that_do_not_fit_go_to_main_memory() -> None:
    """Two sums and their weights for 2000 × 2000 × 16 voxels take 768 MB: one sentence, and the probabilities of the CPU."""
    told: list[str] = []
    engine = Engine(network(), "cuda", notify=told.append)
    hu = torch.full((2000, 2000, 16), -1000.0)
    hu[500:520, 500:520] = 300
    found = next(iter(Predictor(engine, step=1.0)(hu, {"trunk": (0, 16)})))
    expected = next(iter(Predictor(Engine(network(), "cpu", notify=pytest.fail), step=1.0)(hu, {"trunk": (0, 16)})))
    torch.testing.assert_close(found.probabilities["trunk"], expected.probabilities["trunk"], atol=0.01, rtol=0.01)
    assert told == ["Out of memory on cuda: collecting results in main memory."]
    assert (engine.device, engine.results) == ("cuda", "cpu")


def test_channels_stay_last_on_a_gpu() -> None:
    """From the first feature map to the logits, which spares a copy at every normalisation."""
    seen: list[bool] = []
    model = NETWORKS["pruned"]()
    engine = Engine(model, "cuda", notify=pytest.fail)
    for module in (*model.encoder.modules(), *model.decoders["trunk"].modules()):
        if isinstance(module, torch.nn.LeakyReLU):
            module.register_forward_hook(lambda _, given, made: seen.append(made.is_contiguous(memory_format=torch.channels_last_3d)))
    answers(engine, tiles(2))
    assert len(seen) >= 4
    assert all(seen)


def test_normalising_in_place_is_an_instance_norm() -> None:
    """Every window by itself, channels last, half precision."""
    norm = torch.nn.InstanceNorm3d(16, affine=True).cuda()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (3 * torch.randn(3, 16, 9, 10, 11, device="cuda") + torch.arange(3, device="cuda").view(3, 1, 1, 1, 1)).to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        expected, half = norm(x.float()), x.half()
        found = _normalised(half, norm)
    assert found.data_ptr() == half.data_ptr()
    torch.testing.assert_close(found.float(), expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize("export", ["linear", "nearest"])
def test_an_answer_is_exported_on_the_gpu(export: str) -> None:
    """Scores of 9 × 10 × 11 voxels that lie there become a label map of 17 × 19 × 23 as in main memory."""
    plan = Plan("nnunet", (2.0, 2.0, 2.0), (8, 8, 8), Scheme("none"), export=export)
    view = View(replace(plan, spacing_mm=tuple(n / m for n, m in zip((17, 19, 23), (9, 10, 11), strict=True))), (17, 19, 23), (1.0, 1.0, 1.0), ((0, 17), (0, 19), (0, 23)))
    scores = torch.randn(5, 9, 10, 11, generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cuda", "cpu"):
        one = Export(view, plan)
        one.add(0, scores[:, :4].to(device))
        one.add(4, scores[:, 4:].to(device))
        found.append(one.finished(Volume(np.zeros((23, 19, 17), np.int16), np.eye(4))))
    assert found[0].box == found[1].box
    assert (found[0].labels == found[1].labels).mean() > 0.999


def segmented(device: str, **more: object) -> clseg.Segmentation:
    ct, _ = small_phantom()
    return clseg.segment(ct, device=device, offline=True, **more)  # type: ignore[arg-type]


def same(one: clseg.Segmentation, other: clseg.Segmentation) -> float:
    """Share of equal voxels over all masks, of those that either has."""
    either = both = 0
    for name in one.names:
        a, b = (found.mask(name) for found in (one, other))
        either, both = either + int((a | b).sum()), both + int((a & b).sum())
    return both / either


def test_the_starter_finds_the_same_on_a_gpu() -> None:
    """Of all voxels of body, lungs and bones that it finds in a small synthetic torso, 99 of 100 are the same."""
    assert same(segmented("cuda"), segmented("cpu")) > 0.99


def test_an_imported_network_finds_the_same_on_a_gpu(tmp_path: Path, own_home: Path) -> None:
    """A miniature nnU-Net, mirrored and without: of the voxels that it finds 98 of 100 are the same (random weights are often undecided)."""
    plan = plans("residual", spacing=[12.0, 12.0, 12.0])
    (training,) = find_trainings(write_model(tmp_path / "m", "residual", plan=plan))
    install("mini", read_training(training), description="imported", licence="CC0-1.0", home=own_home)
    assert same(segmented("cuda", model="mini"), segmented("cpu", model="mini")) > 0.98


class Given:
    """Batches that are there already, in turn."""

    def batch(self, iteration: int) -> list[Patch]:
        return list(BATCHES.values())[iteration % len(BATCHES)]


def test_a_recorded_step_teaches_what_a_plain_one_does() -> None:
    """Twelve steps (float32), some of which teach one decoder alone, which leaves the other as it is: the losses are the same all along."""
    plan = learned(iterations=12)
    found = []
    for record in (False, True):
        steps: list[Step] = []
        rule = replace(plan.optim, record=record)
        train(learner(fresh(plan), rule, "cuda"), Given(), rule, callbacks=(steps.append,))
        found.append([step.losses for step in steps])
    for plain, recorded in zip(*found, strict=True):
        assert plain == pytest.approx(recorded, rel=1e-2, abs=1e-3)


def test_a_gpu_records_a_step_while_it_cuts_patches() -> None:
    """Patches are cut in a thread, on the same GPU: the loss of bright bone falls below half of where it began."""
    plan = learned(record=True)
    steps: list[Step] = []
    train(learner(fresh(plan), plan.optim, "cuda"), Patches([bright_bone()], plan, "cuda"), plan.optim, callbacks=(steps.append,))
    dense = [step.losses["dense"] for step in steps]
    assert sum(dense[-5:]) / 5 < dense[0] / 2


def test_a_gpu_cuts_the_patches_that_a_cpu_cuts() -> None:
    """Without noise: HU to a hundredth of the network's units, and of the targets all but single voxels on a border."""
    plan = replace(learned(), augment=replace(learned().augment, noise_probability=0.0))
    ours, theirs = (Patches([bright_bone()], plan, device) for device in ("cuda", "cpu"))
    for iteration in range(8):
        for found, expected in zip(ours.batch(iteration), theirs.batch(iteration), strict=True):
            assert found.image.is_cuda
            torch.testing.assert_close(found.image.cpu(), expected.image, atol=0.01, rtol=0)
            for name, target in expected.targets.items():
                assert (found.targets[name].cpu() != target).float().mean() < 0.01


def test_a_gpu_synthesises_patches() -> None:
    """A label map of two boxes becomes a CT on the GPU, with its target there."""
    patch = both(synthetic(), boxes_recipe(), "cuda").batch(0)[0]
    assert patch.image.is_cuda
    assert patch.targets["d"].is_cuda
    assert set(patch.targets["d"].unique().tolist()) >= {1, 2}
    inside, outside = (patch.image[0][where].mean() for where in (patch.targets["d"] > 0, patch.targets["d"] == 0))
    assert inside > outside  # tissue in air
