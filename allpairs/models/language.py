"""Text models of the transformers library as caption encoders: BERT, RoBERTa, the text tower of CLIP, ….

Shape legend: b captions, L tokens (padded), H the model's width, D embedding.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.errors import UserError
from allpairs.models.hub import configuration, is_model_type, network, self_contained
from allpairs.models.pooling import GeneralizedPooling, behind
from allpairs.models.spec import TextTransformersSpec
from allpairs.models.vocabulary import END, PAD, START


class LanguageEncoder(nn.Module):
    """Token ids `[b, L]` with true lengths `[b]` → `[b, dim]`, not normalised: text model, one linear layer, pooling.

    Pooling: "mean" of the true tokens, the "first" of them, "gpo" (VSE∞), or "auto": the model's own (CLIP's end token,
    BERT's pooler), else the first. With `drop`, training hides that share of the tokens from the model and the pooling.
    `spec` becomes the self-contained description, as in `BackboneEncoder`. Padding never changes a vector.
    """

    def __init__(self, spec: TextTransformersSpec, dim: int, vocabulary_size: int) -> None:
        super().__init__()
        self.pool, self.freeze, self.drop = spec.pool, spec.freeze, spec.drop
        if not hasattr(configuration(spec, "model.text", "text"), "vocab_size"):
            raise UserError(f"model.text.name: {spec.name!r} does not encode captions: it has no vocabulary")
        if is_model_type(spec) and "vocab_size" not in (spec.config or {}):
            words = {"vocab_size": vocabulary_size, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
            spec = dataclasses.replace(spec, config={**(spec.config or {}), **words})
        self.backbone: Any = network(spec, "model.text", "text")
        config = self.backbone.config
        if vocabulary_size > config.vocab_size:
            raise UserError(
                f"model.text.config: the text model knows {config.vocab_size} tokens, "
                f"the vocabulary has {vocabulary_size}"
            )
        self.spec = dataclasses.replace(spec, **self_contained(self.backbone))
        self._ends = config.model_type.startswith(("clip_text", "metaclip_2_text"))
        self.embedding = nn.Linear(self._probe(spec.name), dim)
        self.pooling = GeneralizedPooling() if spec.pool == "gpo" else None
        if self.freeze:
            self.backbone.requires_grad_(False).eval()

    def _probe(self, name: str) -> int:
        """Return the width of the states, and stop training what the pooled vector does not depend on."""
        tokens, lengths = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([2])
        self.backbone.eval()
        try:
            with torch.enable_grad():
                pooled = self._pooled(tokens, lengths, torch.ones(1, 2, dtype=torch.bool))
                pooled.sum().backward()
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"model.text.name: {name!r} does not encode captions: {error}") from None
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        self.backbone.train()
        return pooled.shape[-1]

    def _pooled(self, tokens: Tensor, lengths: Tensor, present: Tensor) -> Tensor:
        """Return one vector per caption `[b, H]`; all states, `[b, L, H]`, for generalised pooling."""
        output = self.backbone(input_ids=tokens, attention_mask=present.long())
        states_bLH: Tensor = output.last_hidden_state
        if self.pool == "gpo":
            return states_bLH
        if self.pool == "mean":
            return (states_bLH * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)
        if self.pool == "auto" and self._ends:
            return states_bLH[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        if self.pool == "auto" and output.get("pooler_output") is not None:
            return output.pooler_output
        return states_bLH[:, 0]

    def train(self, mode: bool = True) -> "LanguageEncoder":
        """Switch to training mode; a frozen text model stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Encode `tokens` int64 `[b, L]` of `lengths` int64 `[b]` (each from 1 to L) as `[b, dim]`."""
        present_bL = ~behind(lengths, tokens.shape[1])
        if self.training and self.drop:
            place_L = torch.arange(tokens.shape[1], device=tokens.device)
            edge_bL = (place_L == 0) | (place_L == lengths[:, None] - 1)
            present_bL = present_bL & (edge_bL | (torch.rand(tokens.shape, device=tokens.device) >= self.drop))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            pooled = self._pooled(tokens, lengths, present_bL)
        vectors = self.embedding(pooled)
        return vectors if self.pooling is None else self.pooling(vectors, present_bL)
