"""Inspect: every case of a recipe before a training believes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from clseg.catalogue import Catalogue
from clseg.errors import RecipeError, TrainingError
from clseg.progress import SILENT, Progress
from clseg.recipe import DatasetRecipe, LearnRecipe, PruneRecipe, UpdateRecipe
from clseg.recipe.commands import Common
from clseg.training.cases import Case, list_cases
from clseg.training.cases.find import usable
from clseg.training.cases.held_out import check_held_out
from clseg.training.cases.names import meanings
from clseg.training.contents import Contents, contents

ERROR, WARNING = "error", "warning"
MOST_TOLD = 10  # warnings at the start of a training


@dataclass(frozen=True)
class Finding:
    """One sentence about a case, or about a dataset (`case` is empty) or the recipe (both are)."""

    severity: str
    dataset: str
    case: str
    sentence: str

    def __str__(self) -> str:
        where = f"Case '{self.case}' of dataset '{self.dataset}': " if self.case else f"Dataset '{self.dataset}': " if self.dataset else ""
        return f"{where}{self.sentence}"


@dataclass(frozen=True)
class Findings:
    """What was found, worst first, and what the cases annotate.

    `mapped`: (dataset, its own name, structure) where the two differ.  `cases`:
    (dataset, split) → number of cases.  `structures`: structure → (dataset, split) →
    number of cases that annotate it.  `learned`: the structures that decoders of the
    recipe learn.
    """

    found: tuple[Finding, ...]
    mapped: tuple[tuple[str, str, str], ...]
    cases: Mapping[tuple[str, str], int]
    structures: Mapping[str, Mapping[tuple[str, str], int]]
    learned: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.found if one.severity == ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.found if one.severity == WARNING)

    def refuse_errors(self) -> None:
        """Raise TrainingError with the first error, if there is one."""
        if self.errors:
            first, more = self.errors[0], len(self.errors) - 1
            others = f" ({more} more like this)" if more else ""
            raise TrainingError(f"{str(first).rstrip('.')}{others}.", tip="`clseg cases RECIPE --kind learn` (or train, update, prune) lists all faults.")

    def tell_warnings(self, tell: Callable[[str], object]) -> None:
        """One line per warning, those about whole datasets first; of more than MOST_TOLD the rest is counted."""
        lines = [str(one) for one in sorted(self.warnings, key=lambda one: bool(one.case))]
        for line in lines[:MOST_TOLD]:
            tell(f"warning: {line}")
        if (more := len(lines) - MOST_TOLD) > 0:
            tell(f"warning: {more} more; `clseg cases RECIPE --kind learn` (or train, update, prune) lists all.")


def inspect_cases(recipe: Common, *, report: Progress = SILENT) -> Findings:
    """Read all cases of all splits once and say what is wrong with them.

    Per case: missing files, other grids than the CT's, ids that nobody names, values
    that are not HU, left where right should be.  Over all: names that nobody knows,
    structures that nobody annotates, scans that are in train and val.  Raises
    RecipeError when a dataset is not there.
    """
    datasets = [*recipe.dataset, *getattr(recipe, "old", ())]
    wanted = _wanted(recipe)
    listed = [case for dataset in datasets for case in list_cases(dataset, recipe.folder)]
    read = []
    with report.stage("Inspecting cases", len(listed)) as advance:
        for case in listed:
            read.append(contents(case, wanted) if usable(case) else Contents(case))
            advance(1)

    found = [*_per_case(read)]
    for dataset in datasets:
        found += _per_dataset([one for one in read if one.case.dataset is dataset], dataset, wanted)
    found += _leaks(read)
    found += _never_annotated(read, recipe)
    found += _nobody_held_out(recipe)
    found.sort(key=lambda one: one.severity != ERROR)  # errors first, otherwise in their order
    used = [one for one in read if usable(one.case)]
    learned = tuple(label for decoder in _decoders(recipe) for label in decoder.labels)
    return Findings(tuple(found), _mapped(used), Counter(_place(one) for one in used), _structures(used), learned)


def believe(recipe: Common, tell: Callable[[str], object]) -> None:
    """What a training asks of its cases before it begins: TrainingError with the first error, warnings are told."""
    findings = inspect_cases(recipe)
    findings.refuse_errors()
    findings.tell_warnings(tell)


def _wanted(recipe: Common) -> set[str]:
    """The structures that the recipe's decoders learn and the landmarks that its datasets name; empty: unknown, so all."""
    labels = {label for decoder in _decoders(recipe) for label in decoder.labels}
    return labels | {landmark for d in recipe.dataset for landmark in d.absent_above.values()} if labels else set()


def _decoders(recipe: Common) -> tuple:
    decoders = getattr(recipe, "decoder", ())
    return decoders if isinstance(decoders, tuple) else ()  # `clseg update` names one of the model


def _place(one: Contents) -> tuple[str, str]:
    return one.case.dataset.name, one.case.split


# ---- what is wrong ----------------------------------------------------------------------------------------------------


def _per_case(read: Iterable[Contents]) -> Iterable[Finding]:
    for one in read:
        for severity, sentences in ((ERROR, one.errors), (WARNING, one.warnings)):
            for sentence in sentences:
                yield Finding(severity, one.case.dataset.name, one.case.name, sentence)


def _per_dataset(read: Sequence[Contents], dataset: DatasetRecipe, wanted: set[str]) -> list[Finding]:
    """Faults that many cases of a dataset share, each said once."""
    if not read:
        return [Finding(WARNING, dataset.name, "", f"No case matches {list(dataset.cases)}.")]
    sentences = []
    unusable = [one.case for one in read if not usable(one.case)]
    if lost := [case.name for case in unusable if not case.files()]:
        sentences.append(f"Listed, but without any file, and so left out: {_cases(lost)}.")
    if left := [case.name for case in unusable if case.files()]:
        sentences.append(f"{_cases(left)} without a CT are left out.")
    if left := [one.case.name for one in read if not one.case.split]:
        sentences.append(f"{_cases(left)} are in no split and are left out.")
    sentences += _without_a_voxel(read, wanted)
    sentences += _unknown_names(read, wanted)
    own = {part for one in read for parts in one.names.values() for part in parts}
    if unused := sorted(set(dataset.rename) - own):
        sentences.append(f"rename has '{unused[0]}', which no case names{_nearest(unused[0], own)}.")
    sentences += _unknown_absent(dataset, wanted | own)
    return [Finding(WARNING, dataset.name, "", sentence) for sentence in sentences]


def _without_a_voxel(read: Sequence[Contents], wanted: set[str]) -> list[str]:
    """What is named and not shown, and what is learned from that."""
    counts: dict[str, Counter] = {"absent": Counter(), "unknown": Counter()}
    for one in read:
        for name in one.empty:
            if not wanted or name in wanted:
                counts["absent" if name in one.annotated else "unknown"][name] += 1
    return [
        f"Named without a voxel, so {meaning}: {', '.join(f'{name} ({count} cases)' for name, count in sorted(empty.items()))}."
        for meaning, empty in counts.items()
        if empty
    ]


def _unknown_absent(dataset: DatasetRecipe, others: set[str]) -> list[str]:
    """What is said to be absent, or to have an end, under a name that nobody knows, and is therefore said in vain."""
    known = {anatomy.name for anatomy in Catalogue.builtin()} | others
    said = {"absent": dataset.absent, "absent_above": (*dataset.absent_above, *dataset.absent_above.values())}
    return [f"{key} has '{name}', which no case, decoder or catalogue knows{_nearest(name, sorted(known))}." for key, names in said.items() for name in names if name not in known]


def _unknown_names(read: Sequence[Contents], wanted: set[str]) -> list[str]:
    counts = Counter(name for one in read for name in one.names)
    known = Catalogue.builtin()
    sentences = []
    for name in sorted(set(counts) - wanted):
        if name in known:
            continue
        several = meanings(name)
        if several:
            why = f"may be {' or '.join(several[:3])}{' …' if len(several) > 3 else ''}; say which with rename"
        else:
            why = f"is known neither to the catalogue nor to a decoder{_nearest(name, [a.name for a in known] + sorted(wanted))}"
        sentences.append(f"'{name}' ({counts[name]} cases) {why}.")
    return sentences


def _nearest(name: str, among: Iterable[str]) -> str:
    """What may have been meant, to end a sentence."""
    by_word = {word.lower(): word for word in among}
    near = get_close_matches(name.lower(), by_word, 3)
    return f"; nearest: {' or '.join(by_word[word] for word in near)}" if near else ""


def _leaks(read: Sequence[Contents]) -> list[Finding]:
    """Scans that are there twice: an error across splits, a warning otherwise."""
    found: list[Finding] = []
    shared: dict[tuple[str, str], list[str]] = {}
    for twins in _twins(read):
        first = twins[0]
        for other in twins[1:]:
            if other.split != first.split and other.split and first.split:
                sentence = f"The same scan is in the split '{other.split}' here and in '{first.split}' as '{first.name}' of dataset '{first.dataset.name}'."
                found.append(Finding(ERROR, other.dataset.name, other.name, sentence))
            else:
                shared.setdefault((other.dataset.name, first.dataset.name), []).append(other.name)
    for (dataset, other_dataset), names in shared.items():
        found.append(Finding(WARNING, dataset, "", f"{_cases(names)} show the same scans as cases of dataset '{other_dataset}'; their labels are learned apart."))
    return found


def _twins(read: Sequence[Contents]) -> list[list[Case]]:
    """Groups of cases with the same scan, in one file or stored anew."""
    groups: dict[str, list[Case]] = {}
    for one in read:
        if one.likeness:
            groups.setdefault(one.likeness, []).append(one.case)
    return [group for group in groups.values() if len(group) > 1]


def _never_annotated(read: Sequence[Contents], recipe: Common) -> Iterable[Finding]:
    """Labels of decoders that no case to learn from annotates."""
    learned = [one for one in read if one.case.split == recipe.split and one.case.dataset.weight > 0]
    annotated = {name for one in learned for name in one.annotated}
    for decoder in _decoders(recipe):
        for label in decoder.labels:
            if label not in annotated:
                sentence = f"No case of the split '{recipe.split}' annotates {label} of decoder '{decoder.name}'{_nearest(label, sorted(annotated))}."
                yield Finding(ERROR, "", "", sentence)


def _nobody_held_out(recipe: Common) -> Iterable[Finding]:
    """A split to judge on that has no case."""
    if isinstance(recipe, (LearnRecipe, UpdateRecipe, PruneRecipe)):
        try:
            check_held_out(recipe)
        except RecipeError as error:
            yield Finding(ERROR, "", "", error.message)


def _cases(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{len(names)} case{'' if len(names) == 1 else 's'} ({shown})"


# ---- what there is ----------------------------------------------------------------------------------------------------


def _mapped(read: Iterable[Contents]) -> tuple[tuple[str, str, str], ...]:
    found = {
        (one.case.dataset.name, own, structure): None
        for one in read
        for structure, parts in one.names.items()
        for own in parts
        if own != structure
    }
    return tuple(found)


def _structures(read: Iterable[Contents]) -> dict[str, Counter]:
    """Structure → (dataset, split) → cases that annotate it, in the order of the catalogue, others behind."""
    counts: dict[str, Counter] = {}
    for one in read:
        for name in one.annotated:
            counts.setdefault(name, Counter())[_place(one)] += 1
    order = {anatomy.name: anatomy.id for anatomy in Catalogue.builtin().with_structures(sorted(counts))}
    return {name: counts[name] for name in sorted(counts, key=lambda name: order[name])}
