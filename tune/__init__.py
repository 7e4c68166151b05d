"""Searches over configuration keys on Ray Tune: each trial is a real run of `distributed`, a search ends in a plot.

- `search`: the command; `config`, `space`: its file, the values it tries and how they are called.
- `runner`, `trial`: trials on Ray Tune, and the run that each of them is; `progress`: a line per event.
- `results`, `plots`: the table and the picture.
"""
