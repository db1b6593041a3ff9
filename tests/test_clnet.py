"""Facts about the networks of CL-Net's authors: what comes in computes what their program computes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from clseg.errors import UnknownName, UsageError, WeightsError
from clseg.network.checkpoint import load, save, stored
from clseg.network.model import Model, assemble
from clseg.network.spec import Supporter
from clseg.weights.importers.clnet import Imported, read_clnet, structure
from clseg.weights.importers.clnet_tensors import folded, is_trained, sparsity
from clseg.weights.importers.pickles import load_torch
from tests.small_release import ENCODER, PATCH, Release, decoder, encoder, foreign_decoder, foreign_support, organ

LOGIT = 1e-4  # how near logits must be to those of the authors' program


def model(imported: Imported) -> Model:
    return assemble(imported.encoder, {**imported.helpers, **imported.decoders}.items())


def logits(imported: Imported, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits (labels + 1, z, y, x) of every head that answers."""
    network = model(imported)
    with torch.inference_mode():
        return {name: found[0][0] for name, found in network.logits(network.encoder(image[None, None]), imported.decoders)}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def taken(release: Release, tmp_path: Path, **options) -> Imported:
    return read_clnet(release.write(tmp_path), **options)


# ---- against the authors' program -------------------------------------------------------------------------------------


def official(shared: Path) -> Path:
    return shared / "fixtures" / "official_clnet"


def without_supports(source: Path, target: Path) -> Path:
    """A copy of the miniature whose configuration supports nothing."""
    shutil.copytree(source / "results", target / "results")
    config = json.loads((source / "cfg" / "mini_all_pred_cleaned.json").read_text())
    config["MiniB"]["supporting"] = {}
    (target / "mini_pred_cleaned.json").write_text(json.dumps(config))
    return target


def assert_reference(imported: Imported, file: Path, suffixes: dict[str, str], default: str = "") -> None:
    """Every head's logits are within LOGIT of the reference, its likeliest labels are all the same."""
    reference = np.load(file)
    found = logits(imported, torch.from_numpy(reference["input"]))
    step = int(next(key for key in reference if key.startswith("logits_s"))[len("logits_s")])
    for name, mine in found.items():
        suffix = suffixes.get(name, default)
        theirs = torch.from_numpy(reference[f"logits_s{step}__{name}{suffix}"])
        torch.testing.assert_close(mine[:, ::step, ::step, ::step], theirs, atol=LOGIT, rtol=0, msg=lambda told, head=name: f"{head}: {told}")
        assert np.array_equal(mine.argmax(0).numpy(), reference[f"argmax__{name}{suffix}"])


@pytest.mark.parametrize("patch", ["24x48x48", "32x64x64"])
def test_logits_are_those_of_the_authors_program(shared: Path, patch: str) -> None:
    """Plain, pruned by 90 % with garbage under the mask, averaged, one convolution a stage, supported; 24×48×48 has to be cropped."""
    imported = read_clnet(official(shared))
    assert list(imported.decoders) == ["Trunk", "Ribs", "Stomach", "Eyes", "Lens"]
    assert_reference(imported, official(shared) / "reference" / f"patch_{patch}.npz", {"Lens": "__supported"})


@pytest.mark.parametrize("patch", ["24x48x48", "32x64x64"])
@pytest.mark.parametrize(("activation", "suffix"), [("may", ""), ("jan", "__jan")])
def test_logits_without_supports_and_those_of_january(shared: Path, tmp_path: Path, patch: str, activation: str, suffix: str) -> None:
    """The same files read as those of January, activation and resizing included, and the lens without its supporter."""
    imported = read_clnet(without_supports(official(shared), tmp_path), activation=activation)
    assert_reference(imported, official(shared) / "reference" / f"patch_{patch}.npz", {}, suffix)


def test_the_comparison_is_not_blind(shared: Path, tmp_path: Path) -> None:
    """May's weights read as January's are off by more than 1 in every head but the eyes, which have no last convolution of two."""
    plain = without_supports(official(shared), tmp_path)
    reference = np.load(official(shared) / "reference" / "patch_32x64x64.npz")
    found = logits(read_clnet(plain, activation="jan"), torch.from_numpy(reference["input"]))
    off = {name: np.abs(mine[:, ::4, ::4, ::4].numpy() - reference[f"logits_s4__{name}"]).max() for name, mine in found.items()}
    assert [name for name, worst in off.items() if worst > 1] == ["Trunk", "Ribs", "Stomach", "Lens"]


@pytest.mark.parametrize("variant", ["ddp_prefix", "dense"])
def test_variants_of_the_file_give_the_same_head(shared: Path, variant: str) -> None:
    """A prefix `module.` and weights without masks: the tensors of the eyes are those of the usual file, bit for bit."""
    state = load_torch(official(shared) / "variants" / f"{variant}.model")["state_dict"]
    mine = folded({name.removeprefix("module.").removeprefix("decoder_dict.Eyes."): tensor for name, tensor in state.items()})
    usual = load_torch(next(official(shared).rglob("MiniB_model_final_checkpoint.model")))["state_dict"]
    theirs = folded({name.removeprefix("decoder_dict.Eyes."): tensor for name, tensor in usual.items() if name.startswith("decoder_dict.Eyes.")})
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


# ---- tensor by tensor -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_release_of_known_networks_comes_back_as_they_were(tmp_path: Path) -> None:
    """Encoder, heads and support: every tensor equal, logits bit for bit those of the networks that were written."""
    release = Release()
    imported = taken(release, tmp_path)
    assert all(torch.equal(imported.encoder.tensors[name], tensor) for name, tensor in release.encoder.state_dict().items())
    for head, network in release.networks.items():
        expected = {name: tensor for name, tensor in network.state_dict().items()}
        assert imported.decoders[head].tensors.keys() == expected.keys()
        assert all(torch.equal(imported.decoders[head].tensors[name], tensor) for name, tensor in expected.items() if not name.endswith("gate"))
    image = noise(*PATCH)
    features = release.encoder(image[None, None])
    eyes = release.networks["Eyes"].forward_deep(features, 2)
    found = logits(imported, image)
    assert torch.equal(found["Ribs"], release.networks["Ribs"](features)[0])
    assert torch.equal(found["Lens"], release.networks["Lens"](features, [eyes])[0])


def test_every_file_survives_being_stored(tmp_path: Path) -> None:
    """Spec with plan, tensors and card come back from safetensors."""
    imported = taken(Release(), tmp_path)
    for name, part in (("encoder", imported.encoder), *imported.decoders.items()):
        save(tmp_path / f"{name}.safetensors", part)
        read = load(tmp_path / f"{name}.safetensors")
        assert (read.spec, read.card, read.encoder) == (part.spec, part.card, part.encoder)
        assert all(torch.equal(read.tensors[key], tensor) for key, tensor in part.tensors.items())


def test_what_a_head_is_told_to_be(tmp_path: Path) -> None:
    """Names of its labels, plan of its own task, January's or May's last convolution, where it came from."""
    imported = taken(Release(), tmp_path)
    spec = imported.decoders["Eyes"].spec
    assert (spec.labels, spec.last_activation, spec.mismatch) == (("eye_left", "eye_right"), False, "crop")
    plan = spec.plan
    assert (plan.kind, plan.orientation, plan.spacing_mm, plan.patch) == ("clnet", "LPS", (2.0, 1.25, 1.25), PATCH)
    assert (plan.scheme.low, plan.scheme.high, plan.scheme.mean, plan.scheme.sd) == (-200.0, 300.0, 20.0, 100.0)
    assert (plan.crop, plan.normalise_first, plan.averaged, plan.mirror_axes) == ("body", False, "probabilities", ())
    assert plan.score_range == (90 - 0.25 * 8, 95 + 0.25 * 8)
    assert imported.decoders["Eyes"].card["head"] == "Eyes"
    assert imported.encoder.spec == ENCODER
    jan = read_clnet(tmp_path, activation="jan", heads=["Trunk"]).decoders["Trunk"].spec
    assert (jan.last_activation, jan.mismatch) == (True, "resize")


def test_the_encoder_teaches_windows_that_can_be_halved(tmp_path: Path) -> None:
    """A patch of 7×14×14 under strides of 2×4×4 becomes 8×16×16 for decoders learned on it; transposed axes turn its letters."""
    release = Release()
    release.plans["GeneralEncoder"]["plans_per_stage"]["0"]["patch_size"] = [7, 14, 14]
    release.plans["GeneralEncoder"]["transpose_forward"] = [2, 0, 1]
    grid = taken(release, tmp_path).encoder.spec.grid
    assert (grid.patch, grid.orientation) == ((8, 16, 16), "LSP")


def test_strides_come_from_the_configuration_first(tmp_path: Path) -> None:
    """Without pool_kernel those of the plans count; with one it must fit the decoders, whose kernels tell it too."""
    release = Release()
    release.config["GeneralEncoder"]["encoder_architecture_setup"] = {"pool_kernel": [[1, 2, 2], [2, 2, 2]]}
    release.plans["GeneralEncoder"]["plans_per_stage"]["0"]["pool_op_kernel_sizes"] = [[1, 1, 1]]
    assert taken(release, tmp_path / "right").encoder.spec == ENCODER
    release.config["GeneralEncoder"]["encoder_architecture_setup"] = {"pool_kernel": [[2, 2, 2], [2, 2, 2]]}
    with pytest.raises(WeightsError, match="do not fit their own spec"):
        taken(release, tmp_path / "wrong")
    release.config["GeneralEncoder"]["encoder_architecture_setup"] = {"pool_kernel": [[1, 2, 2]]}
    with pytest.raises(WeightsError, match="3 levels, its strides are for 2"):
        taken(release, tmp_path / "few")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_do_not_matter(tmp_path: Path, prefix: str) -> None:
    """Parallel training and torch.compile write the same tensors under longer names."""
    release = Release()
    plain = taken(release, tmp_path / "plain", heads=["Trunk"]).decoders["Trunk"].tensors
    release.states["MiniA"] = {prefix + name: tensor for name, tensor in release.states["MiniA"].items()}
    wrapped = taken(release, tmp_path / "wrapped", heads=["Trunk"]).decoders["Trunk"].tensors
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    """Weights of 16 bits with masks of 32 are stored in 16 and give nearly the same logits."""
    release, whole = Release(), taken(Release(), tmp_path / "whole", heads=["Ribs"])
    release.states = {key: {name: t if name.endswith("_mask") else t.half() for name, t in state.items()} for key, state in release.states.items()}
    half = taken(release, tmp_path / "half", heads=["Ribs"])
    assert {t.dtype for t in half.decoders["Ribs"].tensors.values()} == {torch.float16}
    torch.testing.assert_close(logits(half, noise(*PATCH))["Ribs"], logits(whole, noise(*PATCH))["Ribs"], atol=0.05, rtol=0)


def test_a_file_may_be_the_bare_tensors(tmp_path: Path) -> None:
    """Without `state_dict` around them."""
    release = Release()
    base = release.write(tmp_path)
    torch.save(release.states["MiniA"], release.checkpoint(base, "MiniA"))
    assert list(read_clnet(base, heads=["Ribs"]).decoders) == ["Ribs"]


def test_only_heads_that_the_configuration_lists_for_a_task_are_taken_from_its_file(tmp_path: Path) -> None:
    """MiniA's file holds untrained Eyes of another task; those of MiniB come in."""
    release = Release()
    imported = taken(release, tmp_path)
    expected = release.networks["Eyes"].state_dict()
    assert torch.equal(imported.decoders["Eyes"].tensors["ups.0.weight"], expected["ups.0.weight"])


# ---- masks ------------------------------------------------------------------------------------------------------------


def pruned(release: Release) -> dict[str, torch.Tensor]:
    """Masks that leave every twentieth weight of the ribs; NaN and infinity lie under them in the file. Returns what is meant."""
    network = release.networks["Ribs"]
    masks = {name: (torch.arange(t.numel()).reshape(t.shape) % 20 == 0).float() for name, t in network.state_dict().items() if t.ndim == 5}
    theirs = foreign_decoder(network, "Ribs", masks=masks)
    for name in [name for name in theirs if name.endswith("weight_orig")]:
        garbage = torch.full_like(theirs[name], float("nan"))
        garbage.view(-1)[::3] = float("-inf")
        garbage.view(-1)[1::3] = -1.0
        theirs[name] = torch.where(theirs[name.replace("_orig", "_mask")] == 1, theirs[name], garbage)
    release.states["MiniA"] |= theirs
    return {name: network.state_dict()[name] * mask for name, mask in masks.items()}


def test_masks_are_folded_in_whatever_lies_under_them(tmp_path: Path) -> None:
    """NaN, −∞ and −1 under a mask all become a clean 0, no −0.0; what survives is what it was."""
    release = Release()
    expected = pruned(release)
    tensors = taken(release, tmp_path, heads=["Ribs"]).decoders["Ribs"].tensors
    for name, weights in expected.items():
        assert torch.equal(tensors[name], weights + 0.0)
        assert not torch.signbit(tensors[name][weights == 0]).any()


def test_pruned_heads_are_stored_sparsely_and_say_how_sparse_they_are(tmp_path: Path) -> None:
    """19 of 20 weights are gone: the card says 0.95 and the file is at most a third of the dense one's."""
    release = Release()
    dense = taken(release, tmp_path / "dense", heads=["Ribs"]).decoders["Ribs"]
    pruned(release)
    release.beside["MiniA"] = {"prune_stuff": {"prune_ratios_final_for_each_decoder": {"Ribs": 0.95}}}
    sparse = taken(release, tmp_path / "sparse", heads=["Ribs"]).decoders["Ribs"]
    assert (dense.card["sparsity"], sparse.card["pruning_rate"]) == (0.0, 0.95)
    assert sparse.card["sparsity"] == pytest.approx(0.95, abs=0.02)
    assert len(stored(sparse)) < len(stored(dense))
    assert sparsity({"a.weight": torch.tensor([[[[[0.0]]]], [[[[1.0]]]]]), "bias": torch.zeros(9)}) == 0.5


@pytest.mark.parametrize("stuff", [None, [], {}, {"prune_ratios_final_for_each_decoder": {"Ribs": [0.8, None]}}, {"prune_ratios_final_for_each_decoder": 1}])
def test_bookkeeping_of_another_shape_is_passed_over(tmp_path: Path, stuff: object) -> None:
    """What is not needed cannot spoil an import."""
    release = Release()
    release.beside["MiniA"] = {"prune_stuff": stuff}
    assert "pruning_rate" not in taken(release, tmp_path, heads=["Ribs"]).decoders["Ribs"].card


def test_half_a_pruned_weight_is_refused() -> None:
    """A weight without mask, a mask without weight, a mask of another shape."""
    w, m = torch.ones(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    assert torch.equal(folded({"a.weight_orig": w, "a.weight_mask": m, "a.bias": w})["a.weight"], w)
    for broken in ({"a.weight_orig": w}, {"a.weight_mask": m}, {"a.weight_orig": w, "a.weight_mask": m[:1]}):
        with pytest.raises(WeightsError, match=r"'a\.weight' must be stored with a mask"):
            folded(broken)


# ---- the moving average -----------------------------------------------------------------------------------------------


def averaged(release: Release, twin: dict[str, torch.Tensor]) -> None:
    """The configuration wants the average of the trunk, and its file holds `twin`."""
    release.config["MiniA"]["decoder_architecture_setup"] = {"Trunk": {"enable_ema": True}}
    release.config["MiniA"]["model_training_setup"] = {"decoders": {"Trunk": [True]}}
    release.states["MiniA"] |= twin


def test_the_average_answers_where_the_configuration_wants_it(tmp_path: Path) -> None:
    """Its weights, with its own masks: those of the head's own weights are dropped."""
    release, network = Release(), decoder(("Organ_A", "liver"), seed=7)
    averaged(release, foreign_decoder(network, "Trunk", prefix="ema_dict"))
    for name in [name for name in release.states["MiniA"] if name.startswith("decoder_dict.Trunk") and name.endswith("_mask")]:
        release.states["MiniA"][name] = torch.zeros_like(release.states["MiniA"][name])
    part = taken(release, tmp_path, heads=["Trunk"]).decoders["Trunk"]
    assert torch.equal(part.tensors["convs.0.0.conv.weight"], network.state_dict()["convs.0.0.conv.weight"])
    assert part.card["moving_average"] is True


def test_the_average_does_not_answer_unasked(tmp_path: Path) -> None:
    """A twin in the file that the configuration does not want changes nothing."""
    release = Release()
    release.states["MiniA"] |= foreign_decoder(decoder(("Organ_A", "liver"), seed=7), "Trunk", prefix="ema_dict")
    part = taken(release, tmp_path, heads=["Trunk"]).decoders["Trunk"]
    assert torch.equal(part.tensors["ups.0.weight"], release.networks["Trunk"].state_dict()["ups.0.weight"])
    assert part.card["moving_average"] is False


def test_an_average_that_was_never_updated_does_not_answer(tmp_path: Path) -> None:
    """One convolution at 0 throughout is enough; so is no twin at all; both are told."""
    for number, (twin, told) in enumerate(((foreign_decoder(decoder(("Organ_A", "liver"), seed=7), "Trunk", prefix="ema_dict"), "was never updated"), ({}, "is not in its file"))):
        release, heard = Release(), []
        if twin:
            twin["ema_dict.Trunk.seg_outputs.0.weight_orig"] = torch.zeros_like(twin["ema_dict.Trunk.seg_outputs.0.weight_orig"])
        averaged(release, twin)
        part = taken(release, tmp_path / str(number), heads=["Trunk"], warn=heard.append).decoders["Trunk"]
        assert torch.equal(part.tensors["ups.0.weight"], release.networks["Trunk"].state_dict()["ups.0.weight"])
        assert [told in sentence for sentence in heard] == [True]


@pytest.mark.parametrize(("value", "expected"), [(0.0, False), (0.004, False), (-0.0049, False), (0.006, True), (-0.006, True)])
def test_two_decimals_decide_whether_an_average_was_updated(value: float, expected: bool) -> None:
    """A kernel of 0.004 throughout rounds to 0.00, one of 0.006 to 0.01."""
    full = torch.ones(1, 1, 1, 1, 1)
    twin = {"tu.0.weight_orig": full, "tu.0.weight_mask": full, "seg_outputs.0.weight_orig": full * value, "seg_outputs.0.weight_mask": full}
    assert is_trained(twin) is expected
    assert is_trained({}) is False


# ---- supporters -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_supporter_that_is_supported_helps_with_what_it_says_alone(tmp_path: Path) -> None:
    """Lens ← Eyes ← Ribs-like Third: the third head sees the lens before the eyes helped it, which is kept as `Lens-alone`."""
    release = Release()
    third = decoder(("pupil",), supporters=(Supporter("Lens", ("Lens",), "0" * 64),), seed=11)
    release.organs["MiniB"]["4"] = organ("pupil", 91, 94)
    release.plans["MiniB"]["num_classes"] = 4
    release.config["MiniB"]["decoders"]["Pupil"] = 4
    release.config["MiniB"]["supporting"]["Pupil"] = ["Lens"]
    release.states["MiniB"] |= foreign_decoder(third, "Pupil") | foreign_support(third, "Pupil")
    imported = taken(release, tmp_path)
    assert list(imported.helpers) == ["Lens-alone"]
    image = noise(*PATCH)
    features = release.encoder(image[None, None])
    assert list(read_clnet(tmp_path, heads=["Pupil"]).helpers) == ["Lens-alone"]  # neither eyes nor the whole lens are needed
    bare = decoder(("Lens",), seed=4)
    bare.load_state_dict({name: t for name, t in release.networks["Lens"].state_dict().items() if not name.startswith("support")})
    assert torch.equal(logits(imported, image)["Pupil"], third(features, [bare.forward_deep(features, 1)])[0])


def test_supporters_come_along_unasked_and_do_not_answer(tmp_path: Path) -> None:
    """Only the lens is wanted: the eyes are there to support it."""
    imported = taken(Release(), tmp_path, heads=["Lens"])
    assert (list(imported.decoders), list(imported.helpers)) == (["Lens"], ["Eyes"])
    assert model(imported).supporters == {"Lens": ("Eyes",)}


def test_a_head_whose_file_holds_no_support_answers_alone(tmp_path: Path) -> None:
    """That is told; the aliases of decoders under `supporting_dict` are no support."""
    release, heard = Release(), []
    state = release.states["MiniB"]
    release.states["MiniB"] = {name: t for name, t in state.items() if "to_support" not in name and "support_gate" not in name}
    imported = taken(release, tmp_path, warn=heard.append)
    assert imported.decoders["Lens"].spec.supporters == ()
    assert "holds no support: it answers alone" in heard[0]


def test_supports_of_january_are_refused(tmp_path: Path) -> None:
    """January's module by its names; May's when its release is said to be January's."""
    release = Release()
    with pytest.raises(WeightsError, match="is that of May 2025, so its file is not from January") as error:
        taken(release, tmp_path / "may", activation="jan")
    assert "--without Lens" in str(error.value.tip)
    assert "Lens" not in read_clnet(tmp_path / "may", activation="jan", without=["Lens"]).decoders
    release.states["MiniB"]["supporting_dict.Lens.support_dict.Eyes.0.conv.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="that of January 2025"):
        taken(release, tmp_path / "jan")


def test_wiring_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """A circle, a supporter that nobody lists, a supporter that is to be left out, a tensor nobody knows."""
    release = Release()
    release.config["MiniB"]["supporting"] = {"Lens": ["Eyes"], "Eyes": ["Lens"]}
    with pytest.raises(WeightsError, match="in a circle: Eyes ← Lens ← Eyes"):
        taken(release, tmp_path / "circle")
    release.config["MiniB"]["supporting"] = {"Lens": ["Nose"]}
    with pytest.raises(WeightsError, match="'Lens' is supported by 'Nose', which the configuration does not list"):
        taken(release, tmp_path / "unknown")
    with pytest.raises(UsageError, match="'Lens' is supported by 'Eyes', which is to be left out"):
        taken(Release(), tmp_path / "without", without=["Eyes"])
    release = Release()
    release.states["MiniB"]["supporting_dict.Lens.to_support.0.2.conv.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"holds 'to_support\.0\.2\.conv\.weight', which no support"):
        taken(release, tmp_path / "tensor")


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_heads_are_chosen_by_name(tmp_path: Path) -> None:
    """Those asked for, all but some, and an unknown one with the list of those that there are."""
    base = Release().write(tmp_path)
    assert list(read_clnet(base, heads=["Ribs", "Trunk"]).decoders) == ["Ribs", "Trunk"]
    assert list(read_clnet(base, without=["Lens", "Trunk"]).decoders) == ["Ribs", "Eyes"]
    for options in ({"heads": ["Rips"]}, {"without": ["Rips"]}):
        with pytest.raises(UnknownName) as error:
            read_clnet(base, **options)
        assert "Trunk, Ribs, Eyes, Lens" in str(error.value.tip)
    with pytest.raises(UsageError, match="No head is left of the 4"):
        read_clnet(base, without=["Trunk", "Ribs", "Eyes", "Lens"])
    with pytest.raises(UsageError, match="one of may, jan, given 'june'"):
        read_clnet(base, activation="june")


def test_another_encoder_in_a_tasks_file_is_told_or_refused(tmp_path: Path) -> None:
    """It is not used, unless the task fine-tuned it: then its heads would be wrong on the general one."""
    release, heard = Release(), []
    other = Release()
    other.encoder = encoder(seed=5)
    name = "encoder.conv_blocks_context.1.blocks.0.conv.weight"
    release.states["MiniA"][name] = release.states["MiniA"][name] + 1
    taken(release, tmp_path / "told", warn=heard.append)
    assert [("MiniA" in told, "it is not used" in told) for told in heard] == [(True, True)]
    release.config["MiniA"]["finetune_encoder"] = True
    with pytest.raises(WeightsError, match="'MiniA' has fine-tuned an encoder of its own") as error:
        taken(release, tmp_path / "refused")
    assert "--without Trunk --without Ribs" in str(error.value.tip)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("encoder.tu.0.weight", r"The encoder holds 'tu\.0\.weight'"),
        ("decoder_dict.Trunk.extra.weight", r"Head 'Trunk' holds 'extra\.weight'"),
        ("decoder_dict.Trunk.model_sparse.0.weight", "of a sparse network"),
        ("decoder_dict.Trunk.conv_blocks_localization.7.0.blocks.0.conv.weight", "numbered from 0, found"),
    ],
)
def test_tensors_that_nobody_knows_are_refused_by_name(tmp_path: Path, name: str, told: str) -> None:
    """A full network's decoder in the encoder, a layer too many, spconv modules, a gap in the levels."""
    release = Release()
    for state in release.states.values():
        state[name] = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(WeightsError, match=told):
        taken(release, tmp_path)


@pytest.mark.parametrize("value", ["text", torch.eye(4).to_sparse(), torch.zeros(4, dtype=torch.complex64)], ids=["text", "sparse", "complex"])
def test_weights_that_are_no_numbers_of_their_own_are_refused(tmp_path: Path, value: object) -> None:
    """Text, a sparse and a complex tensor in the place of a weight: file and name are in the sentence."""
    release = Release()
    name = next(name for name in release.states["MiniA"] if name.endswith(".weight"))
    release.states["MiniA"][name] = value
    with pytest.raises(WeightsError, match=f"task 'MiniA', .* does not fit: '{re.escape(name)}' is a .*, expected a dense tensor of real numbers"):
        taken(release, tmp_path)


@pytest.mark.parametrize("state", ["text", [1, 2], None])
def test_a_state_that_is_no_table_is_refused(tmp_path: Path, state: object) -> None:
    """`state_dict` is there and holds something else."""
    release = Release()
    base = release.write(tmp_path)
    torch.save({"state_dict": state}, release.checkpoint(base, "MiniA"))
    with pytest.raises(WeightsError, match=f"has a {type(state).__name__} as its state_dict"):
        read_clnet(base)


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """More outputs than labels, a missing layer, a missing stage, no head at all, no weights at all."""
    release = Release()
    release.states["MiniA"] = {name: t for name, t in release.states["MiniA"].items() if not name.startswith("decoder_dict.Trunk.conv_blocks_localization.1.")}
    with pytest.raises(WeightsError, match="'Trunk' has 1 stages, its encoder has 3 levels"):
        taken(release, tmp_path / "stages")
    release = Release()
    release.config["MiniA"]["decoders"]["Trunk"] = 2
    with pytest.raises(WeightsError, match="'Trunk' has 3 outputs, the configuration lists 1 labels"):
        taken(release, tmp_path / "outputs")
    for number, (name, told) in enumerate((("tu.1.weight_", r"no transposed convolution 'tu\.1'"), ("conv_blocks_localization.0.0.blocks.0.instnorm.bias", "do not fit their own spec"))):
        release = Release()
        release.states["MiniA"] = {key: t for key, t in release.states["MiniA"].items() if not key.startswith(f"decoder_dict.Trunk.{name}")}
        with pytest.raises(WeightsError, match=told):
            taken(release, tmp_path / str(number))
    release = Release()
    release.states["MiniA"] = {name: t for name, t in release.states["MiniA"].items() if "Trunk" not in name}
    with pytest.raises(WeightsError, match=r"holds no 'decoder_dict\.Trunk\.…'"):
        taken(release, tmp_path / "head")
    release.states["MiniA"] = {}
    with pytest.raises(WeightsError, match="holds no weights"):
        taken(release, tmp_path / "empty")


def test_organs_have_the_names_of_the_catalogue(shared: Path) -> None:
    """All 235 names of the paper's table; others stay as they are, made fit for a file's name."""
    import csv

    with (shared / "design" / "anatomies.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 235
    assert all(structure(row["reference_name"]) == row["name"] for row in rows)
    assert [structure(name) for name in ("Organ_A", "GTV (left) 2", "Lung_L")] == ["Organ_A", "GTV (left) 2", "lung_left"]
