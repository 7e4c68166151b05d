"""Whole dual encoders of the transformers library: CLIP, SigLIP, SigLIP 2, MetaCLIP 2, Chinese-CLIP, ALIGN.

Shape legend: b items, L tokens (padded), D embedding.
"""

import dataclasses
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allpairs.errors import UserError, nearest
from allpairs.models.dual import DualEncoder, unit
from allpairs.models.hub import configuration, is_model_type, network, self_contained
from allpairs.models.patches import from_packed, from_squares, is_packed, shapes_of
from allpairs.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelNormalization
from allpairs.models.pooling import behind
from allpairs.models.preprocessing import ImagePreprocessing
from allpairs.models.spec import ModelSpec, WholeSpec
from allpairs.models.tokenizer import READS_PADDING
from allpairs.models.vocabulary import END, PAD, START

FAMILIES = ("align", "chinese_clip", "clip", "metaclip_2", "siglip", "siglip2")
# A caption's vector is the state at its end token, which the library looks up by its id; it is the last true one.
_TAKES_LAST = ("clip_text_model", "metaclip_2_text_model")
_OF_THE_OBJECTIVE = ("logit_scale", "logit_bias", "temperature")


class WholeEncoder(DualEncoder):
    """Both towers and projections of a model of `FAMILIES`, as `get_image_features` and `get_text_features` use them.

    The learned scale and bias belong to the objective: what the checkpoint has of them is `learned`. `spec` becomes the
    self-contained description of what was built, so that a saved model can be rebuilt without the hub.

    Attributes:
        dim: D, the length of the vectors.
        preprocessing: the checkpoint's own image preprocessing; None for a model type alone.
        learned: the checkpoint's scale (and bias), by the names of our objectives' arguments; empty without weights.

    Raises UserError for a model that can't be found, built or used so.
    """

    def __init__(self, spec: WholeSpec, vocabulary_size: int) -> None:
        nn.Module.__init__(self)  # a whole model has no two modules to hand to DualEncoder
        config = configuration(spec, "model")
        if config.model_type not in FAMILIES:
            raise UserError(
                f"model.name: {spec.name!r} is a {config.model_type!r}, not a dual encoder"
                f"{nearest(config.model_type, FAMILIES)}"
            )
        if is_model_type(spec) and "vocab_size" not in (spec.config or {}).get("text_config", {}):
            spec = _with_vocabulary(spec, vocabulary_size)
        self.backbone: Any = network(spec, "model")
        text, vision = self.backbone.config.text_config, self.backbone.config.vision_config
        if vocabulary_size > text.vocab_size:
            raise UserError(
                f"model.config: the text model knows {text.vocab_size} tokens, the vocabulary has {vocabulary_size}"
            )
        self.freeze = spec.freeze
        self.preprocessing = None if is_model_type(spec) else ImagePreprocessing.load(spec.name, vision)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if self.preprocessing is not None:
            mean, std = self.preprocessing.mean, self.preprocessing.std
        self.pixels = PixelNormalization(mean, std)
        self.learned = _learned(self.backbone) if spec.pretrained else {}
        for name in _OF_THE_OBJECTIVE:
            if hasattr(self.backbone, name):
                delattr(self.backbone, name)
        self._text_kind, self._positions, self._pad = text.model_type, text.max_position_embeddings, text.pad_token_id
        self._patch = vision.patch_size if vision.model_type == "siglip2_vision_model" else None
        self.side = getattr(vision, "image_size", None) or 64
        if self._patch is not None:
            self.side = int(vision.num_patches**0.5) * self._patch
        interpolates = "interpolate_pos_encoding" in inspect.signature(self.backbone.get_image_features).parameters
        self._options = {"interpolate_pos_encoding": True} if interpolates else {}
        width = self._probe()
        self.image_head, self.text_head = (
            nn.Identity() if spec.head is None else nn.Linear(width, spec.head) for _ in range(2)
        )
        self.dim = width if spec.head is None else spec.head
        self.spec = dataclasses.replace(spec, **self_contained(self.backbone), init_from=None)
        self._freeze()

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of uint8 images `[b, 3, S, S]` (or packed patches)."""
        return unit(self.image_head(self.image_features(images)))

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors `[b, D]`, float32 at least, of token ids int64 `[b, L]` with lengths int64 `[b]`."""
        return unit(self.text_head(self.text_features(tokens, lengths)))

    def image_features(self, images: Tensor) -> Tensor:
        """Return the image tower's projected vectors of uint8 `images` as at `encode_images`."""
        pixels = self.pixels(images)
        if self._patch is None:
            return self._features(self.backbone.get_image_features(pixel_values=pixels, **self._options))
        if is_packed(images, self._patch):
            inputs = from_packed(pixels, shapes_of(images), self._patch)
        else:
            inputs = from_squares(pixels, self._patch)
        return self._features(self.backbone.get_image_features(**inputs))

    def text_features(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the text tower's projected vectors of `tokens` `[b, L]` with `lengths` `[b]`."""
        if self._text_kind in READS_PADDING:  # it takes its vector at the last position, which is padding
            tokens = F.pad(tokens, (0, self._positions - tokens.shape[1]), value=self._pad)
            return self._features(self.backbone.get_text_features(input_ids=tokens))
        mask = (~behind(lengths, tokens.shape[1])).long()
        if self._text_kind in _TAKES_LAST:
            states_bLD = self.backbone.text_model(input_ids=tokens, attention_mask=mask).last_hidden_state
            last_bD = states_bLD[torch.arange(len(lengths), device=lengths.device), lengths - 1]
            return self.backbone.text_projection(last_bD)
        return self._features(self.backbone.get_text_features(input_ids=tokens, attention_mask=mask))

    def described(self, spec: ModelSpec) -> ModelSpec:
        """Return the self-contained description of this model."""
        return self.spec

    def train(self, mode: bool = True) -> "WholeEncoder":
        """Switch to training mode; what is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.freeze != "none":
            for part in self._frozen():
                part.eval()
        return self

    @staticmethod
    def _features(output: Any) -> Tensor:
        vectors: Tensor = output.pooler_output
        return vectors.flatten(1)

    def _probe(self) -> int:
        """Return the length of the projected vectors, and stop training what they do not depend on.

        Parameters that never get a gradient (an unused pooler) would stop data-parallel training.
        """
        self.backbone.eval()
        with torch.enable_grad():
            image = self.image_features(torch.zeros(1, 3, self.side, self.side, dtype=torch.uint8))
            text = self.text_features(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2]))
            (image.sum() + text.sum()).backward()
        if image.shape[1] != text.shape[1]:
            raise UserError(f"model.name: its towers give vectors of {image.shape[1]} and {text.shape[1]}")
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.backbone.train()
        return image.shape[1]

    def _frozen(self) -> list[nn.Module]:
        if self.freeze == "all":
            return [self.backbone]
        towers = {"image": ("vision_model",), "text": ("text_model",), "both": ("vision_model", "text_model")}
        return [getattr(self.backbone, name) for name in towers.get(self.freeze, ())]

    def _freeze(self) -> None:
        for part in self._frozen():
            part.requires_grad_(False).eval()
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(
                f"model.freeze={self.freeze}: {self.backbone.config.model_type!r} has no projection beside its towers, "
                "so nothing is left to train; add model.head, or freeze less"
            )


def _learned(backbone: Any) -> dict[str, float]:
    """Return the scale by which the checkpoint multiplies cosines, and its bias, as our objectives name them."""
    if hasattr(backbone, "temperature"):  # ALIGN divides
        return {"scale": 1 / backbone.temperature.item()}
    learned = {"scale": backbone.logit_scale.exp().item()}
    return learned | ({"bias": backbone.logit_bias.item()} if hasattr(backbone, "logit_bias") else {})


def _with_vocabulary(spec: WholeSpec, size: int) -> WholeSpec:
    """Complete a model type by the words of the training captions: their number, and the ids that mean something."""
    text = (spec.config or {}).get("text_config") or {}
    words = {"vocab_size": size, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    return dataclasses.replace(spec, config={**(spec.config or {}), "text_config": {**text, **words}})
