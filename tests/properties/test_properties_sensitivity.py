"""No flag is without effect: another value of each changes something observable."""

import pytest
import torch
from property_settings import OTHER_INPUTS, TINY, VALUES, cross_forms, tunings
from property_subject import perturb

import flagformer
from flagformer.flags import MODEL_SCOPES, FlagError
from flagformer.flags.flag import read_params
from flagformer.flow import Outputs
from flagformer.lab.reference import choices, settings
from flagformer.lab.reference.entries import entries, with_crossed
from flagformer.models.build import WHOLE

# Long enough for effects at a distance (`rel_pos_max_distance`).
LENGTH = 40
BASE = {**settings(), **TINY, "max_seq_len": LENGTH}
SIZES = {"num_tokens": 13, "max_seq_len": 41, "dim": 24, "depth": 3, "heads": 2, "attn_dim_head": 4}


# Flags that a flag needs to have an effect.
CROSSED = {"cross_attend": True, "context_num_clusters": 3, "context_window_size": 4}
WITH = {
    "routing_selection": {"num_clusters": 3, "window_size": 4},
    "context_selection": CROSSED,
    "cluster_num_mem_kv": CROSSED,
}
# Flags that are refused without each other: (flags for both models, another value in place of none).
AGAINST = {
    "moe_num_groups": ({"moe_num_experts": 8}, 4),
    "moe_top_groups": ({"moe_num_experts": 8, "moe_num_groups": 4}, 2),
}


def cases():
    """name -> (flag, flags with it, flags without it), for every choice, tuning flag and cross form."""
    simple = SIZES | {name: VALUES[name] for name in sorted(OTHER_INPUTS)}
    found = {
        name: (name, BASE | WITH.get(name, {}) | {name: value}, BASE | WITH.get(name, {}))
        for name, value in simple.items()
    }
    for choice in choices():
        if "model" not in choice.flags:
            flag = next(iter(choice.flags))
            given = {**settings(choice), **TINY, "max_seq_len": LENGTH}
            own = {param.flag.name for param in choice.component.params} if choice.component else set()
            tuned = own & set(choice.extra) | {flag}
            without = BASE | {name: value for name, value in given.items() if name not in tuned}
            found[choice.name] = (flag, given, without)
    for key, flags in (tunings() | cross_forms()).items():
        flag = key.split(" of ")[0]
        without = {name: value for name, value in flags.items() if name != flag}
        both = {}
        if flag in AGAINST:
            both, without[flag] = AGAINST[flag]
        found[f"{key} (tuned)"] = (flag, BASE | flags | both, BASE | without | both)
    return found


CASES = cases()


class Seen:
    """The observable behaviour of a model, newly built or with the weights of another."""

    def __init__(self, flags):
        torch.manual_seed(1)
        self.model = flagformer.build(flags).double().eval()
        layers = self.model.attn_layers
        width = layers.dims.dim_context or layers.dims.dim
        draws = torch.Generator().manual_seed(2)
        self.ids = torch.randint(11, (2, LENGTH), generator=draws)
        context = torch.randn(2, LENGTH, width, generator=draws, dtype=torch.float64)
        given = layers.has_cross and not self.model.num_memory_slots
        self.side = {"context": context} if given else {}

    def shapes(self):
        return [(name, tuple(p.shape)) for name, p in self.model.named_parameters()]

    def output(self):
        with torch.no_grad():
            return [self.model(self.ids, **self.side)]

    def training(self):
        """The training forward, with one series of random numbers."""
        self.model.train()
        torch.manual_seed(3)
        with torch.no_grad():
            out = self.model(self.ids, **self.side)
        self.model.eval()
        return [out, torch.get_rng_state()]

    def gradient(self):
        self.model.zero_grad()
        out = self.model(self.ids, **self.side)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        return [p.grad for p in self.model.parameters()]

    def memory(self):
        """Bytes saved for the backward, and of a decode state."""
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = self.model(self.ids, **self.side)
        state = self.model.init_state(2, 3).size_bytes() if self.model.can_cache else 0
        del out
        return [sum(kept.values()), state]

    def segments(self):
        """The output of a second segment, with the memories of the first if the model has any."""
        if not self.model.flags["max_mem_len"] and not self.model.num_memory_slots:
            return []
        half = LENGTH // 2
        with torch.no_grad():
            _, mems = self.model(self.ids[:, :half], return_mems=True, **self.side)
            return [self.model(self.ids[:, half:], mems=mems, **self.side)]

    def losses(self):
        """The auxiliary losses of training, if any."""
        if not self.model.has_losses:
            return []
        torch.manual_seed(3)
        with torch.no_grad():
            _, outputs = self.model.train()(self.ids, return_losses=True, **self.side)
        self.model.eval()
        return [loss for losses in outputs.losses.values() for loss in losses]

    def step(self):
        """Buffers updated without gradient, after a training forward."""
        self.training()
        self.model.update_kmeans()
        flagformer.update_router_bias(self.model)
        return list(self.model.buffers())

    def z_loss(self):
        """The z-loss of attention, if requested; only the dense core has one."""
        attention = [s.fn.core for s in self.model.attn_layers.sublayers if s.kind != "f"]
        if not attention or not all(core.has_z_loss for core in attention):
            return []
        with torch.no_grad():
            return [self.model(self.ids, return_attn_z_loss=True, **self.side)[1].attn_z_loss]

    def parts(self):
        return [type(module) for module in self.model.modules()]


LOOKS = (
    Seen.output, Seen.training, Seen.gradient, Seen.memory, Seen.segments, Seen.losses, Seen.step,
    Seen.z_loss, Seen.parts,
)  # fmt: skip


def differs(one, other):
    def same(a, b):
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.shape == b.shape and torch.equal(a, b)
        return type(a) is type(b) and a == b

    return len(one) != len(other) or not all(map(same, one, other))


def refused(flags):
    """The choices incompatible with these flags."""
    found = set()
    for choice in choices():
        try:
            flagformer.check({**flags, **choice.extra, **choice.flags})
        except FlagError:
            found.add(choice.name)
    return found


def change(given, without):
    """The observation by which the flags differ, or None."""
    one, other = Seen(given), Seen(without)
    if one.shapes() != other.shapes():
        return "parameters"  # other tests check that each of them has an effect
    start = differs(one.output(), other.output())
    perturb(one.model)
    other.model.load_state_dict(one.model.state_dict(), strict=False)  # buffers belong to the flag
    for look in LOOKS:
        if differs(look(one), look(other)):
            return look.__name__
    return "start" if start else "refusal" if refused(given) != refused(without) else None


@pytest.mark.parametrize("name", CASES)
def test_flag_changes_something(name):
    _, given, without = CASES[name]
    assert change(given, without) is not None, f"{name} is dead"


def test_a_flag_without_effect_would_be_found():
    assert change(BASE, dict(BASE)) is None


def test_every_flag_of_the_catalogue_is_tested():
    asked = {flag for flag, _, _ in CASES.values()}
    names = {entry.name for entry in with_crossed(entries(MODEL_SCOPES))}
    assert asked == names - {"causal"}, "`causal` is fixed by the model"


def test_causal_changes_the_output():
    x = torch.randn(1, 4, 16)
    outs = []
    for causal in (False, True):
        torch.manual_seed(1)
        outs.append(flagformer.AttentionLayers(dim=16, depth=1, causal=causal)(x))
    assert not torch.equal(*outs)


HALF = {"num_tokens": 11, "max_seq_len": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
WHOLE_BASE = {
    "xtransformer": {
        "dim": 16,
        **{half + name: value for half in ("enc_", "dec_") for name, value in HALF.items()},
    },
    "vit": {"image_size": 8, "patch_size": 4, "num_classes": 5, "dim": 16, "depth": 1, "heads": 2},
    "classifier": {
        "num_tokens": 11,
        "max_seq_len": 16,
        "num_classes": 5,
        "dim": 16,
        "depth": 1,
        "heads": 2,
    },
    "continuous": {"dim_in": 3, "max_seq_len": 16, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8},
    "memformer": {
        "dim": 16,
        "num_memory_slots": 2,
        "mem_update_attn_heads": 2,
        **{half + name: value for half in ("enc_", "dec_") for name, value in HALF.items()},
    },
}
# Flags that a flag needs, in whole models.
WITH_IN_MODEL = {
    "memory_temperature": {"memory_update": "bmn"},
    "class_token_position": {"class_token": True},
    "distillation_token": {"class_token": True},
    "pooler_activation": {"pooler": True},
    "conv_stem": {"causal": False},
    "src_conv": {"src_dim": 3},
    "pooling": {"class_token": True},
    "post_emb_norm_eps": {"post_emb_norm": True},
    "post_emb_norm_bias": {"post_emb_norm": True},
}
# Another value of each flag that a whole model has on top of those of its layers.
OWN = {
    "xtransformer": {
        "dim": 24,
        "tie_token_emb": True,
        "ignore_index": 4,
        "pad_value": 5,
        "cross_attn_tokens_dropout": 0.5,
        "loss_chunks": 2,
        "src_dim": 3,
        "src_conv": True,
    },
    "vit": {
        "image_size": 16,
        "patch_size": 2,
        "channels": 1,
        "num_classes": 7,
        "patch_norm": False,
        "patch_bias": False,
        "class_token": True,
        "class_token_position": True,
        "distillation_token": True,
        "pooling": "class",
        "pooler": True,
        "pooler_activation": "relu",
        "post_emb_norm": True,
        "post_emb_norm_eps": 0.25,
        "post_emb_norm_bias": True,
        "num_register_tokens": 2,
        "emb_dropout": 0.5,
    },
    "continuous": {"dim_in": 4, "dim_out": 5, "causal": False, "conv_stem": True},
    "classifier": {
        "num_classes": 7,
        "pooling": "mean",
        "pooler": True,
        "pooler_activation": "relu",
        "classifier_dropout": 0.5,
    },
    "memformer": {
        "dim": 24,
        "num_memory_slots": 3,
        "num_mem_updates": 2,
        "encoder_only": True,
        "mem_update_attn_heads": 4,
        "memory_update": "bmn",
        "memory_temperature": 0.5,
        "compat_positions": "memformer-0.3",
        "ignore_index": 4,
        "pad_value": 5,
    },
}


def base_of(kind, flags):
    """`encoder_only` excludes the flags of a decoder, a source of vectors those of its tokens."""
    base = WHOLE_BASE[kind]
    alone = flags.get("encoder_only")
    unused = {"enc_num_tokens"} if "src_dim" in flags else set()
    return {
        name: value
        for name, value in base.items()
        if not (alone and name.startswith("dec_")) and name not in unused
    }


def parts_of(given):
    parts = given if isinstance(given, tuple) else (given,)
    return [part.logits if isinstance(part, Outputs) else part for part in parts]


def whole(kind, flags):
    """The parameters of a whole model, and its outputs in eval mode and in training."""
    torch.manual_seed(1)
    model = flagformer.build({"model": kind, **base_of(kind, flags), **flags}).double().eval()
    perturb(model)
    if kind == "vit":
        draws = torch.Generator().manual_seed(2)
        given = (torch.randn(2, 3, 8, 8, generator=draws, dtype=torch.float64),)
    elif kind == "continuous":
        draws = torch.Generator().manual_seed(2)
        given = (torch.randn(2, 8, 3, generator=draws, dtype=torch.float64),)
    elif kind == "classifier":
        given = (torch.arange(16).view(2, 8) % 11,)
    else:
        ids = torch.arange(16).view(2, 8) % 11
        target = torch.where(ids == 4, -100, ids)
        given = (ids, target)
        if "src_dim" in flags:
            draws = torch.Generator().manual_seed(2)
            given = (torch.randn(2, 8, 3, generator=draws, dtype=torch.float64), target)
    out = [tuple(p.shape) for p in model.parameters()]
    # losses by chunks are equal up to rounding, but return no logits
    how = {"return_outputs": True} if kind == "xtransformer" else {}
    try:
        with torch.no_grad():
            out += parts_of(model(*given, **how))
            torch.manual_seed(3)
            out += parts_of(model.train()(*given, **how))
    except ValueError as error:
        out.append(str(error))
    return out


@pytest.mark.parametrize(("kind", "flag"), [(kind, flag) for kind, flags in OWN.items() for flag in flags])
def test_flag_of_a_whole_model_changes_something(kind, flag):
    extra = {name: value for name, value in WITH_IN_MODEL.get(flag, {}).items() if name in OWN[kind]}
    assert not differs(whole(kind, extra), whole(kind, extra))
    assert differs(whole(kind, {**extra, flag: OWN[kind][flag]}), whole(kind, extra)), f"{flag} is dead"


def test_every_flag_of_whole_models_is_tested():
    for kind, cls in WHOLE.items():
        assert set(OWN[kind]) == {param.flag.name for param in read_params(cls)}
