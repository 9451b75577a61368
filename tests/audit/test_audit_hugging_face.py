"""The audit of Hugging Face models: names of their caches, and effects of the length."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flagformer.audit import audit
from flagformer.audit.calls import keywords_of


def llama(longest: int = 40, **rope: Any) -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=17, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, **rope},
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def hugging_face(name: str) -> nn.Module:
    import transformers

    if name == "llama":
        return llama()
    if name == "bloom":
        config = transformers.BloomConfig(vocab_size=17, hidden_size=32, n_layer=2, n_head=4)
        return transformers.BloomForCausalLM(config)
    config = transformers.GPT2Config(
        vocab_size=17, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_a_hugging_face_model_passes_what_it_supports(name: str) -> None:
    report = audit(hugging_face(name))
    assert report.passed, str(report)
    assert {r.check for r in report if r.status == "not applicable"} == {"packing"}


class Renaming(nn.Module):
    """A GPT-2 with another name of the cache in its output, and any name in the signature of `forward`."""

    def __init__(self, returned: str, restarts: bool) -> None:
        super().__init__()
        self.net = hugging_face("gpt2")
        self.config, self.returned, self.restarts = self.net.config, returned, restarts
        (self.own,) = keywords_of(self.net) & {"cache", "past_key_values"}

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, use_cache: Any = None, **cache: Any
    ) -> Any:
        given = {self.own: next(iter(cache.values()), None)}
        if self.restarts:
            given["position_ids"] = torch.arange(input_ids.shape[1])[None]
        out = self.net(input_ids, attention_mask=attention_mask, use_cache=use_cache, **given)
        return SimpleNamespace(logits=out.logits, **{self.returned: getattr(out, self.own)})


def renaming(taken: str, returned: str, restarts: bool = False) -> nn.Module:
    """`taken`: the name in the signature; empty for none. `restarts`: positions of every block start at 0."""
    names = ["self", "input_ids", "attention_mask", "use_cache", *filter(None, [taken])]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind, default=None) for name in names])

    def forward(self: Renaming, *given: Any, **named: Any) -> Any:
        return Renaming.forward(self, *given, **named)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("Renamed", (Renaming,), {"forward": forward})(returned, restarts)


@pytest.mark.parametrize("longest", [-1, None])
def test_minus_one_and_none_mean_no_limit(longest: int | None) -> None:
    model = renaming("cache", "cache")
    model.config = SimpleNamespace(max_position_embeddings=longest, vocab_size=17, use_cache=True)
    report = audit(model, seq_len=40, checks=["length", "cache"])
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("longest", "rope"),
    [
        (40, {"rope_type": "dynamic", "factor": 2.0}),
        (4096, {"rope_type": "dynamic", "factor": 2.0}),
        (
            4096,
            {
                "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 1024,
                "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0],
            },
        ),
    ],
    ids=["dynamic-40", "dynamic-4096", "longrope"],
)  # fmt: skip
def test_frequencies_chosen_by_the_longest_position_are_found(longest: int, rope: dict[str, Any]) -> None:
    model = llama(longest, **rope).eval()
    ids = torch.arange(12)[None]
    before = model(ids).logits
    report = audit(model)
    assert {r.check for r in report.failures} == {"length", "cache"}, str(report)
    assert torch.equal(model(ids).logits, before)
    assert all(
        isinstance(m.max_seq_len_cached, int) for m in model.modules() if hasattr(m, "original_inv_freq")
    )


NAMES_OF_CACHES = [
    ("cache", "cache"), ("past_key_values", "past_key_values"), ("cache_params", "cache_params"),
    ("state", "state"), ("past_key_values", "cache"),
]  # fmt: skip


@pytest.mark.parametrize(("taken", "returned"), NAMES_OF_CACHES, ids=str)
def test_a_cache_of_any_name_is_checked(taken: str, returned: str) -> None:
    good = audit(renaming(taken, returned), checks=["cache"])
    assert good["cache"].passed, str(good)
    report = audit(renaming(taken, returned, restarts=True), checks=["cache", "future_leak"])
    assert [r.check for r in report.failures] == ["cache"], str(report)
    assert report["cache"].position == 1


def test_an_unchecked_cache_is_no_pass() -> None:
    report = audit(renaming("", "unheard_of"), checks=["cache", "future_leak"])
    assert not report.passed
    assert "could not run" in report["cache"].words
    model = renaming("", "unheard_of")
    model.config.use_cache = False
    assert audit(model, checks=["cache", "future_leak"]).passed
