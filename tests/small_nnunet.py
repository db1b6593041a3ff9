"""A miniature nnU-Net v2: model folders of a few KB with random weights, and the network computed anew from its tensors.

Two levels of 4 and 6 channels; the second halves the last two axes.  Written after the
description of the format, not with clseg: `logits` is the reference that clseg must meet.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

LABELS = {"background": 0, "liver": 1, "spleen": 2}
PATCH = (8, 8, 8)
FACTS = {"mean": 10.0, "std": 200.0, "percentile_00_5": -900.0, "percentile_99_5": 700.0, "median": 30.0, "min": -1000.0, "max": 900.0}
RESAMPLING = {"force_separate_z": None, "order_z": 0}


def dataset(**changes: Any) -> dict[str, Any]:
    """dataset.json."""
    return {"channel_names": {"0": "CT"}, "labels": dict(LABELS), "numTraining": 2, "file_ending": ".nii.gz", **changes}


def plans(kind: str = "plain", *, old: bool = False, bias: bool = True, **settings: Any) -> dict[str, Any]:
    """plans.json with the one configuration 3d_fullres; `settings` change it."""
    name = {"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}[kind]
    configuration = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(PATCH),
        "spacing": [6.0, 6.0, 6.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **RESAMPLING},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **RESAMPLING},
        **(_old_architecture(name) if old else {"architecture": _architecture(name, kind, bias)}),
    }
    return {
        "dataset_name": "Dataset007_Mini",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": dict(FACTS)},
        "configurations": {"3d_fullres": {**configuration, **settings}},
    }


def _architecture(name: str, kind: str, bias: bool) -> dict[str, Any]:
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": 2,
            "features_per_stage": [4, 6],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2]],
            {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}[kind]: [1, 2],
            "n_conv_per_stage_decoder": [2],
            "conv_bias": bias,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _old_architecture(name: str) -> dict[str, Any]:
    return {
        "UNet_class_name": name,
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 2],
        "n_conv_per_stage_decoder": [2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3]],
    }


def weights(kind: str = "plain", *, seed: int = 0, bias: bool = True, classes: int = len(LABELS)) -> OrderedDict[str, torch.Tensor]:
    """The tensors of `network_weights` with their second names, as nnU-Net saves them."""
    random = torch.Generator().manual_seed(seed)
    found: OrderedDict[str, torch.Tensor] = OrderedDict()

    def put(name: str, *shape: int) -> None:
        found[name] = torch.randn(*shape, generator=random) * 0.4 + (1.0 if name.endswith("norm.weight") else 0.0)

    def conv(name: str, outputs: int, inputs: int, kernel: tuple[int, ...], with_bias: bool = bias) -> None:
        put(f"{name}.conv.weight", outputs, inputs, *kernel)
        if with_bias:
            put(f"{name}.conv.bias", outputs)
        put(f"{name}.norm.weight", outputs)
        put(f"{name}.norm.bias", outputs)
        for part in ("weight", "bias"):
            found[f"{name}.all_modules.1.{part}"] = found[f"{name}.norm.{part}"]
        found[f"{name}.all_modules.0.weight"] = found[f"{name}.conv.weight"]

    thin, full = (1, 3, 3), (3, 3, 3)
    if kind == "plain":
        conv("encoder.stages.0.0.convs.0", 4, 1, thin)
        conv("encoder.stages.1.0.convs.0", 6, 4, full)
        conv("encoder.stages.1.0.convs.1", 6, 6, full)
    else:
        conv("encoder.stem.convs.0", 4, 1, thin)
        for half in ("conv1", "conv2"):
            conv(f"encoder.stages.0.blocks.0.{half}", 4, 4, thin)
        conv("encoder.stages.1.blocks.0.conv1", 6, 4, full)
        conv("encoder.stages.1.blocks.0.conv2", 6, 6, full)
        conv("encoder.stages.1.blocks.0.skip.1", 6, 4, (1, 1, 1), with_bias=False)
        for half in ("conv1", "conv2"):
            conv(f"encoder.stages.1.blocks.1.{half}", 6, 6, full)
    for name in [name for name in found if name.startswith("encoder.")]:
        found[f"decoder.{name}"] = found[name]
    put("decoder.transpconvs.0.weight", 6, 4, 1, 2, 2)
    if bias:
        put("decoder.transpconvs.0.bias", 4)
    conv("decoder.stages.0.convs.0", 4, 8, thin)
    conv("decoder.stages.0.convs.1", 4, 4, thin)
    put("decoder.seg_layers.0.weight", classes, 4, 1, 1, 1)
    put("decoder.seg_layers.0.bias", classes)
    return found


def logits(tensors: OrderedDict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The network of `weights` on an image (z, y, x): logits (classes, z, y, x)."""

    def conv(name: str, x: torch.Tensor, stride: tuple[int, ...] = (1, 1, 1), act: bool = True) -> torch.Tensor:
        kernel = tensors[f"{name}.conv.weight"]
        x = F.conv3d(x, kernel, tensors.get(f"{name}.conv.bias"), stride, [n // 2 for n in kernel.shape[2:]])
        x = F.instance_norm(x, weight=tensors[f"{name}.norm.weight"], bias=tensors[f"{name}.norm.bias"], eps=1e-5)
        return F.leaky_relu(x, 0.01) if act else x

    def block(name: str, x: torch.Tensor, stride: tuple[int, ...] = (1, 1, 1)) -> torch.Tensor:
        inner = conv(f"{name}.conv2", conv(f"{name}.conv1", x, stride), act=False)
        short = F.avg_pool3d(x, stride, stride) if stride != (1, 1, 1) else x
        if f"{name}.skip.1.conv.weight" in tensors:
            short = conv(f"{name}.skip.1", short, act=False)
        return F.leaky_relu(inner + short, 0.01)

    x, half = image[None, None].float(), (1, 2, 2)
    if "encoder.stem.convs.0.conv.weight" in tensors:
        skip = block("encoder.stages.0.blocks.0", conv("encoder.stem.convs.0", x))
        deep = block("encoder.stages.1.blocks.1", block("encoder.stages.1.blocks.0", skip, half))
    else:
        skip = conv("encoder.stages.0.0.convs.0", x)
        deep = conv("encoder.stages.1.0.convs.1", conv("encoder.stages.1.0.convs.0", skip, half))
    up = F.conv_transpose3d(deep, tensors["decoder.transpconvs.0.weight"], tensors.get("decoder.transpconvs.0.bias"), half)
    x = torch.cat([up, skip], dim=1)
    x = conv("decoder.stages.0.convs.1", conv("decoder.stages.0.convs.0", x))
    return F.conv3d(x, tensors["decoder.seg_layers.0.weight"], tensors["decoder.seg_layers.0.bias"])[0]


def write_model(
    folder: Path,
    kind: str = "plain",
    *,
    folds: tuple[str, ...] = ("fold_0",),
    facts: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    configuration: str = "3d_fullres",
    mirror: tuple[int, ...] | None = (0, 1, 2),
    seed: int = 0,
    name: str = "checkpoint_final.pth",
) -> Path:
    """A model folder `nnUNetTrainer__nnUNetPlans__<configuration>` in `folder`; fold i has the weights of `seed` + i."""
    home = folder / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    home.mkdir(parents=True)
    facts, plan = facts or dataset(), plan or plans(kind)
    (home / "dataset.json").write_text(json.dumps(facts))
    (home / "plans.json").write_text(json.dumps(plan))
    classes = len([label for label in facts["labels"] if label != "ignore"])
    for index, fold in enumerate(folds):
        (home / fold).mkdir()
        torch.save(checkpoint(weights(kind, seed=seed + index, classes=classes), configuration, mirror), home / fold / name)
    return home


def checkpoint(tensors: OrderedDict[str, torch.Tensor], configuration: str = "3d_fullres", mirror: tuple[int, ...] | None = None) -> dict[str, Any]:
    """What checkpoint_final.pth holds, with the numbers and objects that a trainer leaves in it."""
    return {
        "network_weights": copy.copy(tensors),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {"configuration": configuration, "fold": 0, "device": torch.device("cuda", 0)},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirror,
    }
