"""Tiny models of bytes, with a tokenizer of transformers for the same bytes."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import flagformer

LENGTH, END = 32, 256
SIZES = {"max_seq_len": LENGTH, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
FLAGS = {
    "rotary": {"rotary_pos_emb": True},
    "absolute": {"tie_embedding": True},
    "hybrid": {"mixer": "gated_deltanet : attention"},
    "k-means": {"rotary_pos_emb": True, "num_clusters": 2, "window_size": 8},
    "memory tokens": {"rotary_pos_emb": True, "num_memory_tokens": 2},
}
CHOICES = [(f"{name} has", [" a tail", " wings", "\n"]) for name in ("The cat", "An owl", "Ein Bär", "It")]


def model_of(name, num_tokens=256):
    torch.manual_seed(0)
    model = flagformer.build({"num_tokens": num_tokens, **SIZES, **FLAGS[name]})
    for parameter in model.parameters():  # logits that differ clearly
        parameter.data.mul_(1.5)
    return model


def byte_tokenizer():
    """A tokenizer.json whose tokens are bytes, in an order of its own, and "</s>", 256."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>"])
    return inner


def write_tasks(folder, cache):
    """A multiple choice, a text and a generation, each with 5 examples."""
    choices = [
        {"question": question, "choices": answers, "label": 1} for question, answers in [*CHOICES, CHOICES[0]]
    ]
    texts = [{"text": "word " * count} for count in (2, 9, 3, 20, 1)]
    prompts = [{"text": prompt, "answer": "x"} for prompt in ("one", "two two two", "3", "vier", "five " * 4)]
    for name, rows in {"choices": choices, "texts": texts, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"data_files": {"test": str(folder / f"{name}.jsonl")}, "cache_dir": str(cache)}
        task = {"task": f"own_{name}", "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({**task, **TASKS[name]}))


TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "prompts": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}
