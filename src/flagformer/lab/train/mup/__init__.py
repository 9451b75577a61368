"""muP: initial weights, learning rates and multipliers with which the best learning rate holds at all widths
(arXiv:2203.03466) and, for residual branches, depths (arXiv:2310.02244).

    settings.py     `train.mup` of a file: the sizes of the base model
    multipliers.py  the factors of attention scores, tied logits and residual branches, as flags
    parameters.py   the factor of the initial weights and of the learning rate of every parameter

All three are relative to the base model: a model of its sizes is trained as without muP.
"""
