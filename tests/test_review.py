"""What should be looked at is told from numbers: sure or not, in one piece, on its side, in its order, of a size that adults have."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from clseg.catalogue import Catalogue
from clseg.measure import Statistics
from clseg.review import (
    LARGE,
    LEAST_CONFIDENCE,
    MOST_ENTROPY,
    ORDER,
    PIECES,
    REASONS,
    SIDE,
    SMALL,
    UNCLEAR,
    UNSURE,
    Certainty,
    Review,
    review,
    scattered,
    to_json,
    to_rows,
    wrong_order,
)

CATALOGUE = Catalogue.builtin()
DATA = Path(__file__).parents[1] / "clseg" / "data"


def one(x: float = 0, z: float = 0, *, ml: float = 100, status: str = "complete") -> Statistics:
    return Statistics(status, voxels=10, volume_ml=ml, centroid_mm=(x, 0.0, z))  # type: ignore[arg-type]


def reasons(found: dict[str, Statistics], apart: dict[str, float] | None = None, **certainties: Certainty) -> dict[str, tuple[str, ...]]:
    """Structure → reasons, of those that have some."""
    anatomies = [CATALOGUE[name] for name in found if name in CATALOGUE]
    return {name: judged.reasons for name, judged in review(found, anatomies, certainties, apart=apart).items() if judged.review}


# ---- how sure the network was -----------------------------------------------------------------------------------------


def test_an_unsure_network_is_a_reason():
    """A margin below the threshold is one, the threshold itself is none."""
    assert reasons({"larynx": one()}, larynx=Certainty(0.9, LEAST_CONFIDENCE - 0.01, 0.1, 0.1)) == {"larynx": (UNSURE,)}
    assert reasons({"larynx": one()}, larynx=Certainty(0.9, LEAST_CONFIDENCE, 0.1, 0.1)) == {}


def test_an_unclear_border_is_a_reason():
    """Entropy above the threshold is one, the threshold itself is none."""
    assert reasons({"larynx": one()}, larynx=Certainty(0.9, 0.9, 0.1, MOST_ENTROPY + 0.01)) == {"larynx": (UNCLEAR,)}
    assert reasons({"larynx": one()}, larynx=Certainty(0.9, 0.9, 0.1, MOST_ENTROPY)) == {}


def test_of_imported_networks_the_winner_is_judged():
    """They have a probability and nothing else: it is the confidence, and the entropy stays unknown."""
    judged = review({"larynx": one()}, [CATALOGUE["larynx"]], {"larynx": Certainty(LEAST_CONFIDENCE - 0.01)})
    assert judged == {"larynx": Review(LEAST_CONFIDENCE - 0.01, None, (UNSURE,))}


def test_masks_alone_can_be_judged():
    """Without a network both numbers are unknown, and what is seen in the mask still counts."""
    assert review({"larynx": one()}, [CATALOGUE["larynx"]], apart={"larynx": 0.5}) == {"larynx": Review(None, None, (PIECES,))}


def test_what_was_not_found_has_no_reasons():
    """Absent and out of range: no numbers, nothing to look at."""
    found = {"larynx": Statistics("absent"), "liver": Statistics("out_of_range")}
    assert review(found, [CATALOGUE["larynx"], CATALOGUE["liver"]], {"larynx": Certainty(0.1, 0.1, 0.1, 0.9)}) == {"larynx": Review(), "liver": Review()}


# ---- what is seen in the masks ----------------------------------------------------------------------------------------


def test_pieces_are_a_reason_where_a_body_has_one():
    """A liver in two pieces is, a skeleton in two is not, nor is a structure that nobody knows; an island of five per cent is none."""
    found = {"liver": one(ml=1500), "skeleton": one(), "my_organ": one()}
    assert reasons(found, dict.fromkeys(found, 0.06)) == {"liver": (PIECES,)}
    assert reasons(found, dict.fromkeys(found, 0.05)) == {}


def test_what_is_scattered_is_counted():
    """Pieces of 6 and 2 voxels: a quarter lies apart; voxels that share a corner belong together."""
    mask = np.zeros((8, 3, 3), bool)
    mask[:2, :, 0] = True
    mask[4, 0, 0] = mask[5, 1, 1] = True
    assert scattered(mask) == 0.25
    assert scattered(mask[:2]) == scattered(np.zeros((2, 2, 2), bool)) == 0


def test_left_lies_left_of_right():
    """RAS: x grows to the right, so the left kidney has the smaller x; swapped, both are to be looked at."""
    assert reasons({"kidney_left": one(-50), "kidney_right": one(50)}) == {}
    assert reasons({"kidney_left": one(50), "kidney_right": one(-50)}) == {"kidney_left": (SIDE,), "kidney_right": (SIDE,)}


def test_one_side_alone_has_no_wrong_side():
    """Whoever has one kidney may have it anywhere."""
    assert reasons({"kidney_left": one(50), "kidney_right": Statistics("absent")}) == {}


def test_the_one_out_of_order_is_named():
    """A liver above brainstem, larynx and lungs contradicts three, each of which contradicts it alone."""
    found = {"brainstem": one(z=300), "larynx": one(z=200), "lung_left": one(z=100), "liver": one(z=400)}
    assert wrong_order(found) == {"liver"}
    assert reasons({**found, "liver": one(z=400, ml=1500), "lung_left": one(z=100, ml=2000)}) == {"liver": (ORDER,)}


def test_of_two_in_the_wrong_order_both_are_named():
    """Nobody knows which of T11 and T12 is the false one."""
    found = {f"vertebrae_{name}": one(z=z) for name, z in (("T10", 40), ("T11", 20), ("T12", 30), ("L1", 10))}
    assert wrong_order(found) == {"vertebrae_T11", "vertebrae_T12"}


def test_structures_of_one_level_have_no_order():
    """Liver, spleen and kidneys lie side by side."""
    assert wrong_order({"liver": one(z=0), "spleen": one(z=50), "kidney_left": one(z=-50)}) == set()


@pytest.mark.parametrize(("ml", "expected"), [(799, (SMALL,)), (800, ()), (3000, ()), (3001, (LARGE,))])
def test_a_liver_has_eight_hundred_to_three_thousand_ml(ml: float, expected: tuple[str, ...]):
    """Bounds included."""
    assert reasons({"liver": one(ml=ml)}) == ({"liver": expected} if expected else {})


def test_a_part_of_an_organ_may_be_small():
    """A liver that the scan cuts is not judged by its volume."""
    assert reasons({"liver": one(ml=10, status="cut_by_fov")}) == {}


def test_reasons_come_in_the_order_of_the_list():
    """All that applies, from the network's doubt to the size."""
    found = {"kidney_left": one(50, ml=1000), "kidney_right": one(-50)}
    judged = reasons(found, {"kidney_left": 0.5}, kidney_left=Certainty(0.5, 0.1, 0.1, 0.9))
    assert judged["kidney_left"] == (UNSURE, UNCLEAR, PIECES, SIDE, LARGE)
    assert [REASONS.index(reason) for reason in judged["kidney_left"]] == sorted(REASONS.index(reason) for reason in judged["kidney_left"])


# ---- written ----------------------------------------------------------------------------------------------------------


def test_json_and_csv_say_the_same():
    """Unknown numbers are null and empty cells, reasons a list and one cell."""
    judged = {"liver": Review(0.5, 0.25, (UNSURE, PIECES)), "spleen": Review()}
    assert to_json(judged)["liver"] == {"confidence": 0.5, "boundary_entropy": 0.25, "review": "yes", "reasons": [UNSURE, PIECES]}
    assert to_json(judged)["spleen"] == {"confidence": None, "boundary_entropy": None, "review": "no", "reasons": []}
    header, rows = to_rows(judged)
    assert header == list(to_json(judged)["liver"])
    assert rows == [[0.5, 0.25, "yes", f"{UNSURE} {PIECES}"], ["", "", "no", ""]]


# ---- what is known of bodies ------------------------------------------------------------------------------------------


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def test_volumes_are_of_known_structures_and_have_a_source():
    """Each once, low below high, the catalogue's typical volume in between, and a sentence that says where it is from."""
    table = rows("volumes.csv")
    assert len({row["structure"] for row in table}) == len(table)
    for row in table:
        low, high, typical = float(row["low_ml"]), float(row["high_ml"]), CATALOGUE[row["structure"]].typical_ml
        assert 0 < low < high
        assert low <= typical <= high, row["structure"]
        assert ":" in row["source"]


def test_partners_have_the_same_range():
    """What holds for the left kidney holds for the right one."""
    table = {row["structure"]: (row["low_ml"], row["high_ml"]) for row in rows("volumes.csv")}
    assert all(table.get(CATALOGUE[name].partner) == bounds for name, bounds in table.items() if CATALOGUE[name].partner)


def test_the_order_is_of_known_structures_and_sides_share_a_level():
    """Each structure once in a chain."""
    table = rows("order.csv")
    levels = {(row["chain"], row["structure"]): int(row["level"]) for row in table}
    assert len(levels) == len(table)
    for (chain, name), level in levels.items():
        partner = CATALOGUE[name].partner
        assert partner is None or levels[chain, partner] == level
