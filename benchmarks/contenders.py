"""The same decoder built by every library, as `logits(ids)` and `generate(prompt, count)`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import bare_decode
import wrapped
from bare import FAMILIES, LONG_FAMILIES, NUM_PREFIX_KV, WINDOW, Bare, Size

TOLERATED = 0.01  # parameter counts may differ by the gate's bias or a norm's, not by more


@dataclass
class Contender:
    """One library in one setting; `library` is the column, `setting` its configuration."""

    library: str
    setting: str
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    generate: Callable[[Tensor, int], Tensor]

    def parameters(self) -> int:
        return sum(p.numel() for p in {id(p): p for p in self.model.parameters()}.values())


def bare(size: Size) -> list[Contender]:
    if size.family not in FAMILIES:
        return []
    model = Bare(size)
    return [
        Contender("bare", "", model, model, lambda prompt, count: bare_decode.generate(model, prompt, count))
    ]


def flagformer(size: Size) -> list[Contender]:
    """The public API: flags, `build`, `AutoregressiveWrapper.generate`."""
    from flagformer import AutoregressiveWrapper, build

    model = build(flagformer_flags(size))
    wrapper = AutoregressiveWrapper(model)
    logits = partial(model, window=WINDOW) if size.family == "window" else model
    return [Contender("flagformer", "", model, logits, _greedy_wrapper(wrapper))]


def flagformer_flags(size: Size) -> dict[str, object]:
    family = {
        "llama": {
            "rotary_pos_emb": True,
            "rotary_emb_dim": size.head_dim,
            "use_rmsnorm": True,
            "ff_glu": True,
            "ff_swish": True,
            "ff_no_bias": True,
        },
        "absolute": {},
        "alibi": {"alibi_pos_bias": True, "use_abs_pos_emb": False},
        "t5": {"rel_pos_bias": True},
        "dynamic": {"dynamic_pos_bias": True},
        "window": {"rotary_pos_emb": True, "rotary_emb_dim": size.head_dim},
        "prefix_kv": {
            "rotary_pos_emb": True,
            "rotary_emb_dim": size.head_dim,
            "attn_num_mem_kv": NUM_PREFIX_KV,
        },
    }[size.family]
    return {
        "model": "decoder",
        "num_tokens": size.vocab,
        "max_seq_len": size.length,
        "dim": size.dim,
        "depth": size.depth,
        "heads": size.heads,
        "attn_dim_head": size.head_dim,
        "ff_mult": size.ff_mult,
        **family,
    }


def x_transformers(size: Size) -> list[Contender]:
    """With and without `attn_flash`, if the library allows it; the caller keeps the faster."""
    import x_transformers as xt

    flags = {
        k: v for k, v in flagformer_flags(size).items() if k not in ("model", "num_tokens", "max_seq_len")
    }
    absolute = flags.pop("use_abs_pos_emb", size.family not in LONG_FAMILIES)
    found = []
    for flash in (False, True):
        if flash and size.family in ("t5", "dynamic"):
            continue  # the library refuses attn_flash with a learned bias
        past = {"attn_max_attend_past": WINDOW} if size.family == "window" else {}
        layers = xt.Decoder(**flags, **past, attn_flash=flash, verbose=False)
        model = xt.TransformerWrapper(
            num_tokens=size.vocab, max_seq_len=size.length, attn_layers=layers, use_abs_pos_emb=absolute
        )
        wrapper = xt.AutoregressiveWrapper(model)
        setting = "attn_flash" if flash else "as shipped"
        found.append(Contender("x-transformers", setting, model, model, _greedy_wrapper(wrapper)))
    return found


def hugging_face(size: Size) -> list[Contender]:
    """Llama with random weights and sdpa; `generate` with its growing and with its static cache."""
    if size.family != "llama":
        return []
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = transformers.LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.dim,
        intermediate_size=size.inner,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        max_position_embeddings=size.length,
        attn_implementation="sdpa",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)

    def logits(ids: Tensor) -> Tensor:
        return model(input_ids=ids, use_cache=False).logits

    def generator(cache: str) -> Callable[[Tensor, int], Tensor]:
        options = {} if cache == "dynamic" else {"cache_implementation": cache}

        @torch.inference_mode()
        def generate(prompt: Tensor, count: int) -> Tensor:
            seen = torch.ones_like(prompt)
            out = model.generate(
                prompt, attention_mask=seen, max_new_tokens=count, do_sample=False, use_cache=True, **options
            )
            return out[:, prompt.shape[1] :]

        return generate

    return [
        Contender("HF Llama", f"{cache} cache", model, logits, generator(cache))
        for cache in ("dynamic", "static")
    ]


def _greedy_wrapper(wrapper: nn.Module) -> Callable[[Tensor, int], Tensor]:
    @torch.inference_mode()
    def generate(prompt: Tensor, count: int) -> Tensor:
        return wrapper.generate(prompt, count, temperature=0.0)

    return generate


LIBRARIES = {
    "bare": bare,
    "flagformer": flagformer,
    "x-transformers": x_transformers,
    "hf": hugging_face,
}


def gather(size: Size, libraries: tuple[str, ...]) -> list[Contender] | list[wrapped.Stepper]:
    """Every contender of `size`, checked to be the same model: parameters, causality, greedy decoding."""
    if size.family in wrapped.WRAPPED_FAMILIES:
        return wrapped.gather(size, libraries)
    found = []
    for library in libraries:
        torch.manual_seed(0)
        found += LIBRARIES[library](size)
    reference = found[0].parameters()
    for contender in found:
        _check(contender, reference, size)
    return found


def _check(contender: Contender, reference: int, size: Size) -> None:
    name = f"{contender.library} ({contender.setting or 'default'})"
    count = contender.parameters()
    if abs(count - reference) > TOLERATED * reference:
        raise RuntimeError(f"{name} has {count} parameters, the others {reference}: not the same model")
    contender.model.eval()
    ids = torch.randint(size.vocab, (2, 24), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % size.vocab
    with torch.inference_mode():
        before, after = contender.logits(ids), contender.logits(changed)
    if before.shape != (2, 24, size.vocab) or not before.isfinite().all():
        raise RuntimeError(f"{name}: logits have shape {tuple(before.shape)} or are not finite")
    if not torch.equal(before[:, :-1], after[:, :-1]) or torch.equal(before[:, -1], after[:, -1]):
        raise RuntimeError(f"{name}: the last token changes earlier logits, or none: not a causal decoder")
    _check_greedy(contender, ids, name)


def _check_greedy(contender: Contender, ids: Tensor, name: str) -> None:
    """Each decoded token must be the most likely one of a full forward over the tokens before it."""
    new = contender.generate(ids, 16)
    if new.shape != (len(ids), 16):
        raise RuntimeError(f"{name}: generate returned shape {tuple(new.shape)}, asked for {(len(ids), 16)}")
    with torch.inference_mode():
        logits = contender.logits(torch.cat((ids, new), dim=1))[:, ids.shape[1] - 1 : -1]
    shortfall = logits.amax(-1) - logits.gather(-1, new[..., None]).squeeze(-1)
    if shortfall.max() > 1e-3:
        raise RuntimeError(
            f"{name}: cached greedy decoding departs from the full forward by {shortfall.max():.2e}"
        )
