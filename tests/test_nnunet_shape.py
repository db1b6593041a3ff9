"""Facts about the shape of nnU-Net's networks: both styles of plans say the same, and what clseg cannot build is named."""

from __future__ import annotations

from typing import Any

import pytest

from clseg.errors import WeightsError
from clseg.network.spec import Level, Stage
from clseg.weights.importers.nnunet_shape import Shape, shape_of
from tests.small_nnunet import plans

LEVELS = (Level(4, (1, 1, 1), (1, 3, 3), 1), Level(6, (1, 2, 2), (3, 3, 3), 2))
STAGES = (Stage(4, (4, 4), (1, 3, 3)),)  # the kernel is that of the level whose skip it reads


def configuration(kind: str = "plain", *, old: bool = False, **arguments: Any) -> dict[str, Any]:
    """The configuration of a plans.json, with other arguments of the network."""
    found = plans(kind, old=old)["configurations"]["3d_fullres"]
    if arguments:
        found["architecture"]["arch_kwargs"].update(arguments)
    return found


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("old", [False, True])
def test_both_styles_of_plans_say_the_same(kind: str, old: bool) -> None:
    """4 and 6 channels, by list or as min(4 · 2^i, 6)."""
    assert shape_of(configuration(kind, old=old)) == Shape(kind, LEVELS, STAGES, True)


def test_single_numbers_stand_for_all_levels_and_axes() -> None:
    """One count for all levels, one number for three equal kernel edges."""
    found = shape_of(configuration(n_conv_per_stage=2, n_conv_per_stage_decoder=1, kernel_sizes=[1, 3], strides=[1, 2], features_per_stage=5))
    assert found.levels == (Level(5, (1, 1, 1), (1, 1, 1), 2), Level(5, (2, 2, 2), (3, 3, 3), 2))
    assert found.stages == (Stage(5, (5,), (1, 1, 1)),)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"conv_op": "torch.nn.modules.conv.Conv2d"}, "conv_op is Conv2d"),
        ({"norm_op": "torch.nn.BatchNorm3d"}, "norm_op is BatchNorm3d"),
        ({"nonlin": "torch.nn.ReLU"}, "nonlin is ReLU"),
        ({"norm_op_kwargs": {"eps": 1e-3}}, "knows eps 1e-5"),
        ({"norm_op_kwargs": {"affine": False}}, "affine"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "LeakyReLU of 0.2"),
        ({"squeeze_excitation": True}, "squeeze_excitation = True"),
        ({"nonlin_first": True}, "nonlin_first = True"),
        ({"stem_channels": 9}, "stem has 9 channels"),
        ({"block": "dynamic.BottleneckD"}, "BottleneckD"),
        ({"patch_embed_size": 8}, "argument 'patch_embed_size'"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "first stride of 1"),
        ({"kernel_sizes": [[2, 2, 2], [3, 3, 3]]}, "odd kernels"),
        ({"kernel_sizes": [[3, 3], [3, 3]]}, "expected three numbers"),
        ({"features_per_stage": [4, 6, 8]}, "3 values where 2 are expected"),
    ],
)
def test_what_clseg_cannot_build_is_named(arguments: dict[str, Any], told: str) -> None:
    """Another operator, option or number than the ones known is said in the error."""
    with pytest.raises(WeightsError, match=told):
        shape_of(configuration(**arguments))


def test_options_without_effect_in_inference_are_passed_over() -> None:
    """Dropout and deep supervision do nothing there; options that are off are as good as absent."""
    arguments = {"dropout_op": "torch.nn.Dropout3d", "deep_supervision": True, "squeeze_excitation": False, "stochastic_depth_p": 0.0, "stem_channels": 4}
    assert shape_of(configuration("residual", **arguments)) == shape_of(configuration("residual"))


def test_another_class_is_refused_by_its_name() -> None:
    """Transformers and networks of one's own."""
    found = configuration()
    found["architecture"]["network_class_name"] = "dynamic_network_architectures.architectures.primus.Primus"
    with pytest.raises(WeightsError, match="is a Primus, clseg knows PlainConvUNet and ResidualEncoderUNet"):
        shape_of(found)
