"""What lies where in the release of CL-Net's authors: tasks, their checkpoints, plans and organs.

    <base>/results/clNet/3d_fullres/<TaskNNN_Name>/<Trainer>__clNetPlans/
        plans.json  bpr_scores.json  all/ or fold_<k>/…checkpoint.model
    <anywhere below>/<config>_pred_cleaned.json      one for all tasks, as the authors' program writes it

The configuration that they train with, of which the program makes that one, will do as
well: it says less, but the rest is in the folders.  The paths in the configuration are those of the authors' machine; what follows
`results/` holds on any.  One task is one checkpoint and one plan; it lists its heads
(decoders), and its file may hold others, which are not its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clseg.errors import WeightsError
from clseg.weights.importers.folder import read_json
from clseg.weights.importers.pickles import load_plain

CONFIGS = "*_pred_cleaned.json"
NEVER_LOADED = "other"  # a head of this name is passed over by the authors' program
FALLBACK_HU = {"percentile_00_5": -995.0, "percentile_99_5": 1265.0, "mean": -187.85, "sd": 490.71}  # theirs, where plans have none

Triple = tuple[int, int, int]

_FILE_NAMES = ("model_final_checkpoint.model", "model_best.model", "model_latest.model")


@dataclass(frozen=True)
class Head:
    """One decoder as the configuration lists it: the numbers of its labels, who supports it, its own window if it has one.

    `average` says that the configuration lets the moving average (EMA twin) answer.
    `score_range` are the body-part scores between which it is asked, 0 pelvis … 100
    eyes; an open end is None, and None altogether is everywhere.
    """

    name: str
    labels: tuple[int, ...]
    supporters: tuple[str, ...]
    patch: Triple | None
    average: bool
    score_range: tuple[float | None, float | None] | None


@dataclass(frozen=True)
class Plans:
    """A task's plans.json: axes in the network's order, intensities in HU."""

    spacing_mm: tuple[float, float, float]
    patch: Triple
    strides: tuple[Triple, ...]
    transpose: Triple
    low: float
    high: float
    mean: float
    sd: float
    classes: int


@dataclass(frozen=True)
class Task:
    """One checkpoint with what is said about it; `organs` names its labels by number."""

    key: str
    checkpoint: Path
    plans: Plans
    organs: Mapping[int, str]
    heads: tuple[Head, ...]
    strides: tuple[Triple, ...] | None = None
    own_encoder: bool = False


@dataclass(frozen=True)
class Release:
    """The general encoder's task and all others, in the order in which they were trained."""

    config: Path
    encoder: Task
    tasks: tuple[Task, ...]

    @property
    def heads(self) -> dict[str, tuple[Task, Head]]:
        """Every head by its name, with its task."""
        return {head.name: (task, head) for task in self.tasks for head in task.heads}


def find_release(path: Path, config: Path | None = None) -> Release:
    """The release in the folder `path` (any from the base down to `3d_fullres`), or around the configuration `path`.

    Raises WeightsError when there is no configuration or more than one, when something
    that it names is missing, or when it contradicts itself.
    """
    config = config or (path if path.suffix == ".json" else _only_config(path))
    roots = _roots(path) if path.is_dir() else list(config.absolute().parents)
    settings = read_json(config)
    tasks = {key: one for key, one in settings.items() if isinstance(one, Mapping) and "task" in one}
    root = settings.get("clnet_general_encoder", "GeneralEncoder")
    encoders = [key for key, one in tasks.items() if one.get("type", "GeneralEncoder" if key == root else "") == "GeneralEncoder"]
    if len(encoders) != 1:
        raise WeightsError(f"{config} must name one task of the type GeneralEncoder, and names {len(encoders)}.")
    by_order = sorted((key for key in tasks if key != encoders[0]), key=lambda key: tasks[key].get("train_order", 0))
    release = Release(
        config,
        _encoder_task(encoders[0], tasks[encoders[0]], roots),
        tuple(_task(key, tasks[key], roots) for key in by_order if tasks[key].get("decoders")),
    )
    _check_names(release)
    return release


def read_plans(folder: Path, checkpoint: Path, stage: Any = 0) -> Plans:
    """The plans of a task: plans.json, else plans.pkl, else those beside the checkpoint in `<checkpoint>.pkl`."""
    data, path = _plans_data(folder, checkpoint)
    try:
        here = _at(data["plans_per_stage"], stage)
        hu = _at(data.get("dataset_properties", {}).get("intensityproperties") or {0: FALLBACK_HU}, 0) or FALLBACK_HU
        hu = {key: FALLBACK_HU[key] if hu.get(key) is None else float(hu[key]) for key in FALLBACK_HU}
        _check_kind(data, path)
        return Plans(
            spacing_mm=_three(here["current_spacing"], float),
            patch=_three(here["patch_size"]),
            strides=tuple(_three(one) for one in here["pool_op_kernel_sizes"]),
            transpose=_three(data.get("transpose_forward", (0, 1, 2))),
            low=hu["percentile_00_5"],
            high=hu["percentile_99_5"],
            mean=hu["mean"],
            sd=hu["sd"],
            classes=int(data["num_classes"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"The plans in {path} are not usable: {type(error).__name__} {error}.") from error


# ---- the configuration ------------------------------------------------------------------------------------------------


def _only_config(folder: Path) -> Path:
    found = sorted(folder.rglob(CONFIGS)) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    told = f"{folder} must hold one configuration {CONFIGS}, found {len(found)}."
    raise WeightsError(told, tip="Name the configuration with --config; that of the training will do as well.")


def _roots(folder: Path) -> list[Path]:
    """The folder itself, and those up to two below it that hold `results`, as in a zip."""
    return [folder, *(found.parent for depth in ("*", "*/*") for found in sorted(folder.glob(f"{depth}/results")))]


def _encoder_task(key: str, settings: Mapping[str, Any], roots: list[Path]) -> Task:
    folder, checkpoint = _place(key, settings, roots)
    strides = settings.get("encoder_architecture_setup", {}).get("pool_kernel")
    try:
        known = tuple(_three(one) for one in strides) if strides else None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"The pool_kernel of '{key}' is not a list of three numbers each, given {strides!r}.") from error
    return Task(key, checkpoint, read_plans(folder, checkpoint, settings.get("stage", 0)), {}, (), known)


def _task(key: str, settings: Mapping[str, Any], roots: list[Path]) -> Task:
    folder, checkpoint = _place(key, settings, roots)
    plans = read_plans(folder, checkpoint, settings.get("stage", 0))
    scores = read_json(folder / "bpr_scores.json")
    try:
        organs = {int(label): str(entry["name"]) for label, entry in scores.items()}
        heads = tuple(_heads(settings, plans, {int(label): entry for label, entry in scores.items()}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"What the configuration and bpr_scores.json say about task '{key}' is not usable: {type(error).__name__} {error}.") from error
    return Task(key, checkpoint, plans, organs, heads, own_encoder=bool(settings.get("finetune_encoder")))


def _heads(settings: Mapping[str, Any], plans: Plans, scores: Mapping[int, Mapping[str, Any]]) -> Iterator[Head]:
    training = settings.get("model_training_setup") or {}
    shapes = settings.get("decoder_architecture_setup") or {}
    patches = training.get("patch_size") or {}
    for name, listed in settings["decoders"].items():
        if name == NEVER_LOADED:
            continue
        labels = _numbers(listed)
        every = len(labels) == plans.classes
        patch = patches.get(name) or patches.get("all")
        setups = training.get("decoders") or {}
        trained = setups.get(name) or (setups.get("all") if "all" in (settings.get("decoders_to_train") or ()) else None)
        ranges = (settings.get("bpr_range_for_decoders") or {}).get(name) or _range_of([scores[label] for label in labels])
        yield Head(
            name=name,
            labels=tuple(range(1, len(labels) + 1)) if every else labels,
            supporters=tuple((settings.get("supporting") or {}).get(name) or ()),
            patch=_three(patch) if patch else None,
            average=bool((shapes.get(name) or {}).get("enable_ema")) and _averaged(trained),
            score_range=_score_range(name, ranges),
        )


def _numbers(listed: Any) -> tuple[int, ...]:
    """Labels: 3, [1, 2], and as they are written for training "1-3" and "1,2"."""
    if isinstance(listed, str):
        ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
        return tuple(number for end in ends for number in range(end[0], end[-1] + 1))
    return tuple(map(int, listed)) if isinstance(listed, (list, tuple)) else (int(listed),)


def _averaged(trained: Any) -> bool:
    """Whether a head's training setup keeps a moving average: its last entry, or, as written for training, that called so."""
    if isinstance(trained, Mapping):
        return bool(trained.get("ema"))
    return bool(trained and trained[-1])


def _range_of(scores: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The body-part range of a head with these organs, where the configuration does not state it."""
    rules = {"percentile_00_5": ("percentile_00_5", min), "percentile_99_5": ("percentile_99_5", max)}
    rules |= {"min": ("mn", min), "max": ("mx", max), "mean": ("mean", max), "std": ("sd", max)}
    organs = list(scores)
    found = {}
    for mine, (theirs, rule) in rules.items():
        known = [float(organ[theirs]) for organ in organs if not math.isnan(organ[theirs])]
        found[mine] = rule(known, default=math.nan)
    return found


def _score_range(name: str, score: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """Where the authors' program lets a head look; what grows anywhere gets the wider rule, and they tell it by its name."""
    word = name.lower()
    if any(part in word for part in ("gtv", "tumor", "lesion")) or ("ln" in word and "lns" not in word):
        low, high = score["min"] - score["std"], score["max"] + score["std"]
    else:
        low, high = score["percentile_00_5"] - 0.25 * score["mean"], score["percentile_99_5"] + 0.25 * score["mean"]
    ends = tuple(end if math.isfinite(end) else None for end in (low, high))
    return None if ends == (None, None) else ends  # type: ignore[return-value]


def _check_names(release: Release) -> None:
    names = [head.name for task in release.tasks for head in task.heads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WeightsError(f"{release.config} lists the heads {', '.join(twice)} in more than one task.")
    for task, head in release.heads.values():
        unnamed = [label for label in head.labels if label not in task.organs]
        if unnamed:
            raise WeightsError(f"Head '{head.name}' paints label {unnamed[0]}, which bpr_scores.json of task '{task.key}' does not name.")


# ---- files ------------------------------------------------------------------------------------------------------------


def _place(key: str, settings: Mapping[str, Any], roots: list[Path]) -> tuple[Path, Path]:
    """Folder and checkpoint of a task."""
    folder = _task_folder(key, settings, roots)
    names = [Path(str(settings["pretrain_model_name"])).name] if settings.get("pretrain_model_name") else []
    fold = _fold(settings.get("fold", "all"))
    folds = dict.fromkeys([fold, "all", *(f"fold_{k}" for k in range(10))])
    tried = [folder / fold / name for name in names]
    tried += [folder / one / name for one in folds for plain in _FILE_NAMES for name in (f"{key}_{plain}", plain)]
    for path in tried:
        if path.is_file():
            return folder, path
    raise WeightsError(f"Task '{key}' has no checkpoint in {folder}.", tip=f"Expected for example {tried[0]}.")


def _task_folder(key: str, settings: Mapping[str, Any], roots: list[Path]) -> Path:
    """The folder that a stranger's absolute path means here: what follows `results/`, below one of the roots."""
    inside = _below_results(str(settings.get("output_folder_name") or f"results/clNet/3d_fullres/{settings['task']}"))
    for root in roots:
        for skipped in range(-1, len(inside)):
            folder = root.joinpath("results", *inside) if skipped < 0 else root.joinpath(*inside[skipped:])
            if (folder / "plans.json").is_file() or any(folder.glob("*/*.model")):
                return folder
            only = [one.parent for one in folder.glob("*__*/plans.json")] if folder.name == settings["task"] else []
            if len(only) == 1:
                return only[0]
    raise WeightsError(f"The folder of task '{key}', results/{'/'.join(inside)}, is not below {roots[0]}.", tip="Name the folder that holds `results`.")


def _below_results(path: str) -> list[str]:
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".")]
    inside = parts[len(parts) - parts[::-1].index("results") :] if "results" in parts else parts[-1:]
    if not inside or ".." in inside:
        raise WeightsError(f"The configuration's path '{path}' does not lead into a folder `results`.")
    return inside


def _fold(fold: Any) -> str:
    text = str(fold)
    return f"fold_{text}" if text.isdecimal() else text


def _plans_data(folder: Path, checkpoint: Path) -> tuple[Mapping[str, Any], Path]:
    if (folder / "plans.json").is_file():
        return read_json(folder / "plans.json"), folder / "plans.json"
    if (folder / "plans.pkl").is_file():
        return load_plain(folder / "plans.pkl"), folder / "plans.pkl"
    beside = checkpoint.with_name(f"{checkpoint.name}.pkl")
    if beside.is_file():
        return load_plain(beside).get("plans") or {}, beside
    raise WeightsError(f"There are no plans in {folder}.", tip="Expected plans.json, as the authors' program writes it beside the folds.")


def _check_kind(data: Mapping[str, Any], path: Path) -> None:
    scheme = _at(data.get("normalization_schemes") or {0: "CT"}, 0)
    channels, masked = int(data.get("num_modalities", 1)), bool(_at(data.get("use_mask_for_norm") or {0: False}, 0))
    if (scheme, channels, masked) != ("CT", 1, False):
        given = f"'{scheme}' with {channels} channels" + (" inside a mask" if masked else "")
        raise WeightsError(f"{path} normalises by {given}, only one channel of CT is known.")


def _at(table: Mapping[Any, Any], number: Any) -> Any:
    """Entry `number` of a table whose keys are numbers in a pickle and texts in JSON."""
    return table[number] if number in table else table[str(number)]


def _three(values: Any, kind: type = int) -> Any:
    first, second, third = values
    return kind(first), kind(second), kind(third)
