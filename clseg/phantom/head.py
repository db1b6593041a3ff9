"""The head: skull, brain and face."""

from __future__ import annotations

import numpy as np

from clseg.phantom.canvas import Canvas
from clseg.phantom.scene import HU, draw, shapes_of, table, tone
from clseg.phantom.shapes import Shape, plane


def head(canvas: Canvas) -> None:
    """Skull and brain."""
    scene = table("head.toml")
    for layer in scene["skull"]:
        canvas.paint(_vault(layer["bone_mm"], layer["base_mm"]), tone(layer["hu"]), layer.get("mask"))
    draw(canvas, scene["petrous_bones"])
    _brain(canvas)
    draw(canvas, [*scene["skull_base"], *scene["brainstem"]])


def face(canvas: Canvas) -> None:
    """Facial bones around air: nose, sinuses, mouth and throat; the eyes; mandible, teeth and parotids."""
    scene = table("face.toml")
    draw(canvas, [*scene["bones"], *scene["airspaces"], *scene["mandible"]])
    lobules = HU["gland"] + 16 * canvas.texture(scene["parotid_texture_mm"])
    draw(canvas, scene["parotids"], textures={"lobules": lobules})


def _vault(bone_mm: float, base_mm: float) -> Shape:
    """The inside of the skull, grown by the thickness of the bone: thick in the vault, thin below the brain."""
    scene = table("head.toml")
    (inside,) = shapes_of(scene["vault"])
    orbits = plane(*scene["vault_base"])  # rises to the front

    def bowl(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return (277 + 20 * ((x / 60) ** 2 + ((y - 26) / 62) ** 2) - z) * np.float32(0.85) - np.float32(base_mm)

    return inside.grown(bone_mm).within(bowl, lambda x, y, z: orbits(x, y, z) - np.float32(base_mm))


def _brain(canvas: Canvas) -> None:
    """Two hemispheres and the cerebellum with sulci, ventricles and cisterns around the brain stem."""
    scene, vault = table("head.toml"), _vault(0.0, 0.0)
    texture = canvas.texture(scene["brain_texture_mm"])
    box = canvas.box(vault.low, vault.high)
    if box is None:
        return
    inner = vault.distance(*canvas.within(box))
    sulci = np.where(inner > -16, 5 * np.clip(texture[box] - 0.7, 0, None), 0)  # folds reach 16 mm deep

    def halves(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(inner + 2 + sulci, 1.6 - np.abs(x))

    canvas.paint(Shape(vault.low, vault.high, halves), HU["brain"] + 3 * texture)
    draw(canvas, scene["ventricles"])
