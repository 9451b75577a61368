"""Studies: a designed comparison of flag variants at one budget with several seeds, whose report says
better, worse or not resolved.

Read `file.py` (the study file), `run.py` (its execution), `results.py` (the current results), then `report/`.
"""
