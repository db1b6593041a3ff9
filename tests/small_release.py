"""A miniature of the release of CL-Net's authors: random networks of ours, written under their names into their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter

STRIDES = ((1, 2, 2), (2, 2, 2))
PATCH = (8, 16, 16)
TRAINER = "clNetTrainerV2_SelectiveChannelDA_Continual_Decoding_Ensemble__clNetPlans"
AUTHORS = "/data/authors/clnet/results/clNet/3d_fullres"  # a folder that exists nowhere here

ENCODER = EncoderSpec(
    (Level(2, (1, 1, 1), (1, 3, 3), 2), Level(4, STRIDES[0], (3, 3, 3), 2), Level(8, STRIDES[1], (3, 3, 3), 2)),
    Grid("SPL", (2.5, 1.5, 1.5), PATCH),
    Intensity(-200.0, 300.0, 20.0, 100.0),
)

Tensors = dict[str, torch.Tensor]


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(ENCODER).eval().requires_grad_(False)


def decoder(labels: tuple[str, ...], *, convs: int = 2, supporters: tuple[Supporter, ...] = (), seed: int = 1, last_activation: bool = False) -> Decoder:
    torch.manual_seed(seed)
    stages = tuple(Stage(width, (width,) * convs, (3, 3, 3)) for width in (4, 2))
    spec = DecoderSpec(stages, labels, last_activation, supporters, mismatch="crop", support_bias=True)
    return Decoder(spec, ENCODER).eval().requires_grad_(False)


def foreign_encoder(network: Encoder) -> Tensors:
    """Their names: the deepest level is a pair of stacks, the last convolution alone in the second."""
    named = {}
    for name, tensor in network.state_dict().items():
        _, level, place, kind, what = name.split(".")
        stack = {"0": "0.blocks.0", "1": "1.blocks.0"}[place] if int(level) == len(ENCODER.levels) - 1 else f"blocks.{place}"
        named[f"encoder.conv_blocks_context.{level}.{stack}.{_theirs(kind)}.{what}"] = tensor
    return named


def foreign_decoder(network: Decoder, head: str, *, prefix: str = "decoder_dict", masks: Mapping[str, torch.Tensor] | None = None) -> Tensors:
    """Their names, with masks of ones beside every weight of a convolution; `masks` (by our names) replace those. None: dense."""
    last = {u: len(stage.convs) - 1 for u, stage in enumerate(network.spec.stages)}
    named = {}
    for name, tensor in network.state_dict().items():
        role, u, *rest = name.split(".")
        if role == "support":
            continue
        if role == "convs":
            place, kind, what = rest
            stack = "1.blocks.0" if int(place) == last[int(u)] > 0 else f"0.blocks.{place}"
            plain = f"{prefix}.{head}.conv_blocks_localization.{u}.{stack}.{_theirs(kind)}.{what}"
        else:
            plain = f"{prefix}.{head}.{'tu' if role == 'ups' else 'seg_outputs'}.{u}.weight"
        if tensor.ndim == 5:
            named[f"{plain}_orig"] = tensor
            named[f"{plain}_mask"] = (masks or {}).get(name, torch.ones_like(tensor))
        else:
            named[plain] = tensor
    return named


def foreign_support(network: Decoder, head: str) -> Tensors:
    """Their names: counted from full resolution, one gate; whole decoders are repeated among them."""
    stages = len(network.spec.stages)
    names = {"mix.conv": "0.conv", "mix.norm": "0.instnorm", "head": "1.conv"}
    named = {f"supporting_dict.{head}.decoder_dict.Eyes.tu.0.weight_orig": torch.zeros(1)}
    for name, tensor in network.state_dict().items():
        if not name.startswith("support."):
            continue
        _, u, rest = name.split(".", 2)
        if rest == "gate":
            named[f"supporting_dict.{head}.support_gate"] = tensor
        else:
            part, what = rest.rsplit(".", 1)
            named[f"supporting_dict.{head}.to_support.{stages - 1 - int(u)}.{names[part]}.{what}"] = tensor
    return named


def _theirs(kind: str) -> str:
    return "conv" if kind == "conv" else "instnorm"


# ---- folders ----------------------------------------------------------------------------------------------------------


def plans(spacing: tuple[float, ...] = (3.0, 1.5, 1.5), classes: int = 3, **changes: Any) -> dict[str, Any]:
    hu = {"mean": 20.0, "sd": 100.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0, "median": 1.0}
    stage = {"current_spacing": list(spacing), "patch_size": list(PATCH), "pool_op_kernel_sizes": [list(s) for s in STRIDES]}
    return {
        "plans_per_stage": {"0": stage},
        "dataset_properties": {"intensityproperties": {"0": hu}},
        "normalization_schemes": {"0": "CT"},
        "use_mask_for_norm": {"0": False},
        "num_modalities": 1,
        "num_classes": classes,
        "transpose_forward": [0, 1, 2],
        **changes,
    }


def organ(name: str, low: float = 30.0, high: float = 50.0) -> dict[str, Any]:
    """Scores of an organ: percentiles `low` and `high`, extremes 2 beyond, mean extent 8 ± 1."""
    return {"name": name, "percentile_00_5": low, "percentile_99_5": high, "mn": low - 2, "mx": high + 2, "mean": 8.0, "sd": 1.0, "median": 8.0}


class Release:
    """Everything a test may change before it `write`s: the configuration by task, plans, organs and tensors."""

    def __init__(self) -> None:
        self.encoder = encoder()
        self.networks = {"Trunk": decoder(("Organ_A", "liver"), seed=1), "Ribs": decoder(("Bone_R",), convs=3, seed=2)}
        self.networks["Eyes"] = decoder(("eye_left", "eye_right"), convs=1, seed=3)
        self.networks["Lens"] = decoder(("Lens",), supporters=(Supporter("Eyes", ("eye_left", "eye_right"), "0" * 64),), seed=4)
        self.config = {
            "GeneralEncoder": _settings("Task001_Root", type="GeneralEncoder", train_order=0, decoders={}),
            "MiniB": _settings("Task102_B", train_order=3, fold=0, decoders={"Eyes": [1, 2], "Lens": 3}, supporting={"Lens": ["Eyes"]}),
            "MiniA": _settings("Task101_A", train_order=2, decoders={"Trunk": [1, 2], "Ribs": 3}),
        }
        self.plans = {"GeneralEncoder": plans((2.5, 1.5, 1.5)), "MiniA": plans(), "MiniB": plans((2.0, 1.25, 1.25))}
        self.organs = {
            "MiniA": {"1": organ("Organ_A"), "2": organ("Liver", 20, 40), "3": organ("Bone_R")},
            "MiniB": {"1": organ("Eye_L", 90, 95), "2": organ("Eye_R", 90, 95), "3": organ("Lens", 91, 94)},
        }
        root = foreign_encoder(self.encoder)
        self.states: dict[str, Tensors] = {
            "GeneralEncoder": root | foreign_decoder(self.networks["Trunk"], "totalseg"),
            "MiniA": root | self._head("Trunk") | self._head("Ribs") | foreign_decoder(decoder(("x",), seed=9), "Eyes"),
            "MiniB": root | self._head("Eyes") | self._head("Lens") | foreign_support(self.networks["Lens"], "Lens"),
        }
        self.beside: dict[str, dict[str, Any]] = {}  # what else is in a checkpoint

    def _head(self, name: str) -> Tensors:
        return foreign_decoder(self.networks[name], name)

    def folder(self, base: Path, key: str) -> Path:
        return base / "results" / "clNet" / "3d_fullres" / self.config[key]["task"] / TRAINER

    def checkpoint(self, base: Path, key: str) -> Path:
        fold = self.config[key].get("fold", "all")
        return self.folder(base, key) / (fold if fold == "all" else f"fold_{fold}") / "model_final_checkpoint.model"

    def write(self, base: Path) -> Path:
        """All files below `base`, which is returned."""
        for key in self.config:
            path = self.checkpoint(base, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"epoch": 4, **self.beside.get(key, {}), "state_dict": self.states[key]}, path)
            if key in self.plans:
                (self.folder(base, key) / "plans.json").write_text(json.dumps(self.plans[key]))
            if key in self.organs:
                (self.folder(base, key) / "bpr_scores.json").write_text(json.dumps(self.organs[key]))
        (base / "all_pred_cleaned.json").write_text(json.dumps(self.config))
        return base


def _settings(task: str, **more: Any) -> dict[str, Any]:
    more.setdefault("type", "DecodingEnsemble")
    name = {"output_folder_name": f"{AUTHORS}/{task}/{TRAINER}", "pretrain_model_name": "model_final_checkpoint.model"}
    return {"task": task, "stage": 0, "fold": "all", **name, "supporting": {}, "decoder_architecture_setup": {}, "model_training_setup": {}, **more}
