"""Catalogue: the names of all structures, what they belong to, and how to ask for them.

    catalogue = Catalogue.builtin()
    catalogue["liver"].groups               # ("abdomen",)
    catalogue.select(["chest", "kidneys"])  # Anatomies in the order of their ids

The structures are data: `clseg/data/anatomies.csv`, one row each.  The ids there
never change meaning; new structures are appended.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from colorsys import hls_to_rgb
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from hashlib import sha256
from importlib.resources import files

from clseg.catalogue_check import check, lineage
from clseg.errors import NotHeld, UnknownName, UsageError
from clseg.words import OPPOSITE, as_word, base_and_side, other_side, side_of, singulars, tokens_of

Colour = tuple[int, int, int]

ROOT = "body"
SPECK_ML = 0.1  # pieces below this are noise on a 3 mm grid (about four voxels), where the table says nothing else
FIRST_CUSTOM_ID, LAST_CUSTOM_ID = 10001, 65000  # what fits a label map of 16 bits
TIP = "`clseg rois` lists all structures and groups."

GROUP_SYNONYMS = {
    "body": (),
    "head_neck": ("head_and_neck", "head", "neck", "hn"),
    "chest": ("thorax",),
    "abdomen": ("belly",),
    "pelvis": (),
    "bone": ("bones",),
    "lns": ("lymph_node", "lymph_node_station"),
    "gtv": ("tumour", "tumor", "gross_tumour_volume", "gross_tumor_volume"),
}


@dataclass(frozen=True)
class Anatomy:
    """One structure, as one row of `anatomies.csv`.

    `groups` begins with the group of the CL-Net paper.  `parent` is the smallest
    structure that contains this one, `partner` the same structure on the other
    side, `hosts` the organs a lesion grows in.  `single_component` is True where
    keeping only the largest connected piece is safe; of the others pieces below
    `min_piece_ml` are noise.  `typical_ml` is about the volume in an adult, to one
    or two digits: enough to say which of two structures is the smaller; 0 where
    it is not known.  `clnet` marks the 235 structures of CL-Net.  `snomed` is
    (SNOMED CT code, meaning) without side.
    """

    id: int
    name: str
    groups: tuple[str, ...]
    decoder: str
    side: str = ""
    parent: str | None = None
    partner: str | None = None
    hosts: tuple[str, ...] = ()
    single_component: bool = False
    typical_ml: float = 0.0
    min_piece_ml: float = SPECK_ML
    clnet: bool = False
    colour: Colour = (128, 174, 128)
    snomed: tuple[str, str] | None = None
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Catalogue:
    """All structures that are known, in the order of their ids; it never changes.

    Raises UsageError when ids or names are not unique, a parent, partner or host
    does not exist, a structure contains itself, partners do not name each other,
    or a side does not agree with its name.
    """

    anatomies: tuple[Anatomy, ...]

    def __init__(self, anatomies: Iterable[Anatomy]) -> None:
        object.__setattr__(self, "anatomies", tuple(sorted(anatomies, key=lambda anatomy: anatomy.id)))
        check(self.anatomies)

    @staticmethod
    @cache
    def builtin() -> Catalogue:
        """The structures that come with `clseg`."""
        with files("clseg.data").joinpath("anatomies.csv").open(encoding="utf-8", newline="") as table:
            return Catalogue(_anatomy(row) for row in csv.DictReader(table))

    def __repr__(self) -> str:
        return f"Catalogue({len(self)} structures)"

    def __iter__(self) -> Iterator[Anatomy]:
        return iter(self.anatomies)

    def __len__(self) -> int:
        return len(self.anatomies)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Anatomy:
        """The structure called exactly so; UnknownName when there is none."""
        if name not in self._by_name:
            raise UnknownName("structure", name, self._nearest(name), tip=TIP)
        return self._by_name[name]

    def by_id(self, id: int) -> Anatomy:
        """The structure with this id; UnknownName when there is none."""
        if id not in self._by_id:
            raise UnknownName("structure id", str(id), tip=TIP)
        return self._by_id[id]

    # --- what belongs together

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that have members, the usual ones first."""
        used = dict.fromkeys(group for anatomy in self for group in anatomy.groups)
        usual = [group for group in GROUP_SYNONYMS if group in used]
        return (*usual, *(group for group in used if group not in GROUP_SYNONYMS))

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The structures that contain this one, the smallest first, `body` last."""
        return self._ancestors[self[name].name]

    def depth(self, name: str) -> int:
        """How many structures contain this one; 0 for `body`."""
        return len(self.ancestors(name))

    def children(self, name: str) -> tuple[str, ...]:
        """The structures whose parent is this one, in id order."""
        return tuple(anatomy.name for anatomy in self if anatomy.parent == self[name].name)

    def descendants(self, name: str) -> tuple[str, ...]:
        """All structures inside this one, in id order."""
        inside = self[name].name
        return tuple(anatomy.name for anatomy in self if inside in self._ancestors[anatomy.name])

    def related(self, a: str, b: str) -> bool:
        """True when `a` and `b` are the same or one contains the other: their masks may overlap."""
        return a == b or a in self.ancestors(b) or b in self.ancestors(a)

    def grows_in(self, lesion: str, organ: str) -> bool:
        """True when `organ` hosts the lesion, is part of its host or contains it."""
        return any(self.related(host, organ) for host in self[lesion].hosts)

    def may_overlap(self, a: str, b: str) -> bool:
        """True for a structure and its parts, and for a lesion and what it grows in; all others exclude each other."""
        return self.related(a, b) or self.grows_in(a, b) or self.grows_in(b, a)

    # --- names of other programs

    def meanings(self, name: str) -> tuple[str, ...]:
        """The structures that another program's name may mean: none, one, or several (`kidney`)."""
        if name in self:
            return (name,)
        if "," in name:
            return ()
        try:
            return tuple(anatomy.name for anatomy in self.select([name]))
        except UsageError:
            return ()

    def without_side(self, name: str) -> str:
        """`kidney_left` → `kidney`, as words joined by underscores."""
        return base_and_side(as_word(name))[0]

    # --- growing and asking

    def with_structures(self, names: Iterable[str]) -> Catalogue:
        """A catalogue that also has these names, e.g. those of a decoder somebody trained.

        Known names are left alone.  New ones get the group `custom`, `body` as
        parent, and an id from 10001 to 65000 and a colour that depend on the name
        alone, so that they are the same in every model.  Should two names fall on
        one id, the later in the alphabet takes another.  Raises UsageError for a
        name that cannot be asked for or be a file name, and when no id is left.
        """
        new = sorted(name for name in dict.fromkeys(names) if name not in self)
        if not new:
            return self
        parent, taken = ROOT if ROOT in self else None, set(self._by_id)
        grown = []
        for name in new:
            grown.append(_custom(_custom_id(name, taken), name, new, parent))
            taken.add(grown[-1].id)
        return Catalogue((*self, *grown))

    def select(self, roi: Iterable[str], among: Iterable[str] | None = None) -> tuple[Anatomy, ...]:
        """The structures that `roi` asks for, in id order, each once.

        A token is `all`, a group, a structure or a synonym, or several of them
        separated by commas.  Case does not matter; spaces and hyphens are as good
        as underscores.  A token without a side means both sides (`kidney`), and
        plurals are understood (`lungs`).  A structure goes before a group of its name.

        `among` names the structures that a model holds.  Then a group or a word
        for several structures gives those that the model holds, and a structure
        it does not hold gives the held structures inside it (`lung_left` its
        lobes; not `body`, whose parts do not add up to it).

        Raises UnknownName for a token that nobody knows, NotHeld when the model holds
        nothing of what a token means, UsageError when nothing is asked for.
        """
        tokens = tokens_of(roi)
        if not tokens:
            raise UsageError("No structure was asked for; expected at least one structure or group.", tip=TIP)
        held = None if among is None else frozenset(self[name].name for name in among)
        chosen = {name for token in tokens for name in self._held(token, self._meaning(token), held)}
        return tuple(anatomy for anatomy in self if anatomy.name in chosen)

    def nearest_among(self, token: str, among: Iterable[str]) -> tuple[str, ...]:
        """Up to three of `among` that may be meant by a token or stand nearest to what it means."""
        try:
            meant = self._meaning(token)
        except UnknownName:
            meant = ()
        return self._nearest_held(token, meant, frozenset(among))

    def _meaning(self, token: str) -> tuple[str, ...]:
        """Names of the structures that a token stands for, whatever a model holds."""
        word = as_word(token)
        if word == "all":
            return tuple(self._by_name)
        if token.strip() in self:
            return (token.strip(),)
        for meant in singulars(word):
            names = self._by_name_word.get(meant) or self._by_group.get(meant) or self._called(meant)
            if names:
                return names
        several = len(words := token.split()) > 1 and all(map(self.meanings, words))
        tip = f"Commas stand between names: {','.join(words)}" if several else TIP
        raise UnknownName("structure or group", token, () if several else self._nearest(token), tip=tip)

    def _called(self, word: str) -> tuple[str, ...]:
        """Names of the structures called so, by name or synonym; all sides where none is said.

        A whole stands for its parts: `jaw` is the mandible, not also its halves.
        """
        base, side = base_and_side(word)
        sides = (side,) if side else ("", *OPPOSITE)
        called = dict.fromkeys(name for side in sides for name in self._by_call.get((base, side), ()))
        return tuple(name for name in called if called.keys().isdisjoint(self._ancestors[name]))

    def _held(self, token: str, names: tuple[str, ...], held: frozenset[str] | None) -> tuple[str, ...]:
        """Those of `names` that a model holds, or the held structures inside them."""
        if held is None:
            return names
        found = [part for name in names for part in self._held_parts(name, held)]
        if not found:
            raise NotHeld(token, self._nearest_held(token, names, held), tip=TIP)
        return tuple(found)

    def _held_parts(self, name: str, held: frozenset[str]) -> tuple[str, ...]:
        if name in held:
            return (name,)
        if self[name].parent is None:  # the parts of a root do not add up to it
            return ()
        return tuple(part for part in self.descendants(name) if part in held)

    def _nearest_held(self, token: str, names: Sequence[str], held: frozenset[str]) -> tuple[str, ...]:
        """Up to three held structures: relatives of `names`, alike to the token, of the same group, others."""
        holds = [anatomy for anatomy in self if anatomy.name in held]
        relatives = [kin for name in names for kin in (self[name].partner, *self.ancestors(name)[:-1]) if kin in held]
        alike = get_close_matches(as_word(token), [anatomy.name for anatomy in holds], n=3, cutoff=0.6)
        wanted = {group for name in names for group in self[name].groups}
        others = sorted(holds, key=lambda anatomy: wanted.isdisjoint(anatomy.groups))
        return tuple(dict.fromkeys([*relatives, *alike, *(anatomy.name for anatomy in others)]))[:3]

    def _nearest(self, token: str) -> tuple[str, ...]:
        """Up to three words that may have been meant, each for something else."""
        alike = get_close_matches(as_word(token), self._words, n=9, cutoff=0.6)
        words = {self._meaning(word): word for word in reversed(alike)}
        return tuple(word for word in alike if word in words.values())[:3]

    # --- indices, made when first needed

    @cached_property
    def _by_name(self) -> Mapping[str, Anatomy]:
        return {anatomy.name: anatomy for anatomy in self.anatomies}

    @cached_property
    def _by_id(self) -> Mapping[int, Anatomy]:
        return {anatomy.id: anatomy for anatomy in self.anatomies}

    @cached_property
    def _by_name_word(self) -> Mapping[str, tuple[str, ...]]:
        """Names as they are typed → names, so that `Vertebrae L1` finds `vertebrae_L1`."""
        return _gather((as_word(anatomy.name), anatomy.name) for anatomy in self)

    @cached_property
    def _by_group(self) -> Mapping[str, tuple[str, ...]]:
        """Group or synonym of a group → names of its members."""
        members = _gather((group, anatomy.name) for anatomy in self for group in anatomy.groups)
        synonyms = {word: members[group] for group in members for word in GROUP_SYNONYMS.get(group, ())}
        return {**synonyms, **members}

    @cached_property
    def _by_call(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(name or synonym without side, side) → names; a synonym may be shared by several."""
        return _gather(
            (base_and_side(as_word(call)), anatomy.name) for anatomy in self for call in (anatomy.name, *anatomy.synonyms)
        )

    @cached_property
    def _ancestors(self) -> Mapping[str, tuple[str, ...]]:
        return {anatomy.name: tuple(lineage(anatomy, self._by_name)) for anatomy in self.anatomies}

    @cached_property
    def _words(self) -> tuple[str, ...]:
        """Everything that may be typed, for suggestions: names, then words without side, synonyms, groups."""
        names = [anatomy.name for anatomy in self]
        bases = [base for base, _ in self._by_call]
        synonyms = [synonym for anatomy in self for synonym in anatomy.synonyms]
        return tuple(dict.fromkeys([*self.groups, *names, *bases, *synonyms, *self._by_group]))


def _gather(pairs: Iterable[tuple]) -> dict:
    """`[(key, name), …]` → `{key: (name, …)}`."""
    gathered: dict = {}
    for key, name in pairs:
        gathered.setdefault(key, []).append(name)
    return {key: tuple(dict.fromkeys(names)) for key, names in gathered.items()}


# --- rows and custom structures


def _anatomy(row: Mapping[str, str]) -> Anatomy:
    return Anatomy(
        id=int(row["id"]),
        name=row["name"],
        groups=_list(row["groups"]),
        decoder=row["decoder"],
        side=row["side"],
        parent=row["parent"] or None,
        partner=row["partner"] or None,
        hosts=_list(row["host"]),
        single_component=row["single_component"] == "yes",
        typical_ml=float(row["typical_ml"]),
        min_piece_ml=float(row["min_piece_ml"] or SPECK_ML),
        clnet=row["clnet"] == "yes",
        colour=(int(row["red"]), int(row["green"]), int(row["blue"])),
        snomed=(row["snomed_code"], row["snomed_meaning"]) if row["snomed_code"] else None,
        synonyms=_list(row["synonyms"]),
    )


def _list(cell: str) -> tuple[str, ...]:
    return tuple(entry for entry in cell.split(";") if entry)


def _custom(id: int, name: str, new: list[str], parent: str | None) -> Anatomy:
    side = side_of(name)
    partner = other_side(name) if side else None
    return Anatomy(
        id=id,
        name=name,
        groups=("custom",),
        decoder="custom",
        side=side,
        parent=parent,
        partner=partner if partner in new else None,
        colour=_colour(name),
    )


def _custom_id(name: str, taken: set[int]) -> int:
    """The id that the name's sha256 falls on; the next free one where that is taken."""
    count = LAST_CUSTOM_ID - FIRST_CUSTOM_ID + 1
    first = int.from_bytes(sha256(name.encode()).digest()[:8], "big") % count
    for step in range(count):
        id = FIRST_CUSTOM_ID + (first + step) % count
        if id not in taken:
            return id
    raise UsageError(
        f"There is no id left for '{name}': all {count} from {FIRST_CUSTOM_ID} to {LAST_CUSTOM_ID} belong to other structures.",
        tip="Use models with fewer structures of their own.",
    )


def _colour(name: str) -> Colour:
    """A lively colour that depends on the name alone."""
    digest = sha256(name.encode()).digest()
    hue, lightness, saturation = digest[0] / 256, 0.45 + digest[1] / 1024, 0.5 + digest[2] / 640
    red, green, blue = (round(255 * part) for part in hls_to_rgb(hue, lightness, saturation))
    return red, green, blue
