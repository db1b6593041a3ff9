"""Synthesis: CTs made from label maps, anew for every patch.

SynthSeg's idea (Billot et al., Medical Image Analysis 2023;86:102789) for CT: what a
network learns from shapes of a few people and tissue of any kind holds for scans that
nobody labelled.

    tissues.csv      HU of every tissue, per contrast phase, with its source
    structures.csv   which tissues a structure is made of, and what lies around it
    tables           reads both, and draws one patch's HU per structure
    atlas            a label map, completed: nearest structure, distances to borders, outline of the body
    deform           smooth displacements, swollen and shrunk organs
    fields           smooth random fields
    scene            the part of an atlas that a patch looks at, deformed
    paint            organs: shell and core, vessels, content of the bowel
    surround         what no label names: muscle wall, fat, skin, air, couch, arms
    scanner          noise, blur, streaks, cupping, metal

Everything follows from one random generator.  Air, fat, muscle and bone keep the HU that
they have on every scanner; what differs between people and phases is drawn from ranges.
"""

from __future__ import annotations

import numpy as np
import torch

from clseg.recipe import SynthesisRecipe
from clseg.training.synthesis.atlas import Atlas, build_atlas, resampled
from clseg.training.synthesis.paint import paint_organs
from clseg.training.synthesis.scanner import scan
from clseg.training.synthesis.scene import Pose, Scene, look
from clseg.training.synthesis.surround import surround
from clseg.training.synthesis.tables import draw_palette

__all__ = ["Atlas", "Pose", "Scene", "build_atlas", "look", "resampled", "synthesise"]


def synthesise(
    atlas: Atlas, pose: Pose, rule: SynthesisRecipe, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """HU float32 and structure ids uint8 (x, y, z) of one patch of a person who never was.

    Ids are those of `atlas.names`, from 1; 0 is no structure, 255 beyond the label map's ends.
    """
    inks, place, outside, inside, machine = rng.spawn(5)  # apart, so that a knob of one leaves the others alone
    palette = draw_palette(atlas.names, rule, inks)
    scene = look(atlas, pose, palette, rule, place)
    hu = paint_organs(scene, palette, surround(scene, palette, rule, outside), inside)
    return scan(scene, hu, palette, rule, machine), scene.ids
