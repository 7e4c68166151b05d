"""Wheels that come in kinds: which FAISS is there and whether it searches; a torchvision built for another torch."""

from importlib.metadata import packages_distributions, version
from importlib.util import find_spec

from distributed.doctor.finding import Finding
from distributed.doctor.probe import ProbeError, ask

_SEARCH = """
import faiss, numpy
unit = numpy.eye(4, 8, dtype=numpy.float32)
index = faiss.IndexFlatIP(8)
index.add(unit)
assert index.search(unit, 1)[1].ravel().tolist() == [0, 1, 2, 3]
gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
if gpus:
    moved = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    assert moved.search(unit, 1)[1].ravel().tolist() == [0, 1, 2, 3]
print(gpus)
"""


def check_faiss() -> Finding:
    """One FAISS wheel, and it finds four unit vectors among themselves (on the GPU too, where it has one)."""
    wheels = sorted(set(packages_distributions().get("faiss", [])))
    if len(wheels) > 1:
        remedy = f"pip uninstall -y {' '.join(wheels)}, then install one of them"
        return Finding("faiss", "problem", f"{' and '.join(wheels)} overwrite each other (both are `faiss`)", remedy)
    if find_spec("faiss") is None:
        remedy = "pip install -c constraints.txt -e '.[faiss-cpu]'"
        return Finding("faiss", "warning", "not installed: no top-K galleries", remedy)
    kind = f"{wheels[0]} {version(wheels[0])}" if wheels else "built from source"
    try:
        gpus = int(ask(_SEARCH))
    except ProbeError as error:
        return Finding("faiss", "problem", f"{kind} does not search: {error}", "reinstall the FAISS wheel")
    return Finding("faiss", "ok", f"{kind}, searches on {f'{gpus} GPU(s)' if gpus else 'CPU'}")


def check_torchvision() -> Finding:
    """Torchvision is absent (nothing here needs it) or imports; one built for another torch breaks transformers."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "ok", "not installed (only timm backbones want it)")
    try:
        found = ask("import torchvision; print(torchvision.__version__)")
    except ProbeError as error:
        return Finding("torchvision", "problem", f"does not import: {error}", "pip uninstall -y torchvision")
    return Finding("torchvision", "ok", found)
