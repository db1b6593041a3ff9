"""The state of a run on disk: everything needed to go on after a kill, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from clseg.errors import TrainingError
from clseg.io.files import writing
from clseg.training.average import Average


def save_state(path: Path, network: torch.nn.Module, optimiser: torch.optim.Optimizer, average: Average, done: int) -> None:
    """Write weights, optimiser moments, average and the number of iterations done, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.tensors.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"run": json.dumps({"done": done})})
    with writing(path) as file:
        file.write(data)


def load_state(path: Path, network: torch.nn.Module, optimiser: torch.optim.Optimizer, average: Average) -> int:
    """Restore what `save_state` wrote; returns the number of iterations done."""
    tensors, done = _read(path)
    try:
        network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    except RuntimeError as error:
        raise TrainingError(f"The saved run {path} was made with another recipe: {error}") from error
    average.tensors = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return done


def read_average(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The averaged weights of a saved run by name, and the number of iterations done."""
    tensors, done = _read(path, "average.")
    return {name[8:]: tensor for name, tensor in tensors.items()}, done


def _read(path: Path, prefix: str = "") -> tuple[dict[str, torch.Tensor], int]:
    """The tensors whose names begin with `prefix`, and the number of iterations done."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            done = json.loads((file.metadata() or {})["run"])["done"]
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}, done  # noqa: SIM118
    except (SafetensorError, KeyError, OSError) as error:
        raise TrainingError(f"The saved run {path} cannot be read: {error}.", tip="Train it again in a new folder.") from error
