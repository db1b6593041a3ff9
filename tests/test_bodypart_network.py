"""The slice scorer: a number per slice, and a checkpoint that describes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clseg.errors import WeightsError
from clseg.network.bodypart import BodypartSpec, SliceScorer, load_bodypart, save_bodypart, spec_from_dict
from clseg.network.checkpoint import read_header, save
from tests.conftest import tiny_checkpoints

SPEC = BodypartSpec(widths=(4, 8), size=16, gain=0.1, offset=0.2, slope=(0.0005, 0.003))


def scorer(spec: BodypartSpec = SPEC, seed: int = 0) -> SliceScorer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SliceScorer(spec).eval()


def test_one_number_per_slice_whatever_else_is_in_the_batch() -> None:
    """A slice alone and the same slice among others get the same number."""
    slices = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = scorer()(slices)
        alone = torch.cat([scorer()(one[None]) for one in slices])
    assert together.shape == (5,)
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.std() > 0


def test_a_file_gives_back_spec_and_weights(tmp_path: Path) -> None:
    """What was saved in half precision is loaded in float32, frozen, with the same calibration."""
    file = tmp_path / "bodypart.safetensors"
    save_bodypart(file, scorer(), {"licence": "CC0"})
    loaded = load_bodypart(file)
    assert loaded.spec == SPEC
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in scorer().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_the_header_is_that_of_every_checkpoint(tmp_path: Path) -> None:
    """`read_header` knows the file: kind, card, and no encoder."""
    save_bodypart(tmp_path / "b.safetensors", scorer(), {"licence": "CC0"})
    header = read_header(tmp_path / "b.safetensors")
    assert (header["kind"], header["encoder"], header["slices"], header["card"]) == ("bodypart", None, None, {"licence": "CC0"})


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two savings cannot be told apart, two networks can."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_bodypart(tmp_path / name, scorer(seed=seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_no_limit_of_slope_survives_json(tmp_path: Path) -> None:
    """An infinite highest slope is stored as null, for JSON has no infinity."""
    spec = replace(SPEC, slope=(0.0, float("inf")))
    save_bodypart(tmp_path / "b", scorer(spec))
    assert load_bodypart(tmp_path / "b").spec == spec
    assert read_header(tmp_path / "b")["spec"]["slope"] == [0.0, None]


def test_the_starters_network_is_small(tmp_path: Path) -> None:
    """With its default widths the file stays below 300 kB."""
    save_bodypart(tmp_path / "b", scorer(BodypartSpec()))
    assert (tmp_path / "b").stat().st_size < 300_000


def test_an_encoder_is_not_a_regressor(tmp_path: Path) -> None:
    """A file of another kind is refused by its kind."""
    encoder, _ = tiny_checkpoints({"lungs": ("lung_left",)})
    save(tmp_path / "encoder", encoder)
    with pytest.raises(WeightsError, match="'encoder', expected a 'bodypart'"):
        load_bodypart(tmp_path / "encoder")


def test_weights_that_do_not_fit_the_spec_are_refused(tmp_path: Path) -> None:
    """A missing tensor is an error, not a random one."""
    save_bodypart(tmp_path / "whole", scorer())
    with safe_open(str(tmp_path / "whole"), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(tmp_path / "whole"))
    del tensors["head.bias"]
    save_file(tensors, str(tmp_path / "part"), metadata=metadata)
    with pytest.raises(WeightsError, match=r"head\.bias"):
        load_bodypart(tmp_path / "part")


@pytest.mark.parametrize(
    "change",
    [{"widths": []}, {"size": 2}, {"gain": 0.0}, {"slope": [0.1, 0.1]}, {"low_hu": 2000.0}, {"colour": "red"}, {"slope": 1.0}],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict) -> None:
    """Every field is checked before a network is built."""
    data = json.loads(json.dumps({**SPEC.__dict__, **change}))
    with pytest.raises(WeightsError):
        spec_from_dict(data)
