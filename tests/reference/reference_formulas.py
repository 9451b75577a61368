"""The papers' formulas, one number at a time: slow, and independent of the library."""

import math

import torch


def layer_norm(x, gain):
    """arXiv:1607.06450, equation 4, for one vector."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return torch.stack([(value - mean) / math.sqrt(variance + 1e-5) * g for value, g in zip(x, gain)])


def rms_norm(x, gain):
    """arXiv:1910.07467, equation 4, for one vector."""
    root = math.sqrt(sum(value**2 for value in x) / len(x))
    return torch.stack([value / root * g for value, g in zip(x, gain)])


def scale_norm(x, gain):
    """arXiv:1910.05895, equation 4, for one vector; `gain` has one number."""
    return x / math.sqrt(sum(value**2 for value in x)) * gain[0]


def cosine(x):
    length = math.sqrt(sum(value**2 for value in x))
    return torch.stack([value / length for value in x])


def gelu(x):
    return torch.stack([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def swish(x):
    return torch.stack([value / (1 + math.exp(-value)) for value in x])


def relu_squared(x):
    return torch.stack([value**2 if value > 0 else value * 0 for value in x])


def rotate(x, position, width=None, base=10000.0):
    """arXiv:2104.09864, equation 15, with pairs (i, i + R/2): as complex numbers."""
    width = width or len(x)
    turned = x.clone()
    for i in range(width // 2):
        angle = position * base ** (-2 * i / width)
        pair = complex(x[i], x[i + width // 2]) * complex(math.cos(angle), math.sin(angle))
        turned[i], turned[i + width // 2] = pair.real, pair.imag
    return turned


def xpos(x, position, sign, base, width=None):
    """arXiv:2212.10554, algorithm 1: rotation times zeta ** (position / base), sign -1 for keys."""
    width = width or len(x)
    turned = rotate(x, position, width)
    for i in range(width // 2):
        zeta = (2 * i + 0.4 * width) / (1.4 * width)
        for place in (i, i + width // 2):
            turned[place] *= zeta ** (sign * position / base)
    return turned


def slopes(heads):
    """arXiv:2108.12409, section 3 and its footnote on other numbers of heads."""
    if math.log2(heads).is_integer():
        ratio = 2 ** (-8 / heads)
        return [ratio ** (i + 1) for i in range(heads)]
    fewer = 2 ** math.floor(math.log2(heads))
    return slopes(fewer) + slopes(2 * fewer)[0::2][: heads - fewer]


def sinusoid(position, dim):
    """arXiv:1706.03762, section 3.5: sines, then cosines."""
    angles = [position / 10000 ** (2 * i / dim) for i in range(dim // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


def attend(queries, keys, values, scale, sees, bias=lambda i, j: 0.0):
    """arXiv:1706.03762, equation 1, for one head: lists of vectors; `sees(i, j)` is the mask."""
    outs = []
    for i, q in enumerate(queries):
        met = [j for j in range(len(keys)) if sees(i, j)]
        scores = [scale * float(q @ keys[j]) + float(bias(i, j)) for j in met]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        outs.append(sum(w / total * values[j] for w, j in zip(weights, met)))
    return outs
