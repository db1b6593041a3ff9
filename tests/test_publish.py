"""Facts about a published folder: it can be used from its address as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from clseg.errors import UsageError
from clseg.manifest import FILE_NAME, Manifest
from clseg.weights.cache import fetch, manifest
from clseg.weights.publish import publish
from clseg.weights.sources import Sources
from tests.conftest import TINY_LABELS, write_tiny_model
from tests.weights_server import serve


@pytest.fixture
def tiny(tmp_path: Path) -> Manifest:
    return Manifest.read(write_tiny_model(tmp_path / "there", TINY_LABELS) / FILE_NAME)


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_published_can_be_used_from_there(tiny: Manifest, tmp_path: Path, flat: bool):
    """Served as it is, the folder's manifest leads to its files, and the bytes are those of the owner."""
    with serve() as server:
        publish(tiny, ["tiny"], fetch(tiny.assets), tmp_path / "www", base_url=server.url("/w"), flat=flat)
        server.start_over({f"/w/{path.relative_to(tmp_path / 'www')}": path.read_bytes() for path in (tmp_path / "www").rglob("*") if path.is_file()})
        sources = Sources(manifest=server.url(f"/w/{FILE_NAME}"))
        found = fetch(manifest(home=tmp_path / "home", sources=sources).assets, home=tmp_path / "home", sources=sources)
    assert {name: path.read_bytes() for name, path in found.items()} == {name: path.read_bytes() for name, path in fetch(tiny.assets).items()}


@pytest.mark.parametrize(("flat", "mirror"), [(False, "/w/assets"), (True, "/w")])
def test_what_is_published_is_a_mirror(tiny: Manifest, tmp_path: Path, flat: bool, mirror: str):
    """Whoever has the published manifest gets the files below the mirror's address."""
    with serve() as server:
        published = publish(tiny, ["tiny"], fetch(tiny.assets), tmp_path / "www", base_url="https://example.org", flat=flat)
        server.start_over({f"/w/{path.relative_to(tmp_path / 'www')}": path.read_bytes() for path in (tmp_path / "www").rglob("*") if path.is_file()})
        found = fetch(published.assets, home=tmp_path / "home", sources=Sources(mirror=server.url(mirror)))
        assert len(found) == len(server.requests) == 4


def test_the_folder_works_where_it_lies(tiny: Manifest, tmp_path: Path):
    """The first source is relative, so the same folder on a share needs no web server."""
    publish(tiny, ["tiny"], fetch(tiny.assets), tmp_path / "www", base_url="https://example.org/a b".replace(" ", "%20"))
    listing = Manifest.read(tmp_path / "www" / FILE_NAME)
    assert listing.asset("tiny-lungs").sources == ("assets/tiny/tiny-lungs.safetensors", "https://example.org/a%20b/assets/tiny/tiny-lungs.safetensors")
    assert set(fetch(listing.assets, offline=True)) == {asset.name for asset in tiny.assets}


def test_flat_has_no_folders(tiny: Manifest, tmp_path: Path):
    """GitHub releases know none."""
    publish(tiny, ["tiny"], fetch(tiny.assets), tmp_path / "www", base_url="https://example.org", flat=True)
    assert {path.name for path in (tmp_path / "www").iterdir()} == {FILE_NAME, *(f"{asset.name}.safetensors" for asset in tiny.assets)}


@pytest.mark.parametrize("url", ["http://example.org/w", "ftp://example.org", "example.org", "https://example.org/w?x=1", "https://example.org/#w"])
def test_an_address_that_nobody_would_ask_is_refused(tiny: Manifest, tmp_path: Path, url: str):
    """Nothing is written."""
    with pytest.raises(UsageError, match="Nothing can be published"):
        publish(tiny, ["tiny"], fetch(tiny.assets), tmp_path / "www", base_url=url)
    assert not (tmp_path / "www").exists()
