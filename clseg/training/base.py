"""Base: the model that a new decoder joins: its frozen encoder, its decoders, what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from clseg.errors import RecipeError, UnknownName, WeightsError
from clseg.io.files import sha256_of
from clseg.manifest import Asset, Manifest
from clseg.network.bodypart import SliceScorer, load_bodypart
from clseg.network.checkpoint import Checkpoint, fingerprint, load
from clseg.network.spec import EncoderSpec
from clseg.recipe import DecoderRecipe, GridRecipe, IntensityRecipe, Recipe
from clseg.recipe.commands import Common
from clseg.training.entries import EXPERIMENTAL
from clseg.weights.cache import fetch, manifest


@dataclass(frozen=True)
class Base:
    """A model of the manifest, opened for learning: `key` is the fingerprint of its encoder.

    `mine` are decoders that the run at hand has listed already, having been stopped
    just then; `listing` is the manifest without them in its models.
    """

    model: str
    listing: Manifest
    encoder: Asset
    checkpoint: Checkpoint
    key: str
    mine: frozenset[str] = frozenset()

    @classmethod
    def open(cls, model: str, run: Path | None = None) -> Base:
        """The model's encoder, read, as it was before `run` listed anything; WeightsError when it has not just one."""
        listing = manifest()
        mine = _listed_by(run, listing) if run else frozenset()
        models = tuple(replace(one, assets=tuple(a for a in one.assets if a not in mine)) for one in listing.models)
        listing = Manifest(models, listing.assets)
        encoders = [asset for asset in listing.listed(model) if asset.kind == "encoder"]
        if len(encoders) != 1:
            tip = "Of an imported model with several, import one training by itself, with --folds 0." if encoders else None
            raise WeightsError(f"Learning needs a model with one encoder, '{model}' lists {len(encoders)}.", tip=tip)
        checkpoint = load(fetch(encoders)[encoders[0].name])
        _refuse_other_intensities(model, checkpoint)
        return cls(model, listing, encoders[0], checkpoint, fingerprint(checkpoint.tensors, checkpoint.spec), mine)

    @property
    def spec(self) -> EncoderSpec:
        return self.checkpoint.spec  # type: ignore[return-value]

    @property
    def structures(self) -> tuple[str, ...]:
        """All that the model segments today."""
        return tuple(self.listing.labels_of(self.model))

    def holds(self, model: str) -> bool:
        """Whether there is a model of this name that segments anything."""
        return any(one.name == model for one in self.listing.models) and bool(self.listing.labels_of(model))

    def refuse_taken(self, target: str, decoder: str, labels: Iterable[str], experimental: Iterable[str] = ()) -> None:
        """RecipeError when the model `target` cannot take a new decoder of this name that paints these structures, or some as an experiment."""
        mine = f"{target}-{decoder}"
        if any(asset.name in (mine, f"{mine}{EXPERIMENTAL}") for asset in self.listing.assets if asset.name not in self.mine):
            raise RecipeError(f"Model '{target}' has a decoder '{decoder}' already.", tip="Use another name, or `clseg update`.")
        self._refuse_painted(target, decoder, labels)
        self._refuse_painted(f"{target}{EXPERIMENTAL}", decoder, experimental)

    def _refuse_painted(self, target: str, decoder: str, labels: Iterable[str]) -> None:
        if not self.holds(target):
            return
        painted = self.listing.labels_of(target)
        for label in labels:
            if label in painted:
                raise RecipeError(
                    f"Structure '{label}' of decoder '{decoder}' is painted by '{painted[label][0]}' already.",
                    tip="Improve it with `clseg update`, or list the decoder in a model of its own with `into`.",
                )
        encoders = [asset for asset in self.listing.assets_for(target, painted) if asset.kind == "encoder"]
        if target != self.model and any(encoder.sha256 != self.encoder.sha256 for encoder in encoders):
            raise RecipeError(f"Model '{target}' has another encoder than '{self.model}'.", tip="Give `into` another name.")

    def decoder(self, name: str) -> Asset:
        """The decoder called `name`, or `<some model>-<name>`, or what has taken its place; UnknownName says what there is."""
        decoders = [asset for asset in self.listing.listed(self.model) if asset.kind == "decoder"]
        for called in (name, f"{self.model}-{name}"):
            for asset in decoders:
                if called in (asset.name, *asset.replaces):
                    return asset
        borrowed = [asset for asset in decoders if name in map(self.short_name, (asset.name, *asset.replaces))]
        if len(borrowed) == 1:  # a decoder that another model lent
            return borrowed[0]
        short = [asset.name.removeprefix(f"{self.model}-") for asset in decoders]
        raise UnknownName("decoder", name, tip=f"Model '{self.model}' has: {', '.join(short)}.")

    def short_name(self, name: str) -> str:
        """What a decoder is called within its model: `my-model-lungs.2` → `lungs`; the models that are listed say where that begins."""
        owners = [one.name for one in self.listing.models if name.startswith(f"{one.name}-")]
        rest = name.removeprefix(f"{max(owners, key=len)}-") if owners else name.partition("-")[2]
        return rest.partition(".")[0] or "decoder"

    def weights(self, decoders: Iterable[str]) -> dict[str, str]:
        """sha256 by name of the encoder, these decoders and all that they require."""
        return {asset.name: asset.sha256 for asset in self.closure(self.decoder(name) for name in decoders)}

    def files(self, assets: Iterable[Asset]) -> dict[str, Path]:
        """Verified files of these assets and of all that they require."""
        return fetch(self.closure(assets))

    def scorer(self) -> SliceScorer | None:
        """The model's body-part regressor, if it lists one."""
        listed = [asset for asset in self.listing.listed(self.model) if asset.kind == "bodypart"]
        return load_bodypart(fetch(listed)[listed[0].name]) if listed else None

    def closure(self, assets: Iterable[Asset]) -> list[Asset]:
        """These assets and all that they require, required ones first."""
        found: list[Asset] = []

        def visit(asset: Asset) -> None:
            for name in asset.requires:
                visit(self.listing.asset(name))
            if asset not in found:
                found.append(asset)

        for asset in (self.encoder, *assets):
            visit(asset)
        return found

    def plan(self, recipe: Common, decoders: tuple[DecoderRecipe, ...]) -> Recipe:
        """What examples, patches and loop need to know, on this encoder's grid.

        Raises RecipeError when a decoder has more stages than the encoder has levels for.
        """
        stages = len(self.spec.levels) - 1
        for decoder in decoders:
            if len(decoder.widths) > stages:
                raise RecipeError(
                    f"Decoder '{decoder.name}' has {len(decoder.widths)} stages, the encoder of '{self.model}' has levels for {stages} at most."
                )
        grid, rule = self.spec.grid, self.spec.intensity
        common = {name: getattr(recipe, name) for name in Common.__dataclass_fields__}
        return Recipe(
            **common,
            grid=GridRecipe(grid.spacing, grid.patch, grid.orientation),
            intensity=IntensityRecipe(rule.low, rule.high, rule.mean, rule.sd),
            encoder=None,
            decoder=decoders,
        )


def _refuse_other_intensities(model: str, checkpoint: Checkpoint) -> None:
    """WeightsError for an imported encoder that wants intensities which clseg's own training does not make."""
    scheme = checkpoint.spec.scheme  # type: ignore[union-attr]
    if scheme != "ct":
        told = f"The encoder of '{model}' wants intensities by the scheme '{scheme}', learning knows 'ct' (fixed clipping, mean and deviation) only."
        raise WeightsError(told, tip="Learn on a model that was trained with CTNormalization.")


def _listed_by(run: Path, listing: Manifest) -> frozenset[str]:
    """The decoders of the listing whose files this run has written."""
    written = {sha256_of(file) for file in sorted((run / "weights").glob("*.safetensors"))}
    return frozenset(asset.name for asset in listing.assets if asset.kind == "decoder" and asset.sha256 in written)
