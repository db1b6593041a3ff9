"""One picture of a scan and its structures: an axial, a coronal and a sagittal slice, and a legend.

    preview(ct, [labels], {5: (221, 130, 101)}, {5: "liver"}).show()

Radiological convention: the patient's right is on the left of the axial and
coronal picture, the front on top of the axial and on the left of the sagittal
one, the head is up.  All three share one scale, true in millimetres.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clseg.errors import InputError
from clseg.io.files import writing
from clseg.spatial.crop import Box
from clseg.spatial.orient import box_before, to_orientation
from clseg.spatial.regions import regions
from clseg.spatial.runs import LabelRuns
from clseg.volume import Volume

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

SOFT_TISSUE_HU, WIDE_HU = (-160.0, 240.0), (-1000.0, 400.0)
EMPTY_HU, LUNG_HU = -950.0, -500.0  # below: outside the body; between them: lung
WIDE_FROM = 0.35  # share of lung in the picture from which the wide window is used
OUTLINE_FROM = 0.6  # share of the tissue in the picture from which a structure is only outlined
FILL, EDGE, OUTLINE = 0.45, 0.95, 0.65  # opacity
PANELS_PX, MOST_PX_PER_MM = (1560, 760), 2.5  # width and height of the three panels together
MARGIN_MM, GAP_PX, LINE_PX, FONT_PX = 8.0, 6, 19, 13
BACKGROUND, INK, FAINT = (0, 0, 0), (235, 235, 235), (150, 150, 150)
ENOUGH_VOXELS = 4_000_000  # choosing slices looks at no more than about this many


def preview(
    ct: Volume, layers: Sequence[np.ndarray | LabelRuns], colours: Mapping[int, Colour], names: Mapping[int, str]
) -> Image:
    """Three slices with structures over them, and a legend of those that are seen: an RGB picture.

    `layers` are integer label maps (arrays or runs) on the grid of `ct`; a later layer covers an
    earlier one.  `colours` (0 … 255) and `names` are by id; 0 is background.
    The slices are those that show most structures.  A structure that covers
    most of the tissue in the picture (the body) is drawn as a thin outline.

    Raises InputError when a layer is not on the grid of `ct` or an id has no colour.
    """
    upright = to_orientation(ct)
    _refuse_colourless(layers, colours)
    turned = [_Upright(ct, layer) for layer in layers]
    box = _tissue_box(upright)
    cuts = _best_slices(turned, box)
    panels = [_Panel.cut(upright, turned, axis, index, box) for axis, index in enumerate(cuts)]
    outlined = _outlined(panels)
    scale = _scale(panels)
    pictures = [panel.draw(scale, _window(panels), colours, outlined) for panel in reversed(panels)]  # axial first
    seen = sorted({i for panel in panels for i in panel.ids()})
    return _compose(pictures, [(names.get(i, str(i)), colours[i], i in outlined) for i in seen])


def save_preview(
    path: str | os.PathLike[str],
    ct: Volume,
    layers: Sequence[np.ndarray | LabelRuns],
    colours: Mapping[int, Colour],
    names: Mapping[int, str],
) -> None:
    """Write the picture of `preview` as a PNG file, whole or not at all.

    Raises OutputError when it cannot be written, and what `preview` raises.
    """
    picture = preview(ct, layers, colours, names)
    with writing(path) as file:
        picture.save(file, format="PNG", optimize=True)


# --- which slices, which window ------------------------------------------------------------------------------------


class _Upright:
    """A label map turned as the picture is, box by box: one of a long scan is never there as a whole."""

    def __init__(self, ct: Volume, layer: np.ndarray | LabelRuns) -> None:
        if layer.shape != ct.shape:
            raise InputError(f"Expected an array of shape {ct.shape} on this grid, given {layer.shape}.")
        self._ct, self._layer = ct, layer

    def ids(self) -> np.ndarray:
        return _present(self._layer)

    def __getitem__(self, box: Box) -> np.ndarray:
        return to_orientation(Volume(self._layer[box_before(self._ct, box)], self._ct.affine)).array


def _refuse_colourless(layers: Sequence[np.ndarray | LabelRuns], colours: Mapping[int, Colour]) -> None:
    missing = {int(i) for layer in layers for i in _present(layer)} - set(colours)
    if missing:
        raise InputError(f"Every structure of the preview needs a colour; ids without one: {sorted(missing)[:10]}.")


def _present(labels: np.ndarray | LabelRuns) -> np.ndarray:
    """The ids in a label map, without 0."""
    if isinstance(labels, LabelRuns):
        return np.array(list(regions(labels)), int)
    if labels.dtype == bool or labels.size == 0:
        return np.array([1] if labels.any() else [], int)
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InputError(f"A layer of the preview holds ids from 0 upwards, given an array of {labels.dtype}.")
    return np.flatnonzero(np.bincount(labels.ravel())[1:]) + 1


def _stride(shape: Sequence[int]) -> int:
    return max(1, int(np.ceil((np.prod(shape, dtype=float) / ENOUGH_VOXELS) ** (1 / 3))))


def _tissue_box(ct: Volume) -> Box:
    """The part of the grid that holds more than air, with a margin; all of it when nothing does."""
    step = _stride(ct.shape)
    tissue = ct.array[::step, ::step, ::step] > LUNG_HU
    sides = []
    for axis, spacing in enumerate(ct.spacing):
        hit = np.flatnonzero(tissue.any(axis=tuple(a for a in range(3) if a != axis)))
        rim = int(np.ceil(MARGIN_MM / spacing))
        low, high = (hit[0] * step - rim, (hit[-1] + 1) * step + rim) if hit.size else (0, ct.shape[axis])
        sides.append(slice(max(0, int(low)), min(ct.shape[axis], int(high))))
    return tuple(sides)  # type: ignore[return-value]


def _best_slices(layers: Sequence[_Upright], box: Box) -> list[int]:
    """One slice along each axis, together showing as many structures as possible, each near its largest section."""
    best = [0, 0, 0]
    sections_of = [_sections(layer, box) for layer in layers]
    wanted = [np.ones(sections[0].shape[1]) for sections in sections_of]  # less once another slice shows it
    for axis in (1, 2, 0):
        shown = [sections[axis] for sections in sections_of]
        length = box[axis].stop - box[axis].start
        score = 1e-3 * np.hanning(length + 2)[1:-1]  # the middle, where nothing else decides
        for sections, want in zip(shown, wanted, strict=True):
            score = score + sections @ want
        index = int(np.argmax(score))
        best[axis] = box[axis].start + index
        wanted = [want * (1 - 0.7 * sections[index]) for sections, want in zip(shown, wanted, strict=True)]
    return best


def _sections(layer: _Upright, box: Box) -> list[np.ndarray]:
    """Axis by axis, how well each slice across it shows each of the layer's ids."""
    labels, ids = layer[box], layer.ids()
    return [_shown(labels, axis, ids) for axis in range(3)]


def _shown(labels: np.ndarray, axis: int, ids: np.ndarray) -> np.ndarray:
    """How well each slice shows each of `ids`: min(1, 2 · section / largest section), shape (slices, ids)."""
    place = np.zeros(ids.max(initial=0) + 1, np.intp)  # ids go up to 65000, and few of them are there
    place[ids] = np.arange(1, len(ids) + 1)
    flat = np.moveaxis(labels, axis, 0)
    step = _stride(flat.shape)
    flat = place[flat[:, ::step, ::step].astype(np.intp)].reshape(flat.shape[0], -1)
    sections = np.stack([np.bincount(row, minlength=len(ids) + 1) for row in flat])[:, 1:]
    return np.minimum(1.0, 2.0 * sections / np.maximum(sections.max(axis=0, initial=0), 1))


def _window(panels: Sequence[_Panel]) -> tuple[float, float]:
    hu = np.concatenate([panel.hu.ravel() for panel in panels])
    inside = hu > EMPTY_HU
    lung = inside & (hu < LUNG_HU)
    return WIDE_HU if lung.sum() > WIDE_FROM * max(1, inside.sum()) else SOFT_TISSUE_HU


def _outlined(panels: Sequence[_Panel]) -> frozenset[int]:
    """Ids that cover so much of the tissue in the three slices that a tint would hide the rest."""
    tissue = sum(int((panel.hu > LUNG_HU).sum()) for panel in panels)
    covered: dict[int, int] = {}
    for panel in panels:
        for labels in panel.layers:
            for i, count in enumerate(np.bincount(labels[panel.hu > LUNG_HU].ravel())):
                covered[i] = covered.get(i, 0) + int(count)
    return frozenset(i for i, count in covered.items() if i and count > OUTLINE_FROM * tissue)


# --- one panel -----------------------------------------------------------------------------------------------------

LETTERS = {0: ("A", "P", "S"), 1: ("R", "L", "S"), 2: ("R", "L", "A")}  # left, right, top of the slice across an axis


@dataclass(frozen=True)
class _Panel:
    """A slice turned for the eye: row 0 on top, column 0 on the left; `size_mm` is width, height."""

    axis: int
    hu: np.ndarray
    layers: tuple[np.ndarray, ...]
    size_mm: tuple[float, float]

    @classmethod
    def cut(cls, ct: Volume, layers: Sequence[_Upright], axis: int, index: int, box: Box) -> _Panel:
        place: Box = tuple(slice(index, index + 1) if a == axis else side for a, side in enumerate(box))  # type: ignore[assignment]
        # RAS: the first remaining axis runs to the right or the front, the second upwards or to the front
        hu, *labels = (np.asarray(a[place]).squeeze(axis)[::-1, ::-1].T for a in (ct.array, *layers))
        across, up = (s for a, s in enumerate(ct.spacing) if a != axis)
        hu = np.nan_to_num(np.asarray(hu, np.float32), nan=-1024.0)
        whole = tuple(np.asarray(m, np.int64) for m in labels)
        return cls(axis, hu, whole, (hu.shape[1] * across, hu.shape[0] * up))

    def ids(self) -> set[int]:
        return {int(i) for labels in self.layers for i in np.unique(labels) if i}

    def draw(
        self, px_per_mm: float, window: tuple[float, float], colours: Mapping[int, Colour], outlined: frozenset[int]
    ) -> Image:
        from PIL import Image

        size = tuple(max(1, round(mm * px_per_mm)) for mm in self.size_mm)
        grey = _resized(np.clip((self.hu - window[0]) / (window[1] - window[0]), 0, 1) * 255, size)
        paint, opacity = np.zeros((*grey.shape, 3), np.float32), np.zeros(grey.shape, np.float32)
        for labels in self.layers:
            for i in (int(i) for i in np.unique(labels) if i):
                inside = _resized((labels == i) * 255.0, size) > 127
                edge = inside & ~_eroded(inside)
                where = edge if i in outlined else inside
                paint[where] = colours[i]
                opacity[where] = FILL
                opacity[edge] = OUTLINE if i in outlined else EDGE
        rgb = grey[..., None] * (1 - opacity[..., None]) + paint * opacity[..., None]
        picture = Image.fromarray(np.rint(rgb).astype(np.uint8))
        self._letter(picture)
        return picture

    def _letter(self, picture: Image) -> None:
        """Say in faint letters which side is which."""
        from PIL import ImageDraw

        draw, (left, right, top) = ImageDraw.Draw(picture), LETTERS[self.axis]
        width, height = picture.size
        for text, place, anchor in (
            (left, (4, height // 2), "lm"), (right, (width - 4, height // 2), "rm"), (top, (width // 2, 3), "mt"),
        ):  # fmt: skip
            draw.text(place, text, fill=FAINT, anchor=anchor, font=_font())


def _resized(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear, to (width, height) pixels."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((size[0], size[1]), Image.Resampling.BILINEAR))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Pixels whose four neighbours all belong to the mask (beyond the picture all do)."""
    padded = np.pad(mask, 1, constant_values=True)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:] & mask


# --- the whole picture ---------------------------------------------------------------------------------------------

Entry = tuple[str, Colour, bool]  # name, colour, outline only


def _scale(panels: Sequence[_Panel]) -> float:
    width = sum(panel.size_mm[0] for panel in panels)
    height = max(panel.size_mm[1] for panel in panels)
    return min(PANELS_PX[0] / width, PANELS_PX[1] / height, MOST_PX_PER_MM)


def _compose(pictures: Sequence[Image], entries: Sequence[Entry]) -> Image:
    """Panels side by side; the legend under the first where it fits, else under all."""
    from PIL import Image

    width = sum(p.width for p in pictures) + GAP_PX * (len(pictures) - 1)
    height = max(p.height for p in pictures)
    first = pictures[0]
    legend = _legend(entries, first.width)
    beside = first.height + GAP_PX + legend.height <= height and legend.width <= first.width
    if not beside:
        legend = _legend(entries, width)
    place = (0, (first.height if beside else height) + GAP_PX)
    whole = Image.new("RGB", (max(width, legend.width), height if beside else place[1] + legend.height), BACKGROUND)
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + GAP_PX
    whole.paste(legend, place)
    return whole


def _legend(entries: Sequence[Entry], width: int) -> Image:
    """Swatches and names in columns, downwards first."""
    from PIL import Image, ImageDraw

    if not entries:
        return Image.new("RGB", (1, 1), BACKGROUND)
    column = 30 + int(max(_font().getlength(name) for name, _, _ in entries))
    columns = max(1, min(len(entries), width // column))
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (columns * column, rows * LINE_PX + 4), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for number, (name, colour, outline) in enumerate(entries):
        x, y = number // rows * column + 4, number % rows * LINE_PX + 2
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=None if outline else colour, outline=colour)
        draw.text((x + 18, y + 9), name, fill=INK, anchor="lm", font=_font())
    return legend


def _font() -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_PX)
