"""ViTransformerWrapper: patches by hand, every encoder flag, other sizes, registers, storage, parity."""

import copy
import logging
import pickle

import pytest
import torch
import x_transformers as peer

import flagformer
from flagformer import Decoder, Encoder, ViTransformerWrapper
from flagformer.flags import SLOTS
from flagformer.interop.x_transformers import load_x_transformers
from flagformer.lab.reference import choices
from perturbed_models import perturbed

SIZES = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
BASE = {"model": "vit", "image_size": (8, 12), "patch_size": 4, "num_classes": 5, **SIZES}
# fp32 sums of magnitude about 1 in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(**flags):
    return perturbed({**BASE, **flags}).eval()


def images(height=8, width=12, batch=2, channels=3):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_patches_are_in_row_major_order():
    """Each patch by slices and plain formulas: pixels with their channels last, normed, projected."""
    model, img = build(), images()
    patches = model.patches
    wanted = []
    for row in range(2):
        for column in range(3):
            square = img[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            pixels = torch.stack([square[:, :, y, x] for y in range(4) for x in range(4)], dim=1).flatten(1)
            for norm, x in ((patches.in_norm, pixels),):
                normed = (x - x.mean(-1, keepdim=True)) / (
                    x.var(-1, keepdim=True, correction=0) + 1e-5
                ).sqrt()
                pixels = normed * norm.weight
            x = pixels @ patches.project.weight.T + patches.project.bias
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
            wanted.append(x * patches.out_norm.weight + patches.pos_emb[row, column])
    torch.testing.assert_close(patches(img), torch.stack(wanted, dim=1), **CLOSE)


@pytest.mark.parametrize("registers", [0, 3])
def test_logits_are_of_the_mean_over_patches(registers):
    model, img = build(num_register_tokens=registers), images()
    embeddings = model(img, return_embeddings=True)
    assert embeddings.shape == (2, 6, 16)
    logits, again = model(img, return_logits_and_embeddings=True)
    assert torch.equal(again, embeddings)
    assert torch.equal(model(img), logits)
    wanted = embeddings.mean(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(logits, wanted, **CLOSE)


PLAIN = {"patch_norm": False, "class_token": True, "class_token_position": True, "pooling": "class"}


@pytest.mark.parametrize("bias", [False, True])
def test_plain_patches(bias):
    """A convolution whose stride is the patch (arXiv:2010.11929, section 3.1), and no norms."""
    model, img = build(patch_norm=False, patch_bias=bias), images()
    patches = model.patches
    kernel = patches.project.weight.view(16, 4, 4, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.conv2d(img, kernel, patches.project.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(img), want + patches.pos_emb.flatten(0, 1), **CLOSE)
    assert (patches.project.bias is not None) == bias
    assert not [name for name, _ in patches.named_parameters() if "norm" in name]


@pytest.mark.parametrize("positioned", [False, True])
def test_the_class_token_is_in_front_of_the_patches(positioned):
    model, img = build(class_token=True, class_token_position=positioned), images()
    seen = {}
    model.attn_layers.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    embeddings = model(img, return_embeddings=True)
    first = model.class_token.token[0] + (model.class_token.pos_emb[0] if positioned else 0)
    assert torch.equal(seen["x"][:, 0], first.expand(2, -1))
    assert torch.equal(seen["x"][:, 1:], model.patches(img))
    assert embeddings.shape == (2, 7, 16)


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("registers", [0, 2])
def test_pooled_logits(pooling, pooler, registers):
    """Of the mean over patches or the class token, after a projection and a tanh (arXiv:1810.04805)."""
    model = build(class_token=True, pooling=pooling, pooler=pooler, num_register_tokens=registers)
    logits, embeddings = model(images(), return_logits_and_embeddings=True)
    x = embeddings[:, 0] if pooling == "class" else embeddings[:, 1:].sum(1) / 6
    if pooler:
        x = torch.tanh(x @ model.pooler.dense.weight.T + model.pooler.dense.bias)
    torch.testing.assert_close(logits, x @ model.head.weight.T + model.head.bias, **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "class", "distilled"])
def test_a_distillation_token(pooling):
    """Second, with a position of its own; "distilled" is the mean of two heads (arXiv:2012.12877, 3)."""
    model, img, seen = build(**{**PLAIN, "pooling": pooling}, distillation_token=True), images(), {}
    model.attn_layers.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    logits, embeddings = model(img, return_logits_and_embeddings=True)
    assert embeddings.shape == (2, 8, 16)
    for place, token in enumerate((model.class_token, model.distillation_token)):
        assert torch.equal(seen["x"][:, place], (token.token[0] + token.pos_emb[0]).expand(2, -1))
    assert torch.equal(seen["x"][:, 2:], model.patches(img))
    x = embeddings[:, 2:].sum(1) / 6 if pooling == "mean" else embeddings[:, 0]
    want = x @ model.head.weight.T + model.head.bias
    if pooling == "distilled":
        other = model.distillation_head
        want = (want + embeddings[:, 1] @ other.weight.T + other.bias) / 2
    torch.testing.assert_close(logits, want, **CLOSE)


def test_without_classes_it_returns_the_sequence():
    model, img = build(num_classes=None), images()
    assert model(img).shape == (2, 6, 16)
    assert torch.equal(model(img), model(img, return_embeddings=True))
    with pytest.raises(ValueError, match="`num_classes` is None"):
        model(img, return_logits_and_embeddings=True)
    with pytest.raises(ValueError, match="`return_embeddings` is given too"):
        build()(img, True, True)


def test_registers_are_attended_to_and_not_returned():
    model, img = build(num_register_tokens=2), images()
    before = model(img)
    with torch.no_grad():
        model.registers.tokens.mul_(-1)  # a shift by a constant would vanish in the norm
    assert (model(img) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    "flags",
    [{}, {"num_register_tokens": 2, "post_emb_norm": True}, {**PLAIN, "pooler": True, "patch_bias": True}],
)
def test_every_parameter_is_trained(flags):
    model = build(**flags).train()
    model(images()).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_images_of_another_size():
    model = build()
    places = model.patches.pos_emb.detach()
    assert torch.equal(model.patches.pos_emb_for(2, 3), model.patches.pos_emb)
    wanted = torch.nn.functional.interpolate(
        places.permute(2, 0, 1)[None], (4, 2), mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(model.patches.pos_emb_for(4, 2), wanted, **CLOSE)
    assert model(images(16, 8)).shape == (2, 5)
    assert model(images(16, 8), return_embeddings=True).shape == (2, 8, 16)
    model(images(16, 8)).sum().backward()
    assert model.patches.pos_emb.grad.any()
    assert model.bfloat16()(images(16, 8).bfloat16()).isfinite().all()


def test_a_constant_table_stays_constant_at_any_size():
    model = build()
    with torch.no_grad():
        model.patches.pos_emb.fill_(0.5)
    torch.testing.assert_close(model.patches.pos_emb_for(5, 7), torch.full((5, 7, 16), 0.5), **CLOSE)


def test_a_transposed_image_with_transposed_weights_gives_transposed_patches():
    """Rows and columns differ: a non-square image is not read as a square one."""
    wide, img = build(), images()
    tall = build(image_size=(12, 8))
    tall.load_state_dict({**wide.state_dict(), "patches.pos_emb": wide.patches.pos_emb.transpose(0, 1)})
    with torch.no_grad():
        for model in (wide, tall):  # one pixel position only, so that a patch is its own transpose
            model.patches.project.weight.view(16, 4, 4, 3)[:] = 0.1
            model.patches.in_norm.weight.fill_(1.0)
    got = tall(img.transpose(2, 3), return_embeddings=True).view(2, 3, 2, 16)
    want = wide(img, return_embeddings=True).view(2, 2, 3, 16).transpose(1, 2)
    torch.testing.assert_close(got, want, **CLOSE)


ENCODER = [
    choice for choice in choices()
    if choice.component is not None and SLOTS[choice.component.slot].scope != "model"
]  # fmt: skip


@pytest.mark.parametrize("choice", ENCODER, ids=lambda choice: choice.name)
def test_every_flag_of_an_encoder_works(choice):
    needs = {need.flag for need in choice.component.requires}
    reads_ids = getattr(choice.component.cls, "reads_token_ids", False)
    if "causal" in needs or reads_ids or "cross_attend" in {*choice.flags, *choice.extra}:
        with pytest.raises(flagformer.FlagError):
            build(**choice.flags)
        return
    model = build(**choice.extra, **choice.flags, num_register_tokens=1)
    assert choice.component.name in model.explain()
    rows = model(images())
    assert rows.isfinite().all()
    for row in (0, 1):
        torch.testing.assert_close(model(images()[row : row + 1]), rows[row : row + 1], **CLOSE)
    assert flagformer.build(model.flags).flags == model.flags


def test_copies_and_files_preserve_the_model(tmp_path):
    plain = {**PLAIN, "pooler": True, "post_emb_norm_bias": True}
    model, img = build(num_register_tokens=2, post_emb_norm=True, rotary_pos_emb=True, **plain), images()
    want = model(img)
    model.save(tmp_path)
    made = [flagformer.load(tmp_path).eval(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in made:
        assert torch.equal(other(img), want)
        assert other.flags == model.flags
        assert other.num_params() == model.num_params()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(img), want, **CLOSE)


@pytest.mark.parametrize(
    ("flags", "flag", "says"),
    [
        ({"image_size": 10}, "image_size", "must be a multiple of `patch_size` 4, but is 10"),
        ({"image_size": (8, 8, 8)}, "image_size", "must be one number or (height, width)"),
        ({"patch_size": 0}, "patch_size", "must be at least 1, but is 0"),
        ({"num_classes": 0}, "num_classes", "must be at least 1, but is 0"),
        ({"pooling": "max"}, "pooling", "must be one of 'mean', 'class', 'distilled', but is 'max'"),
        ({"pooling": "class"}, "pooling", "because `class_token` is not set"),
        ({"class_token_position": True}, "class_token_position", "because `class_token` is not set"),
        ({"pooler": True, "num_classes": None}, "pooler", "because `num_classes` is not set"),
        ({"post_emb_norm_eps": 0.1}, "post_emb_norm_eps", "parameter of `post_emb_norm`, which is not set"),
        ({"emb_dropout": 1.0}, "emb_dropout", "must be below 1"),
        ({"image_sise": 8}, "image_sise", "is not a flag"),
        ({"causal": True}, "causal", "is fixed by Encoder"),
        ({"num_tokens": 5}, "num_tokens", "is not a flag"),
        ({"cross_attend": True}, "attn_layers", "without cross-attention, but is Encoder with"),
    ],
)
def test_mistakes_are_named(flags, flag, says):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.check({**BASE, **flags})
    found = {finding.flag: finding.message for finding in error.value.findings}
    assert says in found[flag]


def test_missing_flags_and_layers_are_in_one_error():
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.build({"model": "vit", "image_size": 8, "dim": 16})
    assert {finding.flag for finding in error.value.findings} == {"patch_size", "depth"}


def test_a_decoder_is_refused():
    with pytest.raises(
        flagformer.FlagError, match="must be an Encoder without cross-attention, but is Decoder"
    ):
        ViTransformerWrapper(image_size=8, patch_size=4, attn_layers=Decoder(**SIZES))


@pytest.mark.parametrize(
    ("img", "says"),
    [
        (images(10, 12), r"multiple of `patch_size` 4 x 4 pixels high and wide, but is 10 x 12"),
        (
            images(channels=1),
            r"of shape \[B, 3, height, width\], but is torch.float32 of shape \[2, 1, 8, 12\]",
        ),
        (images()[0], r"of shape \[3, 8, 12\]"),
        (images().long(), "but is torch.int64"),
    ],
)
def test_wrong_images_are_named_with_their_size(img, says):
    with pytest.raises(ValueError, match=says):
        build()(img)


def test_patches_need_not_be_square():
    model = ViTransformerWrapper(
        image_size=(6, 8), patch_size=(3, 2), attn_layers=Encoder(**SIZES), channels=1
    )
    assert model(images(6, 8, channels=1)).shape == (2, 8, 16)
    assert "2 x 4 patches of 3 x 2 pixels" in model.explain()


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize(
    "flags", [{}, {"rotary_pos_emb": True, "rotary_emb_dim": 8}, {"alibi_pos_bias": True}]
)
def test_parity_with_the_peer(registers, flags):
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
    torch.manual_seed(3)
    own = {"image_size": 12, "patch_size": 4, "num_classes": 5, "num_register_tokens": registers}
    own["post_emb_norm"] = True
    theirs = peer.ViTransformerWrapper(attn_layers=peer.Encoder(**SIZES, **flags), **own).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = build(**flags, **own)
    load_x_transformers(theirs, ours)
    img = images(12, 12)
    torch.testing.assert_close(ours(img), theirs(img), **CLOSE)
    torch.testing.assert_close(ours(img, True), theirs(img, True), **CLOSE)


def test_a_norm_of_embeddings_of_your_own(tmp_path):
    """By the name of its slot, also in flags that are saved; in place of `post_emb_norm`."""
    flags = {"embedding_norm": {"class": "flagformer.norm.rmsnorm:RMSNorm", "eps": 0.1}}
    model, img = build(**flags), images()
    x = model.patches(img)
    wanted = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * model.post_emb_norm.weight
    torch.testing.assert_close(model.post_emb_norm(x), wanted, **CLOSE)
    model.save(tmp_path)
    assert torch.equal(flagformer.load(tmp_path, allow=["flagformer"])(img), model(img))
    with pytest.raises(flagformer.FlagError, match="`embedding_norm` is set to a component of your own"):
        build(**flags, post_emb_norm=True)
