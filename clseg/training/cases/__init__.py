"""Cases: which structures are annotated where, as the datasets of a recipe say.

| format            | stored as                                                              | module            |
|-------------------|------------------------------------------------------------------------|-------------------|
| `folders`         | an index (case, split) and a folder per case                           | `folders`         |
| `csv`             | a table of paths (ct, label) with names, split and case                | `table`           |
| `nnunet`          | `DatasetXXX_Name` of nnU-Net v2                                        | `nnunet`          |
| `totalsegmentator`| a folder per subject with a CT and `segmentations/`                    | `totalsegmentator`|
| `results`         | what `clseg -i` wrote: pseudo-labels that need no review               | `results`         |

`find_cases` lists them, `read_masks` reads them; nothing else needs to know the formats.
"""

from __future__ import annotations

from clseg.training.cases.case import Case, LabelMap, MaskFile
from clseg.training.cases.find import find_cases, list_cases, only_teaches
from clseg.training.cases.masks import named, on_grid, read_grid, read_masks, read_unknown

__all__ = ["Case", "LabelMap", "MaskFile", "find_cases", "list_cases", "named", "on_grid", "only_teaches", "read_grid", "read_masks", "read_unknown"]
