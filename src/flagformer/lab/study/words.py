"""Suggestions for unknown keys of a study or training file, by meaning, spelling or block."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

import flagformer  # noqa: F401  # which fills the catalogue of flags
from flagformer.flags import CATALOGUE
from flagformer.flags.errors import closest
from flagformer.flags.foreign import FLAG_OF
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives.catalogue import ObjectiveConfig
from flagformer.lab.study.design import MatchConfig
from flagformer.lab.train.config import EvaluateConfig, TrainConfig

MOST_LISTED = 16
# Names of a key in other programs, block by block; the block `` is the top level of a file.
MEANINGS: dict[str, dict[str, str]] = {
    "": {
        "base": "model flags config model_config architecture hparams",
        "data": "dataset datasets corpus task",
        "objective": "loss loss_fn task_type pretraining",
        "train": "training trainer optim optimizer train_config training_args",
        "compare": "variants models compares ablation ablations experiments configs",
        "grid": "sweep sweeps parameters",
        "factors": "factorial crossed factor",
        "hypothesis": "question description claim",
        "tune": "search tuning",
        "seeds": "n_seeds num_seeds random_seed random_seeds repeats n_runs",
        "seed": "random_seed manual_seed",
        "evaluate": "eval evaluation test validation",
        "concurrency": "parallel_trials jobs n_jobs workers num_workers max_concurrent",
        "threads": "num_threads n_threads",
        "memory": "mem ram memory_limit",
        "name": "study title project run_name experiment_name",
        "executor": "backend scheduler",
        "gpus": "n_gpus num_gpus",
        "retries": "max_retries restarts",
    },
    "train": {
        "steps": "max_steps num_steps n_steps iterations max_iters num_iterations total_steps train_steps",
        "batch_size": "batch bs train_batch_size global_batch_size",
        "accumulate": "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps "
        "accumulate_grad_batches",
        "lr": "learning_rate max_lr peak_lr base_lr",
        "warmup": "warmup_steps num_warmup_steps warmup_iters lr_warmup_steps",
        "decay": "lr_scheduler scheduler lr_scheduler_type schedule lr_schedule lr_decay",
        "lr_end": "min_lr lr_min final_lr eta_min end_lr",
        "weight_decay": "wd l2",
        "betas": "adam_betas",
        "clip": "grad_clip gradient_clip max_grad_norm gradient_clip_val grad_norm gradient_clipping",
        "precision": "dtype amp mixed_precision autocast",
        "matmul_precision": "float32_matmul_precision tf32 allow_tf32",
        "eval_every": "eval_interval eval_steps val_every validate_every val_check_interval",
        "checkpoint_every": "save_every save_steps save_interval checkpoint_interval",
        "segment": "segment_len segment_length segment_size chunk_size",
    },
    "data": {
        "source": "name type kind task dataset",
        "path": "file filename root data_dir data_path",
        "seq_len": "length sequence_length context_length max_length max_len block_size context_len",
        "field": "column text_column text_field",
        "symbols": "vocab vocab_size num_symbols n_symbols",
    },
    "objective": {
        "rate": "mask_prob mlm_probability noise_density masking_rate corruption_rate",
        "mean_length": "mean_noise_span_length mean_span_length span_length",
    },
    "evaluate": {
        "seq_lens": "lengths seq_len sequence_lengths eval_lengths",
        "batches": "eval_iters eval_batches num_batches n_batches",
        "split": "set subset",
    },
    "match": {
        "what": "on target quantity budget",
        "by": "knob using via",
        "within": "tolerance tol rtol eps",
    },
}
SYNONYMS = {
    block: {name: key for key, names in meanings.items() for name in names.split()}
    for block, meanings in MEANINGS.items()
}


def suggestion(block: str, name: str, known: Collection[str]) -> str:
    """Advice for the unknown key `name` of a block with the keys `known`; empty, or begins with `; `."""
    meant = SYNONYMS.get(block, {}).get(name)
    if meant in known:
        return f"; use `{meant}`"
    if advice := home(name, block):
        return f"; {advice}"
    if close := closest(name, known):
        return f"; did you mean `{close}`?"
    return f"; known here: {', '.join(sorted(known))}" if 0 < len(known) <= MOST_LISTED else ""


def home(name: str, block: str) -> str:
    """Advice on the block where a key that is typed in `block` belongs; empty if there is none."""
    flags = {*CATALOGUE.names(), "num_tokens", "max_seq_len", "model"}
    if block != "base" and name in flags:
        return "it is a flag of the model: write it under `base`, or in a variant of `compare`"
    for other, keys in _keys().items():
        if other != block and name in keys:
            return f"it is a setting of `{other}`: write `{other}: {{{name}: ...}}`"
    if block != "base" and FLAG_OF.get(name) in flags:
        return f"the flag of the model is called `{FLAG_OF[name]}`: write it under `base`"
    return ""


@cache
def _keys() -> dict[str, frozenset[str]]:
    """The keys of each block; for `data` those of all sources."""
    return {
        "train": frozenset(TrainConfig.model_fields),
        "data": frozenset(key for kind in models_of(DataConfig) for key in kind.model_fields),
        "objective": frozenset(key for kind in models_of(ObjectiveConfig) for key in kind.model_fields)
        - {"name"},
        "evaluate": frozenset(EvaluateConfig.model_fields),
        "match": frozenset(MatchConfig.model_fields),
    }


def models_of(kind: Any) -> list[type[BaseModel]]:
    """The member models of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for part in get_args(kind) for model in models_of(part)]
