"""The work of each of two ranks that accelerate shards with FSDP2."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import flagformer
from flagformer.interop.hugging_face import FlagformerForCausalLM

VOCABULARY, STEPS, SAVED, RATE = 17, 20, 12, 3e-3
SIZES = {"num_tokens": VOCABULARY, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
FLAGS = {"tied": {"tie_embedding": True, "rotary_pos_emb": True, "attn_kv_heads": 1}}
if find_spec("trl"):  # `make integrations`
    FLAGS["untied"] = {"use_rmsnorm": True, "mixer": "gated_deltanet : attention"}


def model_of(name: str) -> FlagformerForCausalLM:
    torch.manual_seed(0)
    return FlagformerForCausalLM.of(flagformer.build({**SIZES, **FLAGS[name]}))


def batch(step: int) -> torch.Tensor:
    """[4, 12], the rows of both ranks."""
    return torch.randint(VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(step))


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3)


def train_sharded(rank: int, folder: Path) -> None:
    """Train each model of FLAGS."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType

    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU  # on CPUs accelerate ignores the plugin
    for name in FLAGS:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        assert accelerator.is_fsdp2
        losses = [train(accelerator, rank, name, folder, resumed) for resumed in (False, True)]
        torch.save(losses[0] + losses[1], folder / f"{name}-losses-{rank}.pt")


def train(accelerator: Any, rank: int, name: str, folder: Path, resumed: bool) -> list[float]:
    """The losses of all steps, with a checkpoint before step SAVED; or of those after it, resumed."""
    model = model_of(name)
    model, optimizer = accelerator.prepare(model, optimizer_of(model))
    assert all(hasattr(one, "full_tensor") for one in model.parameters())
    place, losses = folder / f"{name}-state", []
    if resumed:
        accelerator.load_state(place)
    for step in range(SAVED if resumed else 0, STEPS):
        if step == SAVED and not resumed:
            accelerator.save_state(place)
        ids = batch(step)[2 * rank : 2 * rank + 2]
        loss = model(ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights = accelerator.get_state_dict(model)
    text = model.eval().generate(batch(0), max_new_tokens=4, do_sample=False)
    if rank == 0:
        torch.save((weights, text), folder / f"{name}-resumed-{resumed}.pt")
    accelerator.free_memory()
    return losses
