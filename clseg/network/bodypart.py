"""Body-part regressor: one axial slice in, one number out, which grows from the feet to the head.

Follows the body-part regression of CL-Net (arXiv 2503.12698, after Yan et al. 2018): slices of
128 × 128 pixels of 3.5 mm, HU clipped to [-1000, 1500] → [-1, 1].  What the network says is turned into a
score, 0 = bottom of the pelvis … 1 = top of the head, by the line `gain`·x + `offset` in its spec.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clseg.errors import WeightsError
from clseg.network.checkpoint import read_header

FORMAT = 1
KIND = "bodypart"


@dataclass(frozen=True)
class BodypartSpec:
    """Shape, input and calibration of a slice scorer.

    `widths` channels per level, each halving the slice of `size` pixels of `spacing_mm`.
    `slope` are the lowest and highest plausible scores per mm of height: slices at the
    ends of a scan where the curve is flatter or steeper are not believed.
    """

    widths: tuple[int, ...] = (8, 24, 48, 64, 96)
    size: int = 128
    spacing_mm: float = 3.5
    low_hu: float = -1000.0
    high_hu: float = 1500.0
    smooth_mm: float = 10.0
    gain: float = 1.0
    offset: float = 0.0
    slope: tuple[float, float] = (0.0, float("inf"))

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.size < 2 ** len(self.widths):
            raise WeightsError(f"A slice scorer needs widths and a size that can be halved so often, given {self.widths} and {self.size}.")
        if not (self.low_hu < self.high_hu and self.spacing_mm > 0 and self.gain > 0 and 0 <= self.slope[0] < self.slope[1]):
            raise WeightsError(f"A slice scorer needs low_hu < high_hu, a positive spacing and gain and a range of slopes, given {self}.")


class SliceScorer(nn.Module):
    """Strided convolutions, mean and maximum over the slice, one number.

    Maps (batch, 1, x, y) in [-1, 1] to (batch,), not calibrated.
    """

    def __init__(self, spec: BodypartSpec) -> None:
        super().__init__()
        self.spec = spec
        inputs = (1, *spec.widths[:-1])
        self.levels = nn.Sequential(*(_level(i, o) for i, o in zip(inputs, spec.widths, strict=True)))
        self.head = nn.Linear(2 * spec.widths[-1], 1)
        self.to(memory_format=torch.channels_last)  # a quarter faster on CPUs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.levels(x.contiguous(memory_format=torch.channels_last))
        return self.head(torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1))[:, 0]


class BatchNorm(nn.Module):
    """Batch normalisation whose state is floating point throughout, so that a moving average of weights can hold it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, self.training, momentum=0.05)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False), BatchNorm(outputs), nn.LeakyReLU(0.01, inplace=True))


def save_bodypart(path: Path, scorer: SliceScorer, card: dict[str, Any] | None = None) -> None:
    """Write weights (half precision), spec and calibration in one file, whole or not at all; same content, same bytes."""
    from safetensors.torch import save as to_bytes

    from clseg.io.files import writing

    spec = dataclasses.asdict(scorer.spec)
    if spec["slope"][1] == float("inf"):
        spec["slope"] = [spec["slope"][0], None]  # JSON knows no infinity
    header = {"format": FORMAT, "kind": KIND, "spec": spec, "encoder": None, "slices": None, "card": card or {}}
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in sorted(scorer.state_dict().items())}
    data = to_bytes(tensors, metadata={"clseg": json.dumps(header, sort_keys=True)})
    with writing(Path(path)) as file:
        file.write(data)


def load_bodypart(path: Path) -> SliceScorer:
    """A frozen scorer in float32, ready for inference; WeightsError when the file is not one."""
    from safetensors.torch import load_file

    header = read_header(path)
    if header["kind"] != KIND:
        raise WeightsError(f"{path} holds a '{header['kind']}', expected a '{KIND}'.")
    scorer = SliceScorer(spec_from_dict(header["spec"]))
    try:
        scorer.load_state_dict({name: tensor.float() for name, tensor in load_file(str(path)).items()}, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"The weights of {path} do not fit their own spec: {error}") from error
    return scorer.eval().requires_grad_(False)


def spec_from_dict(data: Any) -> BodypartSpec:
    """A spec from plain JSON types; WeightsError when a field is missing, unknown or of another kind."""
    names = {field.name for field in dataclasses.fields(BodypartSpec)}
    if not isinstance(data, dict) or set(data) != names:
        raise WeightsError(f"The spec of a slice scorer has the fields {', '.join(sorted(names))}, given {data!r}.")
    try:
        low, high = data["slope"]
        slope = (float(low), float("inf") if high is None else float(high))
        return BodypartSpec(**{**data, "widths": tuple(data["widths"]), "slope": slope})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"The slice scorer's spec is not usable: {error}.") from error
