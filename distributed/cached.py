"""Batches beyond the memory of the encoders: encoded twice, in chunks (`train.micro_batch`).

GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983): all
chunks are encoded without a graph, the objective gives each embedding its gradient, and then each chunk is encoded
again, now with a graph, to carry its embeddings' gradients to the weights. The gradient is that of the whole batch, not
an accumulation of smaller batches' losses: every pair meets all others. Memory is one chunk's, time one more forward.

Order of a step: phase 1, `encode`: chunk by chunk, the generators' states noted; loss and, after the ranks agreed that
it is finite, the gradients of embeddings and objective; phase 2, `TrainStep.forward` with these for each chunk under
the states noted, the ranks averaging once, in the last one, which brings the objective's gradients along.

Legend as in step.py; m chunks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from allpairs.errors import UserError
from distributed.step import Chunk, Pairs, StepOutput, TrainStep


@dataclass(frozen=True)
class _Encoded:
    """A chunk after phase 1."""

    pairs: Pairs
    rows: slice
    """Its images among the rank's."""
    texts: slice
    generators: list[Tensor]
    """The states before it was encoded: the CPU's, and its device's if that is another."""


class CachedStep:
    """Two-pass encoding of one rank's rows in `m` chunks; `m` is the same on all ranks."""

    def __init__(self, step: TrainStep) -> None:
        refuse_batch_statistics(step.encoder, "train.micro_batch")
        self._step = step
        self._chunks: list[_Encoded] = []
        self._embeddings: tuple[Tensor, Tensor]

    def encode(self, pairs: Pairs, chunks: int) -> StepOutput:
        """Phase 1: return the loss over embeddings that are leaves of its graph."""
        per_image = max(1, len(pairs.caption_ids_c) // max(1, len(pairs.image_ids_b)))
        self._chunks = []
        images, texts = [], []
        bounds = [len(pairs.image_ids_b) * number // chunks for number in range(chunks + 1)]
        for first, last in pairwise(bounds):
            rows, words = slice(first, last), slice(first * per_image, last * per_image)
            chunk = _Encoded(pairs.of_rows(rows, words), rows, words, _states(pairs.images.device))
            self._chunks.append(chunk)
            if first < last:
                with torch.no_grad():
                    image, text = self._step.encode(chunk.pairs)
                images.append(image)
                texts.append(text)
        self._embeddings = (torch.cat(images).requires_grad_(), torch.cat(texts).requires_grad_())
        loss = self._step.loss(*self._embeddings, pairs)
        return StepOutput(loss, *(rows.detach() for rows in self._embeddings))

    def chunks(self, loss: Tensor) -> Iterator[Chunk]:
        """Phase 2: yield each chunk with the gradients to carry, under the generators' states of phase 1.

        The objective's own gradients are not accumulated here, where data parallelism would not see them, but come with
        the last chunk.
        """
        learned = [parameter for parameter in self._step.objective.parameters() if parameter.requires_grad]
        images_bD, texts_cD, *rest = torch.autograd.grad(loss, [*self._embeddings, *learned], materialize_grads=True)
        device = images_bD.device
        after = _states(device)
        for number, chunk in enumerate(self._chunks):
            _restore(chunk.generators, device)
            scale = tuple(rest) if number == len(self._chunks) - 1 else None
            if chunk.rows.start < chunk.rows.stop:
                yield Chunk(chunk.pairs, images_bD[chunk.rows], texts_cD[chunk.texts], scale)
            else:  # fewer rows than chunks: the forward must still meet the hooks of data parallelism
                some = self._chunks[-1]
                yield Chunk(some.pairs, 0 * images_bD[some.rows], 0 * texts_cD[some.texts], scale)
        _restore(after, device)
        self._chunks = []


def chunks_of(global_rows: int, world: int, micro_batch: int) -> int:
    """Return into how many chunks every rank cuts its rows so that none has more than `micro_batch` images."""
    most = -(-global_rows // world)
    return -(-most // micro_batch)


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def refuse_batch_statistics(encoder: nn.Module, key: str) -> None:
    """Refuse `key`: statistics of a chunk, or of a share, are not those of the batch, and a chunk's would move twice.

    Raises:
        UserError: naming the first module with any.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and any(p.requires_grad for p in module.parameters()):
            raise UserError(
                f"{key}: {name} ({type(module).__name__}) takes statistics over the batch, which differ "
                "from chunk to chunk; accepted is null, or an encoder without batch normalisation"
            )
