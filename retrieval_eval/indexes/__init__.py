"""FAISS: which index suits a gallery, built and searched on GPUs where build and cards allow it.

- `parameters`: the kinds of index, and what is chosen for a gallery's size.
- `probe`: what searches here, tried in a process of its own.
- `build`: an index of a gallery, and the best items it finds.
"""
