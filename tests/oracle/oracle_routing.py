"""Routing attention: the keys that clusters allow each query, and the published top-k selection."""

import numpy as np
from oracle_norms import unit

# Added to the number of clusters that selected a token, as in the published code (routing-transformer 1.6.1).
EMPTY = 1e-5


def clusters(x, means):
    """[H, T, K] and [H, C, K] -> [H, T] the centroid nearest to each vector, by the cosine."""
    return np.einsum("htk,hck->htc", unit(x), means).argmax(-1)


def recent(q, k, means, window, past, allowed):
    """arXiv:2003.05997 by the rule of the card: [H, T, S].

    A query attends to itself, the last `window` keys of its cluster and the next `window`, where allowed.
    """
    of_q, of_k = clusters(q, means), clusters(k, means)
    out = np.zeros((len(q), *allowed.shape), bool)
    for h in range(len(q)):
        for t in range(q.shape[1]):
            here = past + t
            mine = [s for s in np.flatnonzero(of_k[h] == of_q[h, t]) if allowed[t, s]]
            before = [s for s in mine if s < here][-window:]
            after = [s for s in mine if s > here][:window]
            out[h, t, [*before, here, *after]] = True
    return out & allowed


def nearest(q, k, means, window):
    """[H, T, S]: a query attends to the `window` keys nearest to its own centroid."""
    of_q = clusters(q, means)
    near = np.einsum("hsk,hck->hcs", unit(k), means)
    selected = np.zeros(near.shape, bool)
    for h, c in np.ndindex(*near.shape[:2]):
        selected[h, c, _ranked(near[h, c], window)] = True
    return np.stack([selected[h, of_q[h]] for h in range(len(q))])


def _ranked(cosines, count):
    """The indices of the largest values, the first of ties; equal tokens differ by rounding only."""
    return np.argsort(-(cosines / 1e-7).round(), kind="stable")[:count]


def without_self(allowed, positions, num_prefix, keys=None):
    """arXiv:2001.04451: [H, T, S], a token attends to itself only if no other key is allowed.

    `positions` [T] of the queries, `keys` [S] of the keys; all keys in order by default.
    """
    keys = np.arange(allowed.shape[-1]) if keys is None else keys
    own = positions[:, None] == keys[None, :]
    others = allowed & ~own
    return others if num_prefix else others | (allowed & own & ~others.any(-1, keepdims=True))


class ClusterTopK:
    """The published selection: each centroid attends with its top queries to its top keys; then the mean."""

    def __init__(self, q, k, means, window):
        self.count = means.shape[1]
        by_q = np.einsum("htk,hck->hct", unit(q), means)
        by_k = np.einsum("hsk,hck->hcs", unit(k), means)
        self.queries = [[_ranked(row, window) for row in head] for head in by_q]
        self.keys = [[_ranked(row, window) for row in head] for head in by_k]

    def attend(self, scores, values, normalize, memory, mask_self):
        """scores [H, T, S], minus infinity for masked pairs -> [H, T, V].

        Args:
            normalize: (head, scores of the selected keys) -> their weights.
            memory: (scores [H, C, T, M], values [H, C, M, V]) of the keys of each cluster and of prefix keys.
            mask_self: a token attends to itself only if no other key is allowed.
        """
        out = np.zeros((*scores.shape[:2], values.shape[-1]))
        times = np.zeros(scores.shape[:2])
        for h in range(len(scores)):
            for c in range(self.count):
                t, s = self.queries[h][c], self.keys[h][c]
                met, gathered = scores[h][np.ix_(t, s)], values[h, s]
                if mask_self:
                    places = scores.shape[-1] - scores.shape[1] + t
                    sees = without_self(np.isfinite(met)[None], places, memory[0].shape[-1], s)[0]
                    met = np.where(sees, met, -np.inf)
                met = np.concatenate([memory[0][h, c][t], met], -1)
                gathered = np.concatenate([memory[1][h, c], gathered])
                out[h, t] += normalize(h, met) @ gathered
                times[h, t] += 1
        return out / (times + EMPTY)[..., None]
