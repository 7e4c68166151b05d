"""Runs that are disturbed on purpose, with real processes: do they end as if nobody had?

- `setting`: what is trained, and a Ray that many drills share.
- `disturbed`: one run of the training command, watched while it trains, and all processes it has started.
- `faults`: what is done to it, at a drawn step.
- `outcome`: the undisturbed run beside it: weights, certificate, every row of metrics once.
- `drill`: a drill of a kind and seed, from start to verdict.
- `record`: rows as they come, and the table.
- `soak`: memory and file descriptors over an hour's worth of steps.
"""
