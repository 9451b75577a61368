"""Studies: a designed comparison of flag variants at one budget with several seeds, whose report says
better, worse or not resolved.

Read `file.py` (what a study is), `run.py` (how it is run), `results.py` (what is known at any moment), then
`report/`.
"""
