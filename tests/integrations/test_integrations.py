"""PEFT, accelerate, Lightning and the Trainer of transformers train every kind of model, save and load it."""

import copy
import re
from pathlib import Path

import pytest
import torch
from integration_models import MODELS, TEXT, Learner, batch, loss_of, pair, same_weights
from torch import nn

import flagformer
from flagformer.attention.cores.kmeans import KMeans

STEPS, RATE = 20, 3e-3
PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"


def of(package):
    return pytest.importorskip(
        package, reason=f"{package} is not installed: pip install flagformer[trainers]"
    )


def linears(model):
    """Names of every linear, as PEFT expects them."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


@pytest.fixture(params=MODELS)
def learner(request):
    learner = Learner(request.param)
    for part in learner.modules():
        if isinstance(part, KMeans):
            part.first = part.means.clone()
    return learner


def assert_learned(learner, before):
    """The loss after one step on the batch; the step also moved the centroids."""
    assert loss_of(learner) < before - 0.05
    for part in learner.modules():
        if isinstance(part, KMeans):
            assert not torch.equal(part.means, part.first)


@pytest.mark.parametrize("by", ["all-linear", "names"])
def test_peft(learner, tmp_path, by):
    """Low-rank adapters on every linear train, merge into the same function and load from a file."""
    peft = of("peft")
    kind, base = learner.kind, copy.deepcopy(learner.model)
    targets = linears(learner.model)
    chosen = targets if by == "names" else by
    model = peft.get_peft_model(learner.model, peft.LoraConfig(r=4, target_modules=chosen))
    learner, before = Learner(kind, model), loss_of(learner)
    trained = [p for p in learner.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(targets)
    optimizer = torch.optim.AdamW(trained, lr=10 * RATE)
    learner.train()
    for _ in range(STEPS):
        learner(batch())["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        flagformer.update_kmeans(learner)
    assert_learned(learner, before)
    want = loss_of(learner)
    model.save_pretrained(tmp_path)
    for part, own in zip(base.buffers(), model.get_base_model().buffers()):
        part.copy_(own)  # centroids, which no adapter wraps
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(loss_of(Learner(kind, loaded)), want, rtol=0, atol=1e-6)
    merged = model.merge_and_unload()
    assert linears(merged) == targets
    torch.testing.assert_close(loss_of(Learner(kind, merged)), want, rtol=0, atol=1e-5)


TIED = {
    "decoder": ({"model": "decoder", **TEXT, "tie_embedding": True}, MODELS["decoder"][1]),
    "xtransformer": (
        {"model": "xtransformer", **pair(TEXT), "tie_token_emb": True, "dec_tie_embedding": True},
        MODELS["xtransformer"][1],
    ),
}
ADAPTERS = {
    "low rank": {"target_modules": ["token_emb"]},
    "low rank and direction": {"target_modules": ["token_emb"], "use_dora": True},
    "tokens": {"target_modules": "all-linear", "trainable_token_indices": {"token_emb": [1, 2, 5]}},
    "a copy": {"target_modules": "all-linear", "modules_to_save": ["token_emb"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", TIED)
def test_peft_of_a_tied_embedding(kind, adapter, tmp_path):
    """Embedding and head both use its adapter, which merges into one table."""
    peft = of("peft")
    flags, loss_of_batch = TIED[kind]
    torch.manual_seed(0)
    base = flagformer.build(flags).eval()
    plain = copy.deepcopy(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, **ADAPTERS[adapter]))
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "token_emb" in name]
    before = loss_of_batch(model, batch())
    optimizer = torch.optim.AdamW(trained, lr=10 * RATE)
    for _ in range(5):
        loss_of_batch(model, batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    want = loss_of_batch(model, batch())
    assert want < before - 0.05
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(loss_of_batch(loaded, batch()), want, rtol=0, atol=1e-6)
    merged = model.merge_and_unload()
    merged.save(tmp_path / "merged")
    merged = flagformer.load(tmp_path / "merged").eval()
    torch.testing.assert_close(loss_of_batch(merged, batch()), want, rtol=0, atol=1e-5)


def test_accelerate(learner, tmp_path):
    accelerator = of("accelerate").Accelerator(cpu=True)
    before = loss_of(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=RATE)
    model, optimizer = accelerator.prepare(learner, optimizer)
    model.train()
    for _ in range(STEPS):
        accelerator.backward(model(batch())["loss"])
        optimizer.step()
        optimizer.zero_grad()
        flagformer.update_kmeans(model)
    assert_learned(learner, before)
    accelerator.save_state(tmp_path)
    trained = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.zero_()
    accelerator.load_state(tmp_path)
    same_weights(learner, trained)
    accelerator.free_memory()


def test_lightning(learner, tmp_path):
    lightning = of("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.learner = learner

        def training_step(self, ids):
            return self.learner(ids)["loss"]

        def on_train_batch_end(self, *_):
            flagformer.update_kmeans(self)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    before = loss_of(learner)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet
    )
    trainer.fit(Module(), torch.utils.data.DataLoader([batch()] * STEPS, batch_size=None))
    assert_learned(learner, before)
    trained = copy.deepcopy(learner)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.zero_()
    Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    same_weights(learner, trained)


def test_trainer(learner, tmp_path):
    transformers = of("transformers")
    of("accelerate")

    class Centroids(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            flagformer.update_kmeans(model)

    before = loss_of(learner)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=2, learning_rate=RATE,
        lr_scheduler_type="constant", save_steps=STEPS, report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_num_workers=0,
    )  # fmt: skip
    rows = [{"input_ids": row} for row in batch()] * STEPS
    trainer = transformers.Trainer(model=learner, args=arguments, train_dataset=rows, callbacks=[Centroids()])
    trainer.train()
    assert_learned(learner, before)
    from safetensors.torch import load_model

    again = Learner(learner.kind)
    load_model(again, str(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors"))
    same_weights(again, learner)


def test_the_page_runs(tmp_path, monkeypatch):
    for package in ("peft", "accelerate", "lightning", "transformers"):
        of(package)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    saved = flagformer.load("trained")
    same_weights(saved, names["learner"].learner.net)
