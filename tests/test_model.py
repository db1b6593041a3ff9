"""Facts about models: a decoder works on the encoder it was trained with and on no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clseg.errors import WeightsError
from clseg.network import model as model_module
from clseg.network.checkpoint import Checkpoint, fingerprint, load, save, supporter
from clseg.network.decoder import Decoder
from clseg.network.encoder import Encoder
from clseg.network.model import Model, Stored, assemble, load_model
from clseg.network.spec import DecoderSpec, EncoderSpec, Grid, Intensity, Level, Stage, Supporter

SPEC = EncoderSpec(
    (Level(8, (1, 1, 1), (3, 3, 3), 1), Level(16, (2, 2, 2), (3, 3, 3), 1)),
    Grid("RAS", (3.0, 3.0, 3.0), (16, 16, 16)),
    Intensity(-1000.0, 1000.0, 0.0, 500.0),
)


def encoder(seed: int = 0) -> Checkpoint:
    torch.manual_seed(seed)
    return Checkpoint("encoder", SPEC, Encoder(SPEC).state_dict())


def decoder(
    root: Checkpoint, *labels: str, slices: tuple[float, float] | None = None, supporters: tuple[Supporter, ...] = ()
) -> Checkpoint:
    spec = DecoderSpec((Stage(8, (8,), (3, 3, 3)),), labels, supporters=supporters)
    return Checkpoint("decoder", spec, Decoder(spec, SPEC).state_dict(), fingerprint(root.tensors, SPEC), slices)


def test_a_model_knows_its_labels_and_ranges() -> None:
    """Labels are those of all decoders in turn; each decoder keeps its body-part range, or None."""
    root = encoder()
    model = assemble(root, [("b", decoder(root, "liver", slices=(0.2, 0.6))), ("a", decoder(root, "lung_left", "lung_right"))])
    assert model.labels == ("liver", "lung_left", "lung_right")
    assert dict(model.slices) == {"b": (0.2, 0.6), "a": None}
    assert model.spec == SPEC


def test_decoders_do_not_touch_each_other() -> None:
    """A decoder gives the same bits whether it is alone or beside others: nothing is forgotten by adding one."""
    root = encoder()
    old, new = decoder(root, "liver"), decoder(root, "spleen")
    window = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))

    def answer(model: Model) -> torch.Tensor:
        return model.decoders["old"](model.encoder(window))

    assert torch.equal(answer(assemble(root, [("old", old)])), answer(assemble(root, [("new", new), ("old", old)])))


def test_a_foreign_encoder_is_refused() -> None:
    """Same shape, other weights: the decoder names both fingerprints and the model is not built."""
    root, other = encoder(0), encoder(1)
    with pytest.raises(WeightsError, match=fingerprint(other.tensors, SPEC)[:12]) as caught:
        assemble(other, [("liver", decoder(root, "liver"))])
    assert fingerprint(root.tensors, SPEC)[:12] in caught.value.message


def test_an_encoder_rounded_to_half_precision_is_another_encoder() -> None:
    """The binding is to the bits as stored, so a decoder trained on float32 refuses a rounded encoder."""
    root = encoder()
    rounded = replace(root, tensors={k: v.half() for k, v in root.tensors.items()})
    with pytest.raises(WeightsError, match="belongs to encoder"):
        assemble(rounded, [("liver", decoder(root, "liver"))])


def test_a_decoder_without_binding_is_refused() -> None:
    """A decoder that does not say which encoder it belongs to fits none."""
    root = encoder()
    with pytest.raises(WeightsError, match="belongs to encoder None"):
        assemble(root, [("liver", replace(decoder(root, "liver"), encoder=None))])


def test_files_become_the_same_model(tmp_path: Path) -> None:
    """load_model of saved files answers as the checkpoints in memory do, bit for bit."""
    root = encoder()
    one = decoder(root, "liver")
    save(tmp_path / "e", root)
    save(tmp_path / "d", one)
    loaded = load_model(tmp_path / "e", {"liver": tmp_path / "d"})
    window = torch.ones(1, 1, 8, 8, 8)
    window[0, 0, 2] = -1
    expected = assemble(root, [("liver", one)])
    assert torch.equal(
        loaded.decoders["liver"](loaded.encoder(window)), expected.decoders["liver"](expected.encoder(window))
    )


def test_a_stored_model_is_hollow_until_it_is_filled(tmp_path: Path) -> None:
    """Shapes, labels and size are known without weights; filled it answers as one in memory, bit for bit; emptied it can be filled again."""
    root = encoder()
    parts = {"liver": decoder(root, "liver"), "lung": decoder(root, "lung_left")}
    for name, part in {"e": root, **parts}.items():
        save(tmp_path / name, part)
    expected = assemble(root, parts.items())
    model = assemble(root, parts.items(), Stored(tmp_path / "e", {name: tmp_path / name for name in parts}))
    assert model.hollow
    assert not expected.hollow
    assert (model.labels, model.bytes) == (expected.labels, expected.bytes)
    assert model.bytes == 4 * sum(tensor.numel() for part in (root, *parts.values()) for tensor in part.tensors.values())
    for _ in range(2):
        model.fill()
        assert not model.hollow
        for name in parts:
            assert torch.equal(model.decoders[name](model.encoder(window())), expected.decoders[name](expected.encoder(window())))
        model.empty()
        assert model.hollow
        assert all(weight.is_meta for part in (model.encoder, *model.decoders.values()) for weight in part.parameters())
    expected.empty()
    assert not expected.hollow, "what is in memory alone is kept"


def test_a_hollow_model_keeps_which_channels_it_reads(tmp_path: Path) -> None:
    """A pruned decoder picks some channels of a skip: which ones is no weight, and outlasts them."""
    root = encoder()
    spec = DecoderSpec((Stage(8, (8,), (3, 3, 3), skip=(1, 4, 5)),), ("liver",))
    parts = {"liver": Checkpoint("decoder", spec, Decoder(spec, SPEC).state_dict(), fingerprint(root.tensors, SPEC))}
    for name, part in {"e": root, **parts}.items():
        save(tmp_path / name, part)
    model = assemble(root, parts.items(), Stored(tmp_path / "e", {name: tmp_path / name for name in parts}))
    expected = assemble(root, parts.items())
    model.fill()
    model.empty()
    model.fill()
    for name in parts:
        assert torch.equal(model.decoders[name](model.encoder(window())), expected.decoders[name](expected.encoder(window())))


def test_weights_that_changed_since_they_were_checked_are_refused(tmp_path: Path) -> None:
    """Another file of the same shape would answer under the name of the first; one that has gone for a while is welcome back."""
    root, one = encoder(), decoder(encoder(), "liver")
    files = Stored(save_as(tmp_path / "e", root), {"liver": save_as(tmp_path / "d", one)})
    assert files != Stored(tmp_path / "e", {})
    model = assemble(root, [("liver", one)], files)
    (tmp_path / "d").rename(tmp_path / "away")
    with pytest.raises(WeightsError, match="has gone since it was checked"):
        model.fill()
    assert model.hollow
    (tmp_path / "away").rename(tmp_path / "d")
    model.fill()
    model.empty()
    save(tmp_path / "d", decoder(root, "liver"))
    with pytest.raises(WeightsError, match="was changed since it was checked"):
        model.fill()
    assert model.hollow


def test_a_model_is_filled_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder cannot be read: the encoder's weights are let go again, and the next try succeeds."""
    root, one = encoder(), decoder(encoder(), "liver")
    model = assemble(root, [("liver", one)], Stored(save_as(tmp_path / "e", root), {"liver": save_as(tmp_path / "d", one)}))

    def failing(path: Path) -> Checkpoint:
        if path == tmp_path / "d":
            raise WeightsError("injected")
        return load(path)

    monkeypatch.setattr(model_module, "load", failing)
    with pytest.raises(WeightsError, match="injected"):
        model.fill()
    assert all(weight.is_meta for weight in model.encoder.parameters())
    monkeypatch.setattr(model_module, "load", load)
    model.fill()
    assert not model.hollow


def save_as(path: Path, checkpoint: Checkpoint) -> Path:
    save(path, checkpoint)
    return path


def test_what_does_not_fit_is_refused_of_a_hollow_model_too(tmp_path: Path) -> None:
    """Before anything is computed: a missing tensor, and a file that is not there when its weights are needed."""
    root, one = encoder(), decoder(encoder(), "liver")
    lacking = replace(one, tensors=dict(list(one.tensors.items())[1:]))
    with pytest.raises(WeightsError, match="do not fit their own spec"):
        assemble(root, [("liver", lacking)], Stored(tmp_path / "e", {"liver": tmp_path / "d"}))
    model = assemble(root, [("liver", one)], Stored(tmp_path / "e", {"liver": tmp_path / "d"}))
    with pytest.raises(WeightsError, match="has gone since it was checked"):
        model.fill()


def test_two_files_in_each_others_place_are_refused(tmp_path: Path) -> None:
    """A decoder given as the encoder is a WeightsError."""
    root = encoder()
    save(tmp_path / "e", root)
    save(tmp_path / "d", decoder(root, "liver"))
    with pytest.raises(WeightsError, match="decoder's"):
        load_model(tmp_path / "d", {})


# ---- supporters -------------------------------------------------------------------------------------------------------


def chain(root: Checkpoint) -> dict[str, Checkpoint]:
    """`body` supports `liver`, both support `tumour`; `spleen` stands alone.  The helped come first."""
    body, spleen = decoder(root, "body"), decoder(root, "spleen")
    liver = decoder(root, "liver", supporters=(supporter("body", body),))
    tumour = decoder(root, "liver_tumour", supporters=(supporter("liver", liver), supporter("body", body)))
    return {"tumour": tumour, "spleen": spleen, "liver": liver, "body": body}


def window() -> torch.Tensor:
    return torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(3))


def test_supporters_run_before_those_they_support_each_once() -> None:
    """The tumour needs liver and body, the liver needs body: three runs, body first, in the order of the specs; one answer."""
    root = encoder()
    model = assemble(root, chain(root).items())
    runs: list[str] = []
    for name, part in model.decoders.items():
        part.ups[0].register_forward_hook(lambda *_, name=name: runs.append(name))
    features = model.encoder(window())
    found = dict(model.logits(features, ["tumour"]))
    assert list(found) == ["tumour"]
    assert runs == ["body", "liver", "tumour"]
    assert model.with_supporters(["tumour", "spleen"]) == ("body", "liver", "tumour", "spleen")

    body = [model.decoders["body"](features)]
    liver = [model.decoders["liver"](features, [body])]
    assert torch.equal(found["tumour"][0], model.decoders["tumour"](features, [liver, body]))


def test_answers_come_in_the_order_asked() -> None:
    """A supporter asked for after the decoder that needs it ran already: it answers what it answers alone."""
    root = encoder()
    model = assemble(root, chain(root).items())
    features = model.encoder(window())
    found = dict(model.logits(features, ["tumour", "spleen", "body"]))
    assert list(found) == ["tumour", "spleen", "body"]
    assert torch.equal(found["body"][0], model.decoders["body"](features))


def test_supporters_are_known_by_their_weights_not_by_name() -> None:
    """A file under another name supports all the same; another decoder under the right name does not."""
    root = encoder()
    parts = chain(root)
    parts["body-2024"] = parts.pop("body")
    parts["body"] = decoder(root, "body")
    model = assemble(root, parts.items())
    assert dict(model.supporters) == {"liver": ("body-2024",), "tumour": ("liver", "body-2024")}
    del parts["body-2024"]
    ours = fingerprint(parts["body"].tensors, parts["body"].spec)[:12]
    with pytest.raises(WeightsError, match=f"Decoder 'tumour' is supported by 'body' [0-9a-f]{{12}}, this 'body' is {ours}"):
        assemble(root, parts.items())


def test_a_missing_supporter_is_refused() -> None:
    """The sentence names both decoders."""
    root = encoder()
    parts = chain(root)
    del parts["liver"]
    with pytest.raises(WeightsError, match=r"Decoder 'tumour' is supported by 'liver' [0-9a-f]{12}, which is not in this model\."):
        assemble(root, parts.items())


def test_supporters_in_a_circle_are_refused() -> None:
    """a ← b ← a, and a decoder that supports itself."""
    root = encoder()
    left = decoder(root, "a", supporters=(Supporter("b", ("b",), "0" * 64),))
    right = decoder(root, "b", supporters=(Supporter("a", ("a",), "0" * 64),))
    with pytest.raises(WeightsError, match=r"in a circle: (a ← b ← a|b ← a ← b)"):
        assemble(root, [("a", left), ("b", right)])
    with pytest.raises(WeightsError, match="in a circle: b ← b"):
        assemble(root, [("b", left)])


def test_a_supporter_with_other_labels_is_refused() -> None:
    """The labels that a spec notes for its supporter are those of the supporter."""
    root = encoder()
    body = decoder(root, "body")
    wrong = replace(supporter("body", body), labels=("trunk",))
    with pytest.raises(WeightsError, match="expects the labels trunk of its supporter 'body'"):
        assemble(root, [("body", body), ("liver", decoder(root, "liver", supporters=(wrong,)))])


def test_a_supporter_on_another_encoder_is_refused() -> None:
    """Every part of a model stands on the one encoder, supporters too."""
    root = encoder()
    body = decoder(encoder(1), "body")
    with pytest.raises(WeightsError, match="Decoder 'body' belongs to encoder"):
        assemble(root, [("liver", decoder(root, "liver", supporters=(supporter("body", body),))), ("body", body)])


def test_only_some_decoders_answer() -> None:
    """The others stay to support; the order of the model is kept."""
    root = encoder()
    model = assemble(root, chain(root).items()).answering({"liver", "tumour"})
    assert list(model.slices) == ["tumour", "liver"]
    assert set(model.decoders) == {"tumour", "spleen", "liver", "body"}


def test_a_supported_decoder_survives_its_file(tmp_path: Path) -> None:
    """Gate and support heads are stored with the decoder: from files the answer is the same, bit for bit."""
    root = encoder()
    parts = chain(root)
    parts["tumour"].tensors["support.0.gate"].fill_(0.25)
    for name, part in {"encoder": root, **parts}.items():
        save(tmp_path / name, part)
    loaded = load_model(tmp_path / "encoder", {name: tmp_path / name for name in parts})
    assert float(loaded.decoders["tumour"].support[0].gate) == 0.25
    answers = [dict(m.logits(m.encoder(window()), ["tumour"]))["tumour"][0] for m in (loaded, assemble(root, parts.items()))]
    assert torch.equal(*answers)
