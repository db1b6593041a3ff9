"""Plan: all that another program does around its network, as data, so that its results can be had again.

Networks of clseg have no plan: they see a scan the house's way (`clseg.inference`).  A
decoder that was imported carries the plan of the program that trained it.  Axes are
the network's, i.e. after `transpose`; (z, y, x) are the axes of the scan's array
reversed, as SimpleITK gives them.

             nnU-Net v2                               CL-Net
    order    transpose, crop, normalise, resample     crop, transpose, resample, normalise
    mean     of logits                                of probabilities
    back     logits linear, then argmax               argmax, nearest (or as nnU-Net)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from clseg.errors import WeightsError

KINDS = ("nnunet", "clnet")
SCHEMES = ("ct", "zscore", "rescale", "none")
SEPARATE = ("auto", "always", "never")
CROPS = ("nonzero", "body", "none")
AVERAGED = ("logits", "probabilities")
EXPORTS = ("linear", "nearest")


@dataclass(frozen=True)
class Scheme:
    """HU → network input.

    ct        clip to [`low`, `high`], subtract `mean`, divide by `sd`
    zscore    subtract the scan's own mean, divide by its own sd; `masked`: of the voxels inside the nonzero mask alone
    rescale   the scan's own smallest and largest value become 0 and 1
    none      as it is
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0
    masked: bool = False

    def __post_init__(self) -> None:
        _one_of("An intensity scheme", self.kind, SCHEMES)
        if self.kind == "ct" and not (self.low < self.high and self.sd > 0):
            raise WeightsError(f"The intensity scheme 'ct' needs low < high and sd > 0, given {self}.")


@dataclass(frozen=True)
class Resampling:
    """Splines of `order`; where `separate` says so, of `order_across` across the slices.

    auto: when the largest voxel edge is more than three times the smallest and one axis alone has it.
    """

    order: int = 3
    order_across: int = 0
    separate: str = "auto"

    def __post_init__(self) -> None:
        _one_of("The rule for resampling slice by slice", self.separate, SEPARATE)
        if not (0 <= self.order <= 5 and 0 <= self.order_across <= 5):
            raise WeightsError(f"Splines have an order from 0 to 5, given {self.order} and {self.order_across}.")


@dataclass(frozen=True)
class Plan:
    """What the program `kind` does around the network of one decoder.

    kind             which program's plan it is: a name for people, nothing is decided by it
    orientation      the axes the stored scan is turned to first ("RAS", "LPS"); "" leaves it as it is in the file
    transpose        from (z, y, x) to the network's axes: axis i of the network is axis transpose[i] of (z, y, x)
    spacing_mm       voxel edges that the network sees
    patch            its window in voxels
    crop             what is looked at: the box of all that is not 0, the body's box (CL-Net), or everything
    normalise_first  intensities before the scan is resampled, or after
    image, answer    how the scan is resampled, and how scores go back
    averaged         what is averaged over windows
    export           scores go back and the largest wins ("linear"), or the label map goes back ("nearest")
    mirror_axes      every combination of flips along these axes is averaged; () does not mirror
    ensemble         decoders with the same name here, not "", are averaged: the folds of one training
    room             CL-Net: the body's box has at least so many voxels of the scan and a quarter of them around it; None: the window
    score_range      CL-Net: body-part scores (0 pelvis … 100 eyes) between which the decoder is asked; None: everywhere
    """

    kind: str
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    scheme: Scheme
    orientation: str = ""
    transpose: tuple[int, int, int] = (0, 1, 2)
    crop: str = "nonzero"
    normalise_first: bool = True
    image: Resampling = field(default_factory=lambda: Resampling(order=3))
    answer: Resampling = field(default_factory=lambda: Resampling(order=1))
    averaged: str = "logits"
    export: str = "linear"
    mirror_axes: tuple[int, ...] = ()
    ensemble: str = ""
    room: tuple[int, int, int] | None = None
    score_range: tuple[float | None, float | None] | None = None

    def __post_init__(self) -> None:
        _one_of("A plan", self.kind, KINDS)
        _one_of("A plan's crop", self.crop, CROPS)
        _one_of("A plan's averaged quantity", self.averaged, AVERAGED)
        _one_of("A plan's export", self.export, EXPORTS)
        if self.orientation and sorted("LRPAIS".find(letter) // 2 for letter in self.orientation) != [0, 1, 2]:
            raise WeightsError(f"A plan's orientation is three letters such as RAS, or none, given '{self.orientation}'.")
        if self.crop == "body" and self.orientation != "LPS":
            raise WeightsError(f"A plan that looks where the body is turns the scan to LPS, given '{self.orientation}'.")
        if sorted(self.transpose) != [0, 1, 2]:
            raise WeightsError(f"A plan's transpose names the axes 0, 1, 2 once each, given {self.transpose}.")
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0 or len(self.patch) != 3 or min(self.patch) < 1:
            raise WeightsError(f"A plan has three positive edges and a window of three sizes, given {self.spacing_mm} and {self.patch}.")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) != len(self.mirror_axes):
            raise WeightsError(f"A plan mirrors along the axes 0, 1, 2, each at most once, given {self.mirror_axes}.")

    @property
    def sight(self) -> Plan:
        """This plan without what concerns single decoders: decoders of one encoder with equal sight share its windows."""
        return replace(self, answer=Resampling(order=1), export="linear", ensemble="", room=None, score_range=None)


def plan_from_dict(data: Any) -> Plan:
    """The plan that `clseg.network.spec.to_dict` wrote; WeightsError when a field is missing, unknown or makes no sense."""
    nested = {"scheme": Scheme, "image": Resampling, "answer": Resampling}
    try:
        fields = exactly(Plan, data)
        return Plan(**{**fields, **{name: kind(**exactly(kind, fields[name])) for name, kind in nested.items()}})
    except TypeError as error:
        raise WeightsError(f"The plan is not usable: {error}.") from error


def exactly(kind: type, data: Any) -> dict[str, Any]:
    """`data` with its lists as tuples; TypeError unless it has just the fields of the dataclass `kind`.

    Fields that were added later (see `clseg.network.spec`) may be missing.
    """
    fields = dataclasses.fields(kind)
    names, later = {f.name for f in fields}, {f.name for f in fields if "later" in f.metadata}
    if not isinstance(data, dict) or not names - later <= set(data) <= names:
        raise TypeError(f"{kind.__name__} has the fields {', '.join(sorted(names))}, given {data!r}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}


def _one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise WeightsError(f"{what} is one of {', '.join(known)}, given {given!r}.")
