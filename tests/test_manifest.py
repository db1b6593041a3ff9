"""Facts about the list of models and assets."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.errors import OutputError, UnknownName, WeightsError
from clseg.manifest import KINDS, Asset, Manifest, Model

SHA = {letter: letter * 64 for letter in "0123456789abcdef"}


def entry(kind: str = "decoder", **changes: object) -> dict:
    """One valid asset as JSON; `changes` spoil it or set it apart."""
    labels = ["liver"] if kind == "decoder" else []
    plain = {
        "kind": kind,
        "file": f"x/{kind}.safetensors",
        "bytes": 10,
        "sha256": SHA["a"],
        "licence": "MIT",
        "labels": labels,
    }
    return {**plain, **changes}


def listing(**assets: dict) -> dict:
    """A manifest as JSON with one model that lists all `assets`; each gets its own file name."""
    assets = {
        name: {"file": f"{name}.bin", **{k: v for k, v in one.items() if k != "file"}} for name, one in assets.items()
    }
    return {
        "format": 1,
        "models": {"m": {"description": "d", "licence": "MIT", "assets": list(assets)}},
        "assets": assets,
    }


@pytest.fixture
def torso() -> Manifest:
    """enc ← a (liver, spleen), b (lung, needs the supporter s), s (heart), bp; listed decoders first."""
    return Manifest.from_dict(
        listing(
            b=entry(requires=["s"], labels=["lung"]),
            a=entry(requires=["enc"], labels=["liver", "spleen"]),
            s=entry(requires=["enc"], labels=["heart", "liver"]),
            bp=entry("bodypart"),
            enc=entry("encoder"),
        )
    )


def names(assets: tuple[Asset, ...]) -> list[str]:
    return [asset.name for asset in assets]


def test_builtin_lists_the_starter_model():
    """The manifest that comes with clseg is valid and knows the model `starter`."""
    manifest = Manifest.builtin()
    assert manifest.model("starter").name == "starter"
    assert all(asset.licence for asset in manifest.assets)


def test_builtin_package_files_are_there():
    """Every `package:` source of the builtin manifest is a file of the listed size inside the package."""
    package = Path(__file__).parents[1] / "clseg"
    for asset in Manifest.builtin().assets:
        for source in asset.sources:
            if source.startswith("package:"):
                assert (package / source.removeprefix("package:")).stat().st_size == asset.bytes


def test_labels_name_their_decoders(torso: Manifest):
    """A label held by two decoders names both, in the order of the list."""
    assert torso.labels_of("m") == {"lung": ("b",), "liver": ("a", "s"), "spleen": ("a",), "heart": ("s",)}


@pytest.mark.parametrize(
    ("structures", "expected"),
    [
        (["spleen"], ["enc", "bp", "a"]),
        (["lung"], ["enc", "bp", "s", "b"]),
        (["liver"], ["enc", "bp", "a", "s"]),
        (["lung", "spleen", "spleen", "unheard"], ["enc", "bp", "a", "s", "b"]),
        (["unheard"], []),
        ([], []),
    ],
)
def test_only_what_is_needed_is_loaded(torso: Manifest, structures: list[str], expected: list[str]):
    """Wanted decoders come with their supporters, encoder and body-part regressor; nothing else comes."""
    assert names(torso.assets_for("m", structures)) == expected


def test_lone_encoder_needs_no_requires():
    """The only encoder of a model serves decoders that do not name it."""
    manifest = Manifest.from_dict(listing(d=entry(), e=entry("encoder")))
    assert names(manifest.assets_for("m", ["liver"])) == ["e", "d"]


def test_unused_encoder_stays_away():
    """Of two encoders only the one that the wanted decoder requires is loaded."""
    parts = {
        "e1": entry("encoder"),
        "e2": entry("encoder"),
        "d1": entry(requires=["e1"]),
        "d2": entry(requires=["e2"], labels=["lung"]),
    }
    assert names(Manifest.from_dict(listing(**parts)).assets_for("m", ["lung"])) == ["e2", "d2"]


def test_text_is_no_collection(torso: Manifest):
    """A single text instead of a list of structures is refused rather than read letter by letter."""
    with pytest.raises(TypeError, match="liver"):
        torso.assets_for("m", "liver")


def test_unknown_model_offers_nearest():
    """A typo in a model's name is answered with the nearest name."""
    with pytest.raises(UnknownName, match="did you mean starter") as caught:
        Manifest.builtin().model("startr")
    assert caught.value.nearest == ("starter",)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """One encoder and up to eight decoders; each requires the encoder and some earlier decoders; any order."""
    parts = {"enc": entry("encoder")}
    for number in range(draw(st.integers(1, 8))):
        earlier = draw(st.sets(st.sampled_from(sorted(parts))))
        parts[f"d{number}"] = entry(
            requires=sorted(earlier | {"enc"}), labels=draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
        )
    order = draw(st.permutations(sorted(parts)))
    return Manifest.from_dict(listing(**{name: parts[name] for name in order}))


@given(manifests(), st.lists(st.sampled_from("abcx")), st.randoms())
def test_loaded_assets_are_closed_ordered_and_minimal(manifest: Manifest, wanted: list[str], random):
    """Each asset once, after all that it requires, and each there for a reason; the order of the wish is no matter."""
    chosen = manifest.assets_for("m", wanted)
    places = {asset.name: place for place, asset in enumerate(chosen)}
    assert len(places) == len(chosen)
    assert all(places[name] < places[asset.name] for asset in chosen for name in asset.requires)
    needed = {name for asset in chosen for name in asset.requires}
    assert all(asset.name in needed or set(asset.labels) & set(wanted) for asset in chosen)
    assert {one for asset in chosen for one in asset.labels} >= set(wanted) & set(manifest.labels_of("m"))
    random.shuffle(wanted)
    assert manifest.assets_for("m", wanted) == chosen


@given(manifests())
def test_json_and_back(manifest: Manifest):
    """from_dict and to_dict are each other's inverse, through JSON text."""
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_write_and_read(torso: Manifest, tmp_path: Path):
    """read gives what write wrote, and no other file stays behind."""
    torso.write(tmp_path / "list.json")
    assert Manifest.read(tmp_path / "list.json") == torso
    assert os.listdir(tmp_path) == ["list.json"]


def test_failed_write_keeps_the_old_list(torso: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the new list cannot be written the old one is untouched and no half file stays."""
    (tmp_path / "list.json").write_text("old")
    monkeypatch.setattr(os, "replace", _refuse)
    with pytest.raises(OutputError, match="No space left"):
        torso.write(tmp_path / "list.json")
    assert (tmp_path / "list.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["list.json"]


def _refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"kind": "brain"}, "kind is 'brain'"),
        ({"sha256": "A" * 64}, "64 hexadecimal"),
        ({"sha256": "a" * 63}, "64 hexadecimal"),
        ({"sha256": "g" * 64}, "64 hexadecimal"),
        ({"sha256": None}, "64 hexadecimal"),
        ({"bytes": -1}, "bytes is -1"),
        ({"bytes": 0}, "bytes is 0"),
        ({"bytes": True}, "bytes is True"),
        ({"bytes": "10"}, "bytes is '10'"),
        ({"licence": ""}, "licence"),
        ({"labels": []}, "lists its labels"),
        ({"labels": ["liver", "liver"]}, "listed twice"),
        ({"labels": "liver"}, "list of texts"),
        ({"sources": [1]}, "list of texts"),
        ({"file": 7}, "file is 7"),
        ({"file": "/etc/passwd"}, "stays in its folder"),
        ({"file": "a/../../b"}, "stays in its folder"),
        ({"file": "a/.. /b"}, "stays in its folder"),
        ({"file": ".."}, "stays in its folder"),
        ({"file": "a//b"}, "stays in its folder"),
        ({"file": "a\\b"}, "stays in its folder"),
        ({"file": "C:/b"}, "stays in its folder"),
        ({"file": "C:b"}, "stays in its folder"),
        ({"file": "a\nb"}, "stays in its folder"),
        ({"file": ""}, "stays in its folder"),
        ({"sources": ["ftp://host/x"]}, "unknown scheme 'ftp'"),
        ({"sources": ["data:text/plain,x"]}, "unknown scheme 'data'"),
        ({"sources": ["HTTPS://host/x"]}, "unknown scheme 'HTTPS'"),
        ({"sources": ["package:../x"]}, "stays in its folder"),
        ({"sources": ["package:/etc/x"]}, "stays in its folder"),
        ({"sources": ["../x"]}, "stays in its folder"),
        ({"sources": ["C:/x"]}, "stays in its folder"),
        ({"sources": ["file://host/x"]}, "file:///folder/file"),
        ({"sources": ["http://exam ple.org/x"]}, "not a valid address"),
        ({"sources": ["https:///x"]}, "not a valid address"),
    ],
)
def test_a_bad_asset_is_refused(changes: dict, sentence: str):
    """Every rule for an asset is kept, and the error names the asset and the rule."""
    with pytest.raises(WeightsError, match=sentence) as caught:
        Asset.from_dict("mine", entry(**changes))
    assert "'mine'" in caught.value.message


@pytest.mark.parametrize("key", ["kind", "file", "bytes", "sha256", "licence"])
def test_a_fact_left_out_is_named(key: str):
    """An asset without one of its facts is refused by the name of the fact."""
    with pytest.raises(WeightsError, match=f"has no '{key}'"):
        Asset.from_dict("mine", {k: v for k, v in entry().items() if k != key})


def _spoiled(**changes: object) -> dict:
    return {**listing(d=entry(), e=entry("encoder")), **changes}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "must be a JSON object"),
        ({"format": 1, "models": {}}, "has no 'assets'"),
        (_spoiled(format=2), "format is 2"),
        (_spoiled(notes=""), "unknown key 'notes'"),
        (_spoiled(assets=[]), "'assets' must be a JSON object"),
        (_spoiled(models={"m": {"description": "", "licence": "MIT", "assets": ["lost"]}}), "lists 'lost'"),
        (_spoiled(models={"m": {"description": "", "licence": "MIT", "assets": ["e", "e"]}}), "listed twice"),
        (_spoiled(models={"../m": {"description": "", "licence": "MIT", "assets": []}}), "letters, digits"),
        (_spoiled(models={"m": {"description": "", "licence": "", "assets": []}}), "licence"),
        (listing(d=entry(requires=["lost"]), e=entry("encoder")), "requires 'lost'"),
        (listing(d=entry(requires=["f"]), f=entry(requires=["d"]), e=entry("encoder")), "circle: "),
        (listing(d=entry(requires=["d"]), e=entry("encoder")), "circle: d ← d"),
        (listing(d=entry()), "0 encoders"),
        (listing(d=entry(), e=entry("encoder"), f=entry("encoder")), "2 encoders"),
        (listing(e=entry("encoder", labels=["liver"])), "labels belong to decoders"),
    ],
)
def test_a_bad_manifest_is_refused(data: object, sentence: str):
    """Every rule for the list as a whole is kept."""
    with pytest.raises(WeightsError, match=sentence):
        Manifest.from_dict(data)


def test_one_file_name_means_one_content():
    """Two assets with different sha256 cannot share a place on a mirror."""
    first, second = (Asset.from_dict(name, entry("encoder", sha256=SHA[name])) for name in "ab")
    with pytest.raises(WeightsError, match="one file name"):
        Manifest((), (first, second))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON text"),
        ('{"format": 1, "format": 1}', "'format' is given twice"),
        ("[" * 100_000, "not JSON text"),
        ("\xff", "not JSON text"),
        ('{"format": 1, "models": {}, "assets": {"x": {}}}', "has no 'kind'"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, sentence: str):
    """The error about a manifest file names the file."""
    (tmp_path / "list.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=sentence) as caught:
        Manifest.read(tmp_path / "list.json")
    assert str(tmp_path / "list.json") in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path):
    """A manifest that is not there is a WeightsError with its path."""
    with pytest.raises(WeightsError, match=r"nowhere\.json cannot be read"):
        Manifest.read(tmp_path / "nowhere.json")


@given(st.text(st.sampled_from("ab./\\: \n~C"), max_size=12) | st.text(max_size=20))
def test_an_accepted_file_name_stays_inside(file: str):
    """No file name that is accepted leads out of the folder it is put in, by the rules of any system."""
    try:
        Asset.from_dict("mine", entry(file=file))
    except WeightsError:
        return
    assert os.path.normpath(os.path.join("/cache", file)).startswith("/cache/")
    for path in (PureWindowsPath(file), PurePosixPath(file)):
        assert not path.anchor
        assert ".." not in path.parts
        assert path.parts


SCHEMA = json.loads((Path(__file__).parents[1] / "clseg/data/manifest.schema.json").read_text())
SOUND = [
    listing(enc=entry("encoder"), dec=entry(requires=["enc"], sources=["a b/c.bin", "package:x/y", "file:///x", "https://h.org/x?y=1", "http://h/x"])),
    listing(enc=entry("encoder"), bp=entry("bodypart", replaces=["old"])),
    {"format": 1, "models": {}, "assets": {}},
]
SPOILT = [
    {"colour": "red"},
    {"kind": "brain"},
    {"sha256": "A" * 64},
    {"sha256": None},
    {"bytes": 0},
    {"bytes": "10"},
    {"licence": ""},
    {"labels": []},
    {"labels": ["liver", "liver"]},
    {"labels": "liver"},
    {"kind": "encoder"},
    {"sources": "a.bin"},
    *({"sources": [source]} for source in ("ftp://h/x", "../x", "/x", "x/../y", "a//b", "https:x", "https://h/a b", "file:x", "package:../x", "C:/x", "")),
]
PATHS = st.text(st.sampled_from("ab./\\: \n~C"), max_size=12) | st.text(st.characters(max_codepoint=126), max_size=20)


def test_the_schema_knows_the_keys():
    """The schema names the same keys, needed ones and kinds as the program."""
    asset = SCHEMA["$defs"]["asset"]
    facts = set(entry()) - {"labels"}
    assert set(asset["required"]) == facts
    assert set(asset["properties"]) == facts | {"sources", "requires", "labels", "replaces"}
    assert set(asset["properties"]["kind"]["enum"]) == set(KINDS)


@given(PATHS)
def test_the_schema_and_the_program_agree_on_paths(path: str):
    """A text is a file name by the schema's pattern just when the program takes it."""
    by_schema = re.search(SCHEMA["$defs"]["path"]["pattern"], path) is not None
    try:
        Asset.from_dict("mine", entry(file=path))
    except WeightsError:
        assert not by_schema
    else:
        assert by_schema


@pytest.mark.parametrize("changes", SPOILT, ids=str)
def test_the_schema_and_the_program_refuse_the_same(changes: dict):
    """What is wrong with one entry is wrong by both."""
    jsonschema = pytest.importorskip("jsonschema")
    spoilt = listing(enc=entry("encoder"), dec=entry(requires=["enc"]))
    spoilt["assets"]["dec"].update(changes)
    with pytest.raises(WeightsError):
        Manifest.from_dict(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, SCHEMA)


@pytest.mark.parametrize("sound", [*SOUND, Manifest.builtin().to_dict()], ids=range(4))
def test_the_schema_and_the_program_take_the_same(sound: dict):
    """Good lists are good by both, the builtin one among them."""
    jsonschema = pytest.importorskip("jsonschema")
    assert Manifest.from_dict(sound).to_dict()["models"].keys() == sound["models"].keys()
    assert list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(sound)) == []


def test_closing_brings_what_is_required(torso: Manifest):
    """A model that lists one decoder, closed, has its supporter and encoder, too, and other models are left out."""
    small = Manifest((Model("lung", "", "MIT", ("b",)), *torso.models), torso.assets)
    closed = small.closed(["lung"])
    assert names(closed.assets) == ["b", "s", "enc"]
    assert [model.name for model in closed.models] == ["lung"]


def test_a_list_written_out_means_the_same_anywhere(tmp_path: Path):
    """Relative sources become addresses of files, others stay."""
    sources = ["a b.bin", "package:data/x", "https://example.org/x"]
    there = Manifest.from_dict(listing(enc=entry("encoder", sources=sources)), tmp_path).anywhere()
    assert there.asset("enc").sources == (f"{tmp_path.as_uri()}/a%20b.bin", *sources[1:])


def test_a_part_is_a_list_of_its_own(torso: Manifest):
    """The part for the lung has its decoder, supporter, encoder and regressor, and a model made of just these."""
    part = torso.part("m", torso.assets_for("m", ["lung"]))
    assert set(part.model("m").assets) == {"enc", "bp", "s", "b"} == {asset.name for asset in part.assets}
    assert names(part.assets_for("m", ["lung"])) == ["enc", "bp", "s", "b"]


def test_merging_joins_models_assets_and_sources(torso: Manifest):
    """A user's list adds a decoder to a model, a source to an asset and a model of its own."""
    encoder = entry("encoder", file="enc.bin", sources=["https://mirror.example.org/enc"])
    own = listing(enc=encoder, mine=entry(requires=["enc"], labels=["gallbladder"]))
    own["models"]["private"] = {"description": "", "licence": "none", "assets": ["enc", "mine"]}
    merged = torso.merged(Manifest.from_dict(own))
    assert names(merged.assets_for("m", ["gallbladder"])) == ["enc", "bp", "mine"]
    assert names(merged.assets_for("private", ["gallbladder"])) == ["enc", "mine"]
    assert merged.asset("enc").sources == ("https://mirror.example.org/enc",)
    assert merged.model("m").assets == (*torso.model("m").assets, "mine")


def test_merging_keeps_relative_sources_findable(torso: Manifest, tmp_path: Path):
    """A relative source of a merged list still means the file beside that list, blanks and % included."""
    folder = tmp_path / "my list"
    theirs = Manifest.from_dict(listing(enc=entry("encoder", sources=["50% enc.bin"])), folder)
    assert torso.merged(theirs).asset("enc").sources == (f"{folder.as_uri()}/50%25%20enc.bin",)


def test_merging_refuses_another_content(torso: Manifest):
    """One asset name for two different files is refused, with both hashes."""
    theirs = Manifest.from_dict(listing(enc=entry("encoder", sha256=SHA["b"])))
    with pytest.raises(WeightsError, match=f"{SHA['a']} and {SHA['b']}"):
        torso.merged(theirs)


@given(manifests())
def test_merging_with_itself_changes_nothing(manifest: Manifest):
    """A list merged with itself is the same list."""
    assert manifest.merged(manifest) == manifest


def test_a_new_asset_is_one_entry(torso: Manifest):
    """with_asset lists a new decoder and replaces it when it is trained again; the first list stays as it was."""
    first = Asset.from_dict("mine", entry(file="mine.bin", requires=["enc"], labels=["gallbladder"]))
    again = Asset.from_dict("mine", {**first.to_dict(), "sha256": SHA["c"]})
    manifest = torso.with_asset("m", first).with_asset("m", again)
    assert manifest.asset("mine").sha256 == SHA["c"]
    assert manifest.model("m").assets == (*torso.model("m").assets, "mine")
    assert "mine" not in torso.model("m").assets


def test_models_are_checked_when_made():
    """A model made in code is held to the same rules as one read from a file."""
    with pytest.raises(WeightsError, match="listed twice"):
        Model("m", "d", "MIT", ("a", "a"))


# ---- what takes another's place ---------------------------------------------------------------------------------------


def newer(**replaces: list[str]) -> Manifest:
    """One encoder, `a` and `b`, and newer decoders that replace what is said, all listed in one model."""
    parts = {"enc": entry("encoder"), "a": entry(labels=["liver"]), "b": entry(labels=["lung"], requires=["a"])}
    parts |= {name: entry(labels=["liver"], replaces=names) for name, names in replaces.items()}
    return Manifest.from_dict(listing(**parts))


def test_what_is_replaced_is_listed_no_more():
    """The new decoder answers for its structures; the old one stays known, for those that it supports."""
    manifest = newer(a2=["a"])
    assert names(tuple(manifest.listed("m"))) == ["enc", "b", "a2"]
    assert manifest.labels_of("m")["liver"] == ("a2",)
    assert names(manifest.assets_for("m", ["liver"])) == ["enc", "a2"]
    assert set(names(manifest.assets_for("m", ["lung"]))) == {"enc", "a", "b"}


def test_the_last_of_a_chain_answers():
    """An update of an update: only the newest is listed."""
    assert newer(a2=["a"], a3=["a2", "a"]).labels_of("m")["liver"] == ("a3",)


def test_replacing_counts_only_where_both_are_listed():
    """Another model that lists the old decoder alone keeps it."""
    data = newer(a2=["a"]).to_dict()
    data["models"]["n"] = {"description": "d", "licence": "MIT", "assets": ["enc", "a"]}
    manifest = Manifest.from_dict(data)
    assert names(tuple(manifest.listed("n"))) == ["enc", "a"]
    assert "a" not in names(tuple(manifest.listed("m")))


def test_the_users_decoder_replaces_the_packages():
    """Merged into the builtin list, an own decoder takes the place of the builtin one; its own list need not name what it replaces."""
    mine = Manifest.from_dict(listing(enc=entry("encoder"), a2=entry(labels=["liver"], replaces=["a"])))
    assert mine.labels_of("m") == {"liver": ("a2",)}
    assert newer().merged(mine).labels_of("m")["liver"] == ("a2",)


def test_replaces_is_written_only_where_there_is_something():
    """Lists of old versions stay as they are, byte for byte; what replaces something survives JSON."""
    manifest = newer(a2=["a"])
    assert "replaces" not in manifest.asset("a").to_dict()
    assert manifest.asset("a2").to_dict()["replaces"] == ["a"]
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_replaces_must_be_texts():
    """A single text or numbers are refused."""
    for value in ("a", [1]):
        with pytest.raises(WeightsError, match="'replaces' must be a list of texts"):
            Asset.from_dict("mine", entry(replaces=value))
