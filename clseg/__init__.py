"""clseg: whole-body CT segmentation that keeps learning (CL-Net, arXiv 2503.12698).

    from clseg import segment
    result = segment("ct.nii.gz", roi=["liver"])
    result.mask("liver"); result.statistics(); result.save("out/")

Importing `clseg` is instant: names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Segmentation", "Segmenter", "Settings", "Volume", "__version__", "segment"]

if TYPE_CHECKING:
    from clseg.pipeline import Segmentation, Segmenter, segment
    from clseg.settings import Settings
    from clseg.volume import Volume

_HOME = {
    "segment": "clseg.pipeline",
    "Segmenter": "clseg.pipeline",
    "Segmentation": "clseg.segmentation",
    "Settings": "clseg.settings",
    "Volume": "clseg.volume",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clseg' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
