"""Networks: models with random weights of realistic size, as nnU-Net v2 stores them and as clseg does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clseg.network.spec import (
    DecoderSpec,
    EncoderSpec,
    Grid,
    Intensity,
    Level,
    Stage,
    joins,
    paper_decoder,
    paper_encoder,
)

FACTS = {"mean": -150.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0, "median": 0.0, "min": -1024.0, "max": 3000.0}
INTENSITY = Intensity(-1000.0, 1000.0, -150.0, 400.0)
THINNER = 4  # a pruned decoder has a quarter of the channels of the dense one, in every layer: 94 % of the weights are gone
CLASSES = (24, 26, 18, 23, 26)  # of TotalSegmentator's five parts


@dataclass(frozen=True)
class Kind:
    """The form of an nnU-Net: window in voxels (z, y, x), spacing in mm, channels a stage."""

    patch: tuple[int, int, int]
    spacing_mm: float
    widths: tuple[int, ...]


KINDS = {
    "tiny": Kind((32, 32, 32), 6.0, (8, 16, 32)),
    "fast": Kind((112, 112, 128), 3.0, (32, 64, 128, 256, 320, 320)),  # the form of TotalSegmentator's model of 3 mm
    "fine": Kind((128, 128, 128), 1.5, (32, 64, 128, 256, 320, 320)),  # the form of its parts of 1.5 mm
}


def write_plans(folder: Path, kind: Kind, labels: Sequence[str], reader: str = "SimpleITKIO") -> None:
    """plans.json and dataset.json of nnU-Net v2, which reads scans with `reader`; `nnunet_side.py make` adds the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"background": 0, **{label: number for number, label in enumerate(labels, 1)}}
    facts = {"channel_names": {"0": "CT"}, "labels": numbers, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1))
    (folder / "plans.json").write_text(json.dumps(_plans(kind, reader), indent=1))


def _plans(kind: Kind, reader: str) -> dict[str, Any]:
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(kind.patch),
        "spacing": [kind.spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": _architecture(kind),
        "batch_dice": False,
    }
    for name, order in (("data", 3), ("seg", 1), ("probabilities", 1)):
        rule = {"is_seg": name == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration |= {f"resampling_fn_{name}": "resample_data_or_seg_to_shape", f"resampling_fn_{name}_kwargs": rule}
    return {
        "dataset_name": "Dataset900_Race",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": FACTS},
        "configurations": {"3d_fullres": configuration},
    }


def _strides(kind: Kind) -> list[list[int]]:
    """The steps of every stage: an axis is halved as long as that comes out and four voxels are left, as nnU-Net plans it."""
    size, strides = list(kind.patch), [[1, 1, 1]]
    for _ in kind.widths[1:]:
        strides.append([2 if n % 2 == 0 and n >= 8 else 1 for n in size])
        size = [n // step for n, step in zip(size, strides[-1], strict=True)]
    return strides


def _architecture(kind: Kind) -> dict[str, Any]:
    stages = len(kind.widths)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(kind.widths),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": _strides(kind),
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


# --- one encoder and its decoders


def encoder_like(shape: str) -> EncoderSpec:
    """The paper's general encoder at 3 mm with windows of 128 × 96 × 112 voxels; "tiny" is a toy for trying the program."""
    if shape == "tiny":
        levels = (Level(8, (1, 1, 1), (3, 3, 3), 2), Level(16, (2, 2, 2), (3, 3, 3), 2), Level(32, (2, 2, 2), (3, 3, 3), 2))
        return EncoderSpec(levels, Grid("RAS", (6.0, 6.0, 6.0), (32, 32, 32)), INTENSITY)
    return paper_encoder(Grid("RAS", (3.0, 3.0, 3.0), (128, 96, 112)), INTENSITY)


def dense_decoder(encoder: EncoderSpec, labels: tuple[str, ...]) -> DecoderSpec:
    """As wide as the encoder's levels, as the paper's decoders are before they are pruned."""
    if len(encoder.levels) == 6:
        return replace(paper_decoder(labels), bias=True)
    widths = [level.width for level in encoder.levels[-2::-1]]
    return DecoderSpec(tuple(Stage(w, (w, w), (3, 3, 3)) for w in widths), labels, bias=True)


def pruned_decoder(encoder: EncoderSpec, labels: tuple[str, ...]) -> DecoderSpec:
    """The dense one with 1/THINNER of the channels of every layer and of every skip: physically small."""
    dense = dense_decoder(encoder, labels)
    read = [tuple(range(0, join.skip, THINNER)) for join in joins(dense, encoder)]
    stages = [Stage(one.up // THINNER, tuple(w // THINNER for w in one.convs), one.kernel, skip) for one, skip in zip(dense.stages, read, strict=True)]
    return replace(dense, stages=tuple(stages))


def structures(decoder: int, count: int = 3) -> tuple[str, ...]:
    """Names of the structures of one of several decoders, 1, 2, …"""
    return tuple(f"race_{decoder}_{number:02d}" for number in range(1, count + 1))


def weight_count(decoder: DecoderSpec, encoder: EncoderSpec) -> int:
    """Weights of all convolutions, which is what pruning counts (τ of the paper)."""
    import torch

    from clseg.network.decoder import Decoder

    with torch.device("meta"):
        return sum(one.numel() for one in Decoder(decoder, encoder).parameters() if one.ndim == 5)


def install_decoders(model: str, encoder: EncoderSpec, decoders: Sequence[DecoderSpec], home: Path) -> None:
    """A model of random weights in the folder `home`, one seed a decoder."""
    import torch

    from clseg.network.checkpoint import Checkpoint, fingerprint
    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder
    from clseg.weights.importers.install import Part, install

    torch.manual_seed(0)
    root = Checkpoint("encoder", encoder, Encoder(encoder).state_dict())
    key, parts = fingerprint(root.tensors, encoder), [Part("encoder", root)]
    for number, spec in enumerate(decoders, 1):
        torch.manual_seed(number)
        weights = _sure(Decoder(spec, encoder)).state_dict()
        parts.append(Part(f"decoder{number}", Checkpoint("decoder", spec, weights, key), ("encoder",)))
    install(model, parts, description="random weights for a benchmark", home=home)


def _sure(decoder: Any) -> Any:
    """As sure of itself as a trained one, with most voxels background; at first it would claim every voxel a little."""
    import torch

    with torch.no_grad():
        for head in decoder.heads:
            head.weight *= 6
            head.bias[0] += 5
    return decoder
