"""Training steps of the other wrappers, XTransformer and ViTransformerWrapper, of both libraries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bare import Size

WRAPPED_FAMILIES = ("xtransformer", "vit")
IMAGE, PATCH, CLASSES = 224, 16, 100


@dataclass
class Stepper:
    """One library in one setting, with `loss(batch)`."""

    library: str
    setting: str
    model: nn.Module
    loss: Callable[[Tensor], Tensor]

    def parameters(self) -> int:
        return sum(p.numel() for p in {id(p): p for p in self.model.parameters()}.values())


def batch_of(size: Size, batch: int, length: int) -> Tensor:
    """Ids [B, 2 T + 1] (a source, and a target with one more), or images [B, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(2)
    if size.family == "vit":
        return torch.randn(batch, 3, IMAGE, IMAGE, generator=generator)
    return torch.randint(size.vocab, (batch, 2 * length + 1), generator=generator)


def flagformer(size: Size) -> list[Stepper]:
    from flagformer import Encoder, ViTransformerWrapper, XTransformer

    if size.family == "vit":
        layers = Encoder(**_stack(size))
        model = ViTransformerWrapper(
            image_size=IMAGE, patch_size=PATCH, num_classes=CLASSES, attn_layers=layers
        )
        return [Stepper("flagformer", "", model, _classify(model))]
    pair = XTransformer(dim=size.dim, **_halves(size))
    return [Stepper("flagformer", "", pair, _translate(pair, size))]


def x_transformers(size: Size) -> list[Stepper]:
    """With and without `attn_flash`; the caller keeps the faster."""
    import x_transformers as xt

    found = []
    for flash in (False, True):
        setting = "attn_flash" if flash else "as shipped"
        if size.family == "vit":
            layers = xt.Encoder(**_stack(size), attn_flash=flash, verbose=False)
            model = xt.ViTransformerWrapper(
                image_size=IMAGE, patch_size=PATCH, num_classes=CLASSES, attn_layers=layers
            )
            found.append(Stepper("x-transformers", setting, model, _classify(model)))
        else:
            kernels = {"enc_attn_flash": flash, "dec_attn_flash": flash, "dec_cross_attn_flash": flash}
            pair = xt.XTransformer(dim=size.dim, **_halves(size), **(kernels if flash else {}))
            found.append(Stepper("x-transformers", setting, pair, _translate(pair, size)))
    return found


LIBRARIES = {"flagformer": flagformer, "x-transformers": x_transformers}


def gather(size: Size, libraries: tuple[str, ...]) -> list[Stepper]:
    """Every contender of `size`, checked to be the same model."""
    found = []
    for library in (name for name in LIBRARIES if name in libraries):
        torch.manual_seed(0)
        found += LIBRARIES[library](size)
    for contender in found:
        _check(contender, found[0], size)
    return found


def _check(contender: Stepper, reference: Stepper, size: Size) -> None:
    """The same number of parameters, within 1 %, and a loss close to that of uniform predictions."""
    ours, theirs = contender.parameters(), reference.parameters()
    if abs(ours - theirs) > 0.01 * theirs:
        raise RuntimeError(f"{contender.library} has {ours} parameters, {reference.library} {theirs}")
    with torch.no_grad():
        loss = float(contender.loss(batch_of(size, 2, 16)))
    classes = CLASSES if size.family == "vit" else size.vocab
    if not 0.5 < loss / torch.log(torch.tensor(float(classes))) < 1.5:
        raise RuntimeError(f"{contender.library} ({contender.setting}): a fresh model's loss is {loss:.2f}")


def _stack(size: Size) -> dict[str, int]:
    return {"dim": size.dim, "depth": size.depth, "heads": size.heads, "attn_dim_head": size.head_dim}


def _halves(size: Size) -> dict[str, int]:
    """Flags of both halves; the head dim is 64, the default of both libraries."""
    half = {"num_tokens": size.vocab, "max_seq_len": size.length, "depth": size.depth, "heads": size.heads}
    return {f"{prefix}_{name}": value for prefix in ("enc", "dec") for name, value in half.items()}


def _classify(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(model(images), torch.arange(len(images)) % CLASSES)

    return loss


def _translate(model: nn.Module, size: Size) -> Callable[[Tensor], Tensor]:
    def loss(ids: Tensor) -> Tensor:
        half = ids.shape[1] // 2
        return model(ids[:, :half], ids[:, half:])

    return loss
