"""`flagformer generate` for models that do not continue a text: encoder-decoders, encoders, classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BYTES = 256
MASK = "[MASK]"
WITHOUT_TOKENS = {"vit": "images", "continuous": "vectors"}


def answer(model: Any, prompt: str, length: int | None, sampling: Mapping[str, Any]) -> str:
    """The text, or the numbers, that the model writes for a prompt.

    Models of text read bytes; those of a task read the ids of its tokens, numbers with spaces between them.
    An encoder-decoder writes the target of the prompt, with sentinels as `<1>`; an encoder fills each
    `[MASK]`; a classifier writes the probability of each class.

    Args:
        length: new tokens of a target; None: the decoder's `max_seq_len`.
        sampling: arguments of `generate`.

    Raises:
        ValueError: for a model of images or vectors, and a prompt that the model cannot read.
    """
    kind = model.flags["model"]
    if kind in WITHOUT_TOKENS:
        raise ValueError(f"`model: {kind}` reads {WITHOUT_TOKENS[kind]}, so it generates no text")
    if kind == "memformer" and model.decoder is None:
        raise ValueError("`model: memformer` with `encoder_only` has no decoder, so it generates no text")
    if kind == "classifier":
        return classes(model, prompt)
    if kind in ("encoder", "routing_lm"):
        return filled(model, prompt)
    return target(model, prompt, length, sampling)


def continues_text(model: Any) -> bool:
    """Whether the model predicts the next token of one row."""
    kind = model.flags["model"]
    return kind in ("decoder", "prefix_decoder") or (kind == "routing_lm" and model.net.attn_layers.causal)


def target(model: Any, prompt: str, length: int | None, sampling: Mapping[str, Any]) -> str:
    """The target of a source, by an encoder-decoder."""
    import torch

    routing = model.flags["model"] == "routing_encdec"
    encoder, decoder = (model.enc, model.dec.net) if routing else (model.encoder, model.decoder.net)
    source = read_ids(prompt, encoder.num_tokens - 1)
    start = BYTES if decoder.num_tokens > BYTES else decoder.num_tokens - 1
    count = decoder.max_seq_len if length is None else length
    new = model.generate(torch.tensor([source]), torch.tensor([[start]]), count, **sampling)
    return written(new[0].tolist(), decoder.num_tokens)


def filled(model: Any, prompt: str) -> str:
    """The prompt with the most likely token in place of each `[MASK]`, by an encoder."""
    import torch

    count = model.num_tokens - 1
    if MASK not in prompt:
        raise ValueError(f"`--prompt` must hold {MASK} where the encoder predicts a token, but is {prompt!r}")
    ids: list[int] = []
    for number, part in enumerate(prompt.split(MASK)):
        ids += [count] * (number > 0) + (read_ids(part, count) if part.strip() or count >= BYTES else [])
    with torch.no_grad():
        found = model.eval()(torch.tensor([ids]))
    logits = (found[0] if isinstance(found, tuple) else found)[0, :, :count]
    best = logits.argmax(-1).tolist()
    return written([best[i] if one == count else one for i, one in enumerate(ids)], count)


def classes(model: Any, prompt: str) -> str:
    """The probability of each class of a row, by a classifier; one line each."""
    import torch

    with torch.no_grad():
        shares = model.eval()(torch.tensor([read_ids(prompt, model.num_tokens)])).softmax(-1)[0].tolist()
    return "\n".join(f"class {number}: {share:.4f}" for number, share in enumerate(shares))


def read_ids(prompt: str, count: int) -> list[int]:
    """The bytes of a text, or for a task the numbers of its tokens, below `count`."""
    if count >= BYTES:
        ids = list(prompt.encode(errors="surrogateescape"))
    else:
        words = prompt.split()
        wrong = [word for word in words if not (word.isdecimal() and int(word) < count)]
        if wrong or not words:
            found = f"holds {wrong[0]!r}" if wrong else "is empty"
            text = "must be ids of the task's tokens with spaces between them, numbers from 0 to"
            raise ValueError(f"`--prompt` {text} {count - 1}, but {found}")
        ids = [int(word) for word in words]
    return ids


def written(ids: list[int], count: int) -> str:
    """Bytes as text, and sentinels after the start token as `<1>`; ids of a task as numbers."""
    if count < BYTES:
        return " ".join(map(str, ids))
    parts: list[bytes] = []
    for token in ids:
        sentinel = f"<{token - BYTES}>".encode() if token > BYTES else b""
        parts.append(bytes([token]) if token < BYTES else sentinel)
    return b"".join(parts).decode(errors="replace")
