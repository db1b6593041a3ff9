"""nnU-Net v2: trained models → an encoder and a decoder per fold, with the plan that gives nnU-Net's own results.

    <Trainer>__<Plans>__<configuration>/
        dataset.json   labels, the one channel
        plans.json     grid, intensities, network; a configuration may inherit from another; two styles
        fold_<k>/checkpoint_final.pth

The folder may lie in others or in a zip.  Several folds become an ensemble, whose logits
are averaged.  The format is described in nnU-Net's documentation and code (Apache 2.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clseg.errors import UsageError, WeightsError
from clseg.io.files import sha256_of
from clseg.network.checkpoint import Checkpoint, fingerprint
from clseg.network.plan import Plan, Resampling, Scheme
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity
from clseg.weights.importers.folder import read_json, structure_name
from clseg.weights.importers.install import Part
from clseg.weights.importers.nnunet_shape import Shape, shape_of
from clseg.weights.importers.nnunet_tensors import completed, renamed
from clseg.weights.importers.pickles import load_torch

FINAL = "checkpoint_final.pth"
READERS = {  # who reads the scans → the axes that it turns them to ("": as stored)
    "SimpleITKIO": "",
    "NibabelIO": "",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
SCHEMES = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale",
    "NoNormalization": "none",
}
STORED = "LPS"  # what "as stored" mostly is, for decoders that are learned on the encoder


@dataclass(frozen=True)
class Training:
    """One trained configuration: its folder, what dataset.json and plans.json say, the checkpoints of its folds."""

    folder: Path
    dataset: Mapping[str, Any]
    plans: Mapping[str, Any]
    configuration: str
    folds: Mapping[str, Path]

    @property
    def labels(self) -> tuple[str, ...]:
        """The structures in the order of the network's channels, without background."""
        return labels_of(self.dataset)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration with what it inherits."""
        return _resolved(self.plans["configurations"], self.configuration)

    @property
    def edge_mm(self) -> float:
        """The shortest edge of the voxels that the network sees."""
        with _complete(self):
            return float(min(self.settings["spacing"]))

    @property
    def title(self) -> str:
        return str(self.plans.get("dataset_name") or self.folder.parent.name)


def is_needed(name: str) -> bool:
    """Whether a file of this name can matter to an import."""
    return name in ("dataset.json", "plans.json") or (name.startswith("checkpoint_") and name.endswith(".pth"))


def find_trainings(root: Path, *, folds: str = "all", checkpoint: str = FINAL, configuration: str = "") -> list[Training]:
    """All trained models in and below `root`, by folder name.

    `folds` is "all" (the numbered ones, else fold_all) or names such as "0,2";
    `configuration` keeps only models of that one.  WeightsError when there is none,
    UsageError for a fold that a model does not have.
    """
    homes = sorted({file.parent for file in root.rglob("plans.json") if (file.parent / "dataset.json").is_file()})
    found = [_training(home, folds, checkpoint) for home in homes if any(home.glob("fold_*"))]
    kept = [one for one in found if configuration in ("", one.configuration)]
    if not kept:
        there = f" of the configuration '{configuration}', only of {', '.join(sorted({one.configuration for one in found}))}" if found else ""
        raise WeightsError(f"What was given holds no nnU-Net v2 model{there}, expected dataset.json, plans.json and fold_0/{checkpoint}.")
    return kept


def read_training(training: Training, *, mirror: bool = False, prefix: str = "", change: Callable[[Plan], Plan] = lambda plan: plan) -> list[Part]:
    """An encoder and a decoder per fold; several folds form an ensemble.

    `mirror` averages over the flips that the training allows, as nnU-Net does by
    itself (8 times the work); `change` is what a program around nnU-Net does otherwise.
    `prefix` begins the parts' names.  WeightsError says what is not supported.
    """
    with _complete(training):
        _refuse_unsupported(training)
        network, plan = shape_of(training.settings), change(plan_of(training))
    if len(training.folds) > 1:
        plan = replace(plan, ensemble=f"{training.title} {training.configuration}")
    parts = []
    for fold, file in training.folds.items():
        many = f"-{fold}" if len(training.folds) > 1 else ""
        parts += _read_fold(training, file, network, plan, mirror, f"encoder{prefix}{many}", f"{prefix.lstrip('-') or 'organs'}{many}")
    return parts


def labels_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels of dataset.json by their number, without background and "ignore"; WeightsError for regions and gaps."""
    labels = dataset.get("labels")
    if not isinstance(labels, dict):
        raise WeightsError("dataset.json has no labels, expected {name: number}.")
    for name, number in labels.items():
        if not isinstance(number, int):
            told = f"The label '{name}' is {number}: region-based training, whose structures overlap in one decoder, is not supported."
            raise WeightsError(told, tip="Train on one number per structure.")
    numbers = {number: structure_name(name) for name, number in labels.items() if name != "ignore"}
    if sorted(numbers) != list(range(len(numbers))) or len(numbers) < 2:
        raise WeightsError(f"The labels of dataset.json have the numbers {sorted(numbers)}, expected 0, 1, 2 … without gaps.")
    return tuple(numbers[number] for number in range(1, len(numbers)))


def plan_of(training: Training) -> Plan:
    """What nnU-Net does around the network, without mirroring; see `clseg.network.plan`."""
    settings, reader = training.settings, str(training.plans.get("image_reader_writer", "SimpleITKIO"))
    if reader not in READERS:
        raise WeightsError(f"The model reads images with {reader}, clseg knows {', '.join(READERS)}.")
    return Plan(
        kind="nnunet",
        spacing_mm=tuple(float(edge) for edge in settings["spacing"]),
        patch=tuple(int(edge) for edge in settings["patch_size"]),
        scheme=_scheme(training.plans, settings),
        orientation=READERS[reader],
        transpose=tuple(training.plans.get("transpose_forward", (0, 1, 2))),
        image=_resampling(settings, "resampling_fn_data", 3),
        answer=_resampling(settings, "resampling_fn_probabilities", 1),
    )


# --- what there is


def _training(home: Path, folds: str, checkpoint: str) -> Training:
    plans = read_json(home / "plans.json")
    found = _folds(home, folds, checkpoint)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict):
        raise WeightsError(f"{home / 'plans.json'} has no configurations, expected the plans of nnU-Net v2.")
    name = home.name.rpartition("__")[2]
    if name not in configurations:
        arguments = load_torch(next(iter(found.values()))).get("init_args")
        name = str(arguments.get("configuration")) if isinstance(arguments, dict) else name
    if name not in configurations:
        raise WeightsError(f"{home} is of the configuration '{name}', its plans.json has {', '.join(configurations)}.")
    return Training(home, read_json(home / "dataset.json"), plans, name, found)


def _folds(home: Path, folds: str, checkpoint: str) -> dict[str, Path]:
    there = {file.parent.name: file for file in sorted(home.glob(f"fold_*/{checkpoint}"))}
    numbered = {name: file for name, file in there.items() if name != "fold_all"}
    if folds == "all" and there:
        return numbered or there
    wanted = [f"fold_{word.strip().removeprefix('fold_')}" for word in folds.split(",") if word.strip()]
    if folds == "all" or not there:
        raise WeightsError(f"{home} has no fold_*/{checkpoint}.", tip="Name another file with --checkpoint, e.g. checkpoint_best.pth.")
    for name in wanted or ("fold",):
        if name not in there:
            raise UsageError(f"{home.name} has no {name}, it has {', '.join(there)}.")
    return {name: there[name] for name in wanted}


def _resolved(configurations: Mapping[str, Any], name: str, seen: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration on top of the one it inherits from."""
    if name in seen or not isinstance(configurations.get(name), dict):
        raise WeightsError(f"The configuration '{name}' of plans.json is missing or inherits from itself.")
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return {**_resolved(configurations, parent, (*seen, name)), **own} if parent else own


# --- what is refused


@contextmanager
def _complete(training: Training) -> Iterator[None]:
    """WeightsError for plans that lack something or have something else where a number or list should be."""
    try:
        yield
    except KeyError as error:
        raise WeightsError(f"{training.folder / 'plans.json'} lacks {error}, expected the plans of nnU-Net v2.") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise WeightsError(f"{training.folder / 'plans.json'} is not as nnU-Net v2 writes it: {error}.") from error


def _refuse_unsupported(training: Training) -> None:
    settings, dataset = training.settings, training.dataset
    if len(settings.get("patch_size", ())) != 3:
        raise WeightsError(f"The configuration '{training.configuration}' is 2-D, clseg imports 3d_fullres and 3d_lowres.")
    if settings.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise WeightsError(f"The model prepares scans with {settings['preprocessor_name']}, clseg knows DefaultPreprocessor.")
    if settings.get("previous_stage") or settings.get("previous_stage_name"):
        told = f"The configuration '{training.configuration}' is the second stage of a cascade, which is not supported."
        raise WeightsError(told, tip="Import 3d_lowres or 3d_fullres.")
    channels = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(channels, dict) or len(channels) != 1:
        raise WeightsError(f"The model wants the channels {channels}, clseg has one, the CT.")
    if len(settings.get("normalization_schemes", ())) != 1:
        raise WeightsError(f"The model has the normalisations {settings.get('normalization_schemes')}, expected one.")


# --- the plan


def _scheme(plans: Mapping[str, Any], settings: Mapping[str, Any]) -> Scheme:
    theirs = str(settings["normalization_schemes"][0])
    if theirs not in SCHEMES:
        raise WeightsError(f"The model normalises with {theirs}, clseg knows {', '.join(SCHEMES)}.")
    kind = SCHEMES[theirs]
    if kind != "ct":
        return Scheme(kind, masked=kind == "zscore" and bool((settings.get("use_mask_for_norm") or [False])[0]))
    key = "foreground_intensity_properties_per_channel"
    facts = plans.get(key) or plans.get("foreground_intensity_properties_by_modality") or {}
    numbers = facts.get("0", facts.get(0))
    if not isinstance(numbers, dict):
        raise WeightsError(f"plans.json has no {key}, which CTNormalization needs.")
    low, high, mean, sd = (float(numbers[name]) for name in ("percentile_00_5", "percentile_99_5", "mean", "std"))
    return Scheme(kind, low, high, mean, max(sd, 1e-8))


def _resampling(settings: Mapping[str, Any], key: str, order: int) -> Resampling:
    """The rule of one of the resampling functions; WeightsError for another function than nnU-Net's usual one."""
    function = str(settings.get(key, "resample_data_or_seg_to_shape"))
    if function != "resample_data_or_seg_to_shape":
        raise WeightsError(f"The model resamples with {function}, clseg knows resample_data_or_seg_to_shape.")
    rule = settings.get(f"{key}_kwargs") or {}
    if unknown := sorted(set(rule) - {"is_seg", "order", "order_z", "force_separate_z"}):
        raise WeightsError(f"The model resamples with {unknown[0]} = {rule[unknown[0]]}, which clseg does not know.")
    if order == 1 and (rule.get("order", 1), rule.get("order_z", 0)) not in ((1, 0), (1, 1), (0, 0)):
        raise WeightsError(f"The model's scores go back by splines of order {rule.get('order')}, clseg knows linear and nearest.")
    force = rule.get("force_separate_z")
    separate = "auto" if force is None else "always" if force else "never"
    return Resampling(int(rule.get("order", order)), int(rule.get("order_z", 0)), separate)


# --- the weights


def _read_fold(
    training: Training, file: Path, network: Shape, plan: Plan, mirror: bool, encoder_name: str, decoder_name: str
) -> list[Part]:
    content = load_torch(file)
    weights = content.get("network_weights")
    if not isinstance(weights, Mapping):
        raise WeightsError(f"{file} has no network_weights, expected a checkpoint of nnU-Net v2.")
    axes = tuple(content.get("inference_allowed_mirroring_axes") or ()) if mirror else ()
    decoder = DecoderSpec(network.stages, training.labels, True, bias=True, plan=replace(plan, mirror_axes=axes))
    encoder = _encoder_spec(network, plan)
    try:
        lower, upper = completed(encoder, decoder, renamed(weights), bias=network.bias)
    except WeightsError as error:
        raise WeightsError(f"{file} does not fit: {error.message}", tip=error.tip) from error
    card = _card(training, file, content)
    root = Checkpoint("encoder", encoder, lower, card=card)
    key = fingerprint(lower, encoder)
    return [Part(encoder_name, root), Part(decoder_name, Checkpoint("decoder", decoder, upper, key, card=card), (encoder_name,))]


def _encoder_spec(network: Shape, plan: Plan) -> EncoderSpec:
    """The encoder with the grid on which new decoders learn: the network's axes in letters, its spacing and window."""
    grid = Grid(letters(plan), plan.spacing_mm, plan.patch)
    scheme = plan.scheme
    if scheme.kind != "ct":
        return EncoderSpec(network.levels, grid, Intensity(-1024.0, 3071.0, 0.0, 1.0), block=network.block, scheme=scheme.kind)
    return EncoderSpec(network.levels, grid, Intensity(scheme.low, scheme.high, scheme.mean, scheme.sd), block=network.block)


def letters(plan: Plan) -> str:
    """Where the network's axes point: the scan's letters reversed to (z, y, x), then transposed."""
    zyx = (plan.orientation or STORED)[::-1]
    return "".join(zyx[axis] for axis in plan.transpose)


def _card(training: Training, file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "program": "nnU-Net v2",
        "source": f"{training.folder.name}/{file.parent.name}/{file.name}",
        "source_sha256": sha256_of(file),
        "dataset": training.title,
        "configuration": training.configuration,
        "trainer": str(content.get("trainer_name", "unknown")),
        "fold": re.sub("^fold_", "", file.parent.name),
    }
