"""A decoder with more channels that says at first what it said (Net2Net, Chen et al. 2016, arXiv 1511.05641).

Channels that were there keep their weights and read next to nothing of the new ones;
new ones begin as in a new decoder.  Instance norms look at one channel each, so the old
ones do not notice.  What is zero stays zero: a pruned decoder keeps its ticket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from clseg.errors import WeightsError
from clseg.network.decoder import Decoder
from clseg.network.spec import EncoderSpec, Stage

WIDEST = 1024  # channels of a stage; the paper's widest has 320
FAINT = 1e-3  # of their first weights is what old channels read of new ones; zero would be taken for pruned


def widened(decoder: Decoder, widths: Sequence[int], encoder: EncoderSpec, seed: int = 0) -> Decoder:
    """`decoder` with at least `widths` channels per stage, coarsest first, up and in all convolutions.

    Raises WeightsError for another number of stages, and for a stage that would become narrower, or too wide.
    """
    stages = decoder.spec.stages
    if len(widths) != len(stages):
        raise WeightsError(f"The decoder has {len(stages)} stages, given are {len(widths)} widths.")
    for stage, width in zip(stages, widths, strict=True):
        if width < max(stage.up, *stage.convs):
            given = ", ".join(map(str, widths))
            raise WeightsError(f"Widths may only grow: a stage has {max(stage.up, *stage.convs)} channels, given are {given}.", tip="`clseg prune` makes decoders smaller.")
    if max(widths) > WIDEST:
        raise WeightsError(f"A stage has at most {WIDEST} channels, given are {', '.join(map(str, widths))}.")
    grown = tuple(Stage(width, (width,) * len(stage.convs), stage.kernel, stage.skip) for stage, width in zip(stages, widths, strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = Decoder(replace(decoder.spec, stages=grown), encoder)
    old = decoder.state_dict()
    wide.load_state_dict({name: _grown(fresh, old[name], name, stages, grown) for name, fresh in wide.state_dict().items()})
    return wide


def _grown(fresh: torch.Tensor, old: torch.Tensor, name: str, stages: Sequence[Stage], grown: Sequence[Stage]) -> torch.Tensor:
    """One tensor of the wider decoder: `old` where its channels are, `fresh` for new ones, faint from new to old."""
    if fresh.shape == old.shape:
        return old
    new = fresh.clone()
    if old.ndim == 1:
        new[: len(old)] = old
        return new
    kind, index, *_ = name.split(".")
    before = new.transpose(0, 1) if kind == "ups" else new  # outputs first; a view
    source = old.transpose(0, 1) if kind == "ups" else old
    reads = torch.arange(source.shape[1])
    if kind == "convs" and name.split(".")[2] == "0":  # what comes up, then the skip, which has moved
        up = stages[int(index)].up
        reads = torch.where(reads < up, reads, reads + grown[int(index)].up - up)
    before[: len(source)] *= FAINT
    before[: len(source), reads] = source.to(new.dtype)
    return new
