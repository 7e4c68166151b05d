"""Searches over configuration keys on Ray Tune: each trial is a real run of `distributed`, a search ends in a plot.

- `search`: the command; `config`, `space`: its file and the values it tries.
- `runner`, `trial`: trials on Ray Tune, and the run that each of them is; `progress`: a line per event.
- `results`, `plots`, `labels`: the table, the picture, and how trials are called in both.
"""
