"""The evaluation protocols by name: which gallery each one measures, and a refusal for any other.

Splits as the field uses them: Flickr30K and MS-COCO after Karpathy and Fei-Fei (CVPR 2015), MSR-VTT's full test set
after Xu et al. (CVPR 2016) and its 1,000 videos, "1K-A", after Yu et al. (ECCV 2018).
"""

from dataclasses import dataclass, replace

import numpy as np

from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError, nearest
from retrieval_eval.inputs import rows


@dataclass(frozen=True)
class Protocol:
    """What a gallery must be like to be called by this name; None where anything goes."""

    name: str
    gallery: str
    """The accepted gallery in words."""
    images: int | None = None
    captions: int | None = None
    """Exactly this many per image."""
    most_captions: int | None = None
    """At most this many per image."""
    folds: int = 1
    """Consecutive blocks of images, in the order of their rows, that are measured alone and averaged."""
    query_name: str = "i"
    item: str = "image"
    drop_empty: bool = False
    """Captions without text stand for missing ones: they are left out, and counted in the manifest."""

    def fit(self, embeddings: EmbeddingSet) -> tuple[EmbeddingSet, np.ndarray]:
        """Return the embeddings to measure, and the rows [M] that their captions have in the given ones.

        Raises UserError, with the rows and ids, for a gallery that is not this protocol's.
        """
        unknown = np.flatnonzero(~np.isin(embeddings.caption_ids, embeddings.image_ids))
        if len(unknown):
            raise UserError(
                f"{len(unknown)} captions belong to no {self.item}: {rows(unknown, embeddings.caption_ids)}"
                f"; accepted: captions with the id of one of the {self.item}s"
            )
        given, kept = len(embeddings.captions), np.arange(len(embeddings.captions))
        if self.drop_empty:
            embeddings, kept = _without_empty_texts(embeddings)
        if self.images is not None and len(embeddings.images) != self.images:
            self._refuse(f"{len(embeddings.images):,} {self.item}s")
        counts = captions_per_image(embeddings)
        least, most = self.captions or 1, self.captions or self.most_captions
        wrong = np.flatnonzero((counts < least) | (counts > (most or counts.max())))
        if len(wrong):
            self._refuse(
                f"{counts[wrong[0]]} captions for {self.item} {rows(wrong, embeddings.image_ids)}"
                + (f", {given - len(kept)} empty ones left out" if len(kept) < given else "")
            )
        return embeddings, kept

    def _refuse(self, found: str) -> None:
        elsewhere = "" if self.name == "custom" else "; any other gallery is --protocol custom"
        raise UserError(f"not the gallery of {self.name}: it has {found}; accepted: {self.gallery}{elsewhere}")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("flickr30k-1k", "1,000 images with 5 captions each", images=1000, captions=5),
        Protocol("coco-5k", "5,000 images with 5 captions each", images=5000, captions=5),
        Protocol(
            "coco-1k-5fold",
            "5,000 images with 5 captions each, measured in five consecutive blocks of 1,000 images and averaged",
            images=5000,
            captions=5,
            folds=5,
        ),
        Protocol(
            "msrvtt-full",
            "2,990 videos with 1 to 20 captions each (empty texts are missing captions)",
            images=2990,
            most_captions=20,
            query_name="v",
            item="video",
            drop_empty=True,
        ),
        Protocol(
            "msrvtt-1ka", "1,000 videos with 1 caption each", images=1000, captions=1, query_name="v", item="video"
        ),
        Protocol("custom", "at least 1 caption per image"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return the protocol of this name; UserError with the accepted ones otherwise."""
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)} (accepted: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def captions_per_image(embeddings: EmbeddingSet) -> np.ndarray:
    """Count each image's captions, [N], by id."""
    order = np.argsort(embeddings.image_ids)
    place = order[np.searchsorted(embeddings.image_ids, embeddings.caption_ids, sorter=order)]
    return np.bincount(place, minlength=len(embeddings.images))


def _without_empty_texts(embeddings: EmbeddingSet) -> tuple[EmbeddingSet, np.ndarray]:
    kept = np.flatnonzero([bool(text.strip()) for text in embeddings.texts])
    if len(kept) == len(embeddings.texts):
        return embeddings, kept
    present = replace(
        embeddings,
        captions=embeddings.captions[kept],
        caption_ids=embeddings.caption_ids[kept],
        texts=[embeddings.texts[row] for row in kept],
    )
    return present, kept
