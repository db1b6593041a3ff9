"""Ticket: which weights of a decoder live (lottery-ticket pruning, unstructured, global L1; clnet's late rewinding).

Only the weights of Conv3d and ConvTranspose3d count, heads included; biases,
norms and the gates of support heads are never pruned.  One rung of the ladder:

    ticket = global_l1(decoder, ticket, amount)      # by the weights as they are now
    decoder.load_state_dict(trained)                 # late rewinding: not to the random start
    with ticket.held(decoder, optimiser):            # pruned weights are exactly zero after every step
        ...                                          # one epoch on the survivors
    ticket.apply_to(average.tensors)

Frankle & Carbin, "The Lottery Ticket Hypothesis", arXiv 1803.03635; late
rewinding: Frankle et al., arXiv 1912.05671; the ladder: arXiv 2503.12698.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from clseg.errors import RecipeError, TrainingError


@dataclass(frozen=True)
class Ticket:
    """Per convolution weight, by name, a bool tensor of its shape: True lives, False is zero for ever."""

    masks: Mapping[str, torch.Tensor]

    @classmethod
    def dense(cls, module: nn.Module) -> Ticket:
        """The ticket with which everything lives."""
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(module).items()})

    @classmethod
    def of(cls, module: nn.Module) -> Ticket:
        """The ticket that a pruned network carries in its weights: what is zero is dead."""
        return cls({name: weight.detach() != 0 for name, weight in prunable(module).items()})

    @property
    def total(self) -> int:
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def alive(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @torch.no_grad()
    def apply_(self, module: nn.Module) -> None:
        """Set the dead weights of `module` to zero, in place; TrainingError when the ticket is another network's."""
        weights = prunable(module)
        self._refuse_other(weights)
        for name, weight in weights.items():
            _zero_outside(weight, self.masks[name])

    @torch.no_grad()
    def apply_to(self, tensors: MutableMapping[str, torch.Tensor], *, prefix: str = "") -> None:
        """The same for weights by name, such as an average's; `prefix` stands before the names there."""
        mine = {name: tensors[prefix + name] for name in self.masks if prefix + name in tensors}
        self._refuse_other(mine)
        for name, tensor in mine.items():
            _zero_outside(tensor, self.masks[name])

    @contextmanager
    def held(self, module: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, dead weights of `module` stay exactly zero, whatever the optimiser does.

        Their gradients are zero before anyone sees them (so that clipping by norm
        looks at survivors alone), their moments are cleared at the start, and after
        each step they are set to zero again: AdamW moves by momentum too.
        """
        self.apply_(module)
        weights = prunable(module)
        for name, weight in weights.items():
            _forget_moments(optimiser, weight, self.masks[name])
        handles = [w.register_hook(_masked(self.masks[n])) for n, w in weights.items() if w.requires_grad]
        handles.append(optimiser.register_step_post_hook(lambda *_: self.apply_(module)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _refuse_other(self, weights: Mapping[str, torch.Tensor]) -> None:
        wanted = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        given = {name: tuple(weight.shape) for name, weight in weights.items()}
        odd = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        if odd:
            told = f"The ticket's '{odd[0]}' is {wanted.get(odd[0])}, the network's is {given.get(odd[0])}"
            raise TrainingError(f"{told}: they belong to different networks.", tip="A network made smaller needs a new ticket.")


def prunable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that pruning looks at, by name: of every Conv3d and ConvTranspose3d, in the module's own order."""
    kinds = (nn.Conv3d, nn.ConvTranspose3d)
    return {f"{name}.weight": part.weight for name, part in module.named_modules() if isinstance(part, kinds)}


@torch.no_grad()
def global_l1(module: nn.Module, ticket: Ticket, amount: float) -> Ticket:
    """Kill the `amount` (share of those alive, rounded to whole weights) with the smallest |w| over all layers together.

    Of equal weights the one that comes first (in the order of `prunable`, then in
    memory) dies first.  Raises TrainingError when a weight is not a number.
    """
    if not 0 <= amount <= 1:
        raise RecipeError(f"A pruning amount is a share from 0 to 1, given {amount}.")
    weights = prunable(module)
    ticket._refuse_other(weights)
    alive = torch.cat([ticket.masks[name].flatten() for name in weights])
    sizes = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    if not bool(sizes.isfinite().all()):
        raise TrainingError("A weight of the network is not a number, so weights cannot be ranked by size.")

    places = alive.nonzero().flatten()
    order = torch.sort(sizes[places], stable=True).indices
    alive[places[order[: round(amount * len(places))]]] = False
    parts = alive.split([weight.numel() for weight in weights.values()])
    return Ticket({name: part.view(weight.shape).clone() for (name, weight), part in zip(weights.items(), parts, strict=True)})


def ladder(targets: Sequence[float]) -> tuple[float, ...]:
    """Amounts of those still alive that lead to `targets` (sparsities) in turn: a₀ = p₀, aᵢ = 1 − (1−pᵢ)/(1−pᵢ₋₁).

    Raises RecipeError unless the targets rise between 0 and 1.
    """
    before = (0.0, *targets[:-1])
    if not all(p < q < 1 for p, q in zip(before, targets, strict=True)):
        raise RecipeError(f"Pruning targets rise from above 0 to below 1, given {', '.join(map(str, targets))}.")
    return tuple(1 - (1 - q) / (1 - p) for p, q in zip(before, targets, strict=True))


def sparsity(ticket: Ticket) -> float:
    """Share of the ticket's weights that are dead."""
    return 1 - ticket.alive / ticket.total


def nonzero(module: nn.Module) -> int:
    """Number of convolution weights that are not zero: what `tau` compares."""
    return sum(int(torch.count_nonzero(weight)) for weight in prunable(module).values())


def tau(dense_nonzero: int, now_nonzero: int) -> float:
    """The paper's pruning rate: share of the dense network's non-zero convolution weights that is gone."""
    if not 0 <= now_nonzero <= dense_nonzero or dense_nonzero == 0:
        raise TrainingError(f"A pruned network has at most the weights of the dense one, given {now_nonzero} of {dense_nonzero}.")
    return 1 - now_nonzero / dense_nonzero


def _zero_outside(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    tensor.masked_fill_(~mask.to(tensor.device), 0)  # not a product: 0 · inf is no zero, and -1 · 0 is a negative one


def _masked(mask: torch.Tensor):
    return lambda gradient: gradient.masked_fill(~mask.to(gradient.device), 0)


def _forget_moments(optimiser: torch.optim.Optimizer, weight: nn.Parameter, mask: torch.Tensor) -> None:
    for moment in optimiser.state.get(weight, {}).values():
        if isinstance(moment, torch.Tensor) and moment.shape == weight.shape:
            _zero_outside(moment, mask)
