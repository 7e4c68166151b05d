"""Encode a split over the ranks and measure retrieval on rank 0.

Legend: N images, C captions, D embedding, b images at a time.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.embeddings import EmbeddingSet, Origin
from allpairs.engine import similarity_statistics
from allpairs.errors import UserError
from allpairs.models import DualEncoder, Tokens
from allpairs.objectives import PairObjective
from distributed.config import Config
from distributed.data import Dataset, evaluation_batches
from distributed.data.dataset import CAUSES
from distributed.data.images import open_image
from distributed.world import World
from retrieval_eval.evaluate import Engine, evaluate
from retrieval_eval.report import Report
from retrieval_eval.searched.agreement import agreement

THUMBNAIL_SIDE = 128  # px: sharp enough on a high-density screen at the report's size, about 3 KB each


@dataclass(frozen=True)
class Encoded:
    """A split's embeddings, L2-normalised, with the ids that join images and captions."""

    images_ND: Tensor
    image_ids_N: Tensor
    captions_CD: Tensor
    caption_ids_C: Tensor
    dropped: Mapping[str, int]
    """Samples of the split that could not be used, by cause: a gallery without them is an easier one."""

    def evaluate(self, engine: Engine = "exact") -> Report:
        """Return the retrieval metrics of the whole split, counted or (`engine`) searched for."""
        return evaluate(self.images_ND, self.captions_CD, self.image_ids_N, self.caption_ids_C, engine=engine)


@torch.inference_mode()
def encode(encoder: DualEncoder, dataset: Dataset, vocabulary: Tokens, config: Config, world: World) -> Encoded | None:
    """Encode every image and all its captions; the whole on rank 0, None elsewhere. Collective.

    Raises:
        Stopped: on all ranks, when any rank's share has more bad samples than `data.max_bad_fraction`.
    """
    images: list[Tensor] = []
    image_ids: list[Tensor] = []
    captions: list[Tensor] = []
    caption_ids: list[Tensor] = []
    was_training = encoder.training
    encoder.eval()
    world.share_buffers(encoder)  # what is measured is what a checkpoint holds, which rank 0 writes
    dropped: Counter[str] = Counter()
    reader = evaluation_batches(
        dataset,
        config.data,
        batch=config.eval.batch,
        rank=world.rank,
        world=world.size,
        tokenize=lambda texts: vocabulary.encode(texts, config.data.max_caption_tokens),
        preprocessing=encoder.preprocessing,
        dropped=dropped,
    )
    bf16 = config.train.precision == "bf16"
    reason = None
    try:
        with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=bf16):
            for batch in reader:
                images.append(encoder.encode_images(batch.images.to(world.device)).float().cpu())
                image_ids.append(batch.image_ids)
                tokens, lengths = batch.tokens
                captions.append(encoder.encode_texts(tokens.to(world.device), lengths.to(world.device)).float().cpu())
                caption_ids.append(batch.caption_ids)
    except UserError as error:
        reason = str(error)
    encoder.train(was_training)
    world.stop_together(reason)  # or the others would wait for this rank's rows
    counts = world.sum([dropped[cause] for cause in CAUSES])
    gathered = [
        world.gather_rows(torch.cat(parts) if parts else empty)
        for parts, empty in (
            (images, torch.empty(0, encoder.dim)),
            (image_ids, torch.empty(0, dtype=torch.int64)),
            (captions, torch.empty(0, encoder.dim)),
            (caption_ids, torch.empty(0, dtype=torch.int64)),
        )
    ]
    whole = [part for part in gathered if part is not None]
    if not whole:
        return None
    images_ND, image_ids_N, captions_CD, caption_ids_C = whole
    dropped_overall = dict(zip(CAUSES, map(int, counts), strict=True))
    return Encoded(images_ND, image_ids_N, captions_CD, caption_ids_C, dropped_overall)


def engine_columns(split: str, report: Report) -> dict[str, Any]:
    """Return what a row says of the engine, and of a search the percent of ranks that are the counted ones.

    That is the lower of both directions, over all queries of a small split and a sample of a large one.
    """
    found = agreement(report)
    if found is None:
        return {f"{split}/engine": "exact"}
    return {f"{split}/engine": f"faiss ({found.by})", f"{split}/same_rank": min(found.same_rank.values())}


@torch.no_grad()
def loss_and_similarities(encoded: Encoded, objective: nn.Module, batch: int) -> dict[str, float]:
    """Return `loss`, `positive_similarity` and `hardest_negative_similarity` on a held-out split, on one rank.

    Each image meets its first caption, in consecutive batches of the training size, so that the loss compares with
    the training loss (it depends on how many negatives there are).
    """
    first_of = {int(image_id): row for row, image_id in reversed(list(enumerate(encoded.caption_ids_C.tolist())))}
    rows = torch.tensor([first_of[image_id] for image_id in encoded.image_ids_N.tolist()])
    totals = torch.zeros(3, dtype=torch.float64)
    weight = 0
    for chunk in _chunks(len(encoded.images_ND), batch):
        ids = encoded.image_ids_N[chunk]
        queries, candidates = encoded.images_ND[chunk], encoded.captions_CD[rows[chunk]]
        loss = objective(queries, candidates, query_ids=ids, candidate_ids=ids)
        similarities = similarity_statistics(queries, candidates, query_ids=ids, candidate_ids=ids)
        totals += len(ids) * torch.tensor([float(loss), similarities.positive, similarities.hardest_negative])
        weight += len(ids)
    names = ("loss", "positive_similarity", "hardest_negative_similarity")
    return dict(zip(names, (totals / weight).tolist(), strict=True))


def _chunks(total: int, size: int) -> Iterator[list[int]]:
    """Split range(total) into whole batches; a tail joins the batch before it, so that no batch has few negatives."""
    size = min(size, total)
    whole = total // size
    for index in range(whole):
        yield list(range(index * size, total if index == whole - 1 else (index + 1) * size))


def embedding_set(
    encoded: Encoded, dataset: Dataset, split: str, origin: Origin, *, max_image_pixels: int
) -> EmbeddingSet:
    """Join embeddings with what a person looks at (keys, caption texts, thumbnails) and where they come from."""
    image_ids = encoded.image_ids_N.tolist()
    samples = [dataset.read(image_id) for image_id in image_ids]
    texts = {image_id: iter(sample.captions) for image_id, sample in zip(image_ids, samples, strict=True)}
    is_image = dataset.kind == "image"
    return EmbeddingSet(
        images=encoded.images_ND.numpy(),
        captions=encoded.captions_CD.numpy(),
        image_ids=encoded.image_ids_N.numpy(),
        caption_ids=encoded.caption_ids_C.numpy(),
        image_keys=[sample.key for sample in samples],
        texts=[next(texts[image_id]) for image_id in encoded.caption_ids_C.tolist()],
        thumbnails=[thumbnail(sample.data, max_image_pixels) if is_image else None for sample in samples],
        split=split,
        data_hash=dataset.manifest.index_sha256,
        origin=origin,
    )


def origin_of(config: Config, checkpoint: str, step: int, objective: PairObjective[Any]) -> Origin:
    """Say where embeddings come from: the run, its checkpoint and its objective, a learned scale as a number."""
    learned = objective.learned()
    return Origin(
        run=config.run.name,
        checkpoint=checkpoint,
        step=step,
        objective=config.objective.name,
        arguments=config.objective.arguments() | learned | ({"learn_scale": False} if learned else {}),
        captions_per_image=config.data.captions_per_image,
    )


def thumbnail(data: bytes, max_pixels: int) -> bytes:
    """Return a small PNG (with transparency) or JPEG of an encoded image of at most `max_pixels`."""
    with open_image(data, max_pixels) as image:
        transparent = image.has_transparency_data
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        if transparent:
            image.convert("RGBA").save(buffer, "PNG")
        else:
            image.convert("RGB").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
