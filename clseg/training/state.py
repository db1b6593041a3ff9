"""The state of a stage on disk: everything needed to go on after a kill, as safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clseg.errors import TrainingError
from clseg.io.files import writing

if TYPE_CHECKING:
    from clseg.training.loop import Learner


def save_state(path: Path, learner: Learner, stage: str, done: int) -> None:
    """Write weights, optimiser moments, average and the number of iterations done, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {f"network.{k}": v for k, v in learner.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in learner.average.tensors.items()}
    for index, moments in learner.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    facts = {"stage": stage, "done": done, "scaler": learner.scaler.state_dict() if learner.scaler else None}
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata={"run": json.dumps(facts)})
    with writing(path) as file:
        file.write(data)


def load_state(path: Path, learner: Learner, stage: str) -> int:
    """Restore what `save_state` wrote for this stage; returns the iterations done, 0 when the state is another stage's."""
    facts = _facts(path)
    if facts.get("stage", "train") != stage:
        return 0
    tensors = _tensors(path)
    try:
        learner.network.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("network.")})
    except RuntimeError as error:
        raise TrainingError(f"The saved run {path} was made with another recipe: {error}") from error
    learner.average.tensors = {k[8:]: v.to(learner.device) for k, v in tensors.items() if k.startswith("average.")}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = tensor
    learner.optimiser.load_state_dict({"state": moments, "param_groups": learner.optimiser.state_dict()["param_groups"]})
    if learner.scaler and facts.get("scaler"):
        learner.scaler.load_state_dict(facts["scaler"])
    return facts["done"]


def read_average(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The averaged weights of a saved run by name, and the number of iterations done."""
    return {name[8:]: tensor for name, tensor in _tensors(path, "average.").items()}, _facts(path)["done"]


def _facts(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return json.loads((file.metadata() or {})["run"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error


def _tensors(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(f"The saved run {path} cannot be read: {error}.", tip="Train it again in a new folder.")
