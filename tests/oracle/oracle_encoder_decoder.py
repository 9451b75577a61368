"""Encoder-decoders of random flags against the oracle: the encoder's output and the decoder's loss."""

import random

import numpy as np
import oracle_model
import torch
from oracle_checks import FP32_COSINES, TIGHT, close, exact, perturbed
from oracle_mixes import BASE, mix

import flagformer

# Losses are fp32 for logits of any dtype.
IN_FP32 = 1e-6
# Flags that an encoder-decoder fixes itself.
DECIDED = {
    "model", "dim", "cross_attend", "only_cross", "cross_attn_dim_context", "return_only_embed",
    "max_mem_len", "shift_mem_down", "embed_num_tokens", "logits_dim",
}  # fmt: skip


def pair_mix(seed):
    """Complete flags of an encoder-decoder; three to eight of them for both halves together."""
    rng = random.Random(f"pair {seed}")
    wanted, flags = rng.randint(3, 8), {"model": "xtransformer", "dim": BASE["dim"]}
    for side, share in (("enc", wanted // 2), ("dec", wanted - wanted // 2)):
        sizes = {"num_tokens", "max_seq_len", "heads", "depth", "attn_dim_head"}
        drawn = mix(rng.randrange(10**6))
        chosen = [name for name in drawn if name not in DECIDED | sizes]
        kept = [name for name in chosen if side == "dec" or not name.startswith("cross_")][:share]
        barred = {"tie_embedding"} if side == "enc" else set()
        flags |= {f"{side}_{k}": v for k, v in drawn.items() if k in sizes or k in set(kept) - barred}
    return flags


def paired(flags, seed):
    """Two sources and targets of different lengths, padded on the right."""
    torch.manual_seed(seed)
    model = exact(perturbed(flagformer.build(flags).double().eval(), seed))
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    sources, targets = _rows(flags["enc_num_tokens"], (8, 3)), _rows(flags["dec_num_tokens"], (7, 4))
    tight = FP32_COSINES if any(name.endswith("rotary_xpos") for name in flags) else TIGHT
    (src, mask), (tgt, tgt_mask) = _padded(sources), _padded(targets)
    with torch.no_grad():
        encoded = model.encoder(src, mask=mask, return_embeddings=True)
        loss = model(src, tgt, mask, tgt_mask=tgt_mask)
    losses = []
    for row in (0, 1):
        read = _half(flags, weights, "enc", "encoder.", sources[row], None)
        close(encoded[row][mask[row]], read.embeddings, f"encoded, row {row}", tight)
        found = _half(flags, weights, "dec", "decoder.net.", targets[row][:-1], read.embeddings).logits
        side = {"context": encoded[row : row + 1], "context_mask": mask[row : row + 1]}
        with torch.no_grad():
            logits = model.decoder.net(targets[row][None, :-1], **side)[0]
        close(logits, found, f"logits, row {row}", tight)
        losses += [_entropy(logits, want) for logits, want in zip(found, targets[row][1:], strict=True)]
    close(loss[None], np.array([np.mean(losses)]), "loss", IN_FP32)


def _rows(vocabulary, lengths):
    return [torch.randint(vocabulary, (count,)) for count in lengths]


def _padded(rows):
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]


def _half(flags, weights, side, prefix, ids, context):
    own = {name.removeprefix(f"{side}_"): value for name, value in flags.items() if name.startswith(side)}
    kind = {"model": "encoder"} if side == "enc" else {"model": "decoder", "cross_attend": True}
    own = {**own, **kind, "dim": flags["dim"], "return_only_embed": side == "enc"}
    part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return oracle_model.read(own, part, ids.numpy(), context=context)


def _entropy(logits, want):
    top = logits.max()
    return top + np.log(np.exp(logits - top).sum()) - logits[int(want)]
