"""Two, three and four processes must compute exactly what one computes: gradients, not curves.

One gloo group per world runs every case; the encoder and the objective are wrapped in real DistributedDataParallel.
"""

import pytest
import torch
import torch.multiprocessing

from tests.allpairs.engine import worlds


@pytest.fixture(scope="module")
def alone() -> dict:
    return worlds.steps(1, 0, None)


@pytest.fixture(scope="module", params=[2, 3, 4], ids="world{}".format)
def ranks(request, tmp_path_factory) -> list[dict]:
    directory = tmp_path_factory.mktemp("world")
    # One server imports torch and what DistributedDataParallel drags in; all nine processes are forked from it.
    torch.multiprocessing.set_forkserver_preload(["torch.nn.parallel", "torch._dynamo"])
    torch.multiprocessing.start_processes(
        worlds.everything, (request.param, str(directory)), nprocs=request.param, start_method="forkserver"
    )
    return [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("objective", worlds.OBJECTIVES)
def test_loss_and_gradients_equal_one_process(objective, ranks, alone):
    tolerance = {"float64": 1e-12, "float32": 1e-6}
    alike = [case for case in worlds.CASES if case[0] == objective]
    assert len(alike) >= 16
    for rank, case in [(rank, case) for rank in ranks for case in alike]:
        assert rank["steps"][case].keys() == alone[case].keys()
        for key, expected in alone[case].items():
            error = (rank["steps"][case][key] - expected).norm() / expected.norm()
            assert error <= tolerance[case[2]], (case, key, error)


def learned(objective: str) -> set[str]:
    if "learn_scale" not in objective:
        return set()
    return {"log_scale", "bias"} if objective.startswith("siglip") else {"log_scale"}


def test_encoder_and_scale_do_have_gradients(alone):
    for case, values in alone.items():
        assert values.keys() == {"loss", "encoder"} | learned(case[0])
        assert all((value != 0).all() for value in values.values()), case


@pytest.mark.parametrize("backend", worlds.BACKENDS)
def test_ties_across_ranks_go_to_the_lowest_global_index(backend, ranks):
    hardest = [1] + [0] * (worlds.PAIRS - 1)
    W = -2 * torch.eye(worlds.PAIRS)
    for anchor, column in enumerate(hardest):
        W[anchor, column] += 1
        W[column, anchor] += 1
    queries, candidates = 0.5 * (1 - torch.eye(worlds.PAIRS)), torch.eye(worlds.PAIRS)
    for rank, result in enumerate(ranks):
        rows = worlds.share("ragged", len(ranks), rank)
        query_gradient, candidate_gradient = result["tied"][backend]
        assert torch.equal(query_gradient, len(ranks) * (W @ candidates)[rows])
        assert torch.equal(candidate_gradient, len(ranks) * (W.T @ queries)[rows])


def test_similarity_statistics_equal_one_process(ranks):
    expected = worlds.statistics(1, 0, None)
    for result in ranks:
        for case, statistics in expected.items():
            assert result["statistics"][case] == pytest.approx(statistics, rel=1e-13)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ids", "disagree about ids given: [1, 0"),
        ("size", "disagree about embedding size: [3, 4"),
        ("precision", "disagree about bits of precision: [64, 32"),
        ("gradient", "disagree about gradient required of queries: [1, 0"),
        ("margins", "disagree about margins given: [1, 0"),
        ("nothing", "at least one row is needed"),
    ],
)
def test_a_disagreement_is_refused_on_every_rank(what, message, ranks):
    for result in ranks:
        assert message in result["disagreements"][what]


def test_a_forgotten_group_is_warned_about(ranks):
    for result in ranks:
        (warning,) = result["forgotten_group"]
        assert "without group= in a job of" in warning
