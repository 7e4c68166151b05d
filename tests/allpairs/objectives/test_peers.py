"""The same numbers from other people's code: open_clip, pytorch-metric-learning, scikit-learn.

pytorch-metric-learning sees one direction at a call: `loss(anchors, ids, ref_emb=others, ref_labels=their ids)`. Our
mean is the mean over query anchors plus the mean over candidate anchors, so it is the sum of two of its calls, with the
sides exchanged, each reduced by a plain mean (its `AvgNonZeroReducer` defaults leave out anchors that lose nothing).
"""

import importlib.util
import math
from collections.abc import Callable
from importlib.metadata import distribution
from types import ModuleType

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from sklearn.metrics import average_precision_score
from torch import Tensor

from allpairs.objectives import from_scores, make

BACKENDS = {"dense": {"backend": "dense"}, "tiled": {"backend": "tiled", "tile": 3}}
over_backends = pytest.mark.parametrize("call", BACKENDS.values(), ids=BACKENDS)

# 4 images, 9 captions: two to three each, in no order.
IMAGES, CAPTIONS = torch.tensor([3, 7, 1, 5]), torch.tensor([7, 3, 1, 1, 5, 3, 7, 5, 7])


def close(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).abs().max().item() <= 1e-12 * expected.abs().max().item() + 1e-15


def pairs(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    candidates = queries + torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return queries.requires_grad_(), candidates.requires_grad_()


def captions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    owners = [IMAGES.tolist().index(owner) for owner in CAPTIONS.tolist()]
    texts = images[owners] + torch.randn(9, 6, generator=generator, dtype=torch.float64)
    return images.requires_grad_(), texts.requires_grad_()


def compare(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        close(one, other)


# --- open_clip -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> ModuleType:
    """open_clip's loss.py alone: the package itself imports torchvision."""
    path = distribution("open_clip_torch").locate_file("open_clip/loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss_alone", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@over_backends
@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
def test_vlc_is_twice_clip(clip, scale, call):
    """ClipLoss averages the two directions' cross entropies where we add them, and wants normalised features."""
    inputs = pairs()
    for objective in (make("vlc", scale=scale), make("nt_xent", temperature=1 / scale)):
        features = [torch.nn.functional.normalize(side, dim=-1) for side in inputs]
        theirs = clip.ClipLoss()(*features, torch.tensor(scale, dtype=torch.float64))
        compare(objective(*inputs, **call), 2 * theirs, inputs)


@over_backends
def test_learned_scale_is_clips(clip, call):
    """Their model passes exp(logit_scale): its gradient is that of our log_scale."""
    queries, candidates = pairs()
    objective = make("vlc", scale=14.0, learn_scale=True).double()
    ours = objective(queries, candidates, **call)
    logit_scale = objective.log_scale.detach().clone().requires_grad_()
    features = [torch.nn.functional.normalize(side, dim=-1) for side in (queries, candidates)]
    theirs = 2 * clip.ClipLoss()(*features, logit_scale.exp())
    close(ours, theirs)
    our_gradients = torch.autograd.grad(ours, (queries, candidates, objective.log_scale))
    their_gradients = torch.autograd.grad(theirs, (queries, candidates, logit_scale))
    for one, other in zip(our_gradients, their_gradients, strict=True):
        close(one, other)


@over_backends
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.0, 0.0), (90.0, -40.0)])
def test_siglip_is_open_clips(clip, scale, bias, call):
    """Value and gradients, those of scale and bias too; other worlds equal one process in `test_worlds`."""
    queries, candidates = pairs()
    objective = make("siglip", scale=scale, bias=bias, learn_scale=True).double()
    ours = objective(queries, candidates, **call)
    logit_scale, logit_bias = (number.detach().clone().requires_grad_() for number in objective.parameters())
    features = [torch.nn.functional.normalize(side, dim=-1) for side in (queries, candidates)]
    theirs = clip.SigLipLoss()(*features, logit_scale.exp(), logit_bias)
    close(ours, theirs)
    close(make("siglip", scale=math.exp(logit_scale.item()), bias=bias)(queries, candidates, **call), theirs)
    our_gradients = torch.autograd.grad(ours, (queries, candidates, *objective.parameters()))
    their_gradients = torch.autograd.grad(theirs, (queries, candidates, logit_scale, logit_bias))
    for one, other in zip(our_gradients, their_gradients, strict=True):
        close(one, other)


# --- pytorch-metric-learning -----------------------------------------------------------------------------------------


def both_ways(loss: Callable[..., Tensor], sides: tuple[Tensor, Tensor], ids: tuple[Tensor, Tensor]) -> Tensor:
    (queries, candidates), (query_ids, candidate_ids) = sides, ids
    return loss(queries, query_ids, ref_emb=candidates, ref_labels=candidate_ids) + loss(
        candidates, candidate_ids, ref_emb=queries, ref_labels=query_ids
    )


def own_ids(sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Every pair its own instance; two tensors, as it takes one and the same for a set compared with itself."""
    return torch.arange(len(sides[0])), torch.arange(len(sides[1]))


@over_backends
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_nt_xent(temperature, call):
    """Per positive −log(e^{s_p/τ} / (e^{s_p/τ} + Σ_n e^{s_n/τ})): ours where every anchor has one positive."""
    inputs = pairs()
    theirs = both_ways(losses.NTXentLoss(temperature=temperature), inputs, own_ids(inputs))
    compare(make("nt_xent", temperature=temperature)(*inputs, **call), theirs, inputs)


@over_backends
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 1, 0, 4]])
def test_triplet(ids, call):
    """[s_n − s_p + m]+ summed over triplets given by index: (i, i, j) of different instances, so that a second pair of
    an instance is neither a negative, as with us, nor a further positive, as it would be by labels."""
    inputs = pairs()
    tensor = torch.arange(8) if ids is None else torch.tensor(ids)
    anchors, negatives = torch.where(tensor[:, None] != tensor)
    loss = losses.TripletMarginLoss(margin=0.3, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer())
    theirs = sum(
        loss(one, indices_tuple=(anchors, anchors, negatives), ref_emb=other) for one, other in (inputs, inputs[::-1])
    )
    objective = make("triplet", margin=0.3, reduction="sum")
    compare(objective(*inputs, query_ids=None if ids is None else tensor, **call), theirs, inputs)


@over_backends
def test_triplet_hn(call):
    """The same on the triplets of its own miner, the hardest negative of each anchor."""
    inputs = pairs()
    ids = own_ids(inputs)
    loss = losses.TripletMarginLoss(margin=0.3, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer())
    miner = miners.BatchHardMiner(distance=distances.CosineSimilarity())
    theirs = sum(
        loss(one, indices_tuple=miner(one, ids[0], ref_emb=other, ref_labels=ids[1]), ref_emb=other)
        for one, other in (inputs, inputs[::-1])
    )
    compare(make("triplet_hn", margin=0.3, reduction="sum")(*inputs, **call), theirs, inputs)


@over_backends
def test_nt_xent_hn(call):
    """Its smooth triplet loss is softplus(s_n − s_p + m); with scores multiplied by τ (a dot product of vectors longer
    by √τ) and m = 0, on the hardest negatives, that is G-Eq. 6."""
    inputs = pairs()
    ids = own_ids(inputs)
    dot = distances.DotProductSimilarity(normalize_embeddings=False)
    loss = losses.TripletMarginLoss(margin=0, smooth_loss=True, distance=dot, reducer=reducers.MeanReducer())
    miner = miners.BatchHardMiner(distance=dot)
    long = [math.sqrt(9.0) * torch.nn.functional.normalize(side, dim=-1) for side in inputs]
    theirs = sum(
        loss(one, indices_tuple=miner(one, ids[0], ref_emb=other, ref_labels=ids[1]), ref_emb=other)
        for one, other in (long, long[::-1])
    )
    compare(make("nt_xent_hn", tau=9.0)(*inputs, **call), theirs, inputs)


@over_backends
@pytest.mark.parametrize(("margin", "scale"), [(0.25, 256.0), (0.4, 80.0), (0.25, 5.0)])
def test_circle(margin, scale, call):
    """The same per anchor, weights detached; only the reducer differs (a mean over all anchors here). Its softplus is
    torch's, which leaves out e^{−x} above x = 20: 2e-9 there. With the bound at 500 it leaves out nothing."""
    inputs = captions()
    loss = losses.CircleLoss(m=margin, gamma=scale, reducer=reducers.MeanReducer())
    loss.soft_plus = torch.nn.Softplus(threshold=500)
    theirs = both_ways(loss, inputs, (IMAGES, CAPTIONS))
    ours = make("circle", margin=margin, scale=scale)(*inputs, query_ids=IMAGES, candidate_ids=CAPTIONS, **call)
    compare(ours, theirs, inputs)


@over_backends
@pytest.mark.parametrize(("alpha", "beta", "epsilon"), [(2.0, 40.0, 0.1), (3.0, 10.0, 0.5)])
def test_multi_similarity(alpha, beta, epsilon, call):
    """`base` is λ; the mining is a miner of its own with the same strict inequalities. Anchors left empty count 0.
    The mined pairs are named twice (they only fill masks), as it returns 0 for a batch with one positive and one
    negative left."""
    inputs = captions()
    loss = losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=0.5)
    miner = miners.MultiSimilarityMiner(epsilon=epsilon)

    def mined(embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Tensor:
        kept = tuple(index.repeat(2) for index in miner(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels))
        return loss(embeddings, labels, kept, ref_emb=ref_emb, ref_labels=ref_labels)

    theirs = both_ways(mined, inputs, (IMAGES, CAPTIONS))
    objective = make("multi_similarity", alpha=alpha, beta=beta, epsilon=epsilon)
    compare(objective(*inputs, query_ids=IMAGES, candidate_ids=CAPTIONS, **call), theirs, inputs)


@over_backends
@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_lifted(scale, call):
    """Its generalised lifted structure loss is [LSE_p(m_p − s_p) + LSE_n(s_n − m_n)]+ without scales. On scores
    multiplied by α = β (vectors longer by √α), with m_p = 0 and m_n = −100 to hold the hinge open, it is 100 + α/2
    times ours."""
    inputs = captions()
    loss = losses.GeneralizedLiftedStructureLoss(
        neg_margin=-100, pos_margin=0, distance=distances.DotProductSimilarity(normalize_embeddings=False)
    )
    long = tuple(math.sqrt(scale) * torch.nn.functional.normalize(side, dim=-1) for side in inputs)
    theirs = (both_ways(loss, long, (IMAGES, CAPTIONS)) - 200) * 2 / scale
    ours = make("lifted", alpha=scale, beta=scale)(*inputs, query_ids=IMAGES, candidate_ids=CAPTIONS, **call)
    # 200 is subtracted from a number of its size: 200 · 2⁻⁵² is lost there, and nothing in the gradient.
    assert abs(ours.item() - theirs.item()) <= 1e-12 * 2 / scale + 1e-12
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        close(one, other)


@over_backends
def test_binomial_deviance(call):
    """It has none; but its multi-similarity loss of a single positive pair is (1/α) log(1 + e^{−α(s−λ)}), of a single
    negative pair (1/β) log(1 + e^{β(s−λ)}). Fed pair by pair (each twice, as it skips tuples of one) and averaged over
    each anchor's positives and over its negatives, that is binomial deviance."""
    inputs = captions()
    alpha, beta = 2.0, 40.0
    loss = losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=0.5, reducer=reducers.SumReducer())
    nothing = torch.tensor([], dtype=torch.int64)

    def directed(anchors: Tensor, ids: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Tensor:
        total = anchors.new_zeros(())
        for i in range(len(anchors)):
            same = ref_labels == ids[i]
            for j in range(len(ref_emb)):
                i2, j2 = torch.tensor([i, i]), torch.tensor([j, j])
                if same[j]:
                    value = alpha * loss(anchors, ids, (i2, j2, nothing, nothing), ref_emb=ref_emb) / same.sum()
                else:
                    value = beta * loss(anchors, ids, (nothing, nothing, i2, j2), ref_emb=ref_emb) / (~same).sum()
                total = total + value
        return total / len(anchors)

    theirs = both_ways(directed, inputs, (IMAGES, CAPTIONS))
    objective = make("binomial_deviance", alpha=alpha, beta=beta)
    compare(objective(*inputs, query_ids=IMAGES, candidate_ids=CAPTIONS, **call), theirs, inputs)


# --- scikit-learn ----------------------------------------------------------------------------------------------------


def test_sharp_smooth_ap_is_one_minus_average_precision():
    """As τ → 0 the sigmoids count ranks. (pytorch-metric-learning's SmoothAPLoss takes no second side.)"""
    # Scores at least 1/36 apart in every row and column, so that e^{−(1/36)/τ} is 0 in float64 for τ = 5e-4.
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1)).reshape(4, 9)
    S = order.double() / 36
    ours = from_scores(make("smooth_ap", temperature=5e-4), S, query_ids=IMAGES, candidate_ids=CAPTIONS)
    same = (IMAGES[:, None] == CAPTIONS).numpy()
    of_images = np.mean([1 - average_precision_score(same[i], S[i].numpy()) for i in range(4)])
    of_captions = np.mean([1 - average_precision_score(same[:, j], S[:, j].numpy()) for j in range(9)])
    assert ours.item() == pytest.approx(of_images + of_captions, rel=1e-12)
