"""Checkpoints that describe themselves: safetensors with JSON metadata, never pickle.

One file holds one part, an encoder or a decoder.  The metadata key `clseg` is a
JSON object:

    format    1; 2 when tensors are stored sparsely
    kind      "encoder" | "decoder"
    spec      see `clseg.network.spec`
    encoder   decoders only: fingerprint of the encoder they belong to
    card      training data, licence, date …; free JSON
    slices    decoders only: body-part range [low, high], an open end null; or null for everywhere
    label_slices  decoders only, may be missing: the same for labels that live in a part of it, {label: range}
    sideways  decoders only, may be missing: [low, high], how far its organs lie from the middle of the body, in mm to the patient's right
    sparse    format 2 only: shape and dtype of every sparse tensor, see `clseg.network.sparse`
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clseg.errors import WeightsError
from clseg.network import spec as specs

if TYPE_CHECKING:
    import torch

    from clseg.network.decoder import Decoder
    from clseg.network.encoder import Encoder

DENSE, SPARSE = 1, 2  # formats
TensorDict = dict[str, "torch.Tensor"]
Range = tuple[float | None, float | None]  # body-part scores, 0 = bottom of the pelvis, 1 = top of the head; None: open
Sideways = tuple[float, float]  # mm to the patient's right of the middle of the body, negative to the left


@dataclass(frozen=True)
class Checkpoint:
    """What is in one weights file: `kind`, `spec`, `tensors` and what is known about them.

    `slices` is the body-part range of a decoder, `label_slices` that of single labels;
    a label that is not named there has its decoder's.  `sideways` says how far from
    the middle of the body a decoder's organs lie (None: nobody knows).
    """

    kind: str
    spec: specs.EncoderSpec | specs.DecoderSpec
    tensors: TensorDict
    encoder: str | None = None
    slices: Range | None = None
    card: dict[str, Any] = field(default_factory=dict)
    label_slices: Mapping[str, Range | None] = field(default_factory=dict)
    sideways: Sideways | None = None


def fingerprint(tensors: TensorDict, spec: Any) -> str:
    """sha256 over a spec and its tensors (names, types, shapes and bytes, in name order).

    It names the content, not the file: the same weights have the same
    fingerprint however they were written, densely or sparsely.
    """
    import torch

    digest = hashlib.sha256(json.dumps(specs.to_dict(spec), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def supporter(name: str, checkpoint: Checkpoint) -> specs.Supporter:
    """How the spec of another decoder names this one, called `name`, as a supporter."""
    if not isinstance(checkpoint.spec, specs.DecoderSpec):
        raise WeightsError(f"Only a decoder can support another, '{name}' is an {checkpoint.kind}.")
    return specs.Supporter(name, checkpoint.spec.labels, fingerprint(checkpoint.tensors, checkpoint.spec))


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` whole or not at all; see `stored`."""
    from clseg.io.files import writing

    data = stored(checkpoint)
    with writing(Path(path)) as file:
        file.write(data)


def stored(checkpoint: Checkpoint) -> bytes:
    """What a file of `checkpoint` holds; the same content gives the same bytes.

    Every tensor is stored the smaller way, dense or sparse; `load` gives it back dense.
    """
    from safetensors.torch import save as to_bytes

    from clseg.network.sparse import pack

    tensors, sparse = pack(dict(sorted(checkpoint.tensors.items())))
    header = {
        "format": SPARSE if sparse else DENSE,
        "kind": checkpoint.kind,
        "spec": specs.to_dict(checkpoint.spec),
        "encoder": checkpoint.encoder,
        "slices": checkpoint.slices,
        "card": checkpoint.card,
    }
    if checkpoint.label_slices:
        header["label_slices"] = dict(checkpoint.label_slices)
    if checkpoint.sideways is not None:
        header["sideways"] = checkpoint.sideways
    if sparse:
        header["sparse"] = sparse
    return to_bytes(tensors, metadata={"clseg": json.dumps(header, sort_keys=True)})


def read_header(path: Path) -> dict[str, Any]:
    """The metadata of a weights file, without its tensors (no torch needed).

    Raises WeightsError when the file is not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Cannot read the weights file {path}: {error}.", tip="Fetch it again.") from error
    if "clseg" not in metadata:
        raise WeightsError(f"{path} holds tensors but no clseg metadata, so it is not a clseg checkpoint.")
    try:
        header = json.loads(metadata["clseg"])
    except json.JSONDecodeError as error:
        raise WeightsError(f"The clseg metadata of {path} is not JSON: {error}.", tip="Fetch it again.") from error
    if not isinstance(header, dict):
        raise WeightsError(f"The clseg metadata of {path} must be a JSON object, given {header!r}.")
    if header.get("format") not in (DENSE, SPARSE):
        raise WeightsError(f"{path} has format {header.get('format')}, this version reads {DENSE} and {SPARSE}.", tip="Update clseg.")
    missing = {"kind", "spec", "encoder", "slices", "card"} - set(header)
    missing |= {"sparse"} - set(header) if header["format"] == SPARSE else set()
    if missing:
        raise WeightsError(f"The clseg metadata of {path} lacks {', '.join(sorted(missing))}.")
    return header


def load(path: Path) -> Checkpoint:
    """Read a weights file; tensors are dense, in the precision in which they were stored."""
    from safetensors.torch import load_file

    from clseg.network.sparse import unpack

    header = read_header(path)
    parse = {"encoder": specs.encoder_from_dict, "decoder": specs.decoder_from_dict}.get(header["kind"])
    if parse is None:
        raise WeightsError(f"{path} holds a '{header['kind']}', expected an encoder or a decoder.")
    slices = tuple(header["slices"]) if header.get("slices") else None
    tensors = load_file(str(path))
    if header["format"] == SPARSE:
        try:
            tensors = unpack(tensors, header["sparse"])
        except WeightsError as error:
            raise WeightsError(f"The weights file {path} is not usable: {error.message}", tip=error.tip) from error
    spec = parse(header["spec"])
    label_slices = _label_slices(header.get("label_slices"), getattr(spec, "labels", ()), path)
    sideways = _sideways(header.get("sideways"), path)
    return Checkpoint(header["kind"], spec, tensors, header["encoder"], slices, header["card"], label_slices, sideways)


def build_encoder(checkpoint: Checkpoint, *, hollow: bool = False) -> Encoder:
    """A frozen Encoder in float32, ready for inference; a `hollow` one is checked likewise, but has no numbers until `fill`."""
    from clseg.network.encoder import Encoder

    if not isinstance(checkpoint.spec, specs.EncoderSpec):
        raise WeightsError("Expected an encoder's checkpoint, given a decoder's.")
    return _built(lambda: Encoder(checkpoint.spec), checkpoint.tensors, hollow)  # type: ignore[arg-type]


def build_decoder(checkpoint: Checkpoint, encoder: specs.EncoderSpec, *, hollow: bool = False) -> Decoder:
    """A frozen Decoder in float32 on top of `encoder`; `hollow` as in `build_encoder`."""
    from clseg.network.decoder import Decoder

    if not isinstance(checkpoint.spec, specs.DecoderSpec):
        raise WeightsError("Expected a decoder's checkpoint, given an encoder's.")
    return _built(lambda: Decoder(checkpoint.spec, encoder), checkpoint.tensors, hollow)  # type: ignore[arg-type]


def _label_slices(stored: Any, labels: tuple[str, ...], path: Path) -> dict[str, Range | None]:
    """Ranges of labels as they are stored; WeightsError for what is none, or belongs to no label of the decoder."""
    if stored is None:
        return {}
    if not isinstance(stored, dict) or not all(label in labels and _is_range(one) for label, one in stored.items()):
        raise WeightsError(f"label_slices of {path} must map labels of the decoder to [low, high] or null, given {stored!r}.", tip="Fetch it again.")
    return {label: one and (one[0], one[1]) for label, one in stored.items()}


def _sideways(stored: Any, path: Path) -> Sideways | None:
    """How far from the middle organs lie, as it is stored; WeightsError for what is no pair of rising numbers."""
    if stored is None:
        return None
    low, high = stored if isinstance(stored, list) and len(stored) == 2 else (None, None)
    if not all(type(bound) in (int, float) and math.isfinite(bound) for bound in (low, high)) or low >= high:  # type: ignore[operator]
        raise WeightsError(f"sideways of {path} must be [low, high] in mm or missing, given {stored!r}.", tip="Fetch it again.")
    return low, high  # type: ignore[return-value]


def _is_range(stored: Any) -> bool:
    """Whether this is null or two bounds, each a number or null."""
    if stored is None:
        return True
    numbers = isinstance(stored, list) and [bound for bound in stored if bound is not None]
    return isinstance(stored, list) and len(stored) == 2 and all(type(bound) in (int, float) for bound in numbers or ())


def refuse_no_numbers(tensors: TensorDict, what: str) -> None:
    """WeightsError for NaN and infinity: a network with one of them finds nothing anywhere, and nobody would know why."""
    for name, tensor in tensors.items():
        finite = not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())  # a sum may be too large
        if not finite:
            raise WeightsError(f"{what} hold no numbers (NaN or infinity) in '{name}'.", tip="Train, import or fetch them again.")


def fill(module: torch.nn.Module, tensors: TensorDict) -> None:
    """Copies of `tensors` in float32 as the weights of `module`; RuntimeError where one is missing, surplus or misshapen."""
    import torch

    module.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}, strict=True, assign=True)


def empty(module: torch.nn.Module, tensors: TensorDict | None = None) -> None:
    """Shapes without numbers instead of the weights of `module`, those of `tensors` where they are given; RuntimeError as in `fill`."""
    import torch

    shapes = module.state_dict() if tensors is None else tensors
    module.load_state_dict({name: torch.empty_like(tensor, dtype=torch.float32, device="meta") for name, tensor in shapes.items()}, strict=True, assign=True)


def _built(build: Callable[[], Any], tensors: TensorDict, hollow: bool) -> Any:
    """What `build` makes, with copies of `tensors` in it; a missing, surplus or misshapen tensor is an error.

    So are weights that are no numbers.  It is built without numbers: to draw random ones for a large network takes longer than to read it.
    """
    import torch

    refuse_no_numbers(tensors, "The weights")
    with torch.device("meta"):
        module = build()
    try:
        (empty if hollow else fill)(module, tensors)
    except RuntimeError as error:
        raise WeightsError(f"The weights do not fit their own spec: {error}") from error
    return module.eval().requires_grad_(False)
