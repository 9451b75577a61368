"""Every kind of model with a batch and its loss, as a module that the tools can train."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flagformer

TOKENS, LENGTH = 13, 8
SIZES = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
TEXT = {"num_tokens": TOKENS, "max_seq_len": LENGTH, **SIZES}


def pair(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags for both halves of a model."""
    halves = {
        f"{half}_{name}": value for half in ("enc", "dec") for name, value in flags.items() if name != "dim"
    }
    return {"dim": flags["dim"], **halves}


VECTORS = {"max_seq_len": LENGTH, "dim_in": TOKENS, "dim_out": TOKENS}
CLUSTERS = {"num_clusters": 2, "window_size": 4}
LOCAL = {"n_local_attn_heads": 1, "local_attn_window_size": 4}
ROUTING = {
    "num_tokens": TOKENS,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "max_seq_len": LENGTH,
    "window_size": 4,
}


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    return flagformer.AutoregressiveWrapper(model)(ids)


def own_token(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


def of_vectors(model: nn.Module, ids: Tensor) -> Tensor:
    """Next tokens, read as vectors."""
    return F.cross_entropy(model(F.one_hot(ids, TOKENS).float())[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def of_segments(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss of a second segment, with the first as memory."""
    _, mems = model(ids, return_mems=True)
    return F.cross_entropy(model(ids.flip(1), mems=mems)[:, :-1].flatten(0, 1), ids.flip(1)[:, 1:].flatten())


def of_images(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :, None, None].float().expand(-1, 8, 8, 8)[:, :3]), ids[:, 0])


def of_pair(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, ids.flip(1))


def of_memformer(model: nn.Module, ids: Tensor) -> Tensor:
    first = model(ids, ids.flip(1))
    return model(ids, ids.flip(1), mems=first.mem).dec_out


def of_routing(model: nn.Module, ids: Tensor) -> Tensor:
    logits, extra = model(ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) + extra


def of_routing_pair(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids, ids.flip(1), return_loss=True)[0]


Loss = Callable[[nn.Module, Tensor], Tensor]
MODELS: dict[str, tuple[dict[str, Any], Loss]] = {
    "decoder": ({"model": "decoder", **TEXT, "rotary_pos_emb": True}, next_token),
    "k-means": ({"model": "decoder", **TEXT, **CLUSTERS, **LOCAL}, next_token),
    "memories": ({"model": "decoder", **TEXT, "rel_pos_bias": True, "max_mem_len": LENGTH}, of_segments),
    "encoder": ({"model": "encoder", **TEXT}, own_token),
    "prefix decoder": ({"model": "prefix_decoder", **TEXT, "rotary_pos_emb": True}, next_token),
    "continuous": ({"model": "continuous", **SIZES, **VECTORS}, of_vectors),
    "xtransformer": ({"model": "xtransformer", **pair(TEXT)}, of_pair),
    "vit": (
        {"model": "vit", **SIZES, "image_size": 8, "patch_size": 4, "num_classes": TOKENS}, of_images,
    ),
    "memformer": ({"model": "memformer", **pair(TEXT), "num_memory_slots": 2}, of_memformer),
    "routing": ({"model": flagformer.RoutingTransformerLM, **ROUTING, "causal": True}, of_routing),
    "routing pair": ({"model": flagformer.RoutingTransformerEncDec, **pair(ROUTING)}, of_routing_pair),
}  # fmt: skip


def model_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    flags = dict(MODELS[kind][0])
    return flagformer.build(flags) if isinstance(flags["model"], str) else flags.pop("model")(**flags)


def batch() -> Tensor:
    """[2, 8] ids."""
    return torch.arange(2 * LENGTH).view(2, LENGTH) % TOKENS


class Learner(nn.Module):
    """A batch in, its loss out by name, as the Trainer of transformers expects."""

    def __init__(self, kind: str, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model_of(kind) if model is None else model
        self.kind = kind

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"loss": MODELS[self.kind][1](self.model, input_ids)}


@torch.no_grad()
def loss_of(learner: nn.Module) -> Tensor:
    loss = learner.eval()(input_ids=batch())["loss"]
    learner.train()
    return loss


def same_weights(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
