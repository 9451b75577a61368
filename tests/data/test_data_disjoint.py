"""Generated tasks: the new ones against their definitions in plain loops, and splits that share no row."""

from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from flagformer.lab.data import IGNORE
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.data.cfg_depth import CfgDepth
from flagformer.lab.data.generated import Generated
from flagformer.lab.data.grammar import Grammar
from flagformer.lab.data.infilling import HOLE, MIDDLE, Infilling
from flagformer.lab.data.multiplication import Multiplication
from flagformer.lab.data.sources import SingleSource

READER = TypeAdapter(DataConfig)
EMPTY: Any = "test"
# Settings under which few different rows exist, so that streams of random rows would repeat.
SMALL: dict[str, dict[str, Any]] = {
    "copy": {"symbols": 2, "seq_len": 16}, "reverse": {"symbols": 2, "seq_len": 16},
    "sort": {"symbols": 2, "seq_len": 16}, "addition": {"seq_len": 8}, "multiplication": {"seq_len": 9},
    "selective_copy": {"symbols": 2, "copies": 2, "seq_len": 8}, "parity": {"seq_len": 10},
    "associative_recall": {"pairs": 1, "asks": 1, "keys": 4, "values": 8, "seq_len": 10},
    "induction": {"symbols": 3, "seq_len": 6}, "list_ops": {"seq_len": 6},
    "compression": {"symbols": 2, "seq_len": 8},
    "fuzzy_recall": {"pairs": 1, "width": 1, "keys": 4, "values": 8, "seq_len": 8},
    "segment_recall": {"segment": 2, "stored": 2, "symbols": 3, "noise": 2, "seq_len": 6},
    "long_retrieval": {"keys": 3, "values": 5, "seq_len": 8}, "cfg_depth": {"depth": 2, "seq_len": 8},
    "grammar": {"nouns": 3, "adjectives": 3, "verbs": 2, "clauses": 1, "seq_len": 14},
    "infilling": {"middle": 2, "seq_len": 7},
}  # fmt: skip


def test_every_task_of_the_catalogue_is_here() -> None:
    tasks = [one for one in get_args(SingleSource) if issubclass(one, Generated) and one.form == "ids"]
    assert {get_args(one.model_fields["source"].annotation)[0] for one in tasks} <= set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_no_row_of_a_split_is_one_of_another(name: str) -> None:
    task = READER.validate_python({"source": name, **SMALL[name]})
    seen = {}
    for split in ("train", "validation", "test"):
        rows = [task.batch(split, step, 0, 32, task.seq_len)[0] for step in range(6)]
        seen[split] = set(map(tuple, torch.cat(rows).tolist()))
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]


def test_a_task_with_too_few_rows_is_refused() -> None:
    task = READER.validate_python({"source": "parity"})  # of four rows none is in this split
    with pytest.raises(ValueError, match="`seq_len` must be longer"):
        task.check(EMPTY, 2)


def number(digits: list[int]) -> int:
    return int("".join(map(str, digits)))


@pytest.mark.parametrize("seq_len", [5, 18, 40])
@pytest.mark.parametrize("reverse", [False, True])
def test_multiplication(seq_len: int, reverse: bool) -> None:
    task = Multiplication(source="multiplication", reverse=reverse)
    digits = (seq_len - 1) // 4
    sources, products = task.paired("train", 3, 1, 16, seq_len)
    assert (sources.shape[1], products.shape[1]) == task.pair_lengths(seq_len)
    for source, product in zip(sources.tolist(), products.tolist()):
        assert source[digits] == 10
        wanted = number(source[:digits]) * number(source[digits + 1 :])
        assert number(product[::-1] if reverse else product) == wanted
    inputs, targets = task.batch("train", 3, 1, 16, seq_len)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        first = 2 * digits + 1
        product = [one for one in wanted if one != IGNORE]
        assert row == (row[:first] + [11] + product[:-1] + [11] * seq_len)[:seq_len]
        found = number(row[:digits]) * number(row[digits + 1 : first])
        assert number(product[::-1] if reverse else product) == found


@pytest.mark.parametrize("seq_len", [10, 33])
def test_cfg_depth(seq_len: int) -> None:
    task = CfgDepth(source="cfg_depth", depth=4, kinds=2, letters=3)
    rows, classes = task.classified("test", 0, 0, 60, seq_len)
    assert set(classes[:, 0].tolist()) == {0, 1, 2, 3}
    for row, wanted in zip(rows.tolist(), classes[:, 0].tolist()):
        stack, deepest = [], 0
        assert row[-1] == task.num_tokens - 1
        for token in row[:-1]:
            if 7 <= token < 9:
                stack.append(token)
                deepest = max(deepest, len(stack))
            elif token >= 9:
                assert stack.pop() == token - 2
            else:
                assert 4 <= token < 7
        assert not stack
        assert deepest == wanted + 1


def test_grammar_translates_and_holds_out_combinations() -> None:
    task = Grammar(source="grammar", nouns=6, adjectives=4, verbs=5, clauses=3, held_out=3)
    words, that = 16, 15  # 6 nouns, 4 adjectives, 5 verbs, `that`
    for split in ("train", "validation", "test"):
        sources, targets = task.paired(split, 1, 0, 40, 30)
        for row, wanted in zip(sources.tolist(), targets.tolist()):
            sentence = [token for token in row if token < words]
            assert row == [task.num_tokens - 1] * (15 - len(sentence)) + sentence
            nouns: list[tuple[int, int | None]] = []
            verbs, adjective, held = [], None, False
            for token in sentence:
                if token < 6:
                    held |= adjective is not None and (adjective + token) % 3 == 0
                    nouns.append((token, adjective))
                    adjective = None
                elif token < 10:
                    adjective = token - 6
                elif token != that:
                    verbs.append(token - 10)
            assert held == (split == "test")
            assert len(nouns) == len(verbs) + 1

            def phrase(noun: int, adjective: int | None) -> list[int]:
                return [16 + noun] + ([] if adjective is None else [22 + 2 * adjective + noun % 2])

            translated = phrase(*nouns[-1])
            for verb, subject in list(zip(verbs, nouns))[:0:-1]:
                translated += [30 + 2 * verb + subject[0] % 2, 40, *phrase(*subject)]
            translated = [*phrase(*nouns[0]), *translated, 30 + 2 * verbs[0] + nouns[0][0] % 2, 41]
            assert [token for token in wanted if token != IGNORE] == translated
    inputs, targets = task.batch("test", 0, 0, 4, 30)
    sources, answers = task.paired("test", 0, 0, 4, 30)
    assert torch.equal(inputs[:, :15], sources)
    assert torch.equal(targets[:, 15:], answers)
    assert (inputs[:, 15] == task.num_tokens - 2).all()


def test_infilling_restores_the_text() -> None:
    task = Infilling(source="infilling", mib=1.0, middle=3)
    text = bytes(task.content("train").tolist())
    around, holes = task.paired("train", 2, 0, 20, 20)
    places = set()
    for row, hole in zip(around.tolist(), holes.tolist()):
        place = row.index(HOLE)
        assert row.count(HOLE) == 1
        assert 1 <= place <= len(row) - 2
        assert bytes(row[:place] + hole + row[place + 1 :]) in text
        places.add(place)
    assert len(places) > 5
    inputs, targets = task.batch("train", 2, 0, 20, 20)
    assert torch.equal(inputs[:, :17], around)
    assert (inputs[:, 17] == MIDDLE).all()
    assert torch.equal(inputs[:, 18:], holes[:, :-1])
    assert torch.equal(targets[:, 17:], holes)
    assert (targets[:, :17] == IGNORE).all()
