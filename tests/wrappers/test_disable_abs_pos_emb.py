"""`disable_abs_pos_emb` of the layers, and how wrappers combine it with their own flags."""

import pytest
import torch

import flagformer

SIZES = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}


def positions(**flags):
    return type(flagformer.build({**SIZES, **flags}).pos_emb).__name__


@pytest.mark.parametrize("relative", [{}, {"rotary_pos_emb": True}, {"alibi_pos_bias": True}])
def test_precedence_of_the_flags(relative):
    assert positions(**relative) == ("NoAbsolute" if relative else "Learned")
    assert positions(**relative, disable_abs_pos_emb=None) == positions(**relative)
    assert positions(**relative, disable_abs_pos_emb=True) == "NoAbsolute"
    assert positions(**relative, disable_abs_pos_emb=False) == "Learned"
    assert positions(**relative, disable_abs_pos_emb=True, use_abs_pos_emb=False) == "NoAbsolute"
    assert positions(**relative, disable_abs_pos_emb=False, use_abs_pos_emb=True) == "Learned"
    assert positions(**relative, disable_abs_pos_emb=False, scaled_sinu_pos_emb=True) == "Sinusoidal"


@pytest.mark.parametrize(
    ("disabled", "own"),
    [
        (True, {"use_abs_pos_emb": True}),
        (True, {"scaled_sinu_pos_emb": True}),
        (False, {"use_abs_pos_emb": False}),
        (False, {"max_seq_len": 0}),
    ],
)
def test_contradictions_are_refused(disabled, own):
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.build({**SIZES, "disable_abs_pos_emb": disabled, **own})
    text = str(caught.value)
    assert f"`disable_abs_pos_emb={disabled}`" in text
    assert f"`{next(iter(own))}" in text


@pytest.mark.parametrize("disabled", [True, False])
def test_it_is_saved(disabled, tmp_path):
    model = flagformer.build({**SIZES, "disable_abs_pos_emb": disabled})
    assert flagformer.build(model.flags).flags == model.flags
    model.save(tmp_path)
    ids = torch.randint(11, (1, 5))
    assert torch.equal(flagformer.load(tmp_path).eval()(ids), model.eval()(ids))


def test_halves_of_an_encoder_decoder_are_independent():
    sizes = {
        f"{part}{name}": value for part in ("enc_", "dec_") for name, value in SIZES.items() if name != "dim"
    }
    whole = flagformer.XTransformer(dim=16, **sizes, enc_disable_abs_pos_emb=True)
    assert not whole.encoder.absolute_positions
    assert whole.decoder.net.absolute_positions
    with pytest.raises(
        flagformer.FlagError, match="`enc_use_abs_pos_emb=True` and `enc_disable_abs_pos_emb=True`"
    ):
        flagformer.XTransformer(dim=16, **sizes, enc_disable_abs_pos_emb=True, enc_use_abs_pos_emb=True)


@pytest.mark.parametrize("disabled", [None, True, False])
def test_patches_of_an_image(disabled):
    flags = {name: SIZES[name] for name in ("dim", "depth", "heads", "attn_dim_head")}
    model = flagformer.build(
        {"model": "vit", "image_size": 8, "patch_size": 4, **flags, "disable_abs_pos_emb": disabled}
    ).eval()
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = torch.cat([image[:, :, 4:], image[:, :, :4]], dim=2)  # the two rows of patches are swapped
    with torch.no_grad():
        moved = (model(turned) - model(image).roll(2, dims=1)).abs().max()
    assert bool(moved < 1e-5) is (disabled is True)
    assert ("patches.pos_emb" in model.state_dict()) is (disabled is not True)
    assert model(torch.randn(1, 3, 12, 8)).shape == (1, 6, 16)
    assert "2 x 2 patches" in model.explain()
