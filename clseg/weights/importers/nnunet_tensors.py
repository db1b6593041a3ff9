"""The tensors of an nnU-Net v2 checkpoint under the names that clseg gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clseg.errors import WeightsError
from clseg.network.checkpoint import refuse_no_numbers
from clseg.network.spec import DecoderSpec, EncoderSpec
from clseg.weights.importers.pickles import real

if TYPE_CHECKING:
    import torch

    from clseg.network.checkpoint import TensorDict

_ALIAS = re.compile(r"(^|\.)all_modules\.|^decoder\.encoder\.")  # second names of tensors that are there under their first
_WRAPPERS = ("module.", "_orig_mod.")

_RULES = {  # theirs → part and ours
    r"encoder\.stem\.convs\.0\.(conv|norm)\.(weight|bias)": r"encoder:stem.\1.\2",
    r"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.(conv|norm)\.(weight|bias)": r"encoder:levels.\1.\2.\3.\4",
    r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.(conv|norm)\.(weight|bias)": r"encoder:levels.\1.\2.first.\3.\4",
    r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.(conv|norm)\.(weight|bias)": r"encoder:levels.\1.\2.second.\3.\4",
    r"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.[01]\.(conv|norm)\.(weight|bias)": r"encoder:levels.\1.\2.skip.\3.\4",
    r"decoder\.transpconvs\.(\d+)\.(weight|bias)": r"decoder:ups.\1.\2",
    r"decoder\.stages\.(\d+)\.convs\.(\d+)\.(conv|norm)\.(weight|bias)": r"decoder:convs.\1.\2.\3.\4",
    r"decoder\.seg_layers\.(\d+)\.(weight|bias)": r"decoder:heads.\1.\2",
}


def renamed(weights: Mapping[str, torch.Tensor]) -> tuple[TensorDict, TensorDict]:
    """The encoder's and the decoder's tensors, float32; WeightsError for a tensor that no rule knows, and for weights that are no real numbers."""
    parts: dict[str, TensorDict] = {"encoder": {}, "decoder": {}}
    for name, tensor in weights.items():
        theirs = _unwrapped(str(name))
        if _ALIAS.search(theirs):
            continue
        part, ours = _ours(theirs)
        parts[part][ours] = real(theirs, tensor).detach().float().contiguous()
        refuse_no_numbers({theirs: parts[part][ours]}, "The checkpoint's weights")
    return parts["encoder"], parts["decoder"]


def completed(
    encoder: EncoderSpec, decoder: DecoderSpec, tensors: tuple[TensorDict, TensorDict], *, bias: bool
) -> tuple[TensorDict, TensorDict]:
    """The tensors, with zeros for the biases that a network without (`bias` False) lacks.

    WeightsError unless they are then exactly what the two specs ask for.
    """
    import torch

    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder

    with torch.device("meta"):
        expected = Encoder(encoder).state_dict(), Decoder(decoder, encoder).state_dict()
    return tuple(_fitting(mine, wanted, bias) for mine, wanted in zip(tensors, expected, strict=True))  # type: ignore[return-value]


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _ours(name: str) -> tuple[str, str]:
    for theirs, ours in _RULES.items():
        match = re.fullmatch(theirs, name)
        if match:
            part, _, own = match.expand(ours).partition(":")
            return part, own
    raise WeightsError(f"The checkpoint has the tensor '{name}', which no U-Net that clseg knows has.")


def _fitting(tensors: TensorDict, wanted: Mapping[str, torch.Tensor], bias: bool) -> TensorDict:
    import torch

    missing = sorted(set(wanted) - set(tensors))
    zeros = {name: torch.zeros(wanted[name].shape) for name in missing if not bias and _may_lack(name)}
    whole = {**tensors, **zeros}
    for name in sorted(set(wanted) ^ set(whole)):
        told = "lacks" if name in wanted else "has in excess"
        raise WeightsError(f"The checkpoint {told} the tensor '{name}' that its plans {'ask for' if name in wanted else 'do not know'}.")
    for name, tensor in wanted.items():
        if tensor.shape != whole[name].shape:
            given, expected = tuple(whole[name].shape), tuple(tensor.shape)
            raise WeightsError(f"The tensor '{name}' has the shape {given}, its plans ask for {expected}.")
    return whole


def _may_lack(name: str) -> bool:
    return name.endswith(".conv.bias") or (name.startswith("ups.") and name.endswith(".bias"))
