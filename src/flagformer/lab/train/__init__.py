"""Training of one trial, which can be killed at any time and resumed with bit-identical results.

Read `config.py` (the settings of a trial), then `loop.py` (the training step in plain torch), then `trial.py`
(`run_trial`: build, train, evaluate, save). Files of a run directory:

    trial.json      the trial; another trial cannot use the directory
    log.jsonl       one line per optimizer step
    checkpoint.pt   model, optimizer, RNG state, step; `checkpoint.previous.pt` is the previous one
    model/          the trained model, for `flagformer.load`
    result.json     written last: if it exists, the trial is finished, and its checkpoints are deleted
"""
