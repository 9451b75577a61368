"""Training: one trial, in one process, that can be killed at any moment and resumed bit for bit.

Read `config.py` (what a trial is), then `loop.py` (a page of plain torch), then `trial.py` (`run_trial`:
build, train, evaluate, save). A run directory holds:

    trial.json      what is run; a directory is refused to any other trial
    log.jsonl       one line per optimizer step
    checkpoint.pt   model, optimizer, RNG state, step; `checkpoint.previous.pt` is the one before
    model/          the trained model, for `flagformer.load`
    result.json     written last: its presence means the trial is finished; the checkpoints are gone by then
"""
