"""One step of the fused backend as a GPU would see it: what is held at once, what is launched, and that nothing waits.

Tensors are torch fakes, which have shapes and no numbers, so that the batch may be as large as on the GPU: a step that
asked for a number would raise.
"""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allpairs.engine import global_batch, products
from allpairs.engine.fused import kernels, launch_table, launches
from allpairs.objectives import make, names

B, D = 65536, 768
KERNELS = (*launch_table.TABLE, "merge_excess", "merge_hardest")


class Held(TorchDispatchMode):
    """Notes how many bytes are held at once at most, of what is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)}
        result = operation(*args, **(kwargs or {}))
        self.calls[str(operation)] += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and (key := leaf.untyped_storage()._cdata) not in given:
                self.storages[key] = StorageWeakRef(leaf.untyped_storage()), leaf.untyped_storage().nbytes()
        self.storages = {key: held for key, held in self.storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


class Launched:
    """Stands in for a kernel: counts its launches."""

    def __init__(self, name: str, counts: Counter[str]) -> None:
        self.__name__, self.counts = name, counts

    def __getitem__(self, grid: tuple[int]):
        def launch(*arguments: object, **constants: object) -> None:
            self.counts[self.__name__] += 1
            if constants.get("MASKED"):
                self.counts[f"{self.__name__}, masked"] += 1

        return launch


@pytest.fixture
def hopper(monkeypatch) -> Counter[str]:
    """Fakes that are on an H200, and how often each kernel is launched on it."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(launches, "launch_for", lambda rows, kernel: launch_table.launch_on(9, rows.dtype, kernel))
    monkeypatch.setattr(launches.TensorDescriptor, "from_tensor", lambda rows, block: rows)
    monkeypatch.setattr(FakeTensor, "data_ptr", lambda _: 0)
    for name in KERNELS:
        monkeypatch.setattr(kernels, name, Launched(name, counts))
    return counts


def step(name: str, *, ids: bool = False, **arguments: object) -> Held:
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective = make(name, **arguments)
        sides = [torch.empty(B, D, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
        query_ids = torch.empty(B, dtype=torch.int64) if ids else None
        with Held() as held:
            objective(*sides, query_ids=query_ids).backward()
        assert all(side.grad.dtype == torch.bfloat16 for side in sides)
    return held


@pytest.mark.parametrize(("normalize", "in_place"), [(True, True), (False, True), (True, False)])
def test_65536_pairs_take_480_megabytes(normalize, in_place, hopper, monkeypatch):
    monkeypatch.setattr(products, "_adds_in_place", lambda device, dtype: in_place)
    held = step("vlc", normalize=normalize)
    assert held.peak <= 480e6
    # Twice two forward tiles of 32,768; twelve times twelve backward tiles of 5,632; masks along the diagonal alone.
    assert hopper["soft_excess"] == 4
    assert hopper["soft_excess, masked"] == 2
    assert hopper["soft_weights"] == 144
    assert hopper["soft_weights, masked"] == 12
    assert hopper["merge_excess"] == 8
    adds = "aten.addmm.dtype_out" if in_place else "aten.mm.dtype"
    assert held.calls[adds] == 288


@pytest.mark.parametrize("ids", [True, False], ids=["ids", "no_ids"])
@pytest.mark.parametrize(
    ("kind", "weights"), [("vlc", "soft_weights"), ("siglip", "sigmoid_weights"), ("triplet_hn", None)]
)
def test_a_step_waits_for_nothing_but_whether_all_ids_are_equal(kind, weights, ids, hopper, monkeypatch):
    monkeypatch.setattr(products, "_adds_in_place", lambda device, dtype: True)
    monkeypatch.setattr(global_batch, "_refuse_equal", lambda ids: None)
    held = step(kind, ids=ids, **({} if weights is None else {"learn_scale": True}))
    if weights is not None:
        assert held.peak <= 480e6
        assert hopper[f"{weights}, masked"] == (144 if ids else 12)


PATHS = [(name, {}) for name in names()] + [("unified", {"weighting": "sigmoid"}), ("goal", {"pair": "sig_ms"})]
PLAIN_TILE = 4096**2 * 4
"""Bytes of a tile of scores in float32."""


def path(name: str, arguments: dict[str, str], counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the line of the table in docs/engine.md: how one step of 4,096 pairs is computed, and what it holds."""
    monkeypatch.setattr("tests.allpairs.engine.fused.test_step.B", 4096)
    held = step(name, **arguments)
    launched = [kernel for kernel in counts if "," not in kernel and "merge" not in kernel]
    plain = held.calls["aten.mm.dtype"]
    forward = [f"kernel `{kernel}`" for kernel in launched if "weights" not in kernel]
    weights = [f"kernel `{kernel}`" for kernel in launched if "weights" in kernel]
    added = held.calls["aten.addmm.dtype_out"]
    assert added in (0, 2)
    walks = plain - (1 if added and not weights else 0)
    forward += ["plain tiles" if walks == 1 else "plain tiles, twice"] if walks else []
    gradient = (weights or ["plain tiles"])[0] if added else "two rows an anchor"
    rows = 24 * 4096 * D
    tiles = "–" if not plain else str(-(-(held.peak - rows) // PLAIN_TILE))
    label = ", ".join([f"`{name}`", *(f"`{key}={value}`" for key, value in arguments.items())])
    return f"| {label} | {', then '.join(forward)} | {gradient} | {tiles} |"


@pytest.mark.parametrize(("name", "arguments"), PATHS, ids=str)
def test_the_table_of_paths_says_what_a_half_precision_batch_takes(name, arguments, hopper, monkeypatch):
    monkeypatch.setattr(products, "_adds_in_place", lambda device, dtype: True)
    # How many positives an anchor has is a number that fakes do not know.
    monkeypatch.setattr(global_batch, "_positive_slots", lambda ids, _: torch.empty(len(ids), 1, dtype=torch.int64))
    line = path(name, arguments, hopper, monkeypatch)
    assert line in (Path(__file__).parents[4] / "docs/engine.md").read_text(encoding="utf-8").splitlines()


def test_a_second_look_takes_no_tiles_of_the_size_that_only_kernels_can_look_at(hopper, monkeypatch):
    monkeypatch.setattr("tests.allpairs.engine.fused.test_step.B", 8192)
    assert step("goal", pair="sig_ms").peak <= 7 * 5632**2 * 4 + 24 * 8192 * D
