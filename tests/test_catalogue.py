"""The catalogue: what is in it, what belongs together, and what words select."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clseg.catalogue import FIRST_CUSTOM_ID, LAST_CUSTOM_ID, SPECK_ML, Anatomy, Catalogue
from clseg.errors import UnknownName, UsageError

SHARED = Path(__file__).parents[2] / "shared"
CATALOGUE = Catalogue.builtin()
BOLUS, STENT_LEFT = 14636, 11051  # ids of a user's structures, which later versions must not change
NAMES = [anatomy.name for anatomy in CATALOGUE]
PAPER_DECODERS = {"body": 1, "head_neck": 28, "chest": 31, "abdomen": 19, "bone": 11, "lns": 2, "gtv": 9}

any_name = st.sampled_from(NAMES)
some_names = st.lists(any_name, min_size=1, max_size=6)


def names(*roi: str, among: list[str] | None = None) -> list[str]:
    return [anatomy.name for anatomy in CATALOGUE.select(roi, among)]


def tiny(*anatomies: Anatomy) -> Catalogue:
    return Catalogue((Anatomy(1, "body", ("body",), "body"), *anatomies))


def part(id: int, name: str, **fields: object) -> Anatomy:
    return Anatomy(id, name, ("chest",), "some", **fields)  # type: ignore[arg-type]


# --- what is in it


def test_holds_the_235_anatomies_of_the_paper_in_101_decoders():
    """CL-Net has 235 anatomies in 101 decoders."""
    paper = [anatomy for anatomy in CATALOGUE if anatomy.clnet]
    assert len(paper) == 235
    assert len({anatomy.decoder for anatomy in paper}) == 101


def test_groups_of_the_paper_have_their_number_of_decoders():
    """Body 1, head & neck 28, chest 31, abdomen 19, bone 11, lymph nodes 2, tumours 9 decoders."""
    decoders: dict[str, set[str]] = {}
    for anatomy in CATALOGUE:
        if anatomy.clnet:
            decoders.setdefault(anatomy.groups[0], set()).add(anatomy.decoder)
    assert {group: len(found) for group, found in decoders.items()} == PAPER_DECODERS


def test_ids_count_from_one_and_begin_with_the_paper():
    """Ids 1…235 are the paper's anatomies, later structures follow without a gap."""
    assert [anatomy.id for anatomy in CATALOGUE] == list(range(1, len(CATALOGUE) + 1))
    assert all(anatomy.clnet == (anatomy.id <= 235) for anatomy in CATALOGUE)


def test_ids_do_not_move():
    """Ids are written into files, so they stay what they were."""
    ids = {"body": 1, "spinal_cord": 42, "kidney_left": 107, "liver": 110, "vertebrae_S1": 143, "gtv_colon": 235}
    assert {name: CATALOGUE[name].id for name in ids} == ids
    later = ["skeleton", "mandible", "gtv_sarcoma", "aorta", "kidney_cyst_left", "kidney_cyst_right", "thyroid_gland"]
    assert [CATALOGUE.by_id(id).name for id in range(236, 243)] == later


def test_agrees_with_the_design_table():
    """Names, order, decoders and groups of the 235 are those of the design's table."""
    table = SHARED / "design" / "anatomies.csv"
    if not table.exists():
        pytest.skip(f"the design's table is not here: {table}")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    ours = [(anatomy.name, anatomy.groups[0], anatomy.decoder) for anatomy in CATALOGUE if anatomy.clnet]
    assert ours == [(row["name"], row["group"], row["decoder"]) for row in rows]
    assert all(CATALOGUE[row["name"]].side == row["side"] for row in rows if row["side"])


def test_knows_every_label_of_the_shared_scans():
    """Every name in a labels.json of the shared data is a structure, and so are all 117 of TotalSegmentator."""
    files = sorted((SHARED / "data").rglob("labels.json"))
    if not files:
        pytest.skip(f"no labelled scans in {SHARED / 'data'}")
    labels = [set(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    assert set().union(*labels) <= set(NAMES)
    assert max(map(len, labels)) == 117


def test_finds_every_reference_name_that_is_unique():
    """Names of the reference release lead to our structures, e.g. `Glnd_Pituitary`."""
    table = SHARED / "design" / "anatomies.csv"
    if not table.exists():
        pytest.skip(f"the design's table is not here: {table}")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [row["name"] for row in rows if names(row["reference_name"]) != [row["name"]]] == []


def test_groups_are_the_seven_of_the_paper_and_pelvis():
    """The groups that can be asked for, in the order in which they are shown."""
    assert CATALOGUE.groups == ("body", "head_neck", "chest", "abdomen", "pelvis", "bone", "lns", "gtv")


def test_only_the_same_organ_of_the_other_side_shares_a_colour():
    """Two structures in one picture can be told apart unless they are left and right of the same."""
    by_colour: dict[tuple[int, int, int], list[str]] = {}
    for anatomy in CATALOGUE:
        assert all(0 <= channel <= 255 for channel in anatomy.colour)
        by_colour.setdefault(anatomy.colour, []).append(anatomy.name)
    assert all(len(same) == 1 or CATALOGUE[same[0]].partner == same[1] for same in by_colour.values())
    assert max(map(len, by_colour.values())) == 2


def test_snomed_codes_have_a_right_check_digit():
    """The last digit of a SNOMED CT identifier is its Verhoeff check digit; a mistyped code fails."""
    codes = [anatomy.snomed[0] for anatomy in CATALOGUE if anatomy.snomed]
    assert len(codes) > 180
    assert [code for code in codes if not _verhoeff(code)] == []
    assert not _verhoeff("10200005")  # liver is 10200004


def test_snomed_codes_are_shared_only_by_what_has_one_meaning():
    """One code never stands for two meanings."""
    meanings = {anatomy.snomed for anatomy in CATALOGUE if anatomy.snomed}
    assert len({code for code, _ in meanings}) == len(meanings)


def test_tumours_know_their_host():
    """A tumour decoder overrides the organ it grows in, so it has to know it."""
    assert CATALOGUE["gtv_liver"].hosts == ("liver",)
    assert CATALOGUE["gtv_lung"].hosts == ("lung_left", "lung_right")
    assert all(anatomy.groups[0] == "gtv" or "cyst" in anatomy.name for anatomy in CATALOGUE if anatomy.hosts)


def test_a_part_is_smaller_than_its_whole():
    """Typical volumes agree with what contains what; every structure of the table has one, a user's own has none."""
    assert all(CATALOGUE[anatomy.parent].typical_ml > anatomy.typical_ml > 0 for anatomy in CATALOGUE if anatomy.parent)
    assert CATALOGUE.with_structures(["bolus"])["bolus"].typical_ml == 0


def test_typical_volumes_of_some_organs():
    """Adults: liver about 1.5 L, kidney 0.17 L, eye 8 mL; partners are about equal."""
    assert [CATALOGUE[name].typical_ml for name in ("liver", "kidney_left", "eye_right")] == [1500, 170, 8]
    ratios = [a.typical_ml / CATALOGUE[a.partner].typical_ml for a in CATALOGUE if a.partner]
    assert 0.75 < min(ratios) <= max(ratios) < 1.35


def test_pieces_of_the_body_are_larger_than_bits_of_couch():
    """200 mL for the body, a speck for all others."""
    assert {anatomy.name: anatomy.min_piece_ml for anatomy in CATALOGUE if anatomy.min_piece_ml != SPECK_ML} == {"body": 200.0}


def test_cleaning_keeps_scattered_structures_whole():
    """Structures that may come in several pieces are not marked as single."""
    scattered = ("body", "skeleton", "aorta", "colon", "costal_cartilages", "gtv_liver", "lymph_node_station_chest_9")
    assert not any(CATALOGUE[name].single_component for name in scattered)
    assert all(CATALOGUE[name].single_component for name in ("liver", "kidney_left", "lung_right", "mandible"))


# --- what belongs together


def test_ancestors_run_from_the_smallest_to_the_body():
    """Lobe in lung in body; half of the jaw in jaw in skeleton in body."""
    assert CATALOGUE.ancestors("lung_upper_lobe_left") == ("lung_left", "body")
    assert CATALOGUE.ancestors("mandible_left") == ("mandible", "skeleton", "body")
    assert CATALOGUE.ancestors("body") == ()
    assert CATALOGUE.depth("mandible_left") == 3


@given(any_name)
def test_everything_is_in_the_body(name: str):
    """The body is the only root."""
    assert name == "body" or CATALOGUE.ancestors(name)[-1] == "body"


@given(any_name)
def test_children_are_one_deeper_and_name_their_parent(name: str):
    """`children` is the inverse of `parent`, and adds one to the depth."""
    for child in CATALOGUE.children(name):
        assert CATALOGUE[child].parent == name
        assert CATALOGUE.depth(child) == CATALOGUE.depth(name) + 1
    assert [child for child in CATALOGUE.descendants(name) if name not in CATALOGUE.ancestors(child)] == []


@given(any_name, any_name)
def test_related_is_symmetric_and_means_containing(a: str, b: str):
    """Two structures may overlap exactly when they are one or one contains the other."""
    contained = a in (b, *CATALOGUE.ancestors(b)) or b in CATALOGUE.ancestors(a)
    assert CATALOGUE.related(a, b) == CATALOGUE.related(b, a) == contained


def test_neighbours_are_not_related():
    """Lung and lobe may overlap, lobes of the two lungs may not."""
    assert CATALOGUE.related("lung_left", "lung_upper_lobe_left")
    assert not CATALOGUE.related("lung_left", "lung_upper_lobe_right")
    assert not CATALOGUE.related("liver", "gtv_liver")


@given(any_name)
def test_partners_are_mutual_and_on_opposite_sides(name: str):
    """The partner's partner is the structure itself, and left meets right."""
    anatomy = CATALOGUE[name]
    if anatomy.partner:
        partner = CATALOGUE[anatomy.partner]
        assert partner.partner == name
        assert {anatomy.side, partner.side} == {"left", "right"}
        assert partner.name == name.replace(anatomy.side, partner.side)


def test_a_lesion_grows_in_its_host_and_what_belongs_to_it():
    """A lung tumour may share a voxel with the lung, a lobe of it and the body, not with the liver; the liver's with the liver."""
    assert all(CATALOGUE.grows_in("gtv_lung", organ) for organ in ("lung_left", "lung_upper_lobe_right", "body"))
    assert not CATALOGUE.grows_in("gtv_lung", "liver")
    assert not CATALOGUE.grows_in("lung_left", "gtv_lung")
    assert CATALOGUE.may_overlap("lung_left", "gtv_lung")
    assert not CATALOGUE.may_overlap("gtv_liver", "gtv_lung")


@given(any_name, any_name)
def test_who_may_share_a_voxel_is_mutual(a: str, b: str):
    """Order does not matter; relatives always may."""
    assert CATALOGUE.may_overlap(a, b) == CATALOGUE.may_overlap(b, a)
    assert CATALOGUE.may_overlap(a, b) or not CATALOGUE.related(a, b)


# --- what words select


@given(any_name)
def test_a_name_selects_just_itself(name: str):
    """Every structure can be asked for by its name, in any case, with spaces or hyphens."""
    assert names(name) == [name]
    assert names(name.upper().replace("_", " ")) == [name]
    assert names(f" {name.replace('_', '-')} ") == [name]


@given(st.sampled_from([(anatomy.name, synonym) for anatomy in CATALOGUE for synonym in anatomy.synonyms]))
def test_a_synonym_selects_its_structure(pair: tuple[str, str]):
    """Every synonym leads to its structure."""
    name, synonym = pair
    assert name in names(synonym)


@given(some_names, st.randoms())
def test_selection_is_in_id_order_without_duplicates(chosen: list[str], random):
    """Order and repetition of the words do not matter; commas and lists are the same."""
    shuffled = [*chosen, chosen[0]]
    random.shuffle(shuffled)
    expected = sorted(set(chosen), key=NAMES.index)
    assert names(*shuffled) == names(",".join(shuffled)) == expected


def test_all_selects_everything():
    """`all` is every structure."""
    assert names("all") == names("ALL", "liver") == NAMES


@pytest.mark.parametrize("group", CATALOGUE.groups)
def test_a_group_selects_its_members(group: str):
    """A group is every structure with that group, also as a later one."""
    assert names(group) == [anatomy.name for anatomy in CATALOGUE if group in anatomy.groups]


def test_a_structure_may_be_in_several_groups():
    """The bladder is in abdomen and pelvis, a rib in bone and chest."""
    assert "urinary_bladder" in names("abdomen")
    assert "urinary_bladder" in names("pelvis")
    assert "rib_left_7" in names("chest")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("kidney", ["kidney_left", "kidney_right"]),
        ("Kidneys", ["kidney_left", "kidney_right"]),
        ("lungs", ["lung_left", "lung_right"]),
        ("parotids", ["parotid_gland_left", "parotid_gland_right"]),
        ("left kidney", ["kidney_left"]),
        ("Parotid-R", ["parotid_gland_right"]),
        ("iliac arteries", ["iliac_artery_left", "iliac_artery_right"]),
        ("lumbar vertebrae", [f"vertebrae_L{i}" for i in range(5, 0, -1)]),
        ("humeri", ["humerus_left", "humerus_right"]),
        ("lenses", ["eye_lens_left", "eye_lens_right"]),
        ("atria", ["heart_atrium_left", "heart_atrium_right"]),
        ("pancreas", ["pancreas"]),
        ("brachial plexus", ["brachial_plexus_left", "brachial_plexus_right"]),
        ("oesophagus", ["esophagus"]),
        ("cord", ["spinal_cord"]),
        ("thyroid", ["thyroid_gland"]),
        ("jaw", ["mandible"]),
        ("left jaw", ["mandible_left"]),
        ("left right kidney", ["kidney_left", "kidney_right"]),
        ("rib 7", ["rib_left_7", "rib_right_7"]),
        ("left ribs", [f"rib_left_{i}" for i in range(1, 13)]),
        ("L1", ["vertebrae_L1"]),
        ("lumbar spine", [f"vertebrae_L{i}" for i in range(5, 0, -1)]),
        ("Glnd_Pituitary", ["pituitary_gland"]),
    ],
)
def test_words_people_use(word: str, expected: list[str]):
    """Sides, plurals, synonyms and common short names are understood."""
    assert names(word) == expected


def test_a_string_is_a_list_of_one():
    """`select("liver")` does not look for five letters."""
    assert [anatomy.name for anatomy in CATALOGUE.select("liver, spleen")] == ["spleen", "liver"]


@pytest.mark.parametrize("nothing", [[], [""], [" , ,"]])
def test_asking_for_nothing_is_an_error(nothing: list[str]):
    """An empty selection is refused."""
    with pytest.raises(UsageError, match="No structure was asked for"):
        CATALOGUE.select(nothing)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("livr", "liver"), ("kidny", "kidney"), ("chst", "chest"), ("oesofagus", "oesophagus"), ("Pankreas", "pancreas")],
)
def test_a_typo_is_answered_with_the_nearest_names(typo: str, meant: str):
    """Names, synonyms and groups are offered, the nearest first, three at most."""
    with pytest.raises(UnknownName, match=f"Unknown structure or group '{typo}'; did you mean") as caught:
        names("liver", typo)
    assert caught.value.nearest[0] == meant
    assert len(caught.value.nearest) <= 3
    assert caught.value.exit_code == 2


@given(st.text("abdeiklnorstuvy_ ", min_size=3, max_size=14).filter(str.strip))
def test_whatever_is_suggested_is_understood(text: str):
    """Following a suggestion always works, and no two suggestions mean the same."""
    try:
        assert CATALOGUE.select([text])
    except UnknownName as error:
        meanings = [tuple(names(word)) for word in error.nearest]
        assert len(set(meanings)) == len(meanings) <= 3


# --- what a model holds


def test_a_group_gives_what_the_model_holds():
    """Members of a group that the model does not hold are left out."""
    assert names("abdomen", "all", among=["liver", "brain", "spleen"]) == ["brain", "spleen", "liver"]
    assert names("abdomen", among=["liver", "brain", "spleen"]) == ["spleen", "liver"]


def test_a_whole_that_is_not_held_gives_its_held_parts():
    """A lung is its lobes, the skeleton its bones, the jaw its halves."""
    lobes = ["lung_upper_lobe_left", "lung_lower_lobe_left"]
    assert names("lung_left", among=[*lobes, "lung_upper_lobe_right"]) == lobes
    assert names("skeleton", among=["brain", "femur_left", "mandible_left"]) == ["mandible_left", "femur_left"]
    assert names("jaw", among=["mandible_left", "mandible_right"]) == ["mandible_left", "mandible_right"]


def test_a_held_whole_is_not_replaced_by_its_parts():
    """Where whole and parts are held, the whole alone answers to its name."""
    assert names("lung_left", among=["lung_left", "lung_upper_lobe_left"]) == ["lung_left"]


def test_the_body_is_not_its_parts():
    """Organs do not add up to the body: a model without it says so."""
    with pytest.raises(UsageError, match="does not hold 'body'"):
        names("body", among=["liver"])


def test_a_word_for_both_sides_gives_the_held_one():
    """`kidney` with only the left in the model is the left."""
    assert names("kidney", among=["kidney_left", "liver"]) == ["kidney_left"]


def test_what_is_not_held_is_refused_with_the_nearest_held():
    """The answer names the structure and up to three that the model does hold."""
    with pytest.raises(UsageError, match=r"does not hold 'mandible_left'; the nearest it holds: mandible, ") as caught:
        names("mandible_left", among=["liver", "brain", "mandible"])
    assert not isinstance(caught.value, UnknownName)
    with pytest.raises(UsageError, match="the nearest it holds: kidney_right, spleen, liver"):
        names("kidney_left", among=["brain", "liver", "spleen", "kidney_right"])
    with pytest.raises(UsageError, match="does not hold 'pelvis'; the nearest it holds: brain"):
        names("pelvis", among=["brain"])


@given(some_names, some_names)
def test_only_held_structures_are_selected(roi: list[str], held: list[str]):
    """With `among`, each result is held and is asked for or lies inside something asked for."""
    try:
        found = names(*roi, among=held)
    except UsageError:
        assert any(name not in held for name in roi)
    else:
        assert set(found) <= set(held)
        assert set(roi) & set(held) <= set(found)
        assert all(any(CATALOGUE.related(name, asked) for asked in roi) for name in found)


def test_an_unknown_word_is_unknown_before_a_model_is_asked():
    """A typo is called a typo, not a structure that the model lacks."""
    with pytest.raises(UnknownName, match="did you mean liver"):
        names("livr", among=["spleen"])


# --- access, growth and checks


def test_is_read_only_and_read_once():
    """The built-in catalogue is one object that cannot be changed."""
    assert Catalogue.builtin() is CATALOGUE
    with pytest.raises(FrozenInstanceError):
        CATALOGUE.anatomies = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        CATALOGUE["liver"].name = "spleen"  # type: ignore[misc]


@given(any_name)
def test_id_and_name_find_the_same(name: str):
    """`by_id` and `[]` are inverse to each other; `in` agrees."""
    assert CATALOGUE.by_id(CATALOGUE[name].id) is CATALOGUE[name]
    assert name in CATALOGUE
    assert name.upper() + "x" not in CATALOGUE


def test_an_unknown_name_or_id_is_told_so():
    """`[]` takes exact names only and offers near ones; ids are looked up exactly."""
    with pytest.raises(UnknownName, match="Unknown structure 'Liver'; did you mean liver"):
        CATALOGUE["Liver"]
    with pytest.raises(UnknownName, match="Unknown structure id '9999'"):
        CATALOGUE.by_id(9999)


def test_structures_of_a_user_join_the_catalogue():
    """New names follow behind the known ones, which keep their rows."""
    grown = CATALOGUE.with_structures(["bolus", "liver", "stent_left", "stent_right", "bolus"])
    assert {anatomy.name for anatomy in list(grown)[len(CATALOGUE) :]} == {"bolus", "stent_left", "stent_right"}
    assert grown["liver"] is CATALOGUE["liver"]
    assert grown["bolus"].groups == ("custom",)
    assert grown["bolus"].parent == "body"
    assert grown["stent_left"].partner == "stent_right"
    assert {anatomy.name for anatomy in grown.select(["stents", "custom"])} == {"bolus", "stent_left", "stent_right"}
    assert "bolus" not in CATALOGUE


def test_a_structure_goes_before_a_group_of_its_name():
    """A model's own structure `pelvis` can be asked for; elsewhere the word is the group."""
    grown = CATALOGUE.with_structures(["pelvis", "tumour"])
    assert {anatomy.name for anatomy in grown.select(["pelvis,tumours"])} == {"pelvis", "tumour"}
    assert len(names("pelvis")) > 1


def test_ids_of_a_user_are_written_into_files_and_stay():
    """An id depends on the name alone: the same number in every model, in 16 bits, from one version to the next."""
    assert [CATALOGUE.with_structures([name])[name].id for name in ("bolus", "stent_left")] == [BOLUS, STENT_LEFT]
    together = CATALOGUE.with_structures(["zebra", "stent_left", "bolus", "ahead"])
    assert (together["bolus"].id, together["stent_left"].id) == (BOLUS, STENT_LEFT)


@given(st.lists(st.text("abcdefgh_", min_size=1, max_size=8), min_size=1, max_size=30), st.randoms())
def test_ids_of_a_user_do_not_depend_on_the_order(new: list[str], random):
    """However the names of a model are listed, every name has the same id, 10001 to 65000, and no two share one."""
    shuffled = random.sample(new, len(new))
    one, other = (CATALOGUE.with_structures(given) for given in (new, shuffled))
    assert one == other
    assert all(FIRST_CUSTOM_ID <= one[name].id <= LAST_CUSTOM_ID < 2**16 for name in new if name not in CATALOGUE)


def test_names_that_fall_on_one_id_take_different_ones(monkeypatch):
    """With three ids for three names all are used, whatever they fall on, the same in any order; a fourth is refused."""
    monkeypatch.setattr("clseg.catalogue.LAST_CUSTOM_ID", FIRST_CUSTOM_ID + 2)
    new = ["one", "two", "three"]
    grown = CATALOGUE.with_structures(new)
    assert sorted(grown[name].id for name in new) == [FIRST_CUSTOM_ID, FIRST_CUSTOM_ID + 1, FIRST_CUSTOM_ID + 2]
    assert CATALOGUE.with_structures(reversed(new)) == grown
    with pytest.raises(UsageError, match="no id left for 'four': all 3 from 10001 to 10003"):
        grown.with_structures(["four"])


@given(st.lists(st.text("abcxyz_", min_size=1, max_size=8), max_size=5))
def test_growing_twice_is_growing_once(new: list[str]):
    """Adding names in two steps gives the same ids and colours as in one."""
    once = CATALOGUE.with_structures(new)
    assert CATALOGUE.with_structures(new[:2]).with_structures(new) == once
    assert once.with_structures(new) is once
    assert all(anatomy.id >= FIRST_CUSTOM_ID for anatomy in once if anatomy.name not in CATALOGUE)


@pytest.mark.parametrize("name", ["", "a,b", "a/b", "..", " stent", "a\nb", "a;b"])
def test_names_that_cannot_be_asked_for_are_refused(name: str):
    """A name becomes a file name and an entry of a list, so it has no separators."""
    with pytest.raises(UsageError, match="cannot be called"):
        CATALOGUE.with_structures([name])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([part(1, "lung")], "Ids of structures must be unique, given twice: 1"),
        ([part(2, "lung"), part(3, "lung")], "Names of structures must be unique, given twice: lung"),
        ([part(2, "lobe", parent="lung")], "parent of 'lobe' must be a structure, given: 'lung'"),
        ([part(2, "tumour", hosts=("lung",))], "host of 'tumour' must be a structure, given: 'lung'"),
        ([part(2, "a", parent="b"), part(3, "b", parent="a")], "cannot contain itself"),
        ([part(2, "a", parent="a")], "cannot contain itself"),
        ([part(2, "lung_left")], "side of 'lung_left' must agree with its name, given: ''"),
        ([part(2, "lung", side="left")], "side of 'lung' must agree with its name, given: 'left'"),
        (
            [part(2, "a_left", side="left", partner="a_right"), part(3, "a_right", side="right")],
            "'a_left' and 'a_right' must be partners of each other",
        ),
        (
            [part(2, "a_left", side="left", partner="b_left"), part(3, "b_left", side="left", partner="a_left")],
            "must be partners of each other, on opposite sides",
        ),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(wrong: list[Anatomy], message: str):
    """Ids, names, references, ancestry, partners and sides are checked when a catalogue is made."""
    with pytest.raises(UsageError, match=message):
        tiny(*wrong)


def test_order_given_does_not_matter():
    """A catalogue is sorted by id."""
    assert Catalogue(reversed(list(CATALOGUE))) == CATALOGUE
    assert Catalogue([*CATALOGUE.anatomies[:-1], replace(CATALOGUE.anatomies[-1], id=999)]) != CATALOGUE


def test_import_brings_in_nothing_heavy():
    """Names can be looked up before torch, numpy or image libraries are loaded."""
    code = (
        "import sys; from clseg.catalogue import Catalogue; Catalogue.builtin().select(['chest']); "
        "print(*({'torch', 'numpy', 'scipy', 'nibabel', 'SimpleITK'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "", "")


def _verhoeff(code: str) -> bool:
    """True when the digits end with the right check digit (dihedral group D5)."""

    def times(a: int, b: int) -> int:
        turned = (a + b) % 5 if a < 5 else (a - b) % 5
        return turned + 5 * ((a >= 5) != (b >= 5))

    def permuted(digit: int, times_applied: int) -> int:
        for _ in range(times_applied % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        return digit

    check = 0
    for position, digit in enumerate(reversed(code)):
        check = times(check, permuted(int(digit), position))
    return check == 0


def test_names_of_other_programs_have_meanings():
    """`Hepar` means one structure, `kidney` two, `glorb` none; a comma is no list here."""
    assert CATALOGUE.meanings("Hepar") == ("liver",)
    assert CATALOGUE.meanings("kidney") == ("kidney_left", "kidney_right")
    assert CATALOGUE.meanings("glorb") == CATALOGUE.meanings("liver,spleen") == ()


def test_a_name_without_its_side():
    """The word for the side goes, wherever it stands."""
    assert [CATALOGUE.without_side(name) for name in ("kidney_left", "rib_left_3", "liver")] == ["kidney", "rib_3", "liver"]
