"""Pair objectives, the engine that runs them over large batches, and the encoders they train.

- `objectives`, `engine`: losses, and how they are computed over tiles and ranks; torch only.
- `models`: dual encoders.
- `analysis`: which samples contribute, and by how much.
- `embeddings`: embeddings of a split, on disk.
- `command`, `errors`, `terminal`: how commands end, mistakes of users, what of them a terminal shows.
- `files`, `hashes`: files written whole and read unaltered.
"""

__version__ = "0.1.0"
