"""Tensors of CL-Net's authors: from their names to ours, with masks folded in.

    theirs                                              ours
    encoder.conv_blocks_context.{d}[.s].blocks.{i}      levels.{d}.{i}
    tu.{u}  seg_outputs.{u}                             ups.{u}  heads.{u}
    conv_blocks_localization.{u}[.s].blocks.{i}         convs.{u}.{i}
    to_support.{i}.0  to_support.{i}.1                  support.{last - i}.mix  support.{last - i}.head
    support_gate                                        support.{u}.gate, the same for every u

Pruned weights are stored as `weight_orig` and a 0/1 `weight_mask`; they are multiplied
here once and for all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clseg.errors import WeightsError
from clseg.weights.importers.pickles import real

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

_WRAPPERS = ("module.", "_orig_mod.")  # of parallel training and of torch.compile
_ENDS = (".weight", ".bias", ".weight_orig", ".weight_mask")  # of names under which a tensor must be
_BLOCK = re.compile(r"(\d+)\.(?:(\d+)\.)?blocks\.(\d+)\.(conv|instnorm)\.(weight|bias)")
_SUPPORT = re.compile(r"to_support\.(\d+)\.(0\.conv|0\.instnorm|1\.conv)\.(weight|bias)")
_SUPPORT_NAMES = {"0.conv": "mix.conv", "0.instnorm": "mix.norm", "1.conv": "head"}


def state_of(content: Mapping[str, Any], source: str) -> Tensors:
    """The tensors of a checkpoint by their names, without the prefixes of wrappers; `source` says in errors what it is."""
    import torch

    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise WeightsError(f"{source} has a {type(state).__name__} as its state_dict, expected tensors by name.")
    named = {_unwrapped(name): value for name, value in state.items() if isinstance(name, str)}
    try:
        tensors = {name: real(name, value) for name, value in named.items() if isinstance(value, torch.Tensor) or name.endswith(_ENDS)}
    except WeightsError as error:
        raise WeightsError(f"{source} does not fit: {error.message}", tip=error.tip) from error
    sparse = next((name for name in tensors if ".model_sparse." in name), None)
    if sparse or not tensors:
        told = f"holds '{sparse}' of a sparse network, which the authors' program cannot load either" if sparse else "holds no weights"
        raise WeightsError(f"{source} {told}.")
    return tensors


def below(state: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, without it; maybe none."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def blocks(tensors: Tensors, prefix: str) -> tuple[list[list[Tensors]], Tensors]:
    """Per level and convolution its tensors by our names, and all other tensors.

    A level may be one stack of convolutions or two, which follow each other.
    """
    found: dict[int, dict[tuple[int, int], Tensors]] = {}
    rest = {}
    for name, tensor in tensors.items():
        match = _BLOCK.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if match is None:
            rest[name] = tensor
            continue
        level, stack, place, kind, what = match.groups()
        conv = found.setdefault(int(level), {}).setdefault((int(stack or 0), int(place)), {})
        conv[f"{'conv' if kind == 'conv' else 'norm'}.{what}"] = tensor
    if sorted(found) != list(range(len(found))) or not found:
        raise WeightsError(f"The levels of {prefix}… must be numbered from 0, found {sorted(found)}.")
    levels = [[convs[key] for key in sorted(convs)] for _, convs in sorted(found.items())]
    if any("conv.weight" not in conv for level in levels for conv in level):
        raise WeightsError(f"A convolution of {prefix}… has no weight.")
    return levels, rest


def folded(tensors: Tensors) -> Tensors:
    """Every `weight_orig` with its `weight_mask` as one `weight`; what is masked is 0 whatever it was, other tensors stay."""
    import torch

    done = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_orig", "_mask"))}
    for name in tensors:
        plain = name.removesuffix("_orig").removesuffix("_mask")
        if plain != name and plain not in done:
            weight, mask = tensors.get(f"{plain}_orig"), tensors.get(f"{plain}_mask")
            if weight is None or mask is None or weight.shape != mask.shape:
                raise WeightsError(f"The pruned weight '{plain}' must be stored with a mask of its shape, and is not.")
            done[plain] = torch.where(mask == 0, torch.zeros_like(weight), weight * mask.to(weight.dtype))
    return done


def is_trained(twin: Tensors) -> bool:
    """Whether a moving average was ever updated: it is there, and no convolution of it is 0 to two decimals throughout."""
    kernels = [tensor for name, tensor in folded(twin).items() if name.endswith(".weight") and tensor.ndim == 5]
    return bool(kernels) and all(bool((kernel.float().mul(100).round() != 0).any()) for kernel in kernels)


def sparsity(tensors: Tensors) -> float:
    """The share of zeros among the weights of a decoder's convolutions."""
    kernels = [tensor for tensor in tensors.values() if tensor.ndim == 5]
    return 1 - sum(int((kernel != 0).sum()) for kernel in kernels) / max(1, sum(kernel.numel() for kernel in kernels))


def support_tensors(tensors: Tensors, head: str, stages: int) -> Tensors:
    """Theirs count from full resolution, ours from the bottleneck; they have one gate for all."""
    named = {}
    for name, tensor in tensors.items():
        match = _SUPPORT.fullmatch(name)
        if match:
            named[f"support.{stages - 1 - int(match[1])}.{_SUPPORT_NAMES[match[2]]}.{match[3]}"] = tensor
        elif name == "support_gate":
            named |= {f"support.{stage}.gate": tensor.reshape(()).clone() for stage in range(stages)}
        else:
            raise WeightsError(f"The support of head '{head}' holds '{name}', which no support of May 2025 has.")
    return named


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPERS * 2:
        name = name.removeprefix(prefix)
    return name
