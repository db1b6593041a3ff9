"""Facts about sparse storage: it is exact, it is chosen where it is smaller, and damage is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from clseg.errors import WeightsError
from clseg.network.checkpoint import Checkpoint, fingerprint, load, read_header, save
from clseg.network.sparse import pack, unpack
from clseg.network.spec import DecoderSpec, Stage

SPEC = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), ("liver",))
PRECISIONS = [torch.float16, torch.float32, torch.bfloat16]
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


def thinned(count: int, share: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """`count` random bit patterns (NaN, infinity and -0.0 among them) of which about `share` are all zero bits."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.iinfo(BITS[dtype])
    bits = torch.randint(limits.min, limits.max, (count,), generator=generator, dtype=BITS[dtype])
    bits[torch.rand(count, generator=generator) < share] = 0
    return bits.view(dtype)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    flat = [t.reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


tensors = st.builds(
    lambda shape, share, dtype, seed: thinned(int(torch.tensor(shape).prod()), share, dtype, seed).reshape(shape),
    st.lists(st.integers(0, 20), max_size=4),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1),
    st.sampled_from(PRECISIONS),
    st.integers(0, 1000),
)
names = st.sampled_from(["a", "a.mask", "a.values", "a.mask.mask", "b.weight", "c"])


@settings(max_examples=40)
@given(parts=st.dictionaries(names, tensors, min_size=1, max_size=4))
def test_what_was_saved_is_loaded_to_the_bit(parts: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any shape, precision and share of zeros, also under names that look like a mask's: every bit comes back, and the fingerprint."""
    file = tmp_path_factory.mktemp("sparse") / "x.safetensors"
    save(file, Checkpoint("decoder", SPEC, parts))
    loaded = load(file)
    assert loaded.tensors.keys() == parts.keys()
    assert all(same_bits(loaded.tensors[name], tensor) for name, tensor in parts.items())
    assert fingerprint(loaded.tensors, SPEC) == fingerprint(parts, SPEC)


@given(share=st.floats(0, 1), dtype=st.sampled_from(PRECISIONS), count=st.integers(1, 20_000))
def test_the_smaller_way_wins(share: float, dtype: torch.dtype, count: int) -> None:
    """Never larger than dense; and sparse whenever a bit per element and the values take less, with room for a header entry."""
    tensor = thinned(count, share, dtype)
    stored, notes = pack({"x": tensor})
    room = (count + 7) // 8 + int((tensor.view(BITS[dtype]) != 0).sum()) * tensor.element_size()
    assert (set(stored) == {"x.mask", "x.values"}) == bool(notes) == (room + 256 < tensor.nbytes)


def test_three_of_a_thousand_by_hand() -> None:
    """Elements 0, 9 and 999 of a thousand: bits 0 of byte 0, 1 of byte 1 and 7 of byte 124; three values."""
    tensor = torch.zeros(10, 100)
    tensor.view(-1)[[0, 9, 999]] = torch.tensor([1.0, 2.0, 3.0])
    stored, notes = pack({"x": tensor})
    expected = torch.zeros(125, dtype=torch.uint8)
    expected[[0, 1, 124]] = torch.tensor([1, 2, 128], dtype=torch.uint8)
    assert torch.equal(stored["x.mask"], expected)
    assert stored["x.values"].tolist() == [1.0, 2.0, 3.0]
    assert notes == {"x": {"shape": [10, 100], "dtype": "float32"}}
    assert torch.equal(unpack(stored, notes)["x"], tensor)


def test_nine_in_ten_zeros_make_a_half_precision_file_six_times_smaller(tmp_path: Path) -> None:
    """64 x 64 x 27 weights in fp16, 90 % zero: (1 + 0.1 · 16) bits instead of 16."""
    dense = thinned(64 * 64 * 27, 0.0, torch.float16)
    pruned = torch.where(torch.arange(len(dense)) % 10 == 0, dense, torch.zeros_like(dense))
    sizes = []
    for index, tensor in enumerate((dense, pruned)):
        save(tmp_path / str(index), Checkpoint("decoder", SPEC, {"weight": tensor}))
        sizes.append((tmp_path / str(index)).stat().st_size)
    assert sizes[0] / sizes[1] > 6


def test_dense_files_are_what_they_were(tmp_path: Path) -> None:
    """Nothing sparse: format 1, no note, the tensors under their names, as older versions read and wrote it."""
    save(tmp_path / "x", Checkpoint("decoder", SPEC, {"weight": torch.ones(1000), "bias": torch.zeros(8)}))
    header = read_header(tmp_path / "x")
    assert header["format"] == 1
    assert "sparse" not in header
    assert set(load_file(tmp_path / "x")) == {"weight", "bias"}


def test_an_older_version_is_told_to_update(tmp_path: Path) -> None:
    """A file with a sparse tensor has format 2, which versions that cannot expand it refuse."""
    save(tmp_path / "x", Checkpoint("decoder", SPEC, {"weight": torch.zeros(1000)}))
    assert read_header(tmp_path / "x")["format"] == 2


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    """The order in which tensors are given does not matter, nor their layout in memory."""
    one = {"a": thinned(4000, 0.9).reshape(40, 100), "b": torch.ones(3)}
    other = {"b": torch.ones(3), "a": one["a"].t().contiguous().t()}
    save(tmp_path / "a", Checkpoint("decoder", SPEC, one))
    save(tmp_path / "b", Checkpoint("decoder", SPEC, other))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


NOTE = {"shape": [10, 100], "dtype": "float32"}
FAULTS = {
    "cut mask": ({"x.mask": lambda mask: mask[:-1]}, {}, "mask has 124 bytes, expected 125 for 1000 elements"),
    "a bit lost": ({"x.mask": lambda mask: mask & 254}, {}, "mask has 2 bits set, its values are 3"),
    "a value lost": ({"x.values": lambda values: values[1:]}, {}, "mask has 3 bits set, its values are 2"),
    "wide mask": ({"x.mask": lambda mask: mask.short()}, {}, "must be flat, the mask of bytes"),
    "values in rows": ({"x.values": lambda values: values[None]}, {}, "must be flat"),
    "other precision": ({"x.values": lambda values: values.half()}, {}, "values are float16, expected float32"),
    "other shape": ({}, {"shape": [10, 101]}, "expected 127 for 1010 elements"),
    "bits beyond the end": ({}, {"shape": [999]}, "set beyond the last element"),
    "endless shape": ({}, {"shape": [1 << 62, 4]}, "mask has 125 bytes"),
    "negative shape": ({}, {"shape": [-10, -100]}, "list of sizes"),
    "no shape": ({}, {"shape": None}, "list of sizes"),
    "unknown note": ({}, {"order": "F"}, "must have shape and dtype"),
    "no mask": ({"x.mask": None}, {}, "one mask and its values"),
    "no values": ({"x.values": None}, {}, "one mask and its values"),
    "stored twice": ({"x": lambda _: torch.ones(10, 100)}, {}, "one mask and its values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_agree_is_refused(tmp_path: Path, fault: str) -> None:
    """Mask, values and note of 3 values among 1000 elements: a fault in any of them is a WeightsError with file and tensor."""
    changes, note, sentence = FAULTS[fault]
    tensor = torch.zeros(10, 100)
    tensor.view(-1)[[0, 9, 999]] = 1.0
    save(tmp_path / "x.safetensors", Checkpoint("decoder", SPEC, {"x": tensor}))
    stored, header = load_file(tmp_path / "x.safetensors"), read_header(tmp_path / "x.safetensors")
    assert header["sparse"] == {"x": NOTE}
    for name, change in changes.items():
        stored[name] = None if change is None else change(stored.get(name))
    header["sparse"]["x"].update(note)
    kept = {name: value.contiguous() for name, value in stored.items() if value is not None}
    (tmp_path / "x.safetensors").write_bytes(to_bytes(kept, metadata={"clseg": json.dumps(header)}))
    with pytest.raises(WeightsError, match=sentence) as caught:
        load(tmp_path / "x.safetensors")
    assert "x.safetensors" in caught.value.message
    assert "'x'" in caught.value.message


def test_the_mask_is_in_the_file_as_bytes(tmp_path: Path) -> None:
    """Any reader of safetensors finds `<name>.mask` and `<name>.values`."""
    save(tmp_path / "x", Checkpoint("decoder", SPEC, {"conv.weight": thinned(5000, 0.95, torch.float16)}))
    with safe_open(str(tmp_path / "x"), framework="numpy") as file:
        assert {name: str(file.get_tensor(name).dtype) for name in file.keys()} == {  # noqa: SIM118
            "conv.weight.mask": "uint8",
            "conv.weight.values": "float16",
        }
