"""Recipe: every knob of a training run, one tree of dataclasses per command, read from TOML.

| command                | recipe           |
|------------------------|------------------|
| `clseg train`          | `Recipe`         |
| `clseg learn`          | `LearnRecipe`    |
| `clseg update`         | `UpdateRecipe`   |
| `clseg prune`          | `PruneRecipe`    |
| `clseg bodypart train` | `BodypartRecipe` |

Unknown keys are refused, so that a typo never trains the wrong thing.  Lengths are in
mm, intensities in HU, angles in degrees.  `template` prints a commented recipe.
"""

from __future__ import annotations

from clseg.recipe.bodypart import BodypartRecipe
from clseg.recipe.commands import LearnRecipe, PruneRecipe, Recipe, UpdateRecipe
from clseg.recipe.kind import likeliest_kind
from clseg.recipe.parts import (
    AugmentRecipe,
    DatasetRecipe,
    DecoderRecipe,
    EncoderRecipe,
    GridRecipe,
    IntensityRecipe,
    LadderRecipe,
    OptimRecipe,
    SupportRecipe,
    SynthesisRecipe,
    ValidationRecipe,
)
from clseg.recipe.reader import from_dict, read_recipe, to_dict
from clseg.recipe.template import KINDS, template

__all__ = [
    "KINDS",
    "AugmentRecipe",
    "BodypartRecipe",
    "DatasetRecipe",
    "DecoderRecipe",
    "EncoderRecipe",
    "GridRecipe",
    "IntensityRecipe",
    "LadderRecipe",
    "LearnRecipe",
    "OptimRecipe",
    "PruneRecipe",
    "Recipe",
    "SupportRecipe",
    "SynthesisRecipe",
    "UpdateRecipe",
    "ValidationRecipe",
    "from_dict",
    "likeliest_kind",
    "read_recipe",
    "template",
    "to_dict",
]
