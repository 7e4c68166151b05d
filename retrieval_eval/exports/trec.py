"""Runs and relevance judgements as trec_eval, pytrec_eval and ir_measures read them.

A run's line is ``query Q0 item rank score tag``, a judgement's ``query 0 item 1``. The tools sort a run by its scores,
and equal scores by name: with ties their numbers are those of one order, ours the mean over all.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from retrieval_eval.parts import Part
from retrieval_eval.shortlist import Shortlist


def write_trec(
    folder: Path, direction: str, name: str, parts: Sequence[Part], answers: Sequence[Shortlist]
) -> list[Path]:
    """Write ``run_<direction>.trec`` with the given answers and ``qrels_<direction>.trec``; return both paths."""
    tag = re.sub(r"\s+", "_", name.strip()) or "run"
    run, judgements = folder / f"run_{direction}.trec", folder / f"qrels_{direction}.trec"
    with run.open("w", encoding="utf-8") as lines, judgements.open("w", encoding="utf-8") as judged:
        for part, found in zip(parts, answers, strict=True):
            asking, answering = part.asking[direction], part.answering[direction]
            names = [answering.name(row) for row in range(len(answering))]
            for row in range(len(asking)):
                query = asking.name(row)
                scored = zip(found.indices[row].tolist(), found.scores[row].tolist(), strict=True)
                lines.writelines(
                    # Nine digits tell any two float32 numbers apart.
                    f"{query} Q0 {names[item]} {rank} {score:.9g} {tag}\n"
                    for rank, (item, score) in enumerate(scored, start=1)
                )
                judged.writelines(
                    f"{query} 0 {names[item]} 1\n" for item in part.report.positives[direction].of(row).tolist()
                )
    return [run, judgements]
