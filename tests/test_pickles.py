"""Facts about foreign pickles: plain content comes in whole, and nothing that a file names is ever run."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.errors import WeightsError
from clseg.weights.importers.pickles import _reason, load_plain, load_torch, real

OPENERS = [load_plain, load_torch]


class Trap:
    """Unpickling it makes the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def written(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def test_plain_pickles_come_in_whole(tmp_path: Path) -> None:
    """Containers, numbers, NumPy scalars and arrays of a plans file are what they were."""
    plans = OrderedDict(spacing=np.array([3.0, 1.5, 1.5]), mean=np.float64(-187.85), stages={0: {"pool": [[1, 2, 2]]}}, none=None)
    read = load_plain(written(tmp_path / "plans.pkl", plans))
    assert read["spacing"].tolist() == [3.0, 1.5, 1.5]
    assert (read["mean"], read["stages"], read["none"]) == (-187.85, {0: {"pool": [[1, 2, 2]]}}, None)


def test_the_old_names_of_numpy_are_known(tmp_path: Path) -> None:
    """A file of NumPy 1, which says numpy.core where NumPy 2 says numpy._core, gives the same numbers."""
    modern = pickle.dumps({"spacing": np.arange(3.0)}, protocol=4)
    old = modern.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    assert old != modern
    frame = old.index(b"\x95") + 1
    size = int.from_bytes(old[frame : frame + 8], "little") - 1
    path = tmp_path / "old.pkl"
    path.write_bytes(old[:frame] + size.to_bytes(8, "little") + old[frame + 8 :])
    assert load_plain(path)["spacing"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    """A dictionary with a call of os.mkdir in it: the error says posix.mkdir, and the folder is not there."""
    path = tmp_path / "plans.pkl"
    path.write_bytes(pickle.dumps({"plans": 1, "trap": Trap(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(WeightsError, match=rf"wants to run or build '{os.mkdir.__module__}\.mkdir'"):
        load_plain(path)
    assert not (tmp_path / "ran").exists()


def test_a_malicious_checkpoint_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    """The same inside a file of torch.save, beside true weights."""
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w": torch.zeros(1)}, "trap": Trap(tmp_path / "ran")}, path)
    with pytest.raises(WeightsError, match=r"mkdir'"):
        load_torch(path)
    assert not (tmp_path / "ran").exists()


def scripted(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


FOREIGN = {
    "a program": (scripted, "is a TorchScript archive, which is a program, expected a dictionary with weights; nothing of it was run"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1.5}, protocol=5)), r"cannot be read as plain weights \(Unsupported operand 149\)"),
    "a newer protocol": (lambda path: torch.save({"w": torch.zeros(1)}, path, pickle_protocol=4), "cannot be read as plain weights"),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"'torch\.nn\.modules\.linear\.Linear'"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_nobody_is_told_to_trust_a_file(tmp_path: Path, kind: str, recwarn: pytest.WarningsRecorder) -> None:
    """Files that torch refuses: one line in our own words, without torch's hint to load it all the same, or its warnings."""
    write, told = FOREIGN[kind]
    path = tmp_path / "model.pth"
    write(path)
    recwarn.clear()
    with pytest.raises(WeightsError, match=told) as caught:
        load_torch(path)
    said = f"{caught.value.message} {caught.value.tip}"
    assert not any(word in said for word in ("weights_only", "safe_globals", "False", "docs", "\n"))
    assert "sandbox" in str(caught.value.tip)
    assert [str(one.message) for one in recwarn] == []


def test_advice_is_left_out_whatever_torch_says(tmp_path: Path) -> None:
    """A reason that names what would have to be allowed is not repeated."""
    advice = "Weights only load failed. (1) Re-running with `weights_only` set to `False` will likely succeed.\n\tWeightsUnpickler error: Please use add_safe_globals([x]).\n\nCheck the documentation"
    assert _reason(Exception(advice)) == ""
    assert _reason(Exception(advice.replace("Please use add_safe_globals([x])", "Can only append to lists"))) == " (Can only append to lists)"


ODD = {
    "a str": lambda: "weights",
    "a list": lambda: [1.0, 2.0],
    "a sparse or nested tensor": lambda: torch.eye(2).to_sparse(),
    "a tensor of complex numbers": lambda: torch.zeros(2, dtype=torch.complex64),
    "a tensor without its numbers": lambda: torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
def test_only_dense_tensors_of_real_numbers_are_weights(kind: str) -> None:
    """Whatever else stands in the place of one is named; halves, whole numbers and parameters are real."""
    with pytest.raises(WeightsError, match=f"'up.weight' is {kind}, expected a dense tensor of real numbers"):
        real("up.weight", ODD[kind]())
    for tensor in (torch.zeros(2).half(), torch.zeros(2, dtype=torch.int64), torch.nn.Parameter(torch.zeros(2))):
        assert real("w", tensor) is tensor


@pytest.mark.parametrize("name", [b"cnumpy\nload\n.", b"cbuiltins\ngetattr\n.", b"cnumpy.core.multiarray\nfrombuffer\n.", b"cnumpy\nndarray.tofile\n."])
def test_names_near_to_plain_ones_are_refused(tmp_path: Path, name: bytes) -> None:
    """NumPy's other functions, attributes of its classes and Python's own are not plain content."""
    path = tmp_path / "plans.pkl"
    path.write_bytes(b"\x80\x02" + name)
    with pytest.raises(WeightsError, match="no plain content"):
        load_plain(path)


def test_objects_outside_the_file_are_refused(tmp_path: Path) -> None:
    """A persistent id, which a program would have to resolve, is no plain content."""
    buffer = io.BytesIO()
    writer = pickle.Pickler(buffer)
    writer.persistent_id = lambda thing: "outside" if thing == 7 else None
    writer.dump({"a": 7})
    (tmp_path / "plans.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match="outside object"):
        load_plain(tmp_path / "plans.pkl")


@pytest.mark.parametrize("opener", OPENERS)
def test_damaged_missing_and_other_files_are_said_to_be_so(tmp_path: Path, opener) -> None:
    """Cut, empty and foreign bytes, no file, and a list instead of a dictionary are WeightsErrors of one sentence."""
    whole = tmp_path / "whole"
    if opener is load_torch:
        torch.save({"w": torch.zeros(8)}, whole)
    else:
        written(whole, {"w": np.zeros(8)})
    for number, damaged in enumerate((whole.read_bytes()[:-20], b"", b"no pickle at all", b"\x80")):
        path = tmp_path / f"damaged{number}"
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="damaged"):
            opener(path)
    with pytest.raises(WeightsError, match="There is no file"):
        opener(tmp_path / "nothing")
    torch.save([1], whole) if opener is load_torch else written(whole, [1])
    with pytest.raises(WeightsError, match="holds a list, expected a dictionary"):
        opener(whole)


def test_the_fixtures_of_the_authors_come_in(shared: Path) -> None:
    """Plans as the authors' program pickles them, and a checkpoint written with NumPy 1."""
    variants = shared / "fixtures" / "official_clnet" / "variants"
    plans = load_plain(variants / "plans.pkl")
    assert list(plans["plans_per_stage"]) == [0]
    assert np.allclose(plans["plans_per_stage"][0]["current_spacing"], [2.0, 1.25, 1.25])
    assert load_plain(variants / "model_final_checkpoint.model.pkl")["plans"]["num_classes"] == 3
    assert len(load_torch(variants / "numpy1_globals.model")["state_dict"]) == 2
