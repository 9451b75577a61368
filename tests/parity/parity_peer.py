"""Builds and runs the cases in x-transformers, in the version that comes first on the path.

`python parity_peer.py FOLDER FILE` runs the cases in version 1.27 from FOLDER, and writes the outputs to
FILE: one process for all of them, as two versions of a package cannot share one.
"""

import inspect
import sys
import warnings
from typing import Any

import torch
from torch import nn

WRAPPER = (
    "num_tokens", "max_seq_len", "use_abs_pos_emb", "scaled_sinu_pos_emb", "tie_embedding", "emb_dropout",
    "tie_embedding_scale", "return_only_embed", "emb_dim", "post_emb_norm", "l2norm_embed",
    "emb_frac_gradient", "embed_num_tokens", "logits_dim", "num_memory_tokens",
    "memory_tokens_interspersed_every", "max_mem_len", "shift_mem_down",
)  # fmt: skip
VISION = (
    "image_size", "patch_size", "channels", "num_classes", "post_emb_norm", "num_register_tokens",
    "emb_dropout",
)  # fmt: skip


def build_peer(kind: str, flags: dict[str, Any]) -> nn.Module:
    """Perturb every weight, so that no scale is 1 and no bias 0."""
    import x_transformers as peer

    layers = {"decoder": peer.Decoder, "encoder": peer.Encoder, "prefix_decoder": peer.PrefixDecoder}
    own = {name: value for name, value in flags.items() if name in (VISION if kind == "vit" else WRAPPER)}
    rest = {name: value for name, value in flags.items() if name not in own}
    torch.manual_seed(0)
    if kind == "xtransformer":
        model = peer.XTransformer(**flags)
    elif kind == "vit":
        model = peer.ViTransformerWrapper(attn_layers=peer.Encoder(**rest), **own)
    else:
        model = peer.TransformerWrapper(attn_layers=layers[kind](**rest), **own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def result(case: Any, version: str) -> dict[str, Any]:
    """Weights, outputs, and gradients by name."""
    from parity_case import run

    model = build_peer(case.kind, case.peer_flags(version))
    said = run(model, case)
    said[-1].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"weights": dict(model.state_dict()), "said": said.detach(), "gradients": gradients}


def signatures() -> dict[str, dict[str, str]]:
    """Every argument with its default, for all public constructors and calls."""
    import x_transformers.x_transformers as peer
    from x_transformers import AutoregressiveWrapper

    called = {
        "AttentionLayers": (peer.AttentionLayers, "forward"),
        "Attention": (peer.Attention, "forward"),
        "FeedForward": (peer.FeedForward, "forward"),
        "TransformerWrapper": (peer.TransformerWrapper, "forward"),
        "ViTransformerWrapper": (peer.ViTransformerWrapper, "forward"),
        "XTransformer": (peer.XTransformer, "forward", "generate"),
        "AutoregressiveWrapper": (AutoregressiveWrapper, "forward", "generate"),
    }
    found = {}
    for name, (cls, *methods) in called.items():
        found[name] = _arguments(cls.__init__)
        for method in methods:
            found[f"{name}.{method}"] = _arguments(inspect.unwrap(getattr(cls, method)))
    return found


def _arguments(function: Any) -> dict[str, str]:
    parameters = list(inspect.signature(_inside(function)).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return {p.name: "required" if p.default is p.empty else _short(p.default) for p in named}


def _inside(function: Any) -> Any:
    """The method inside a decorator that hides its signature."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    inside = [value for value in cells if inspect.isfunction(value)]
    arguments = inspect.signature(function).parameters.values()
    hidden = all(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in list(arguments)[1:])
    return _inside(inside[0]) if hidden and inside else function


def _short(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def main(folder: str, file: str) -> None:
    from parity_case import OLD
    from parity_cases import CASES
    from refusal_cases import REFUSED

    warnings.simplefilter("ignore")  # this version uses an older torch API
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, case in CASES.items():
        if OLD in case.versions:
            try:
                results[name] = result(case, OLD)
            except Exception as error:
                results[name] = {"error": f"{type(error).__name__}: {error}"}
    refused = {
        name: build_peer(refusal.theirs.kind, refusal.theirs.peer_flags(OLD)).state_dict()
        for name, refusal in REFUSED.items()
        if OLD in refusal.theirs.versions
    }
    import x_transformers

    source = str(x_transformers.__file__)
    found = {"from": source, "results": results, "refused": refused, "signatures": signatures()}
    torch.save(found, file)


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    main(*sys.argv[1:])
