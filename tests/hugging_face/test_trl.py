"""TRL's SFTTrainer trains models of flags as a plain loop does: the same losses, and the same weights."""

import copy

import pytest
import torch
import torch.nn.functional as F

import flagformer

REASON = "TRL is not installed: `make integrations` installs it"
trl = pytest.importorskip("trl", reason=REASON)
peft = pytest.importorskip("peft", reason=REASON)

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from flagformer.interop.hugging_face import FlagformerForCausalLM  # noqa: E402

V, LENGTH, STEPS, RATE = 17, 12, 20, 0.3
SIZES = {"num_tokens": V, "max_seq_len": 32, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
FLAGS = {
    "rotary": {"rotary_pos_emb": True, "logits_softcap": 5.0},
    "tied": {"alibi_pos_bias": True, "tie_embedding": True, "logits_bias": True},
    "hybrid": {"mixer": "gated_deltanet : attention"},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def tokenizer():
    words = {word: index for index, word in enumerate(["<pad>", "</s>", *"abcdefghijklmno"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def rows():
    """40 documents of 3 to 12 ids."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, LENGTH + 1, (2 * STEPS,), generator=generator).tolist()
    return [torch.randint(2, V, (length,), generator=generator).tolist() for length in lengths]


def trainer_of(name, directory, packing, checkpointing, peft_config=None):
    torch.manual_seed(0)
    model = FlagformerForCausalLM.of(flagformer.build({**SIZES, **FLAGS[name]}))
    arguments = trl.SFTConfig(
        output_dir=str(directory), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=RATE,
        optim="sgd", lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, bf16=False, disable_tqdm=True, train_sampling_strategy="sequential",
        max_length=LENGTH, packing=packing, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"input_ids": rows()})
    return trl.SFTTrainer(
        model, arguments, train_dataset=data, processing_class=tokenizer(), peft_config=peft_config
    )


def batches(trainer):
    """The documents of each batch, of two rows, which hold one document or several."""
    data = list(trainer.train_dataset)
    for step in range(STEPS):
        found = []
        for index in (2 * step, 2 * step + 1):
            row = data[index % len(data)]
            found += torch.tensor(row["input_ids"]).split(row.get("seq_lengths", [len(row["input_ids"])]))
        yield found


def plain_losses(model, trainer):
    """The losses of a plain loop, which reads each document by itself."""
    net = model.get_base_model().model if isinstance(model, peft.PeftModel) else model.model
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer, found = torch.optim.SGD(trained, lr=RATE), []
    model.train()
    for documents in batches(trainer):
        count = sum(len(one) - 1 for one in documents)
        loss = sum(
            F.cross_entropy(net(one[None])[0, :-1], one[1:], reduction="sum")
            for one in documents
            if len(one) > 1
        )
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item() / count)
    return found


def compare(trainer):
    plain = copy.deepcopy(trainer.model)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    want = plain_losses(plain, trainer)
    assert losses == pytest.approx(want, abs=2e-4)  # logged with four digits
    assert min(want) < want[0] - 0.02
    mine, theirs = (
        {key: value for key, value in model.named_parameters() if value.requires_grad}
        for model in (trainer.model, plain)
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "packing", "checkpointing"),
    [("rotary", False, True), ("tied", True, False), ("hybrid", True, True)],
)
def test_sft_equals_a_plain_loop(name, packing, checkpointing, tmp_path):
    trainer = trainer_of(name, tmp_path, packing, checkpointing)
    compare(trainer)
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["rotary", "tied"])
@torch.no_grad()
def test_sft_of_adapters_equals_a_plain_loop(name, tmp_path):
    """LoRA with packing and gradient checkpointing; the adapter is saved, loaded and merged."""
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.enable_grad():
        trainer = trainer_of(name, tmp_path, True, True, config)
        compare(trainer)
    trainer.save_model(tmp_path / "adapter")
    torch.manual_seed(0)
    base = FlagformerForCausalLM.of(flagformer.build({**SIZES, **FLAGS[name]}))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor(rows()[0])[None]
    want = trainer.model.eval()(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, want, rtol=0, atol=1e-6)
    torch.testing.assert_close(loaded.merge_and_unload()(ids).logits, want, rtol=0, atol=1e-5)
