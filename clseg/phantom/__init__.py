"""A synthetic torso CT made of analytic shapes and noise, with its true masks: no patient data.

    ct, masks = phantom()                     # head to upper pelvis, 2.5 × 2.5 × 3 mm, about two seconds
    ct, masks = phantom(extent="chest")       # a part of it
    ct, masks = small_phantom()               # a tiny one for unit tests

World coordinates are RAS+ millimetres: x grows to the patient's Right, so the
liver lies at positive x; y grows to the front; z grows to the head.  The origin
lies near the eighth thoracic vertebra.  Every shape is a signed distance in mm,
negative inside; it is painted with a soft edge one voxel wide, as a scanner's
partial volume would do.

Where organs lie, how large they are and what HU they have stands in the tables
(*.toml, *.csv) of this folder; `scene` explains their keys.
"""

from __future__ import annotations

from clseg.errors import InputError, UnknownName
from clseg.phantom.abdomen import abdomen
from clseg.phantom.canvas import Canvas, Masks
from clseg.phantom.chest import lungs, mediastinum
from clseg.phantom.head import face, head
from clseg.phantom.neck import neck
from clseg.phantom.outline import outline, trunk
from clseg.phantom.scene import HU, draw, shapes_of, table
from clseg.phantom.skeleton import pelvis, ribcage, shoulders, spine
from clseg.volume import Spacing, Volume

__all__ = ["phantom", "small_phantom"]

PARTS = (outline, trunk, lungs, head, face, abdomen, mediastinum, neck, spine, ribcage, shoulders, pelvis)


def phantom(*, spacing_mm: Spacing = (2.5, 2.5, 3.0), seed: int = 0, extent: str = "torso") -> tuple[Volume, Masks]:
    """A synthetic CT of a torso (int16 HU, RAS+) and its true boolean masks by structure name.

    `extent` is 'torso' (top of the head to the upper pelvis), 'head_neck',
    'chest' or 'abdomen'; masks hold only the structures that it contains.
    `body` and `skeleton` enclose others (`skeleton` contains the mandible); the
    rest do not overlap.  `seed` sets noise, lung vessels and bowel: the same
    seed gives the same bytes.

    Raises UnknownName for another extent, InputError when a voxel edge is not
    within 0.5 … 20 mm.
    """
    grid = table("phantom.toml")
    if extent not in grid["extents_mm"]:
        raise UnknownName("extent of the phantom", extent, tuple(grid["extents_mm"]))
    if len(spacing_mm) != 3 or not all(0.5 <= s <= 20 for s in spacing_mm):
        raise InputError(f"The phantom needs three voxel edges of 0.5 to 20 mm, given: {spacing_mm}.")
    canvas = Canvas.over((*grid["field_mm"], grid["extents_mm"][extent]), spacing_mm, seed=seed, air_hu=HU["air"])
    for part in PARTS:
        part(canvas)
    return canvas.finish(noise_hu=grid["noise_hu"])


def small_phantom(seed: int = 0) -> tuple[Volume, Masks]:
    """A tiny CT (40 × 32 × 48 voxels of 6 mm): an elliptic body with two lungs, a spine and a liver.

    Masks: body, lung_left, lung_right, skeleton, liver.
    """
    scene = table("small.toml")
    canvas = Canvas.over(scene["field_mm"], (scene["voxel_mm"],) * 3, seed=seed, air_hu=HU["air"])
    (skin,) = shapes_of(scene["skin"])
    canvas.body = skin.distance(*canvas.axes)
    canvas.fill(canvas.body, HU["muscle"])
    draw(canvas, scene["organs"])
    return canvas.finish(noise_hu=table("phantom.toml")["noise_hu"])
