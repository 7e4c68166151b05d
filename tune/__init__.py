"""Searches over configuration keys on Ray Tune: each trial is a real run of `distributed`, a search ends in a plot.

- `search`: the command; `config`, `space`: its file, the values it tries and how they are called.
- `points`: what each trial sets, all combinations, one key at a time or draws; `define_by_run`: draws by Optuna.
- `runner`, `trial`: trials on Ray Tune, and the run that each of them is; `early_stop`: those that lag behind.
- `progress`, `following`: what happens, as rows, and as lines while the search goes on; `stopping`: on a signal.
- `results`: trials; `settings`: mean and deviation over their seeds, the table.
- `plots`: the picture; `panels`: those with a panel for each searched key, and lines for references.
"""
