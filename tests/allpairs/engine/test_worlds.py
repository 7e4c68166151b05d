"""Two, three and four processes must compute exactly what one computes: gradients, not curves.

One gloo group per world runs every case; the encoder and the objective are wrapped in real DistributedDataParallel.
"""

import math

import pytest
import torch
import torch.multiprocessing

from allpairs.engine import chunks
from allpairs.objectives import make
from benchmarks import cost
from tests.allpairs.engine import counting, worlds


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


BY_HAND = {
    # Ranks: bytes of candidates a rank sends to the others, of sums chunk by chunk, and the most it holds in backward.
    # 40 rows of 96 numbers of 4 bytes are 15,360; W of a tile is 1,024. Held are all candidates, three times the own
    # rows (the sums of queries and both gradients), two chunks of at most half a part, and a rank's part of one.
    2: (15_360, [3_840] * 4, 2 * 15_360 + 3 * 15_360 + 2 * 7_680 + 3_840 + 1_024),
    3: (2 * 15_360, [5_376] * 5 + [3_840], 3 * 15_360 + 3 * 15_360 + 2 * 8_064 + 2_688 + 1_024),
    4: (3 * 15_360, [5_760] * 8, 4 * 15_360 + 3 * 15_360 + 2 * 7_680 + 1_920 + 1_024),
}


@pytest.fixture
def in_chunks(monkeypatch):
    """Chunks as the ranks have counted them."""
    monkeypatch.setattr(chunks, "LEAST_COLUMNS", counting.LEAST_COLUMNS)


@pytest.mark.parametrize("name", ["vlc", "circle"])
def test_ranks_send_each_row_once_and_hold_their_own_rows_and_two_chunks(name, ranks, in_chunks):
    job = counting.job(len(ranks))
    gathered, summed, held = BY_HAND[len(ranks)]
    assert (cost.gather_bytes(job), cost.scatter_bytes(job)) == (gathered, sum(summed))
    assert cost.held_bytes(job, counting.TILE) == held
    copied_by_gloo = summed[0] * len(ranks) // (len(ranks) - 1)
    for rank in ranks:
        found = rank["exchanged"][name]
        assert found["sent"] == {"gather": [gathered], "sum onto owners": summed}
        # And a few numbers of each item: ids, statistics.
        assert held <= found["held"] <= held + copied_by_gloo + 64 * job.pairs
        assert found["same bits"]


@pytest.mark.parametrize("name", ["vlc", "triplet_hn"])
def test_own_candidates_are_looked_at_while_the_others_travel(name, ranks):
    for number, rank in enumerate(ranks):
        first = 40 * number
        tiles = [range(first, first + 16), range(first + 16, first + 32), range(first + 32, first + 40)]
        assert rank["exchanged"][name]["before arrival"] == tiles


def test_hard_negatives_send_the_rows_that_they_touch(ranks, in_chunks):
    job = counting.job(len(ranks))
    queries, candidates = counting.sides(len(ranks))
    S = (queries @ candidates.T).fill_diagonal_(-2)
    owner = torch.arange(job.pairs) // job.batch
    touched = [
        {(int(owner[i]), int(j)) for i, j in enumerate(S.argmax(1)) if owner[i] != owner[j]},
        {(int(owner[i]), j) for j, i in enumerate(S.argmax(0)) if owner[i] != owner[j]},
    ]
    messages = set.union(*touched)
    rows = [sum(rank == sender for sender, _ in messages) for rank in range(len(ranks))]
    arriving = [sum(owner[j] == rank for _, j in messages) for rank in range(len(ranks))]
    room = {2: 20, 3: 21, 4: 20}[len(ranks)]  # in a chunk; 4, 6 and 8 of them, see BY_HAND
    calls = len(BY_HAND[len(ranks)][1]) if max(rows + arriving) > room else 1
    assert sum(rows) / len(ranks) <= cost.most_touched(job)
    for result, count in zip(ranks, rows, strict=True):
        found = result["exchanged"]["triplet_hn"]
        assert found["sent"].keys() == {"gather", "to each"}
        # Each with its index, of 8 bytes.
        assert sum(found["sent"]["to each"]) == cost.touched_bytes(job, count) - 8 * count == count * 96 * 4
        assert len(found["sent"]["to each"]) == calls
        assert result["exchanged at once"]["triplet_hn"]["sent"]["to each"] == [sum(found["sent"]["to each"])]
        assert found["same bits"]


def test_similarity_statistics_equal_one_process(ranks):
    expected = worlds.statistics(1, 0, None)
    for result in ranks:
        for case, statistics in expected.items():
            assert result["statistics"][case] == pytest.approx(statistics, rel=1e-13)


DISAGREE = "the ranks of the group disagree about "


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("ids", DISAGREE + "ids given: [1, 0"),
        ("size", DISAGREE + "embedding size: [3, 4"),
        ("precision", DISAGREE + "bits of precision: [64, 32"),
        ("gradient", DISAGREE + "gradient required of queries: [1, 0"),
        ("margins", DISAGREE + "margins given: [1, 0"),
        ("texts", DISAGREE + "text ids given: [1, 0"),
        ("nothing", "at least one row is needed"),
        ("objective", DISAGREE + "objective: ['VLC', 'Circle'"),
        ("warm-up", DISAGREE + "objective: ['Triplet', 'TripletHN'"),
        ("statistics", DISAGREE + "objective: ['none, but similarity_statistics', 'VLC'"),
        ("logged", DISAGREE + "objective: ['none, but global_value', 'VLC'"),
        ("backend", DISAGREE + "backend: ['dense', 'tiled'"),
        ("auto", DISAGREE + "backend: ['dense', 'tiled'"),
        ("margin", DISAGREE + "margin: ['0.3', '0.2'"),
        ("scale", DISAGREE + "scale: ['50.0', '60.0'"),
        ("weighting", DISAGREE + "scheme: ['SelfSimilarity("),
        ("polynomial", DISAGREE + "coefficients: ['Polynomial(constant=0.0, linear=1.0, quadratic=0.0)'"),
        ("reduction", DISAGREE + "reduction: ['sum', 'mean'"),
        ("normalize", DISAGREE + "normalize: ['False', 'True'"),
        ("learned", "put the objective into the module that DistributedDataParallel wraps"),
        ("shape", "rank 0 of the group: queries: floating-point embeddings [B, D] are accepted, not float32 [4]"),
        ("id shape", "rank 0 of the group: query_ids: one integer per row, [4], is accepted, not int64 [3]"),
        ("text shape", "rank 0 of the group: text_ids: one integer per row, [4], is accepted, not int64 [3]"),
        ("id type", "rank 0 of the group: query_ids: one integer per row, [4], is accepted, not float32 [4]"),
        ("tile", "rank 0 of the group: tile=0 is impossible; accepted: a whole number from 1"),
        ("spelling", "rank 0 of the group: backend='tilde' is unknown; did you mean 'tiled'?"),
        ("triton", "rank 0 of the group: backend='triton': Circle has no fused kernel"),
        ("no tensor", "rank 0 of the group: queries: a tensor of embeddings [B, D] is accepted, not NoneType"),
        ("equal ids", "query_ids: all ids of the batch are 0, so that no pair is a negative"),
        ("not in it", "of the job is not in it; accepted: a group of this process, or None"),
        ("value", "of the job is not in it; accepted: a group of this process, or None"),
        ("text", "group='world' is impossible; accepted: a process group of torch.distributed (of a DeviceMesh, mesh."),
        ("list", "group=[0, 1] is impossible; accepted: a process group of torch.distributed"),
        ("flag", "group=True is impossible; accepted: a process group of torch.distributed"),
        ("mesh", "is impossible; accepted: a process group of torch.distributed (of a DeviceMesh, mesh.get_group())"),
    ],
)
def test_a_disagreement_is_refused_on_every_rank(what, message, ranks):
    for result in ranks:
        assert message in result["disagreements"]["messages"][what]
    if what not in ("not in it", "value"):  # those name the rank they happened to
        assert len({result["disagreements"]["messages"][what] for result in ranks}) == 1


def test_no_rank_waits_for_one_that_failed(ranks):
    for result in ranks:
        assert result["disagreements"]["seconds"] < 20
        assert "no tensor" in result["disagreements"]["messages"]
        assert "equal ids on each" not in result["disagreements"]["messages"]  # the ids of the others are others
        # Whoever caught what was raised goes on with the others: all are at the same call.
        everyone = torch.eye(4).repeat(len(ranks), 1)
        torch.testing.assert_close(result["disagreements"]["next"], make("vlc")(everyone, everyone))


def test_a_factor_of_each_rank_on_its_loss_counts_in_tiles_as_in_the_whole_matrix(ranks):
    for result in ranks:
        assert len(result["factors"]) == len(worlds.OBJECTIVES) * len(worlds.BACKENDS)
        for (objective, backend), gradient in result["factors"].items():
            expected = result["factors"][objective, "dense"]
            assert (gradient - expected).norm() <= 1e-12 * expected.norm() + 1e-15, (objective, backend)


def test_what_is_not_finite_on_one_rank_is_nan_on_all(ranks):
    for result in ranks:
        for case, (loss, in_gradient) in result["broken"].items():
            assert math.isnan(loss), case
            assert in_gradient, case


def test_a_forgotten_group_is_warned_about(ranks):
    for result in ranks:
        of_objective, of_value = result["forgotten_group"]
        assert of_objective.startswith(f"objective called without group= in a job of {len(ranks)} ranks")
        assert of_value.startswith(f"global_value called without group= in a job of {len(ranks)} ranks")
