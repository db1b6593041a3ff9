"""Pickles: the one place that opens checkpoints of other programs, and only for plain content.

A pickle can name any function of Python and have it called.  Here only tensors, NumPy
numbers and arrays, and plain containers are built; whatever else a file names is refused
by its name, and nothing of it runs.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clseg.errors import WeightsError

if TYPE_CHECKING:
    import torch

_PLAIN_NAMES = {("collections", "OrderedDict"), ("numpy", "dtype"), ("numpy", "ndarray")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}
_SANDBOX = "If you trust its author, load it in a sandbox and save its plain content alone: torch.save(state_dict)."
_ADVICE = ("weights_only", "safe_globals", "torch.load")
_REFUSED = re.compile(r"(?:Unsupported global: GLOBAL|GLOBAL|Unsupported class|Trying to load unsupported GLOBAL) ([\w.]+)")


def load_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a file that `torch.save` wrote, on the CPU.

    Raises WeightsError when the file is no such file, is damaged, holds something else
    than a dictionary, or names something that is not plain content.
    """
    import torch
    from torch.serialization import safe_globals

    try:
        with safe_globals(_plain()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of the file is told in our own words
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {path}.") from error
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds, and damaged files bring more
        raise _refusal(path, error) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a dictionary with weights.")
    return content


def load_plain(path: Path) -> dict[str, Any]:
    """The dictionary of plain containers and NumPy arrays in a `.pkl` file, such as nnU-Net v1 writes plans.

    Raises WeightsError as `load_torch` does.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, path).load()
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {path}.") from error
    except (MemoryError, WeightsError):
        raise
    except Exception as error:  # damaged pickles bring errors of every kind
        raise WeightsError(f"{path} is not a pickle, or it is damaged: {type(error).__name__}: {error}", tip="Copy or fetch it again.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a dictionary.")
    return content


def real(name: str, value: Any) -> torch.Tensor:
    """The tensor called `name` of a checkpoint; WeightsError unless it is one of real numbers, each in its place."""
    import torch

    if not isinstance(value, torch.Tensor):
        kind = f"a {type(value).__name__}"
    elif value.is_nested or value.layout != torch.strided:
        kind = "a sparse or nested tensor"
    elif value.is_quantized:
        kind = "a quantised tensor"
    elif value.is_complex():
        kind = "a tensor of complex numbers"
    elif value.is_meta:
        kind = "a tensor without its numbers"
    else:
        return value
    raise WeightsError(f"'{name}' is {kind}, expected a dense tensor of real numbers.", tip="Save it as one: torch.save(state_dict).")


class _PlainUnpickler(pickle.Unpickler):
    """Builds what is in `_PLAIN_NAMES` and nothing else; a name that is not is never even looked up."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN_NAMES:
            raise _not_plain(self._path, f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core") if _new_numpy() else module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise _not_plain(self._path, f"the outside object {pid!r:.60}")


def _new_numpy() -> bool:
    import numpy as np

    return not np.__version__.startswith("1.")


def _plain() -> list[Any]:
    """What a file may build besides tensors and containers: NumPy numbers, under their old and new names."""
    import numpy as np
    import torch

    kinds = [getattr(np.dtypes, f"{name}DType") for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool")]
    scalar = np.float64(0).__reduce__()[0]
    return [np.dtype, *kinds, torch.device, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar")]


def _refusal(path: Path, error: Exception) -> WeightsError:
    name = _REFUSED.search(str(error))
    if name:
        return _not_plain(path, name[1])
    if not _looks_whole(path):
        return WeightsError(f"{path} is not a file that torch.save wrote, or it is damaged.", tip="Copy or fetch it again.")
    if "TorchScript" in str(error):
        return WeightsError(f"{path} is a TorchScript archive, which is a program, expected a dictionary with weights; nothing of it was run.", tip=_SANDBOX)
    return WeightsError(f"{path} cannot be read as plain weights{_reason(error)}, expected tensors, numbers and containers as torch.save stores them.", tip=_SANDBOX)


def _reason(error: Exception) -> str:
    """What torch says is the matter, in brackets; never its advice, which is to trust the file."""
    told = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]
    return "" if not told or any(word in told for word in _ADVICE) else f" ({told.rstrip('.')})"


def _not_plain(path: Path, name: str) -> WeightsError:
    return WeightsError(f"{path} wants to run or build '{name}', which is no plain content; nothing of it was run.", tip=_SANDBOX)


def _looks_whole(path: Path) -> bool:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        with path.open("rb") as file:
            next(pickletools.genops(file))
        return True
    except Exception:
        return False
