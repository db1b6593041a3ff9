"""A decoder that ends one level finer: what it had goes on as it was, the new stage has everything to learn.

The counterpart of the first rungs of pruning, which take the finest stages away.  As
`clseg.network.fold` shows, a stage of 1×1×1 convolutions costs little even at full resolution.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from clseg.errors import WeightsError
from clseg.network.decoder import Decoder
from clseg.network.spec import EncoderSpec, Stage
from clseg.network.widen import WIDEST

POINT = (1, 1, 1)


def finer(decoder: Decoder, width: int, encoder: EncoderSpec, seed: int = 0) -> Decoder:
    """`decoder` with one more stage of `width` channels: transposed convolution, skip, one 1×1×1 convolution.

    Its logits at the coarser levels are what they were; those at the new one are random (weights as torch begins them, as in `widened`).
    Raises WeightsError where the encoder has no finer level, and for a width that is not 1 to 1024.
    """
    stages = decoder.spec.stages
    if len(stages) >= len(encoder.levels) - 1:
        raise WeightsError("The decoder ends at the finest level of its encoder.", tip="Leave `finer` out.")
    if not 1 <= width <= WIDEST:
        raise WeightsError(f"A stage has 1 to {WIDEST} channels, given {width}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = Decoder(replace(decoder.spec, stages=(*stages, Stage(width, (width,), POINT))), encoder)
    grown.load_state_dict({**grown.state_dict(), **decoder.state_dict()})
    return grown
