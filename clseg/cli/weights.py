"""`clseg weights …`: what there is, fetching, checking, removing, carrying elsewhere, publishing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clseg.cli.console import Terminal, exit_codes
from clseg.cli.sources import AllowHttp, Mirror, OtherManifest, sources_of
from clseg.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from clseg.manifest import Asset, Manifest
    from clseg.weights.stock import Holding

app = typer.Typer(help="Weights: list, fetch, verify, remove, carry elsewhere, publish.", no_args_is_help=True)

Models = Annotated[list[str] | None, typer.Option("-m", "--model", metavar="NAME", help="Only this model; may be repeated.", show_default=False)]
OneModel = Annotated[str, typer.Option("-m", "--model", metavar="NAME", help="Model; see `clseg weights list`.")]
Roi = Annotated[list[str] | None, typer.Option("-r", "--roi", metavar="NAMES", help="Only what these groups and structures need. Default: all.", show_default=False)]
Offline = Annotated[bool, typer.Option("--offline", help="Never open a network connection.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]


MENDS = {  # what to do about damaged files, by whose they are
    "cache": "Downloaded files: `clseg weights remove NAME`, then `fetch`.",
    "package": "Files of the package: install clseg again.",
    "own": "Your own: import or add their model again.",
    "folder": "Files in folders that a manifest names: put whole copies there; clseg does not fetch them.",
}


@app.callback()
def weights() -> None:
    """Weights: list, fetch, verify, remove, carry elsewhere, publish."""


@app.command("list")
def list_weights(
    model: Models = None, as_json: AsJson = False, manifest: OtherManifest = None, allow_http: AllowHttp = False, offline: Offline = False
) -> None:
    """List models and their weight files: size, licence, and whether they are on this machine."""
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.weights.stock import holdings

        listing = _listing(manifest, allow_http, offline)
        found = {name: holdings(listing.closed([name]).assets) for name in _chosen(listing, model)}
        if as_json:
            facts = [{**listing.model(name).to_dict(), "name": name, "assets": [_facts(one) for one in held]} for name, held in found.items()]
            terminal.result(json.dumps({"models": facts}, indent=2, ensure_ascii=False))
            return
        for name, held in found.items():
            rows = [[one.asset.name, one.asset.kind, f"{one.asset.bytes:,}", one.asset.licence, one.place or _lacking(one.asset), str(one.path or "")] for one in held]
            terminal.table(f"Model '{name}': {listing.model(name).description}", ["weights", "kind", "bytes", "licence", "here", "file"], rows)


@app.command()
def fetch(
    model: OneModel = "starter",
    roi: Roi = None,
    mirror: Mirror = None,
    manifest: OtherManifest = None,
    allow_http: AllowHttp = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Bring the weights of a model, or those that a ROI needs, to this machine: clseg weights fetch --roi lungs."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        sources = sources_of(mirror, manifest, allow_http)
        listing = _listing(manifest, allow_http, offline)
        assets = _needed(listing, model, roi)
        files = _fetched(assets, sources, offline, terminal)
        terminal.note(f"{len(files)} weight files are here, {sum(asset.bytes for asset in assets):,} bytes")


@app.command()
def verify(model: Models = None, manifest: OtherManifest = None, allow_http: AllowHttp = False, offline: Offline = False) -> None:
    """Hash every weight file on this machine again; exit code 1 when one is damaged."""
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.weights.stock import verify as hashed

        listing = _listing(manifest, allow_http, offline)
        good, bad = hashed(listing.closed(_chosen(listing, model)).assets)
        for one in bad:
            terminal.warn(f"{one.path} {one.fault}")
        if bad:
            tip = " ".join(MENDS[place] for place in MENDS if any(one.place == place for one in bad))
            raise WeightsError(f"{len(bad)} of {len(good) + len(bad)} weight files are damaged or missing.", tip=tip)
        terminal.result(f"{len(good)} weight file{'s are' if len(good) != 1 else ' is'} whole")


@app.command()
def path(
    asset: Annotated[str | None, typer.Argument(help="A weight file; without it the folder of the downloads.", show_default=False)] = None,
    own: Annotated[bool, typer.Option("--own", help="The folder of your own weights instead.")] = False,
) -> None:
    """Say where downloaded weights lie, or where one of them is."""
    terminal = Terminal()
    with exit_codes(terminal):
        from clseg.environment import environment
        from clseg.weights.cache import cached_path, fetchable, locate

        if own and asset is not None:
            raise UsageError("--own is a folder, and does not go with the name of a weight file.", tip=f"clseg weights path {asset}")
        settings = environment()
        if asset is None:
            terminal.result(str(settings.own if own else settings.home / "weights"))
            return
        wanted = _listing().asset(asset)
        found = locate(wanted)
        if found is None:
            place = cached_path(wanted, settings.home)
            tip = f"`clseg weights fetch` brings it; by hand it belongs at {place}." if fetchable(wanted) else f"No address is known for it; by hand it belongs at {place}."
            raise WeightsError(f"The weights '{asset}' are not on this machine.", tip=tip)
        terminal.result(str(found))


@app.command()
def remove(
    assets: Annotated[list[str] | None, typer.Argument(help="Weight files by name.", show_default=False)] = None,
    model: Models = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that was downloaded.")] = False,
    own: Annotated[bool, typer.Option("--own", help="With --model: delete your own model, which cannot be downloaded again.")] = False,
    manifest: OtherManifest = None,
    allow_http: AllowHttp = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Delete downloaded weights. Those of the package stay; your own go only with --own."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights import stock

        if model and assets:
            raise UsageError(f"Names ({', '.join(assets)}) and --model do not go together.", tip="For several models repeat --model.")
        if everything + bool(model) + bool(assets) != 1 or (own and not model):
            raise UsageError("Say what to remove: names, --model or --all; --own goes with --model.", tip="`clseg weights list` shows what there is.")
        if own:
            gone = _removed_own(model or [], terminal)
        elif everything:
            gone = stock.remove_all()
        else:
            listing = _listing(manifest, allow_http, offline)
            chosen = _downloaded(listing, assets, model)
            gone = stock.remove(chosen)
            _tell_what_stays(chosen, terminal)
            _tell_what_is_lost(chosen, gone, terminal)
        terminal.note(f"{len(gone)} files deleted")


@app.command()
def pack(
    output: Annotated[Path, typer.Option("-o", "--output", help="The zip file to write.", show_default=False)],
    model: OneModel = "starter",
    roi: Roi = None,
    mirror: Mirror = None,
    manifest: OtherManifest = None,
    allow_http: AllowHttp = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Put a model, or what a ROI needs, into one file for a machine without a network: clseg weights pack -r lungs -o lungs.zip."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.bundle import pack as packed

        listing = _listing(manifest, allow_http, offline)
        assets = _needed(listing, model, roi)
        files = _fetched(assets, sources_of(mirror, manifest, allow_http), offline, terminal)
        packed(listing, model, assets, files, output)
        terminal.note(f"{len(assets)} weight files packed into {output}; there: clseg weights add {output.name}")
        terminal.note(f"licences: {_licences(assets)}")


@app.command()
def add(bundle: Annotated[Path, typer.Argument(help="A zip file that `clseg weights pack` has written.", show_default=False)], quiet: Quiet = False) -> None:
    """Verify a bundle and make its model usable on this machine; needs no network."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.bundle import add as added

        brought = added(bundle)
        told = f"{len(brought.cached)} weight files added to the cache, {len(brought.own)} to your own weights"
        terminal.note(told if brought.cached or brought.own else "all of it was on this machine already")
        terminal.note(f"use them: clseg -i ct.nii.gz -o out/ --model {brought.models[0]}" if brought.models else "no model is listed in it")


@app.command()
def manifest(
    validate: Annotated[Path | None, typer.Option("--validate", metavar="FILE", help="Check this manifest instead of printing.", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of manifests instead.")] = False,
    other: OtherManifest = None,
    allow_http: AllowHttp = False,
    offline: Offline = False,
) -> None:
    """Print the list of all models and weights that this machine knows, or check one."""
    terminal = Terminal()
    with exit_codes(terminal):
        if schema and validate is not None:
            raise UsageError("--schema prints, --validate checks.", tip="Leave one of them out.")
        if schema:
            from importlib.resources import files

            terminal.result(files("clseg").joinpath("data/manifest.schema.json").read_text(encoding="utf-8").rstrip())
            return
        if validate is None:
            terminal.result(json.dumps(_listing(other, allow_http, offline).anywhere().to_dict(), indent=2, ensure_ascii=False))
            return
        from clseg.weights.sources import read_file

        listing = read_file(validate)
        terminal.result(f"{validate} is a valid manifest: {len(listing.models)} models, {len(listing.assets)} assets")


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    base_url: Annotated[str, typer.Option("--base-url", metavar="URL", help="The address that the folder will have.", show_default=False)],
    model: Models = None,
    flat: Annotated[bool, typer.Option("--flat", help="No folder inside, for places that know none (GitHub releases).")] = False,
    allow_http: AllowHttp = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Write models and their manifest as a folder for any static web server. Default: your own models."""
    terminal = Terminal(quiet=quiet)
    with exit_codes(terminal):
        from clseg.weights.publish import publish as written

        listing = _listing()
        models = model or _own_models()
        assets = listing.closed(models).assets
        files = _fetched(assets, sources_of(None, None, allow_http), offline, terminal)
        written(listing, models, files, folder, base_url=base_url, flat=flat, allow_http=allow_http)
        terminal.note(f"{len(assets)} weight files and their manifest written to {folder}; make it reachable as {base_url}, then anywhere:")
        terminal.note(f"clseg -i ct.nii.gz -o out/ --model {models[0]} --manifest {base_url.rstrip('/')}/weights_manifest.json")
        terminal.note(f"licences, please look whether they allow it: {_licences(assets)}")


def _listing(manifest: str | None = None, allow_http: bool = False, offline: bool = False) -> Manifest:
    from clseg.weights.cache import manifest as known

    return known(sources=sources_of(None, manifest, allow_http), offline=offline)


def _chosen(listing: Manifest, models: list[str] | None) -> list[str]:
    return [listing.model(name).name for name in models] if models else [model.name for model in listing.models]


def _facts(held: Holding) -> dict[str, Any]:
    return {"name": held.asset.name, **held.asset.to_dict(), "place": held.place, "path": None if held.path is None else str(held.path)}


def _needed(listing: Manifest, model: str, roi: list[str] | None) -> tuple[Asset, ...]:
    """What the ROI needs of the model, supporters included; without a ROI all that belongs to the model."""
    from clseg.asked import asked

    if not roi:
        return listing.closed([model]).assets
    return listing.assets_for(model, [anatomy.name for anatomy in asked(listing, model, roi)])


def _fetched(assets: tuple[Asset, ...], sources: Any, offline: bool, terminal: Terminal) -> dict[str, Path]:
    from clseg.cli.progress import Bars
    from clseg.weights.cache import fetch as fetched

    return fetched(assets, sources=sources, offline=offline, report=Bars(terminal))


def _downloaded(listing: Manifest, names: list[str] | None, models: list[str] | None) -> list[Asset]:
    """The assets named; of models, those that no other model needs."""
    if names:
        return [listing.asset(name) for name in names]
    others = listing.closed(model.name for model in listing.models if model.name not in (models or []))
    return [asset for asset in listing.closed(models or []).assets if asset not in others.assets]


def _tell_what_stays(assets: list[Asset], terminal: Terminal) -> None:
    from clseg.weights.stock import holdings

    why = {"package": "is part of the package", "own": "is your own (--model … --own removes it)", "folder": "lies in a folder of yours"}
    for one in holdings(assets):
        if one.place in why:
            terminal.note(f"{one.asset.name} {why[one.place]} and stays: {one.path}")


def _tell_what_is_lost(assets: list[Asset], gone: list[Path], terminal: Terminal) -> None:
    """Deleted files that nobody can download again: they came in a bundle, or by hand."""
    from clseg.environment import environment
    from clseg.weights.cache import cached_path, fetchable
    from clseg.weights.stock import holdings

    for one in holdings(assets):
        if one.path is None and not fetchable(one.asset) and cached_path(one.asset, environment().home) in gone:
            terminal.warn(f"No address is known for {one.asset.name}: it does not come back by itself.")


def _lacking(asset: Asset) -> str:
    """What can be done about an asset that is not on this machine."""
    from clseg.weights.cache import fetchable

    return "to fetch" if fetchable(asset) else "missing"


def _removed_own(models: list[str], terminal: Terminal) -> list[Path]:
    """The files that went with the models; of entries that name files elsewhere it is said that those stay."""
    from clseg.environment import environment
    from clseg.manifest import FILE_NAME, Manifest
    from clseg.weights import own
    from clseg.weights.stock import holdings

    gone = []
    for name in models:
        path = environment().own / FILE_NAME
        listed = holdings(Manifest.read(path).closed([name]).assets) if path.is_file() else []
        gone += own.remove(name)
        terminal.note(f"'{name}' is no longer listed in {path}")
        for one in listed:
            if one.place == "folder":
                terminal.note(f"{one.asset.name} lies in a folder of yours and stays: {one.path}")
    return gone


def _own_models() -> list[str]:
    from clseg.environment import environment
    from clseg.manifest import FILE_NAME, Manifest

    path = environment().own / FILE_NAME
    if not path.is_file():
        raise UsageError("You have no models of your own to publish.", tip="Name one: --model starter.")
    return [model.name for model in Manifest.read(path).models]


def _licences(assets: tuple[Asset, ...]) -> str:
    return ", ".join(dict.fromkeys(asset.licence for asset in assets))
