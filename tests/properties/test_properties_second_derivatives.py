"""Second derivatives (`create_graph=True`): correct for every setting, or refused; never partial."""

import pytest
import torch
from property_settings import TINY
from property_subject import perturb
from test_properties_singles import SINGLES, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel

import flagformer
from flagformer.attention.cores.kmeans import KMeans

IDS = torch.randint(TINY["num_tokens"], (2, 9), generator=torch.Generator().manual_seed(1))
STEP = 1e-5  # central differences in fp64: their error is of the size of STEP^2 = 1e-10
# A clamp has kinks, at which a gradient jumps: a shorter step, between whose ends there is none.
STEPS = {"ff_glu_limit (tuned)": 1e-6}


def penalty(learner, graph):
    """The sum of squares of all first gradients of a training loss; the same random numbers in every call."""
    torch.manual_seed(2)
    learned = [p for p in learner.parameters() if p.requires_grad]
    grads = torch.autograd.grad(learner(IDS, **learner.side), learned, create_graph=graph, allow_unused=True)
    return sum((grad.square().sum() for grad in grads if grad is not None), torch.zeros(()).double())


def check(learner, step=STEP):
    """Its directional derivative."""
    learned = [p for p in learner.parameters() if p.requires_grad]
    second = torch.autograd.grad(penalty(learner, graph=True), learned, allow_unused=True)
    towards = [torch.randn_like(p) for p in learned]
    slope = sum((g * v).sum() for g, v in zip(second, towards) if g is not None)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(learned, towards):
                p.add_(v, alpha=sign * step)
        ends.append(penalty(learner, graph=False))
        with torch.no_grad():
            for p, v in zip(learned, towards):
                p.sub_(v, alpha=sign * step)
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-6)


# Models without input ids; losses without a derivative by design; operators without a second derivative.
APART = {
    "return_only_embed": "no logits", "logits_dim (tuned)": "no logits",
    "emb_frac_gradient (tuned)": "its gradient is a share of the true one",
    "ff_pkm": "torch: embedding_bag", "pkm_num_keys (tuned)": "torch: embedding_bag",
}  # fmt: skip
REFUSED = {"reversible", "reversible_exact (tuned)"}


def learner_of(name, more=(), **keywords):
    torch.manual_seed(0)
    model = perturb(flagformer.build({**tiny(name, "decoder"), **dict(more)}).double().train())
    learner = flagformer.AutoregressiveWrapper(model, **keywords)
    learner.side = {}
    if model.attn_layers.has_cross and not model.num_memory_slots:
        width = model.attn_layers.dims.dim_context or model.attn_layers.dim
        learner.side["context"] = torch.randn(2, 5, width).double()
    return learner


@pytest.mark.parametrize("name", [name for name in SINGLES if name not in APART | dict.fromkeys(REFUSED)])
def test_second_gradients(name):
    learner = learner_of(name)
    for part in learner.modules():
        if isinstance(part, KMeans):
            part.eval()  # centroids are fixed between the two ends
    with sdpa_kernel(SDPBackend.MATH):  # torch refuses second derivatives of the fused kernel
        check(learner, STEPS.get(name, STEP))


def test_the_routing_loss_counts():
    """The loss of routing heads in training, with fixed centroids."""
    learner = learner_of("num_clusters", {"commitment_factor": 50.0})
    with sdpa_kernel(SDPBackend.MATH):
        check(learner)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_reversible_layers_refuse_them(name):
    with pytest.raises(RuntimeError, match="`reversible` has no second derivatives"):
        penalty(learner_of(name), graph=True)


def test_a_loss_in_chunks_refuses_them():
    with pytest.raises(RuntimeError, match="leave `loss_chunks` out"):
        penalty(learner_of("nothing", loss_chunks=3), graph=True)
