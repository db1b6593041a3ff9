"""The shape of an nnU-Net v2 network, from either style of its plans.json, as specs of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clseg.errors import WeightsError
from clseg.network.spec import Level, Stage, Triple

CLASSES = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "residual"}
_COUNTS = {"plain": "n_conv_per_stage", "residual": "n_blocks_per_stage"}
_OPERATORS = {"conv_op": "Conv3d", "norm_op": "InstanceNorm3d", "nonlin": "LeakyReLU"}
_WITHOUT_EFFECT = {"dropout_op", "dropout_op_kwargs", "deep_supervision"}  # in inference
_ONLY_OFF = {"nonlin_first", "squeeze_excitation", "stochastic_depth_p", "bottleneck_channels"}


@dataclass(frozen=True)
class Shape:
    """A network: what its encoder is built of, its levels, the stages of its decoder, whether its convolutions have biases."""

    block: str
    levels: tuple[Level, ...]
    stages: tuple[Stage, ...]
    bias: bool


def shape_of(configuration: Mapping[str, Any]) -> Shape:
    """The network that a configuration of plans.json describes, inherited fields filled in.

    WeightsError names what clseg cannot build: another class, 2-D, another normalisation.
    """
    name, arguments = _architecture(configuration)
    block = CLASSES.get(name.rpartition(".")[2])
    if block is None:
        raise WeightsError(f"The network is a {name.rpartition('.')[2]}, clseg knows {' and '.join(CLASSES)}.")
    _refuse_other_operators(arguments, block)
    count = int(arguments["n_stages"])
    widths = _per_level(arguments["features_per_stage"], count)
    kernels = [_triple(one) for one in _per_level(arguments["kernel_sizes"], count)]
    strides = [_triple(one) for one in _per_level(arguments["strides"], count)]
    convs = _per_level(arguments[_COUNTS[block]], count)
    upper = _per_level(arguments["n_conv_per_stage_decoder"], count - 1)
    if strides[0] != (1, 1, 1) or any(edge % 2 == 0 for kernel in kernels for edge in kernel):
        raise WeightsError(f"The network has strides {strides} and kernels {kernels}, expected a first stride of 1 and odd kernels.")
    levels = tuple(map(Level, widths, strides, kernels, convs))
    stages = tuple(Stage(w, (w,) * n, k) for w, n, k in zip(widths[-2::-1], upper, kernels[-2::-1], strict=True))
    return Shape(block, levels, stages, bool(arguments.get("conv_bias", False)))


def _architecture(configuration: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Class name and arguments; plans from before there was an `architecture` say the same in other words."""
    if "architecture" in configuration:
        found = configuration["architecture"]
        return str(found["network_class_name"]), found["arch_kwargs"]
    name = str(configuration["UNet_class_name"])
    convs = configuration["n_conv_per_stage_encoder"]
    base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    return name, {
        "n_stages": len(convs),
        "features_per_stage": [min(base * 2**i, most) for i in range(len(convs))],
        "kernel_sizes": configuration["conv_kernel_sizes"],
        "strides": configuration["pool_op_kernel_sizes"],
        _COUNTS.get(CLASSES.get(name, ""), "n_conv_per_stage"): convs,
        "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
        "conv_bias": True,
    }


def _refuse_other_operators(arguments: Mapping[str, Any], block: str) -> None:
    for key, expected in _OPERATORS.items():
        given = str(arguments.get(key, expected)).rpartition(".")[2]
        if given != expected:
            raise WeightsError(f"The network's {key} is {given}, clseg knows {expected} only.", tip=_TIP_2D if "2d" in given else None)
    norm, slope = arguments.get("norm_op_kwargs") or {}, (arguments.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    if float(norm.get("eps", 1e-5)) != 1e-5 or not norm.get("affine", True) or slope != 0.01:
        raise WeightsError(f"The network normalises with {norm} and has a LeakyReLU of {slope}, clseg knows eps 1e-5, affine, and 0.01.")
    for key in sorted(_ONLY_OFF & set(arguments)):
        if arguments[key]:
            raise WeightsError(f"The network has {key} = {arguments[key]}, which clseg cannot build.")
    if arguments.get("stem_channels") not in (None, _first(arguments["features_per_stage"])):
        raise WeightsError(f"The network's stem has {arguments['stem_channels']} channels, clseg knows as many as its first level.")
    if str(arguments.get("block", "BasicBlockD")).rpartition(".")[2] != "BasicBlockD":
        raise WeightsError(f"The network is built of {arguments['block']}, clseg knows BasicBlockD.")
    known = {"n_stages", "features_per_stage", "kernel_sizes", "strides", _COUNTS[block], "n_conv_per_stage_decoder", "conv_bias"}
    known |= {*_OPERATORS, *_ONLY_OFF, *_WITHOUT_EFFECT, "norm_op_kwargs", "nonlin_kwargs", "stem_channels", "block"}
    if unknown := sorted(set(arguments) - known):
        raise WeightsError(f"The network has the argument '{unknown[0]}', which clseg does not know.")


def _per_level(value: Any, count: int) -> list[Any]:
    """One value per level; a single one stands for all."""
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise WeightsError(f"The network's plans give {len(values)} values where {count} are expected: {values}.")
    return values


def _triple(value: int | Sequence[int]) -> Triple:
    edges = (value,) * 3 if isinstance(value, int) else tuple(int(edge) for edge in value)
    if len(edges) != 3:
        raise WeightsError(f"The network has a kernel or stride {list(edges)}, expected three numbers.", tip=_TIP_2D)
    return edges


def _first(value: Any) -> Any:
    return value if isinstance(value, int) else value[0]


_TIP_2D = "2-D networks are not supported; import the configuration 3d_fullres or 3d_lowres."
