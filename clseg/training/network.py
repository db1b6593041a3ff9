"""Encoder and decoders of a recipe as one trainable network."""

from __future__ import annotations

import torch
from torch import nn

from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage
from clseg.recipe import DecoderRecipe, Recipe


class Trainee(nn.Module):
    """One encoder and all decoders of a recipe, dense, with gradients."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = Encoder(encoder_spec(recipe))
        self.decoders = nn.ModuleDict({d.name: Decoder(decoder_spec(d), self.encoder.spec) for d in recipe.decoder})


def encoder_spec(recipe: Recipe) -> EncoderSpec:
    e, g = recipe.encoder, recipe.grid
    levels = tuple(
        Level(width, (stride,) * 3, (kernel,) * 3, convs)
        for width, stride, kernel, convs in zip(e.widths, e.strides, e.kernels, e.convs, strict=True)
    )
    return EncoderSpec(levels, Grid(g.orientation, g.spacing_mm, g.patch), Intensity(*vars(recipe.intensity).values()))


def decoder_spec(recipe: DecoderRecipe) -> DecoderSpec:
    stages = tuple(
        Stage(width, (width,) * convs, (kernel,) * 3)
        for width, kernel, convs in zip(recipe.widths, recipe.kernels, recipe.convs, strict=True)
    )
    return DecoderSpec(stages, recipe.labels)


def start_weights(trainee: Trainee, seed: int) -> None:
    """He initialisation for LeakyReLU 0.01, seeded; biases zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in trainee.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
