"""Everything that is to be measured on a GPU, in one command and a few minutes: see `benchmarks.gpu.__main__`.

- `bench`: what a section is given: sizes, device, deadline, and where rows go.
- `record`: rows as they are measured, and the table of them.
- `timing`: medians, spread, memory and clocks.
- `losses`: objectives and inputs that are timed.
- `checks`, `ceilings`, `step`, `sweep`, `parity`, `peers`, `objectives`, `batches`, `evaluation`: the sections.
- `peer`: one loss of others, in a process of its own.

Nothing here needs more than torch and Triton.
"""
