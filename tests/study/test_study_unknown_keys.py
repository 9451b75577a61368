"""Unknown keys at every level of a file, and invalid seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import TINY
from typer.testing import CliRunner

from flagformer.flags import CATALOGUE
from flagformer.lab.cli.main import app
from flagformer.lab.cli.runfile import RunFile
from flagformer.lab.study.file import StudyFile
from flagformer.lab.study.words import MEANINGS, SYNONYMS, _keys, suggestion

RUN = TINY.partition("compare:")[0]
# an override of the tiny study, and its message
STUDY_KEYS = {
    "train.learning_rate=1": "`train.learning_rate` is not known; use `lr`",
    "train.max_steps=1": "use `steps`",
    "train.epochs=1": "`train.epochs` is not known",
    "train.seq_lens=[8]": "it is a setting of `evaluate`: write `evaluate: {seq_lens: ...}`",
    "train.dim=1": "it is a flag of the model: write it under `base`",
    "train.rotary_pos_emb=true": "it is a flag of the model: write it under `base`",
    "steps=5": "`steps` is not known; it is a setting of `train`: write `train: {steps: ...}`",
    "depth=2": "it is a flag of the model",
    "n_layer=2": "the flag of the model is called `depth`",
    "variants.a=1": "use `compare`",
    "model.dim=1": "use `base`",
    "sweep.dim=1": "use `grid`",
    "data.length=8": "use `seq_len`",
    "data.batch_size=8": "it is a setting of `train`",
    "evaluate.lengths=[8]": "use `seq_lens`",
    "evaluate.batchs=1": "did you mean `batches`?",
    "match.tolerance=1": "use `within`",
    "base.lr=1": "`lr` is not a flag; it is a setting of `train`: write `train: {lr: ...}`",
    "base.symbols=1": "it is a setting of `data`",
    "compare.rotary.lr=1": "variant `rotary`: `lr` is not a flag; it is a setting of `train`",
    "compare.rotary.train.learning_rate=1": "use `lr`",
    "train.learning_rate=1e-3,1e-2": "`factors.train.learning_rate` is not known; use `lr`",
    "seeds=[9223372036854775808]": "from 0 to 2^63 - 1, such as [0, 1, 2], but contains 9223372036854775808",
    "seeds=[99999999999999999999999]": "but contains 99999999999999999999999",
    "seeds=9223372036854775808": "`seeds` must be a count from 1 to 1000",
    "seeds=[0,-1]": "but contains -1",
    "seeds=[3,1,3]": "but contains 3 twice",
    "seeds=[1.0]": "but contains 1.0",
    "seeds=[]": "but is []",
    "seeds=true": "but is true",
}
RUN_KEYS = {
    "seed=9223372036854775808": "`seed` must be less than 9223372036854775808, but is 9223372036854775808",
    "seed=-1": "`seed` must be greater than or equal to 0",
    "optimizer.lr=1": "`optimizer` is not known; use `train`",
    "base.lr=1": "`lr` is not a flag; it is a setting of `train`",
    "lr=1": "it is a setting of `train`",
}


@pytest.mark.parametrize("override", STUDY_KEYS)
def test_a_study_suggests_the_intended_key(override: str, tmp_path: Path) -> None:
    refused("study run", TINY, override, STUDY_KEYS[override], tmp_path)


@pytest.mark.parametrize("override", RUN_KEYS)
def test_a_training_suggests_the_intended_key(override: str, tmp_path: Path) -> None:
    text = RUN.partition("seeds:")[0]
    refused("train", text, override, RUN_KEYS[override], tmp_path)


def refused(command: str, text: str, override: str, said: str, folder: Path) -> None:
    path = folder / "file.yaml"
    path.write_text(text)
    result = CliRunner().invoke(app, [*command.split(), str(path), override])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert f"override `{override}`" in result.stderr
    assert said in result.stderr


def test_every_suggestion_is_a_key_and_no_key_has_one() -> None:
    known = {"": {*StudyFile.model_fields, *RunFile.model_fields}, **_keys()}
    assert set(MEANINGS) == set(known)
    for block, keys in known.items():
        assert set(MEANINGS[block]) <= keys
        assert not keys & SYNONYMS[block].keys()
        for name, key in SYNONYMS[block].items():
            assert suggestion(block, name, keys) == f"; use `{key}`"


def test_distant_names_get_no_suggestion() -> None:
    for block, keys in _keys().items():
        for name in ("wibble", "optimizer_state", "zzz"):
            assert "did you mean" not in suggestion(block, name, keys)
    assert "depth" in CATALOGUE.names()
