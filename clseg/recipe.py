"""Recipe: every knob of a training run, one tree of dataclasses read from TOML.

Unknown keys are refused, so that a typo never trains the wrong thing.  Lengths
are in mm, intensities in HU, angles in degrees.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clseg.errors import RecipeError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class GridRecipe:
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    patch: Triple = (80, 80, 80)
    orientation: str = "RAS"


@dataclass(frozen=True)
class IntensityRecipe:
    """Clip and z-score; the defaults are CL-Net's (arXiv 2503.12698)."""

    low_hu: float = -995.0
    high_hu: float = 1265.0
    mean_hu: float = -187.85
    sd_hu: float = 490.71


@dataclass(frozen=True)
class EncoderRecipe:
    """One entry per level, full resolution first."""

    widths: tuple[int, ...] = (8, 32, 64, 128, 192)
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    kernels: tuple[int, ...] = (3, 3, 3, 3, 3)
    convs: tuple[int, ...] = (1, 2, 2, 2, 2)


@dataclass(frozen=True)
class DecoderRecipe:
    """One organ family. `widths`, `kernels` and `convs` have one entry per stage, bottleneck first.

    `open_ends` names structures that datasets contour only in part along z and the
    end at which they stop early ('inferior', 'superior' or 'both'): unlabelled
    voxels beyond that end are left out of the loss.  An `experimental` decoder is
    listed under `<recipe name>_experimental`, so that nobody gets it by default.
    """

    name: str
    labels: tuple[str, ...]
    widths: tuple[int, ...] = (64, 32, 16, 8)
    kernels: tuple[int, ...] = (3, 3, 3, 1)
    convs: tuple[int, ...] = (2, 2, 2, 1)
    open_ends: dict[str, str] = field(default_factory=dict)
    experimental: bool = False


@dataclass(frozen=True)
class DatasetRecipe:
    """Cases with the same kind of labels, one folder each.

    `index` is a CSV with columns `case` (folder beside the CSV) and `split`;
    `cases` are glob patterns over `case`.  Every folder holds `ct` and may hold a
    label map `labels` with its name → id JSON beside it (`labels.json`), and
    `masks`: structure = 'file' or 'file:value'.  A structure is annotated in a case
    when the label map has voxels of it or the mask's file is there.  `absent` lists
    structures that cannot be in view in any of these cases: they are true
    background there.  `absent_above` maps a structure to a landmark structure: above
    the landmark's lowest slice it is true background, below nothing is known (no lung
    lies above the lower edge of the mandible).  `weight` is the share of samples
    drawn from this dataset.
    """

    name: str
    index: str
    cases: tuple[str, ...]
    weight: float = 1.0
    ct: str = "ct.nii.gz"
    labels: str = "labels.nii.gz"
    masks: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    absent_above: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    licence: str = ""


@dataclass(frozen=True)
class AugmentRecipe:
    """Ranges of random changes; a probability of 0 switches one off. No mirroring: left stays left."""

    rotation_deg: float = 15.0
    scale: tuple[float, float] = (0.8, 1.25)
    stretch: float = 0.08  # and each axis on its own by up to this share
    shift_hu: float = 30.0
    contrast: tuple[float, float] = (0.85, 1.15)
    noise_hu: float = 25.0
    noise_probability: float = 0.3
    blur_voxels: float = 1.0
    blur_probability: float = 0.2
    thick_slices_mm: tuple[float, float] = (4.0, 8.0)
    thick_slices_probability: float = 0.2
    clear_outside: str = "body"  # the decoder beyond whose labels everything may be set to air
    clear_outside_probability: float = 0.3


@dataclass(frozen=True)
class OptimRecipe:
    """AdamW, linear warm-up, polynomial decay; the exported weights are the exponential moving average."""

    iterations: int = 5000
    batch: int = 2
    rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: int = 200
    power: float = 0.9
    clip_norm: float = 12.0
    average: float = 0.998
    foreground: float = 0.75
    negatives: float = 0.15
    deep_supervision: int = 3
    precision: str = "bfloat16"
    checkpoint_every: int = 200


@dataclass(frozen=True)
class Recipe:
    name: str
    decoder: tuple[DecoderRecipe, ...]
    dataset: tuple[DatasetRecipe, ...]
    description: str = ""
    licence: str = ""
    seed: int = 0
    threads: int = 0
    split: str = "train"
    grid: GridRecipe = field(default_factory=GridRecipe)
    intensity: IntensityRecipe = field(default_factory=IntensityRecipe)
    encoder: EncoderRecipe = field(default_factory=EncoderRecipe)
    augment: AugmentRecipe = field(default_factory=AugmentRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    folder: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        _check(self)


def read_recipe(path: Path) -> Recipe:
    """Read a TOML recipe; relative paths in it are relative to its folder.

    Raises RecipeError with the key, what it holds and what was expected.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib

    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe at {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error}.") from error
    return from_dict(data, Path(path).resolve().parent)


def from_dict(data: dict[str, Any], folder: Path) -> Recipe:
    """A recipe from plain types; relative paths in it are relative to `folder`. Inverse of `to_dict`."""
    if "folder" in data:
        raise RecipeError("Unknown key 'folder' in the recipe.")
    return _build(Recipe, data, "recipe", folder=folder)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON types, without the folder it was read from."""
    import json

    data = dataclasses.asdict(recipe)
    data.pop("folder")
    return json.loads(json.dumps(data))


def _build(kind: Any, data: Any, where: str, **extra: Any) -> Any:
    """A dataclass of type `kind` out of a TOML table; every key and type is checked."""
    if not isinstance(data, dict):
        raise RecipeError(f"'{where}' must be a table, given {data!r}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise RecipeError(f"Unknown key '{unknown[0]}' in [{where}].", tip=f"Known keys: {', '.join(hints)}.")
    needed = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in data
    ]
    if needed:
        raise RecipeError(f"[{where}] lacks '{needed[0]}'.")
    return kind(**{k: _value(hints[k], v, f"{where}.{k}") for k, v in data.items()}, **extra)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise RecipeError(f"'{where}' must be a table of strings, given {value!r}.")
        return dict(value)
    if origin in (typing.Union, types.UnionType):
        return _value(arguments[0], value, where)
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"'{where}' must be {hint.__name__}, given {value!r}.")
    return float(value) if hint is float else value


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise RecipeError(f"'{where}' must be a list, given {value!r}.")
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if len(value) != len(arguments):
        raise RecipeError(f"'{where}' must have {len(arguments)} entries, given {value!r}.")
    return tuple(_value(a, v, where) for a, v in zip(arguments, value, strict=True))


def _check(recipe: Recipe) -> None:
    """What a schema cannot say: sizes that must agree and names that must be unique."""
    encoder = recipe.encoder
    levels = len(encoder.widths)
    if not levels == len(encoder.strides) == len(encoder.kernels) == len(encoder.convs) >= 2:
        raise RecipeError("[encoder] widths, strides, kernels and convs need one entry per level, at least two levels.")
    if min(*encoder.widths, *encoder.strides, *encoder.kernels, *encoder.convs, *recipe.grid.patch) < 1:
        raise RecipeError("[encoder] widths, strides, kernels and convs and the patch must be 1 or more.")
    stride = 1
    for s in encoder.strides:
        stride *= s
    if any(p % stride for p in recipe.grid.patch):
        raise RecipeError(f"The patch {recipe.grid.patch} must be divisible by the product of the strides, {stride}.")
    if max(recipe.grid.patch) == stride:
        raise RecipeError(f"The patch {recipe.grid.patch} must be larger than the product of the strides, {stride}.")
    if not recipe.decoder or not recipe.dataset:
        raise RecipeError("A recipe needs at least one [[decoder]] and one [[dataset]].")
    for kind, names in (("decoder", [d.name for d in recipe.decoder]), ("dataset", [d.name for d in recipe.dataset])):
        if len(set(names)) != len(names):
            raise RecipeError(f"Every {kind} needs a name of its own, given {names}.")
    weights = [d.weight for d in recipe.dataset]
    if min(weights) < 0 or max(weights) <= 0:
        raise RecipeError(f"Datasets need weights of 0 or more, at least one above 0, given {weights}.")
    for dataset in recipe.dataset:
        for name, source in dataset.masks.items():
            if not re.fullmatch(r"[^:]+(:\d+)?", source):
                raise RecipeError(f"masks.{name} of dataset '{dataset.name}' is 'file' or 'file:value', given '{source}'.")
    for decoder in recipe.decoder:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", decoder.name) or decoder.name == "encoder":
            raise RecipeError(
                f"A decoder's name becomes a file name: letters, digits, _ and -, but not 'encoder', given '{decoder.name}'."
            )
        if not decoder.labels or len(set(decoder.labels)) != len(decoder.labels):
            raise RecipeError(f"Decoder '{decoder.name}' needs labels, each once, given {list(decoder.labels)}.")
        if not len(decoder.widths) == len(decoder.kernels) == len(decoder.convs) == levels - 1:
            raise RecipeError(f"Decoder '{decoder.name}' needs {levels - 1} widths, kernels and convs, one per stage.")
        wrong = set(decoder.open_ends) - set(decoder.labels)
        if wrong or set(decoder.open_ends.values()) - {"inferior", "superior", "both"}:
            raise RecipeError(f"open_ends of decoder '{decoder.name}' must map its labels to inferior, superior or both.")
    along_z = [d.name for d in recipe.decoder if d.open_ends] + [d.name for d in recipe.dataset if d.absent_above]
    if along_z and not recipe.grid.orientation.endswith("S"):
        raise RecipeError(
            f"open_ends and absent_above (in '{along_z[0]}') need an orientation whose last axis points up, such as RAS, "
            f"given {recipe.grid.orientation}."
        )
    if recipe.optim.precision not in ("float32", "bfloat16"):
        raise RecipeError(f"optim.precision is float32 or bfloat16, given '{recipe.optim.precision}'.")
