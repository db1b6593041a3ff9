"""The preview picture: right is left, the head is up, millimetres are true."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clseg.errors import InputError
from clseg.phantom import small_phantom
from clseg.report.preview import GAP_PX, preview, save_preview
from clseg.spatial.orient import to_orientation
from clseg.volume import Volume

RED = (255, 0, 0)
SHAPE, SPACING_MM = (40, 30, 50), (4.0, 5.0, 3.0)  # 160 × 150 × 150 mm
SCALE = 2.5  # pixels per mm: the most, reached by a scan as small as this
WIDTH, DEPTH, HEIGHT = (round(SCALE * n * s) for n, s in zip(SHAPE, SPACING_MM, strict=True))
PLACES = {"axial": (0, WIDTH, DEPTH), "coronal": (WIDTH + GAP_PX, WIDTH, HEIGHT), "sagittal": (2 * (WIDTH + GAP_PX), DEPTH, HEIGHT)}


def water(code: str = "RAS") -> Volume:
    """A box of water on an RAS grid, turned to `code`."""
    return to_orientation(Volume(np.zeros(SHAPE, np.int16), np.diag([*SPACING_MM, 1.0])), code)


def marked(corner: tuple[slice, slice, slice], code: str = "RAS") -> tuple[Volume, np.ndarray]:
    """Water and a label map (in the axes of `code`) with structure 1 where `corner` says in RAS."""
    ras = water()
    labels = np.zeros(SHAPE, np.uint8)
    labels[corner] = 1
    return water(code), to_orientation(ras.like(labels), code).array


def redness(picture: Image.Image, name: str) -> np.ndarray:
    """Where a panel is red, as (row, column)."""
    left, width, height = PLACES[name]
    panel = np.asarray(picture).astype(int)[:height, left : left + width]
    return panel[..., 0] > panel[..., 1] + 40


def centre(picture: Image.Image, name: str) -> tuple[float, float]:
    """Row and column of the middle of the red pixels, as shares of the panel."""
    rows, columns = np.nonzero(redness(picture, name))
    _, width, height = PLACES[name]
    return rows.mean() / height, columns.mean() / width


RIGHT_FRONT_HEAD = (slice(26, 34), slice(20, 26), slice(34, 44))


@settings(deadline=None, max_examples=8)
@given(code=st.sampled_from(["RAS", "LPS", "RPI", "SAL", "ASR", "PIR", "ILA", "LAS"]))
def test_right_is_left_and_the_head_is_up_whatever_the_axes(code: str) -> None:
    """A mark at the patient's right, front and head is left in the axial and coronal, upper in all, left in the sagittal panel."""
    ct, labels = marked(RIGHT_FRONT_HEAD, code)
    picture = preview(ct, [labels], {1: RED}, {1: "mark"})
    assert centre(picture, "axial") == pytest.approx((1 - 23 / 30, 1 - 30 / 40), abs=0.01)
    assert centre(picture, "coronal") == pytest.approx((1 - 39 / 50, 1 - 30 / 40), abs=0.01)
    assert centre(picture, "sagittal") == pytest.approx((1 - 39 / 50, 1 - 23 / 30), abs=0.01)


def test_millimetres_are_true_in_every_panel() -> None:
    """A structure of 32 × 30 × 30 mm measures 80, 75 and 75 pixels at 2.5 pixels a millimetre."""
    ct, labels = marked(RIGHT_FRONT_HEAD)
    picture = preview(ct, [labels], {1: RED}, {1: "mark"})
    for name, size in (("axial", (75, 80)), ("coronal", (75, 80)), ("sagittal", (75, 75))):
        red = redness(picture, name)
        assert (red.any(axis=1).sum(), red.any(axis=0).sum()) == pytest.approx(size, abs=2)


def test_panels_show_the_slice_with_most_structures() -> None:
    """Three small structures at one height are all seen, though a larger one lies elsewhere."""
    ct = water()
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:35, 5:25, 5:15] = 4
    for i in (1, 2, 3):
        labels[10 * i - 4 : 10 * i, 12:18, 39:42] = i
    colours = {1: RED, 2: (0, 255, 0), 3: (0, 0, 255), 4: (255, 255, 0)}
    axial = np.asarray(preview(ct, [labels], colours, {})).astype(int)[:DEPTH, :WIDTH]
    for channel in range(3):
        others = [c for c in range(3) if c != channel]
        assert (axial[..., channel] > axial[..., others].max(axis=-1) + 40).any()


def test_a_later_layer_covers_an_earlier_one() -> None:
    """Where two layers mark the same voxels the picture has the colour of the second, not a mixture."""
    ct, labels = marked(RIGHT_FRONT_HEAD)
    both = preview(ct, [labels * 2, labels], {1: RED, 2: (0, 0, 255)}, {})
    alone = preview(ct, [labels], {1: RED}, {})
    assert np.array_equal(np.asarray(both)[:DEPTH, :WIDTH], np.asarray(alone)[:DEPTH, :WIDTH])


def test_a_structure_over_most_of_the_tissue_is_only_outlined() -> None:
    """The body colours its rim and leaves the inside grey; a lung of the same scan is tinted."""
    ct, masks = small_phantom()
    layers = [masks["body"].astype(np.uint8), masks["lung_right"] * np.uint8(2)]
    body, lung = (255, 0, 0), (0, 255, 0)
    picture = np.asarray(preview(ct, layers, {1: body, 2: lung}, {1: "body", 2: "lung_right"})).astype(int)
    picture = picture[:300]  # the legend lies below
    red = (picture[..., 0] > picture[..., 1] + 40).mean()
    green = (picture[..., 1] > picture[..., 0] + 40).mean()
    assert 0 < red < 0.03
    assert green > 0.03


def test_a_scan_full_of_lung_gets_the_wide_window() -> None:
    """At -800 HU the soft-tissue window is black; where lung fills the picture the wide one shows it as 200 of 1400 HU."""
    full, pocket = water(), water()
    full.array[2:-2, 2:-2, 2:-2] = -800
    pocket.array[16:24, 12:18, 20:30] = -800
    middle = [np.asarray(preview(ct, [], {}, {}))[DEPTH // 2, WIDTH // 2, 0] for ct in (full, pocket)]
    assert middle == [round(255 * 200 / 1400), 0]


def test_every_structure_that_is_seen_stands_in_the_legend() -> None:
    """With a structure the picture grows by a legend holding the pure colour; without any there is none."""
    ct, labels = marked(RIGHT_FRONT_HEAD)
    bare = preview(ct, [], {}, {})
    picture = preview(ct, [labels], {1: (200, 30, 60)}, {1: "mark"})
    assert picture.height > bare.height
    legend = np.asarray(picture)[HEIGHT:]
    assert (legend == (200, 30, 60)).all(axis=-1).sum() > 50


def test_a_layer_off_the_grid_or_without_colour_is_refused() -> None:
    """A label map of another shape, an id without colour and a map of fractions are input errors, not wrong pictures."""
    ct, labels = marked(RIGHT_FRONT_HEAD)
    with pytest.raises(InputError, match="shape"):
        preview(ct, [labels[1:]], {1: RED}, {})
    with pytest.raises(InputError, match="colour"):
        preview(ct, [labels], {2: RED}, {})
    with pytest.raises(InputError, match="ids"):
        preview(ct, [labels * 0.5], {1: RED}, {})


def test_a_saved_preview_is_the_picture_and_the_same_bytes_twice(tmp_path) -> None:
    """The PNG holds the pixels of the picture; the folder holds nothing else; writing again gives the same file."""
    ct, labels = marked(RIGHT_FRONT_HEAD)
    path, again = tmp_path / "preview.png", tmp_path / "again.png"
    save_preview(path, ct, [labels], {1: RED}, {1: "mark"})
    save_preview(again, ct, [labels], {1: RED}, {1: "mark"})
    assert path.read_bytes() == again.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.png", "preview.png"]
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(preview(ct, [labels], {1: RED}, {1: "mark"})))


def test_large_ids_take_no_more_room_than_small_ones() -> None:
    """A structure of one's own with id 65000 gives the picture that id 1 gives, without a table of 65000 columns for every slice."""
    import tracemalloc

    ct, labels = marked(RIGHT_FRONT_HEAD)
    small = preview(ct, [labels], {1: RED}, {1: "mark"})
    tracemalloc.start()
    large = preview(ct, [labels.astype(np.uint16) * 65000], {65000: RED}, {65000: "mark"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.asarray(small), np.asarray(large))
    assert peak < 20e6  # 50 slices × 65000 ids × 8 bytes alone are 26 MB
