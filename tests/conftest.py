"""What many tests share: one thread, a home of their own, tiny models and the real scans where they are there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")  # read by torch when it is first imported

import pytest
from hypothesis import settings

SHARED = Path(__file__).parents[2] / "shared"
TINY_LABELS = {"trunk": ("body",), "lungs": ("lung_left", "lung_right"), "abdomen": ("liver", "spleen")}

settings.register_profile("clseg", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("clseg")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the settings or the weights of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("CLSEG_HOME", str(home))
    for variable in ("CLSEG_OFFLINE", "CLSEG_WEIGHTS_URL"):
        monkeypatch.delenv(variable, raising=False)
    return home


@pytest.fixture
def shared() -> Path:
    """The folder of real scans and other programs' files, beside the checkout."""
    if not (SHARED / "data" / "index.csv").is_file():
        pytest.skip(f"the real scans are not on this machine (expected in {SHARED / 'data'})")
    return SHARED


@pytest.fixture
def tiny_model(own_home: Path) -> Callable[..., Path]:
    """`tiny_model(labels)`: from now on this test's home holds a model "tiny" with random weights; returns the home."""

    def build(labels: Mapping[str, tuple[str, ...]] | None = None, **options: object) -> Path:
        return write_tiny_model(own_home, labels or TINY_LABELS, **options)  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with a model that was trained on it, once for all tests."""
    import torch

    from tests.small_dataset import write_base_model

    folder, threads = tmp_path_factory.mktemp("trained"), torch.get_num_threads()
    write_base_model(folder, folder / "home")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    return folder


@pytest.fixture
def workplace(trained: Path, own_home: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with `dataset`, `probe.nii.gz` and `runs`; this test's home holds the model "tiny" that knows the lungs.

    Training sets torch's threads and denormals for the process; other tests shall not notice.
    """
    import torch

    threads = torch.get_num_threads()
    yield furnished(tmp_path, own_home, trained)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def furnished(folder: Path, home: Path, trained: Path) -> Path:
    """`folder` with dataset, probe and runs; the trained model is copied into `home`."""
    shutil.copytree(trained / "home", home, dirs_exist_ok=True)
    (folder / "runs").mkdir()
    for part in ("dataset", "probe.nii.gz", "runs/cache"):
        (folder / part).symlink_to(trained / part)
    return folder


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no pictures, which take longer than tiny trainings."""
    monkeypatch.setattr("clseg.report.curves.plot_curves", lambda *_, **__: None)
    monkeypatch.setattr("clseg.training.prune_report.plot_curves", lambda *_, **__: None)


def write_tiny_model(
    home: Path,
    labels: Mapping[str, tuple[str, ...]],
    *,
    name: str = "tiny",
    widths: tuple[int, ...] = (8, 16),
    patch: tuple[int, int, int] = (16, 16, 16),
    spacing: tuple[float, float, float] = (6.0, 6.0, 6.0),
    orientation: str = "RAS",
    seed: int = 0,
    stages: int | None = None,
) -> Path:
    """Random weights of one encoder and a decoder per entry of `labels` (decoder → its labels), and their manifest, in `home`."""
    from clseg.network.checkpoint import Checkpoint, fingerprint, save

    encoder, decoders = tiny_checkpoints(labels, widths=widths, patch=patch, spacing=spacing, orientation=orientation, seed=seed, stages=stages)
    key = fingerprint(encoder.tensors, encoder.spec)
    parts = {f"{name}-encoder": encoder, **{f"{name}-{part}": decoder for part, decoder in decoders.items()}}
    assets = {}
    for asset, checkpoint in parts.items():
        file = home / name / f"{asset}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, Checkpoint(checkpoint.kind, checkpoint.spec, checkpoint.tensors, None if checkpoint is encoder else key))
        assets[asset] = {
            "kind": checkpoint.kind,
            "file": f"{name}/{file.name}",
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "licence": "CC0",
            "sources": [f"{name}/{file.name}"],
            "requires": [] if checkpoint is encoder else [f"{name}-encoder"],
            "labels": list(getattr(checkpoint.spec, "labels", ())),
        }
    model = {"description": "random weights", "licence": "CC0", "assets": list(assets)}
    (home / "weights_manifest.json").write_text(json.dumps({"format": 1, "models": {name: model}, "assets": assets}))
    return home


def tiny_checkpoints(labels: Mapping[str, tuple[str, ...]], *, widths=(8, 16), patch=(16, 16, 16), spacing=(6.0, 6.0, 6.0), orientation="RAS", seed=0, stages=None):
    """An encoder's checkpoint and one per decoder, all random, bound to each other; decoders of fewer `stages` than could be end coarser."""
    import torch

    from clseg.network.checkpoint import Checkpoint, fingerprint
    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder
    from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage

    strides = [(1, 1, 1), *[(2, 2, 2)] * (len(widths) - 1)]
    levels = tuple(Level(width, stride, (3, 3, 3), 1) for width, stride in zip(widths, strides, strict=True))
    spec = EncoderSpec(levels, Grid(orientation, spacing, patch), Intensity(-1000.0, 1000.0, 0.0, 500.0))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        root = Checkpoint("encoder", spec, Encoder(spec).state_dict())
        key = fingerprint(root.tensors, spec)
        every = tuple(Stage(width, (width,), (3, 3, 3)) for width in widths[-2::-1])
        decoders = {}
        for part, names in labels.items():
            plan = DecoderSpec(every[:stages], tuple(names))
            decoders[part] = Checkpoint("decoder", plan, Decoder(plan, spec).state_dict(), key)
    return root, decoders


class ScarceDevice:
    """A device (torch's CPU by another name) where memory runs out at some of the times that something is made on it."""

    def __init__(self) -> None:
        self.fails_at: set[int] = set()
        self.times, self.failed = 0, 0

    def fail(self, *times: int) -> None:
        """Memory runs out at these times, counted from now."""
        self.fails_at, self.times = set(times), 0

    @contextmanager
    def memory(self) -> Iterator[None]:
        import torch

        self.times += 1
        if self.times in self.fails_at:
            self.failed += 1
            raise torch.OutOfMemoryError("injected")
        yield


@pytest.fixture
def scarce_device(monkeypatch: pytest.MonkeyPatch) -> ScarceDevice:
    """What goes from it to main memory is a copy, as it is from a true one."""
    import torch

    from clseg.inference import engine

    device = ScarceDevice()
    monkeypatch.setattr(engine, "device_memory", device.memory)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    return device


def tiny_network(labels: Mapping[str, tuple[str, ...]] | None = None, **options: object):
    """The same in memory, as a Model."""
    from clseg.network.model import assemble

    encoder, decoders = tiny_checkpoints(labels or TINY_LABELS, **options)  # type: ignore[arg-type]
    return assemble(encoder, decoders.items())


def random_decoder(spec, encoder):
    """A decoder with random weights whose norms are no identity."""
    import torch

    from clseg.network.decoder import Decoder

    torch.manual_seed(3)
    network = Decoder(spec, encoder)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5) if name.endswith("weight") else parameter.uniform_(-0.5, 0.5)
    return network
