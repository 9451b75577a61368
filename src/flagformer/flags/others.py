"""Recognises files and directories of other libraries, and run records of this one, by keys and names.

Every command and `load` use it, so that their messages name the file and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flagformer.flags.foreign import FLAG_OF

SIZES = ("num_tokens", "max_seq_len", "dim", "depth", "heads", "attn_kv_heads")
LARGEST_CONFIG = 1 << 20  # largest JSON file to read, in bytes
DEEPEST = 3  # levels of keys to compare
BY_HAND = "write its settings as flags under `base`, and as `data` and `train`"
TO_AUDIT = "load it with `transformers`; `flagformer.audit(model)` checks it as it is"


class Other(NamedTuple):
    """A recognised file or directory.

    Attributes:
        what: its name, with an article.
        advice: how to use it.
    """

    what: str
    advice: str


class _Marks(NamedTuple):
    """`what` has at least `least` of these keys; `a.b` is the key `b` in `a`."""

    what: str
    least: int
    keys: str
    advice: str = BY_HAND


# Model configurations: one of these keys, and at least three together with the names of sizes.
MODELS = (
    _Marks(
        "the `config.json` of a Hugging Face model",
        1,
        "model_type architectures transformers_version _name_or_path torch_dtype auto_map",
    ),
    _Marks("a configuration of litgpt", 1, "hf_config padded_vocab_size norm_class_name rotary_percentage"),
    _Marks("a configuration of GPT-2", 1, "n_embd n_ctx n_positions"),
)
RECORD = "pass its directory"
# The first match is used.
FILES = (
    _Marks("the `flags.json` of a saved model", 3, "schema saved flags", RECORD),
    _Marks("the `trial.json` of a training run", 4, "id flags copy_number train evaluate", RECORD),
    _Marks("the `result.json` of a training run", 3, "status evaluation cost metric", RECORD),
    _Marks("the `results.json` of a study", 3, "schema rows baseline measured", RECORD),
    _Marks(
        "a sweep of Weights & Biases",
        2,
        "method parameters program early_terminate run_cap metric.name metric.goal",
        "list what it varies under `grid`, or under `tune` what is tuned for each variant",
    ),
    _Marks(
        "a configuration of Hydra",
        1,
        "hydra _target_ defaults[]",
        f"compose it first (`--cfg job --resolve`), then {BY_HAND}",
    ),
    _Marks(
        "a configuration of litgpt",
        3,
        "checkpoint_dir out_dir model_name model_config tokenizer_dir initial_checkpoint_dir logger_name "
        "num_nodes lora_r lora_alpha quantize train.global_batch_size train.micro_batch_size "
        "train.save_interval eval.interval eval.max_new_tokens",
    ),
    _Marks(
        "a configuration of Lightning's command line",
        2,
        "seed_everything ckpt_path trainer.max_epochs trainer.max_steps trainer.accelerator trainer.devices "
        "trainer.callbacks trainer.logger trainer.precision trainer.strategy model.class_path "
        "model.init_args data.class_path data.init_args optimizer.class_path fit.trainer fit.model",
    ),
    _Marks("the `adapter_config.json` of PEFT", 1, "peft_type base_model_name_or_path", TO_AUDIT),
    _Marks("the index of a Hugging Face model's weights", 1, "weight_map", TO_AUDIT),
    _Marks(
        "a `tokenizer.json` or `tokenizer_config.json`",
        2,
        "added_tokens pre_tokenizer post_processor tokenizer_class added_tokens_decoder model_max_length",
        "pass it as `tokenizer` in `data: {source: tokens}`",
    ),
    _Marks("a `generation_config.json`", 2, "transformers_version _from_model_config eos_token_id", TO_AUDIT),
    _Marks("a configuration of DeepSpeed", 1, "zero_optimization train_micro_batch_size_per_gpu"),
    _Marks(
        "a configuration of accelerate",
        3,
        "compute_environment distributed_type mixed_precision num_machines machine_rank",
    ),
    _Marks("a configuration of Axolotl", 3, "base_model datasets sequence_len micro_batch_size adapter"),
    _Marks(
        "a file of Hugging Face training arguments",
        3,
        "output_dir model_name_or_path dataset_name per_device_train_batch_size per_device_eval_batch_size "
        "gradient_accumulation_steps num_train_epochs lr_scheduler_type warmup_ratio save_steps "
        "logging_steps do_train do_eval",
    ),
)
OURS = {"base", "compare", "grid", "seeds"}  # keys of study and training files


def recognise(settings: Mapping[str, Any]) -> Other | None:
    """Recognise a configuration of another library or a record of this one; None for all others."""
    if OURS & set(settings):
        return None
    keys = set(_keys(settings))
    for what, least, marks, _ in MODELS:
        if len(keys & set(marks.split())) >= least and len(keys & {*FLAG_OF, *marks.split()}) > 2:
            return Other(what, _sizes(settings))
    for what, least, marks, advice in FILES:
        if len(keys & set(marks.split())) >= least:
            return Other(what, advice)
    return None


def recognise_directory(path: Path) -> Other | None:
    """Recognise a directory of another library or a run directory of this one; None for all others."""
    if (path / "study.yaml").is_file():
        return Other("the run directory of a study", f"pass its file, {path / 'study.yaml'}")
    if (path / "trial.json").is_file():
        return Other("the run directory of a training run", "pass the YAML file of the run")
    if (path / "flags.json").is_file():
        return Other("the directory of a saved model", "use `flagformer audit` or `flagformer.load`")
    if (path / "snapshots").is_dir() and (path / "blobs").is_dir():
        return Other("a model in the cache of Hugging Face", TO_AUDIT)
    for name, what in (
        ("adapter_config.json", "an adapter of PEFT"),
        ("config.json", "a Hugging Face model"),
    ):
        config = _read(path / name)
        found = recognise(config) if config is not None else None
        if found is not None:
            kind = config.get("model_type") if config else None
            return Other(f"{what} ({kind})" if isinstance(kind, str) and len(kind) < 40 else what, TO_AUDIT)
    for name, what in (
        ("lit_model.pth", "a checkpoint of litgpt"),
        ("lit_config.json", "a checkpoint of litgpt"),
        ("model_config.yaml", "a checkpoint of litgpt"),
        ("lightning_logs", "a run of Lightning"),
        ("hparams.yaml", "a run of Lightning"),
        ("model_index.json", "a pipeline of diffusers"),
    ):
        if (path / name).exists():
            return Other(what, "its weights cannot be loaded; build a model with the same flags")
    return None


def _keys(settings: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[str]:
    """Yield the keys of the first levels: `a`, `a.b`; `a[]` for a list; `_target_` at every level."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        yield name
        if key == "_target_":
            yield "_target_"
        if isinstance(value, list):
            yield f"{name}[]"
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _keys(value, f"{name}.", depth + 1)


def _sizes(settings: Mapping[str, Any]) -> str:
    found = {FLAG_OF[name]: value for name, value in settings.items() if FLAG_OF.get(name) in SIZES}
    ours = ", ".join(f"{name}: {found[name]!r}" for name in SIZES if name in found)
    sizes = f"its sizes are {{{ours}}} in flags of this library; " if ours else ""
    advice = "or load a directory of `save_pretrained` by `flagformer.load`"
    return f"{sizes}build a model with the flags of `docs/flags.md`, {advice}"


def _read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of moderate size; None for all other files."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_CONFIG:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
