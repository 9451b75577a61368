"""Models of any flags as a `PreTrainedModel`: saved, loaded, decoded and trained as by the library."""

import copy
import json
import sys

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer.flags import allowed_modules

REASON = "transformers is not installed: pip install 'flagformer[hf]'"
transformers = pytest.importorskip("transformers", reason=REASON)

from published_models import gap, logits, theirs_of  # noqa: E402
from published_models import ids_of as published_ids  # noqa: E402

from flagformer.interop.hugging_face import FlagformerConfig, FlagformerForCausalLM  # noqa: E402

V, LENGTH, PAD = 17, 12, 0
SIZES = {"num_tokens": V, "max_seq_len": 32, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
EXPERTS = {"ff_moe": True, "moe_num_experts": 3, "moe_top_k": 2, "moe_balance_bias": True}
FLAGS = {
    "rotary": {"rotary_pos_emb": True, "attn_kv_heads": 1, "use_rmsnorm": True},
    "tied": {"alibi_pos_bias": True, "tie_embedding": True, "logits_bias": True},
    "absolute": {},
    "relative": {"rel_pos_bias": True, "shift_tokens": 1},
    "hybrid": {"mixer": "gated_deltanet : attention"},
    "experts": {"rotary_pos_emb": True, **EXPERTS},
    "memory tokens": {"rotary_pos_emb": True, "num_memory_tokens": 2},
    "k-means": {"rotary_pos_emb": True, "num_clusters": 2, "window_size": 8},
}


def built(name, **more):
    torch.manual_seed(0)
    model = flagformer.build({**SIZES, **FLAGS[name], **more}).eval()
    for parameter in model.parameters():  # logits that differ clearly
        parameter.data.mul_(1.5)
    return model


def ids_of(rows=3, length=LENGTH, seed=1):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded():
    """Left-padded ids [3, 12] and their attention mask."""
    ids, mask = ids_of(), torch.ones(3, LENGTH, dtype=torch.long)
    for row, padding in enumerate((0, 3, 7)):
        ids[row, :padding], mask[row, :padding] = PAD, 0
    return ids, mask


def assert_same(model, other):
    """Bit-equal tensors; logits may round otherwise, as files are not aligned in memory."""
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model(ids_of()), other(ids_of()), rtol=0, atol=1e-5)


@pytest.fixture(params=FLAGS)
def pair(request):
    model = built(request.param)
    return model, FlagformerForCausalLM.of(model)


@torch.no_grad()
def test_save_and_load(pair, tmp_path):
    """Bit-equal weights, by the class, by `AutoModelForCausalLM`, and by the library without transformers."""
    model, theirs = pair
    theirs.save_pretrained(tmp_path)
    assert torch.equal(theirs(ids_of()).logits, model(ids_of()))
    again, report = FlagformerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(auto) is FlagformerForCausalLM
    assert not auto.training
    for loaded in (again.model, auto.model, flagformer.load(tmp_path).eval()):
        assert_same(loaded, model)
        assert loaded.flags == model.flags
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_hidden_layers"], config["vocab_size"], config["hidden_size"]) == (2, V, 16)


@torch.no_grad()
def test_half_precision(tmp_path):
    """bf16 weights with fp32 constants and buffers, as `model.bfloat16()`."""
    for name in ("rotary", "k-means"):
        model = built(name)
        FlagformerForCausalLM.of(model).save_pretrained(tmp_path / name)
        loaded = FlagformerForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        half = model.bfloat16()
        torch.testing.assert_close(loaded.model.state_dict(), half.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(loaded(ids_of()).logits, half(ids_of()), rtol=0, atol=0.05)


def greedy(model, ids, mask, count):
    """The library's own greedy text after left-padded rows."""
    prompts = [row[valid.bool()] for row, valid in zip(ids, mask)]
    return flagformer.AutoregressiveWrapper(model).generate(prompts, count, temperature=0)


def test_generate_is_the_librarys_greedy_text(pair):
    model, theirs = pair
    ids, mask = padded()
    want = greedy(model, ids, mask, 10)
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": PAD}
    for cached in (True, False):
        new = theirs.generate(ids, attention_mask=mask, use_cache=cached, **options)[:, LENGTH:]
        assert torch.equal(new, want), cached
    alone = theirs.generate(ids[:1], **options)[:, LENGTH:]
    assert torch.equal(alone, want[:1])


def test_sampling_and_beams_are_equal_with_and_without_a_cache(pair):
    ids, mask = padded()
    for options in (
        {"do_sample": True, "top_k": 5},
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
    ):
        found = []
        for cached in (True, False):
            torch.manual_seed(3)
            arguments = {"max_new_tokens": 6, "pad_token_id": PAD, "use_cache": cached, **options}
            found.append(pair[1].generate(ids, attention_mask=mask, **arguments))
        assert torch.equal(*found), options


@torch.no_grad()
def test_a_cache_grows_and_continues(pair):
    """Blocks of any length, more tokens than the first capacity, and a copy that is continued by itself."""
    _, theirs = pair
    if theirs.model.absolute_positions:
        return
    ids = ids_of(2, 150)
    want = theirs(ids).logits
    first = theirs(ids[:, :50], use_cache=True)
    copied = copy.deepcopy(first.cache)
    rest = [theirs(ids[:, start : start + 50], cache=first.cache).logits for start in (50, 100)]
    torch.testing.assert_close(torch.cat([first.logits, *rest], 1), want, rtol=0, atol=1e-4)
    assert first.cache.get_seq_length() == 150
    again = theirs(ids[:, 50:60], cache=copied, logits_to_keep=1).logits
    torch.testing.assert_close(again[:, 0], want[:, 59], rtol=0, atol=1e-4)


@torch.no_grad()
def test_rows_of_a_cache_are_selected_and_cropped():
    theirs, ids = FlagformerForCausalLM.of(built("rotary")), ids_of(2)
    want = theirs(ids[[1, 1, 0]]).logits[:, 8:]
    cache = theirs(ids, use_cache=True).cache
    cache.crop(-4)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2, 3, 0]))
    torch.testing.assert_close(theirs(ids[[1, 1, 0], 8:], cache=cache).logits, want, rtol=0, atol=1e-5)
    assert cache.batch_size == 3


@torch.no_grad()
def test_prompt_lookup_gives_the_greedy_text():
    theirs, ids = FlagformerForCausalLM.of(built("rotary")), ids_of(1)
    want = theirs.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(
        theirs.generate(ids, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=3), want
    )


@torch.no_grad()
def test_padding_on_either_side_changes_nothing():
    theirs, ids = FlagformerForCausalLM.of(built("rotary")), ids_of(1)
    want = theirs(ids).logits
    pad = torch.zeros(1, 4, dtype=torch.long)
    for order in ((pad, ids), (ids, pad)):
        row, mask = (
            torch.cat(order, 1),
            torch.cat([torch.ones_like(part) * (part is ids) for part in order], 1),
        )
        found = theirs(row, attention_mask=mask).logits[mask.bool()]
        torch.testing.assert_close(found, want[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = built("rotary")
    outputs = FlagformerForCausalLM.of(model)(ids_of(), output_hidden_states=True, output_attentions=True)
    assert torch.equal(outputs.hidden_states[-1], model(ids_of(), return_embeddings=True))
    assert len(outputs.hidden_states) == len(model.attn_layers.steps) + 1
    want = model(ids_of(), return_attn=True)[1]
    assert all(map(torch.equal, outputs.attentions, want))


def test_the_loss_is_that_of_the_library(pair):
    """Cross entropy and, in training, auxiliary losses; `num_items_in_batch` weights parts of a batch."""
    model, theirs = pair
    want = flagformer.AutoregressiveWrapper(model)(ids_of())
    torch.testing.assert_close(theirs(ids_of(), labels=ids_of()).loss, want)
    logits, outputs = model.train()(ids_of(), return_losses=True)
    want = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids_of()[:, 1:].flatten())
    want = want if outputs.extra_loss is None else want + outputs.extra_loss
    torch.testing.assert_close(theirs.train()(ids_of(), labels=ids_of()).loss, want)
    theirs.eval()
    ids = ids_of(4)
    whole = theirs(ids, labels=ids).loss
    parts = [
        theirs(part, labels=part, num_items_in_batch=4 * (LENGTH - 1)).loss for part in ids.split((1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", ["rotary", "tied", "absolute"])
def test_resize_token_embeddings(name, tmp_path):
    model = built(name)
    theirs = FlagformerForCausalLM.of(model)
    want = model(ids_of()).detach()
    theirs.resize_token_embeddings(V + 5, mean_resizing=False)
    assert theirs.config.vocab_size == model.num_tokens == model.flags["num_tokens"] == V + 5
    got = theirs(ids_of()).logits
    assert got.shape[-1] == V + 5
    torch.testing.assert_close(got[..., :V], want, rtol=0, atol=1e-5)
    theirs(torch.full((1, 3), V + 4))
    theirs.save_pretrained(tmp_path)
    again = FlagformerForCausalLM.from_pretrained(tmp_path)
    assert_same(again.model, model)
    theirs.resize_token_embeddings(pad_to_multiple_of=8)
    assert theirs.get_input_embeddings().weight.shape[0] == 24


def test_gradient_checkpointing(pair):
    """Equal losses and gradients; refused where a sublayer cannot be recomputed."""
    _, theirs = pair
    theirs.train()
    found = []
    for enable in (theirs.activation_checkpointing_disable, theirs.activation_checkpointing_enable):
        enable()
        theirs.zero_grad()
        theirs(ids_of(), labels=ids_of()).loss.backward()
        found.append(
            {key: one.grad.clone() for key, one in theirs.named_parameters() if one.grad is not None}
        )
    assert theirs.is_activation_checkpointing
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)
    passing = FlagformerForCausalLM.of(built("rotary", residual_attn=True))
    with pytest.raises(flagformer.FlagError, match=r"`checkpoint` and `residual_attn` cannot be combined"):
        passing.activation_checkpointing_enable()


def batches(steps):
    return [ids_of(2, seed=step) for step in range(steps)]


def plain_losses(model, steps, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    found = []
    for ids in batches(steps):
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_trainer_equals_a_plain_loop(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    model = built("rotary").train()
    want = plain_losses(copy.deepcopy(model), 5, 1e-2)
    theirs = FlagformerForCausalLM.of(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=2, learning_rate=1e-2,
        logging_steps=1, lr_scheduler_type="constant", save_steps=5, report_to=[], use_cpu=True,
        disable_tqdm=True, train_sampling_strategy="sequential",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for ids in batches(5) for row in ids]
    trainer = transformers.Trainer(model=theirs, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(want, abs=2e-4)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-5")
    assert_same(again.model, theirs.eval().model)


def test_the_trainer_resumes(tmp_path):
    """The weights after six steps are those of three steps, and three more from the checkpoint."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    found = []
    for resumed in (False, True):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2,
            save_steps=3, report_to=[], use_cpu=True, disable_tqdm=True, gradient_accumulation_steps=2,
        )  # fmt: skip
        theirs = FlagformerForCausalLM.of(built("hybrid"))
        rows = [{"input_ids": row, "labels": row} for ids in batches(12) for row in ids]
        trainer = transformers.Trainer(model=theirs, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resumed else None)
        found.append(theirs.state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_peft_adapters_train_and_merge():
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    for name in ("rotary", "tied"):
        theirs = FlagformerForCausalLM.of(built(name))
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(theirs, config)
        adapted.base_model.model.activation_checkpointing_enable()
        trained = [one for one in adapted.parameters() if one.requires_grad]
        optimizer, ids = torch.optim.AdamW(trained, lr=3e-2), ids_of()
        losses = []
        for _ in range(5):
            loss = adapted(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.05
        adapted.eval()
        text = adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
        with torch.no_grad():
            want = adapted(input_ids=ids).logits
            merged = adapted.merge_and_unload()
            torch.testing.assert_close(merged(ids).logits, want, rtol=0, atol=1e-4)
        assert type(merged) is FlagformerForCausalLM
        assert torch.equal(merged.generate(ids, max_new_tokens=5, do_sample=False), text)


@pytest.mark.parametrize("name", ["Llama 3.2", "Falcon 7B", "LFM2"])
@torch.no_grad()
def test_a_published_model_is_wrapped(name, tmp_path):
    """Through flags and back into transformers: equal logits, and equal greedy text of padded rows."""
    published = theirs_of(name)
    published.save_pretrained(tmp_path / "published")
    FlagformerForCausalLM.of(flagformer.load(tmp_path / "published")).save_pretrained(tmp_path / "wrapped")
    wrapped = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wrapped")
    ids, mask = published_ids(), torch.ones(2, 24, dtype=torch.long)
    assert gap(wrapped(ids).logits, logits(published, ids)) < 1e-4
    mask[1, :5] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    texts = [one.generate(ids * mask, attention_mask=mask, **options) for one in (wrapped, published)]
    assert torch.equal(*texts)


def test_a_new_model_has_the_weights_of_build():
    torch.manual_seed(0)
    want = flagformer.build({**SIZES, **FLAGS["rotary"]})
    torch.manual_seed(0)
    theirs = FlagformerForCausalLM(FlagformerConfig(flags={**SIZES, **FLAGS["rotary"]}))
    torch.testing.assert_close(theirs.model.state_dict(), want.state_dict(), rtol=0, atol=0)


def test_classes_by_import_path_need_permission(tmp_path, monkeypatch):
    """A directory executes no module that the caller has not allowed."""
    lines = "import torch\n\nclass MyNorm(torch.nn.LayerNorm):\n    def __init__(self, dim):\n"
    (tmp_path / "pretrained_norms.py").write_text(lines + "        super().__init__(dim)\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = built("absolute", norm="pretrained_norms:MyNorm")
    FlagformerForCausalLM.of(model).save_pretrained(tmp_path / "saved")
    sys.modules.pop("pretrained_norms")
    auto = transformers.AutoModelForCausalLM
    for call in (auto.from_pretrained, lambda path: auto.from_config(FlagformerConfig.from_pretrained(path))):
        with pytest.raises(
            ValueError, match=r"`norm` is 'pretrained_norms:MyNorm', whose module is not allowed"
        ):
            call(tmp_path / "saved")
        assert "pretrained_norms" not in sys.modules
    with allowed_modules(["pretrained_norms"]):
        assert_same(auto.from_pretrained(tmp_path / "saved").model, model)


def test_errors(tmp_path):
    theirs, ids = FlagformerForCausalLM.of(built("rotary")), ids_of()
    refused = {
        r"`vocab_size` must be 17 by the flag `num_tokens`": lambda: FlagformerConfig(
            flags=SIZES, vocab_size=3
        ),
        r"`flags` must be plain values": lambda: FlagformerConfig(
            flags={**SIZES, "norm": torch.nn.LayerNorm}
        ),
        r"`config\.flags` must hold the flags": lambda: FlagformerForCausalLM(FlagformerConfig()),
        r"`model` must be causal": lambda: FlagformerForCausalLM.of(
            flagformer.build({**SIZES, "model": "encoder"})
        ),
        r"`input_ids` must be given": lambda: theirs(inputs_embeds=torch.zeros(1, 2, 16)),
        r"`cache` must be a FlagformerCache": lambda: theirs(ids, cache=transformers.DynamicCache()),
        r"`labels` and a cache": lambda: theirs(ids, labels=ids, use_cache=True),
        r"`attention_mask` must have shape \[3, 12\]": lambda: theirs(ids, attention_mask=torch.ones(3, 4)),
        r"padding at the left": lambda: theirs(ids, attention_mask=padded()[1].flip(1), use_cache=True),
        r"`every_n_layers` must be 1": lambda: theirs.activation_checkpointing_enable(every_n_layers=2),
    }
    for text, call in refused.items():
        with pytest.raises(ValueError, match=text):
            call()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flags": None}))
    with pytest.raises(ValueError, match=r"config `flags` must be an object, but is None"):
        flagformer.load(tmp_path)
