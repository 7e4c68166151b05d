"""The list of checks, run one after another."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from distributed.doctor.cluster import check_cluster
from distributed.doctor.finding import Finding
from distributed.doctor.machine import check_disk, check_gpu, check_machine, check_shared_memory
from distributed.doctor.packages import (
    check_faiss,
    check_names,
    check_packages,
    check_python,
    check_toolchain,
    check_torchvision,
)
from distributed.doctor.services import check_authentication, check_wandb

if TYPE_CHECKING:
    from distributed.config import Config

Check = Callable[[], Finding | list[Finding]]


def checks(config: "Config | None" = None) -> tuple[Check, ...]:
    """Return every check, in order; some look closer where the `config` of a run says what it needs."""
    return (
        check_python,
        check_packages,
        check_names,
        check_gpu,
        check_faiss,
        check_torchvision,
        check_toolchain,
        check_authentication,
        partial(check_cluster, config),
        partial(check_wandb, config),
        check_machine,
        check_disk,
        check_shared_memory,
    )


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Run `checks`; one that breaks is itself a problem, and the others still run."""
    findings: list[Finding] = []
    for check in checks:
        try:
            answer = check()
        except Exception as error:  # a broken environment may break any of them, in any way
            answer = Finding(
                getattr(check, "func", check).__name__, "problem", f"the check broke: {type(error).__name__}: {error}"
            )
        findings += [answer] if isinstance(answer, Finding) else answer
    return findings
