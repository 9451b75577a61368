"""Self- and cross-attention of one row, by the papers: queries, keys, scores, weights, values."""

from functools import partial

import numpy as np
from oracle_masks import allowed_keys
from oracle_norms import linear, sigmoid, silu, softmax, softpick, unit, unit_rms
from oracle_positions import bias, rotated
from oracle_routing import ClusterTopK, clusters, nearest, recent, without_self

# Scores that differ by less than this many fp64 units tie for the k-th rank, and are all kept.
ROUNDING = 32 * 2.0**-52
QK_NORMS = ("attn_qk_norm", "attn_qk_rmsnorm", "attn_qk_layernorm")


class Attention:
    """One attention sublayer of some weights.

    Args:
        settings: flags of the stack.
        module: the sublayer.
        weights: all weights of the model, float64.
        carried: kind -> scores of the previous attention; updated here.
    """

    def __init__(self, settings, module, weights, carried):
        self.settings, self.module, self.carried = settings, module, carried
        self.all, self.prefix = weights, f"attn_layers.sublayers.{module.index}.fn"
        self.heads, self.width = settings["heads"], settings["attn_dim_head"]

    def of(self, name):
        return self.settings.of(name, self.module)

    def weight(self, name):
        return self.all[f"{self.prefix}.{name}"]

    def __call__(self, x, row, past=None, context=None):
        """x [T, D], the sublayer's input; `past` [M, D] of earlier segments; `context` [S, D_context]."""
        own = context is None
        read = context if not own else x if past is None else np.concatenate([past, x])
        q, k, v = self._projected(x, read)
        q, k, prefix_k, prefix_v = self._normed(q, k)
        count = 0 if past is None else len(past)
        unrotated = q, self._queries_of(read) if own and self.of("shared_qk") else k
        if own:
            positions = row.first - count + np.arange(len(read))
            q = self._rotated_queries(q, positions[count:])
            k = rotated(self.of, k, positions, -1)
            if self.of("attn_rotary_embed_values"):
                v = rotated(self.of, v, positions, -1)
            allowed = allowed_keys(self.settings, self.module, row, count)
            biases = bias(self.settings, self.all, positions[count:], positions)
        else:
            allowed = np.ones((len(x), len(read)), bool)
            biases = np.zeros((self.heads, *allowed.shape))
        attended = self._allowed(unrotated, allowed, count, prefix_k.shape[1], row.first)
        out = self._attend(q, (k, v, prefix_k, prefix_v), attended, biases, unrotated)
        return self._output(self._gated(out, x))

    def _rotated_queries(self, q, positions):
        """Queries of fixed windows that look ahead are positioned at the end of their window."""
        split, ahead = 0, 0
        if self._local and self.of("local_attn_fixed_windows") and self.settings.looks_ahead:
            split = self._local
            ahead = self.of("local_attn_window_size") * self.of("local_attn_radius_blocks")
        parts = (
            rotated(self.of, q[:split], positions + ahead, 1),
            rotated(self.of, q[split:], positions, 1),
        )
        return np.concatenate(parts)

    def _projected(self, x, read):
        """q [H, T, K], k [H, S, K], v [H, S, V]."""
        if self.of("attn_kv_rank"):
            return self._latent(x, read)
        groups = 1 if self.of("attn_one_kv_head") else self.of("attn_kv_heads") or self.heads
        value_dim = self.of("attn_value_dim_head") or self.width
        own = self.module.kind == "a"
        shared = self.of("shared_qk" if own else "context_shared_qk")
        if own:
            name = "to_qv" if shared else "to_qkv"
            packed, width = self._linear(f"source.projection.{name}"), self.heads * self.width
            q, of_q = packed(x)[:, :width], packed(read)[:, :width]
            kv = packed(read)[:, width:]
        else:
            to_q = self._linear("source.projection.to_q")
            q, of_q = to_q(x), to_q(read) if shared else None
            kv = self._linear(f"source.projection.{'to_v' if shared else 'to_kv'}")(read)
        q = _heads(q, self.heads)
        if shared:
            k = _heads(of_q, self.heads)
            return q, unit(k) if own else k, _heads(kv, self.heads)
        k = _heads(kv[:, : groups * self.width], groups)
        if self.of("attn_shared_kv"):
            return q, k, k
        v = _heads(kv[:, groups * self.width :], groups)
        assert v.shape[-1] == value_dim
        return q, k, v

    def _queries_of(self, read):
        """The normed queries of all tokens, which determine their clusters under shared QK."""
        q = self._linear("source.projection.to_qv")(read)[:, : self.heads * self.width]
        q = _heads(q, self.heads)
        return self._norm_qk(q, "q") if any(map(self.of, QK_NORMS)) else q

    def _latent(self, x, read):
        """Multi-head latent attention: one latent, and one first part of the keys for all heads."""
        part = partial("source.projection.{}".format)
        if self.of("attn_q_rank"):
            x = unit_rms(self._linear(part("to_q_latent"))(x), 1e-6) * self.weight(part("q_norm.weight"))
        q = _heads(self._linear(part("to_q"))(x), self.heads)
        rank, value_dim = self.of("attn_kv_rank"), self.of("attn_value_dim_head") or self.width
        down = self._linear(part("to_latent"))(read)
        latent = unit_rms(down[:, :rank], 1e-6) * self.weight(part("latent_norm.weight"))
        up = self._linear(part("to_kv"))(latent)
        own = self.heads * (self.width - (down.shape[1] - rank))
        k = up[:, :own].reshape(len(read), self.heads, -1).transpose(1, 0, 2)
        k = np.concatenate([np.repeat(down[None, :, rank:], self.heads, 0), k], -1)
        assert up.shape[1] - own == self.heads * value_dim
        return q, k, _heads(up[:, own:], self.heads)

    def _linear(self, name):
        return partial(linear, weights=self.all, prefix=f"{self.prefix}.{name}")

    def _normed(self, q, k):
        """Queries and keys, and prefix keys and values, with the same norm."""
        prefix_k, prefix_v = self._prefix_kv(len(k))
        if any(map(self.of, QK_NORMS)):
            q = self._norm_qk(q, "q")
            k, prefix_k = self._norm_qk(k, "k"), self._norm_qk(prefix_k, "k")
        return q, k, prefix_k, prefix_v

    def _norm_qk(self, x, side):
        if self.of("attn_qk_layernorm"):
            centred = x - x.mean(-1, keepdims=True)
            normed = centred / np.sqrt(
                (centred**2).mean(-1, keepdims=True) + self.of("attn_qk_layernorm_eps")
            )
            part = f"source.qk_norm.{side}_norm"
            bias = self.weight(f"{part}.bias") if self.of("attn_qk_layernorm_bias") else 0.0
            return normed * self.weight(f"{part}.weight") + bias
        if self.of("attn_qk_rmsnorm"):
            kind, offset = self.of("attn_qk_rmsnorm_weight"), self.of("attn_qk_rmsnorm_weight_offset") or 0.0
            gain = 1.0 if kind == "none" else self.weight(f"source.qk_norm.{side}_weight") + offset
            eps = self.of("attn_qk_rmsnorm_eps")
            if not self.of("attn_qk_rmsnorm_all_heads"):
                return unit_rms(x, eps) * gain
            heads, count, width = x.shape  # count is 0 without prefix keys
            flat = x.transpose(1, 0, 2).reshape(count, heads * width)
            return unit_rms(flat, eps).reshape(count, heads, width).transpose(1, 0, 2) * gain
        groups = self.of("attn_qk_norm_groups")
        parts = x.reshape(*x.shape[:-1], groups, self.width // groups)
        x = unit(parts).reshape(x.shape)
        gain = f"source.qk_norm.{side}_gain.weight"
        return x * self.weight(gain) if self.of("attn_qk_norm_dim_scale") else x

    def _prefix_kv(self, groups):
        value_dim = self.of("attn_value_dim_head") or self.width
        k, v = np.zeros((groups, 0, self.width)), np.zeros((groups, 0, value_dim))
        if self.of("attn_num_mem_kv"):
            k, v = self.weight("prefix_kv.0.k"), self.weight("prefix_kv.0.v")
        if self.of("attn_add_zero_kv"):
            k = np.concatenate([np.zeros((groups, 1, self.width)), k], 1)
            v = np.concatenate([np.zeros((groups, 1, value_dim)), v], 1)
        return k, v

    @property
    def _scale(self):
        if self.of("attn_qk_norm") and not self.of("attn_qk_norm_dim_scale"):
            return self.of("attn_qk_norm_scale") or 10.0
        return self.of("attn_scale") or self.width**-0.5

    @property
    def _local(self):
        return self.of("n_local_attn_heads") if self.module.kind == "a" else 0

    @property
    def _clusters(self):
        return self.of("num_clusters" if self.module.kind == "a" else "context_num_clusters")

    def _means(self):
        return self.weight(f"{self._core(1)}.kmeans.means"), f"{self._core(1)}.memory"

    def _core(self, number):
        """The name of the weights of local heads (0) and of the others (1)."""
        return f"core.cores.{number}" if 0 < self._local < self.heads else "core"

    def _allowed(self, unrotated, allowed, past, num_prefix, first):
        """[H, T, S] the keys that each query of each head attends to, without prefix keys."""
        q, k = unrotated[0], self._repeat_kv(unrotated[1])
        attended = np.broadcast_to(allowed, (self.heads, *allowed.shape)).copy()
        if self._local:
            reach = self.of("local_attn_window_size") * self.of("local_attn_radius_blocks")
            t, s = np.arange(allowed.shape[0])[:, None], np.arange(-past, allowed.shape[0])[None, :]
            near = abs(t - s) <= reach
            if self.of("local_attn_fixed_windows"):
                size = self.of("local_attn_window_size")
                near = abs((first + t) // size - (first + s) // size) <= self.of("local_attn_radius_blocks")
            attended[: self._local] &= near
        if self._clusters and not self._selects_topk and self._local < self.heads:
            window = self.of("window_size" if self.module.kind == "a" else "context_window_size")
            rest = slice(self._local, None)
            if self.module.kind == "a":
                attended[rest] &= recent(q[rest], k[rest], self._means()[0], window, past, allowed)
            else:
                attended[rest] &= nearest(q[rest], k[rest], self._means()[0], window)
        if self.module.kind == "a" and self.of("shared_qk"):
            rest = slice(0, self._local if self._selects_topk else self.heads)
            attended[rest] = without_self(attended[rest], np.arange(past, past + len(allowed)), num_prefix)
        return attended

    @property
    def _selects_topk(self):
        name = "routing_selection" if self.module.kind == "a" else "context_selection"
        return bool(self._clusters) and self.of(name) in ("topk", "leaky")

    def _repeat_kv(self, x):
        return np.repeat(x, self.heads // len(x), 0)

    def _attend(self, q, kv, attended, biases, unrotated):
        """The output of each head: [H, T, V]."""
        k, v, prefix_k, prefix_v = (self._repeat_kv(part) for part in kv)
        num_prefix = prefix_k.shape[1]
        scores = self._scale * np.einsum("htk,hsk->hts", q, np.concatenate([prefix_k, k], 1))
        scores = self._carry(scores)
        groups = [slice(0, self._local), slice(self._local, self.heads)]
        out = []
        for number, group in enumerate(groups):
            if group.start == group.stop:
                continue
            part = self._modified(scores[group], number)
            part[..., num_prefix:] += biases[group]
            part[..., num_prefix:][~attended[group]] = -np.inf
            if self._selects_topk and number:
                out.append(self._cluster_topk(q[group], part, prefix_v[group], v[group], unrotated, group))
                continue
            part, more = self._with_cluster_memory(q, unrotated, part)
            weights = self._mixed(self._weights(part, group), number)
            count = part.shape[-1] - num_prefix - k.shape[1]
            gathered = np.einsum(
                "hts,hsv->htv", weights[..., count:], np.concatenate([prefix_v, v], 1)[group]
            )
            out.append(gathered + np.einsum("htm,htmv->htv", weights[..., :count], more))
        return np.concatenate(out)

    def _with_cluster_memory(self, q, unrotated, scores):
        """Prepend the context clusters' learned keys: a query attends to those of its own centroid."""
        if self.module.kind == "a" or not self.of("cluster_num_mem_kv") or not self._clusters:
            return scores, np.zeros((*scores.shape[:2], 0, 1))
        means, memory = self._means()
        own = clusters(unrotated[0], means)
        heads = np.arange(self.heads)[:, None]
        k, v = self.weight(f"{memory}.k")[heads, own], self.weight(f"{memory}.v")[heads, own]
        more = self._modified(self._scale * np.einsum("htk,htmk->htm", q, k), 1)
        return np.concatenate([more, scores], -1), v

    def _carry(self, scores):
        """arXiv:2012.11747: scores join those of the attention of this kind before."""
        if self.of("residual_attn" if self.module.kind == "a" else "cross_residual_attn"):
            scores = scores + self.carried.get(self.module.kind, 0.0)
            self.carried[self.module.kind] = scores
        return scores.copy()

    def _modified(self, scores, number):
        if self.of("attn_talking_heads"):
            scores = np.einsum("gh,hts->gts", self._exchange("score_mods", number), scores)
        if self.of("attn_softclamp_logits"):
            cap = self.of("attn_logit_softclamp_value")
            scores = cap * np.tanh(scores / cap)
        return scores

    def _exchange(self, what, number):
        return self.weight(f"{self._core(number)}.kernel.path.{what}.0.exchange.weight")

    def _mixed(self, weights, number):
        if self.of("attn_talking_heads"):
            return np.einsum("gh,hts->gts", self._exchange("weight_mods", number), weights)
        return weights

    def _weights(self, scores, group):
        if self.of("attn_sparse_topk"):
            scores = _largest(scores, self.of("attn_sparse_topk"))
        return softpick(scores) if self.of("attn_softpick") else softmax(scores, self._sink(group))

    def _sink(self, group):
        if not self.of("attn_head_learned_sink"):
            return None
        return self.weight(f"{self._core(int(group.stop == self.heads))}.kernel.path.normalizer.score")

    def _cluster_topk(self, q, scores, prefix_v, values, unrotated, group):
        q_r, k_r = unrotated[0][group], self._repeat_kv(unrotated[1])[group]
        means, memory = self._means()
        window = self.of("window_size" if self.module.kind == "a" else "context_window_size")
        selection, num_prefix, count = ClusterTopK(q_r, k_r, means, window), prefix_v.shape[1], means.shape[1]
        prefix_scores = np.repeat(scores[:, None, :, :num_prefix], count, 1)
        gathered = np.repeat(prefix_v[:, None], count, 1)
        if self.of("cluster_num_mem_kv"):
            k, v = self.weight(f"{memory}.k"), self.weight(f"{memory}.v")
            more = self._scale * np.einsum("htk,hcmk->hctm", q, k)
            more = self._modified(more, 1)
            prefix_scores, gathered = (
                np.concatenate([more, prefix_scores], -1),
                np.concatenate([v, gathered], 2),
            )

        def normalize(head, logits):
            part = _largest(logits, self.of("attn_sparse_topk")) if self.of("attn_sparse_topk") else logits
            sink = self._sink(group)
            if self.of("attn_softpick"):
                return softpick(part)
            return softmax(part, None if sink is None else sink[head])

        mask_self = self.module.kind == "a" and self.of("shared_qk")
        return selection.attend(
            scores[..., num_prefix:], values, normalize, (prefix_scores, gathered), mask_self
        )

    def _gated(self, out, x):
        """out [H, T, V] -> [T, H V], each gate a function of what the sublayer reads."""
        number, value_dim = 0, out.shape[-1]
        if self.of("attn_tensor_product"):
            out = out * (1 + _heads(linear(x, self.all, f"{self.prefix}.gates.{number}.to_role"), self.heads))
            number += 1
        if self.of("attn_head_scale"):
            out = out * self.weight(f"gates.{number}.weight")
            number += 1
        if self.of("attn_gate_value_heads"):
            out = out * sigmoid(linear(x, self.all, f"{self.prefix}.gates.{number}.to_gate")).T[..., None]
            number += 1
        joined = out.transpose(1, 0, 2).reshape(len(x), self.heads * value_dim)
        if self.of("attn_gate_values"):
            act = silu if self.of("attn_swiglu_values") else sigmoid
            joined = joined * act(linear(x, self.all, f"{self.prefix}.gates.{number}.to_gate"))
        return joined

    def _output(self, joined):
        out = self._linear("to_out.project" if self.of("attn_on_attn") else "to_out")(joined)
        if self.of("attn_on_attn"):
            found, gate = np.split(out, 2, -1)
            return found * sigmoid(gate)
        return out


def _heads(x, count):
    return x.reshape(len(x), count, -1).transpose(1, 0, 2)


def _largest(scores, count):
    """arXiv:1912.11637: scores below the k-th largest of a query are left out."""
    if count >= scores.shape[-1]:
        return scores
    least = np.sort(scores, -1)[..., -count][..., None]
    return np.where(
        scores >= least - ROUNDING * (1 + abs(np.where(np.isfinite(least), least, 0))), scores, -np.inf
    )
