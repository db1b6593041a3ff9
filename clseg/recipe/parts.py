"""The sections of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from clseg.recipe.knob import knob

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class GridRecipe:
    """The grid that networks see."""

    spacing_mm: tuple[float, float, float] = knob("voxel size, mm", (3.0, 3.0, 3.0))
    patch: Triple = knob("window, voxels; divisible by the product of the encoder's strides", (80, 80, 80))
    orientation: str = knob("where the three axes point", "RAS")


@dataclass(frozen=True)
class IntensityRecipe:
    """Clip and z-score; the defaults are CL-Net's (arXiv 2503.12698)."""

    low_hu: float = knob("HU below are set to this", -995.0)
    high_hu: float = knob("HU above are set to this", 1265.0)
    mean_hu: float = knob("subtracted, HU", -187.85)
    sd_hu: float = knob("divided by, HU", 490.71)


@dataclass(frozen=True)
class EncoderRecipe:
    """The general encoder: one entry per level, full resolution first."""

    widths: tuple[int, ...] = knob("channels per level", (8, 32, 64, 128, 192))
    strides: tuple[int, ...] = knob("step of the first convolution of every level", (1, 2, 2, 2, 2))
    kernels: tuple[int, ...] = knob("edge of the kernels, voxels", (3, 3, 3, 3, 3))
    convs: tuple[int, ...] = knob("convolutions per level", (1, 2, 2, 2, 2))


@dataclass(frozen=True)
class DecoderRecipe:
    """One organ family: one softmax. `widths`, `kernels` and `convs` have one entry per stage, bottleneck first."""

    name: str = knob("becomes a file name and a name in the manifest", example="my_organ")
    labels: tuple[str, ...] = knob("structures it paints", example=("my_organ",))
    widths: tuple[int, ...] = knob("channels per stage, bottleneck first; one entry fewer than the encoder has levels goes to full resolution, fewer still end at a coarser one: faster", (64, 32, 16, 8))
    kernels: tuple[int, ...] = knob("edge of the kernels per stage, voxels", (3, 3, 3, 1))
    convs: tuple[int, ...] = knob("convolutions per stage", (2, 2, 2, 1))
    open_ends: dict[str, str] = knob(
        "structures contoured only in part along z, and the end where contours stop early (inferior, superior, both): "
        "what is unlabelled beyond is left out of the loss",
        make=dict,
    )
    limits: tuple[float, ...] | dict[str, tuple[float, ...]] = knob(
        "body-part scores [low, high] (0 = pelvis bottom, 1 = head top) between which its structures can be, or a table of "
        "them by structure: the range is never narrower, and ends that no case shows are here; empty: not known",
        (),
    )
    supporters: tuple[str, ...] = knob("decoders whose logits help this one (feature-level supporting): of this recipe or of the model", ())
    pathological: bool = knob("trained on cases with tumours: speaks for its organs where a tumour is found", False)
    experimental: tuple[str, ...] = knob("structures that are listed under <model>_experimental, so that nobody gets them by default", ())
    unlisted: tuple[str, ...] = knob("structures that it learns, so that it tells them from others, but that no model lists", ())

    @property
    def listed(self) -> tuple[str, ...]:
        """The structures that the model itself offers."""
        return tuple(label for label in self.labels if label not in (*self.experimental, *self.unlisted))

    def limits_of(self, label: str) -> tuple[float, ...]:
        """The limits of one structure, (low, high) or empty."""
        return self.limits.get(label, ()) if isinstance(self.limits, dict) else self.limits


@dataclass(frozen=True)
class DatasetRecipe:
    """Cases with the same kind of labels.

    A structure is annotated in a case when the label map has voxels of it or its mask's
    file is there; what is not annotated is unknown, never background.
    """

    name: str = knob("what logs and cards call it", example="my_cases")
    format: str = knob("how it is stored: folders, csv (both have an index), nnunet, totalsegmentator or results (these have a path)", "folders")
    index: str = knob(
        "folders: CSV with columns case (folder beside the CSV) and split; csv: CSV with columns ct and label, and if need be names, split, case",
        "",
        example="data/index.csv",
    )
    path: str = knob("nnunet: the DatasetXXX_Name folder; totalsegmentator: the folder of subjects; results: what `clseg -i SCANS -o` wrote with --stats, of which masks that need no review are learned", "")
    cases: tuple[str, ...] = knob("glob patterns over the names of cases", ("*",))
    weight: float = knob("share of samples drawn from this dataset", 1.0)
    ct: str = knob("folders, totalsegmentator: the CT in a case's folder", "ct.nii.gz")
    labels: str = knob("folders, totalsegmentator: the label map in a case's folder, with its names and ids in a .json beside it", "labels.nii.gz")
    masks: dict[str, str] = knob("folders: structure = 'file' or 'file:value', more masks in a case's folder", make=dict)
    rename: dict[str, str] = knob(
        "the dataset's name = structure; known synonyms need no entry, and several names of one structure are joined", make=dict
    )
    fold: int = knob("nnunet: which fold of splits_final.json says what is train and what is val", 0)
    val_share: float = knob("share of cases held out as val where the dataset has no splits of its own, chosen by the cases' names", 0.2)
    complete: bool = knob("a structure named without a voxel is truly absent in the case, not unknown", False)
    synthetic: bool = knob("label maps without a CT: CTs are synthesised while training", False)
    trust_sides: bool = knob("train even where left lies to the right of right (labels are mirrored, or the organs are)", False)
    mirror: bool = knob("let augment.mirror flip these cases too; not torsos, whose organs lie on one side", True)
    absent: tuple[str, ...] = knob("structures that cannot be in view in any of these cases: true background", ())
    absent_above: dict[str, str] = knob(
        "maps a structure to a landmark: from the landmark's lowest slice up it is true background (no lung above the mandible)",
        make=dict,
    )
    kind: str = knob("who drew the labels: human, automatic or the like; for the model card", "")
    licence: str = knob("licence of the data; for the model card", "")


@dataclass(frozen=True)
class AugmentRecipe:
    """Ranges of random changes; a probability of 0 switches one off."""

    rotation_deg: float = knob("largest turn about each axis, degrees", 15.0)
    scale: tuple[float, float] = knob("smallest and largest scale", (0.8, 1.25))
    stretch: float = knob("and each axis on its own by up to this share", 0.08)
    mirror: bool = knob("flip left and right, which exchanges the names of structures with a side; not for a decoder that has but one of a pair", False)
    shift_hu: float = knob("largest offset of tissue, HU", 30.0)
    contrast: tuple[float, float] = knob("smallest and largest factor on HU", (0.85, 1.15))
    noise_hu: float = knob("largest standard deviation of noise, HU", 25.0)
    noise_probability: float = knob("", 0.3)
    blur_voxels: float = knob("largest sigma of the blur, voxels", 1.0)
    blur_probability: float = knob("", 0.2)
    thick_slices_mm: tuple[float, float] = knob("thinnest and thickest simulated slices, mm", (4.0, 8.0))
    thick_slices_probability: float = knob("", 0.2)
    clear_outside: str = knob("the decoder beyond whose labels everything may be set to air", "body")
    clear_outside_probability: float = knob("", 0.3)


@dataclass(frozen=True)
class SynthesisRecipe:
    """CTs made from label maps, for datasets with `synthetic`: shapes, tissue and scanner drawn anew for every patch.

    A probability of 0 switches something off; ranges are smallest and largest.
    """

    native: float = knob("share of patches without contrast medium", 0.4)
    arterial: float = knob("share of patches in the arterial phase", 0.2)
    venous: float = knob("share of patches in the portal venous phase", 0.4)
    deform_mm: float = knob("largest smooth displacement, mm", 24.0)
    deform_wave_mm: tuple[float, float] = knob("over which length the displacement changes, mm", (45.0, 110.0))
    organs: int = knob("places per patch where what lies there is swollen, shrunk or moved", 3)
    organ_scale: tuple[float, float] = knob("factor on its size there", (0.7, 1.45))
    organ_shift_mm: float = knob("and how far it moves at most, mm", 12.0)
    border_mm: float = knob("how far the border of a structure moves at most, in units of what its form allows", 1.0)
    spread_hu: float = knob("standard deviation of what is added to the mean HU of every tissue", 6.0)
    fat_mm: tuple[float, float] = knob("fat under the skin, where the label map does not show the body, mm", (4.0, 45.0))
    wall_mm: tuple[float, float] = knob("muscle around ribs and belly, mm", (5.0, 18.0))
    noise_hu: tuple[float, float] = knob("standard deviation of the scanner's noise, HU", (4.0, 28.0))
    blur_voxels: tuple[float, float] = knob("sigma of the scanner's blur, voxels", (0.35, 0.75))
    streak_probability: float = knob("streaks from side to side, as between shoulders or hips", 0.2)
    cupping_hu: float = knob("largest shift from the skin to the middle of the body (beam hardening), HU", 15.0)
    metal_probability: float = knob("an implant with its rays", 0.03)
    table_probability: float = knob("a couch under the back", 0.75)
    arms_probability: float = knob("arms beside the trunk", 0.15)
    crop_probability: float = knob("a scan that begins or ends within the patch", 0.25)
    field_probability: float = knob("a field of view narrower than the body", 0.1)


@dataclass(frozen=True)
class OptimRecipe:
    """AdamW, linear warm-up, polynomial decay; what is kept is the exponential moving average of the weights."""

    iterations: int = knob("steps", 5000)
    batch: int = knob("patches per step (and per process)", 2)
    rate: float = knob("highest learning rate", 2e-3)
    weight_decay: float = knob("of convolutions; biases and norms are not decayed", 1e-2)
    warmup: int = knob("steps until the highest rate", 200)
    power: float = knob("of the polynomial decay to zero", 0.9)
    clip_norm: float = knob("largest norm of the gradient", 12.0)
    average: float = knob("decay of the moving average per step", 0.998)
    foreground: float = knob("share of patches centred on a structure (jittered)", 0.75)
    negatives: float = knob("share of patches from which a decoder with nothing to find there learns background", 0.15)
    deep_supervision: int = knob("finest stages that get a loss", 3)
    precision: str = knob("float32, bfloat16 or, on CUDA, float16", "bfloat16")
    checkpoint_every: int = knob("steps between saved states", 200)
    record: bool = knob("on one GPU, not with float16 or supporters: record a step once and replay it, every decoder on every patch; about twice as fast where Python is what holds it up", False)
    workers: int = knob("processes that cut patches on the CPU while others are learned from, as many as there are cores at most; 0: a GPU cuts its own, of cases that then stay in its memory; for a CPU a thread does", 0)


@dataclass(frozen=True)
class ValidationRecipe:
    """Held-out cases: Dice on the model's grid decides what pruning may keep."""

    split: str = knob("which cases", "val")
    cases: int = knob("at most this many, evenly spread over the list; 0 for all", 8)
    every: int = knob("steps between validations while training densely; 0 for none but the last", 0)


@dataclass(frozen=True)
class LadderRecipe:
    """Lottery-ticket pruning (clnet: 80 to 99.8 %), whole stages and channels first; shares are of what the dense decoder has."""

    coarser: int = knob("rungs before all others: how many of the finest stages may go, the coarser logits upsampled instead; each costs as much as all below it", 0)
    structured: tuple[float, ...] = knob("rungs: share of channels to remove; empty for none", (0.25, 0.5, 0.65, 0.75, 0.8, 0.85, 0.9))
    unstructured: tuple[float, ...] = knob("rungs: share of the remaining weights to remove; empty for none", (0.8, 0.84, 0.88, 0.9, 0.92, 0.94, 0.96, 0.98))
    multiple: tuple[int, ...] = knob("widths stay multiples of this, for all stages or one for each; 8 is what CPUs like, 4 does for kernels of 1", (8,))
    save: str = knob("what removed channels should save first: time or weights (smallest file)", "time")
    iterations: int = knob("steps per rung", 100)
    rate: float = knob("learning rate on a rung", 5e-4)
    allowed_loss: float = knob("Dice that a rung may lose against the dense decoder", 0.02)
    retries: int = knob("further tries of a rung that lost more", 2)
    recovery: int = knob("steps with the final mask, moving average on", 400)

    @property
    def climbs(self) -> bool:
        """Whether there is a rung at all."""
        return bool(self.coarser or self.structured or self.unstructured)


@dataclass(frozen=True)
class SupportRecipe:
    """The second stage of decoders with supporters: encoder and supporters frozen."""

    iterations: int = knob("steps", 1000)
    rate: float = knob("learning rate", 1e-3)
