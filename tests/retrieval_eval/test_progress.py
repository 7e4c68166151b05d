"""Progress in a log: a line every ten seconds, none for what is quick."""

import itertools

from retrieval_eval.evaluate.__main__ import shown_progress


def test_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = itertools.count(0.0, 4.0)  # four seconds per look
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with shown_progress("counting") as progress:
        for done in range(1, 8):
            progress(done, 2000)
    assert capsys.readouterr().err.splitlines() == [
        "counting: 3 of 2,000 (0 %) after 12 s",
        "counting: 6 of 2,000 (0 %) after 24 s",
    ]


def test_what_is_quick_says_nothing(capsys):
    with shown_progress("counting") as progress:
        progress(1, 1)
    assert capsys.readouterr().err == ""
