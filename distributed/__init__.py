"""The training service on Ray Train.

- `train`, `embed`: the commands; `summary`: the table at the end.
- `config`: the typed configuration; `data`: data sets and their readers; `doctor`: what a machine lacks.
- `launch`: from a configuration to workers on Ray; `worker`: what each of them runs; `stopping`: signals to the driver.
- `progress`, `supervision`, `heartbeat`, `stacks`: a run as its driver sees it: rows, workers that are lost, signs of
  life, where in the code a rank stands.
- `elastic`, `scaling`: a run with fewer workers, and with more again; `preemption`: a notice that a node will go.
- `world`: what all ranks know and agree on; `agreement`: what must be the same on all of them.
- `beginning`: what a run trains, and on what; `loop`: training; `step`, `cached`: its forward, whole or in chunks;
  `interval`: its rows of metrics.
- `clock`, `norms`, `profiling`: where a step's time goes; how long weights and updates are; a profiler's trace.
- `guards`: losses and gradients that are not finite; `replicas`: ranks that came apart.
- `compiling`: the encoder through torch.compile.
- `average`: a moving average of the weights; `certificate`: a chain of hashes over what every step was trained on.
- `ncr`: two nets that find the pairs that do not match.
- `strategies`: how ranks share gradients and optimiser state.
- `evaluation`, `finish`: encoding and measuring a split, and the end of a run.
- `checkpoints`, `run_directory`, `provenance`, `tracking`: what a run leaves behind.
"""
