"""Several dual encoders that are asked together: the mean of their similarities, as one dual encoder.

Shape legend: b items, D length of a member's vectors, K members.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from allpairs.models.dual import DualEncoder
from allpairs.models.spec import EnsembleSpec, ModelSpec


class Ensemble(DualEncoder):
    """Vectors of K encoders one behind the other, each divided by √K: dot products are the mean of the K similarities.

    So everything that reads a dual encoder's vectors reads an ensemble's, `[b, K·D]` and of unit length.
    """

    def __init__(self, members: Sequence[DualEncoder]) -> None:
        nn.Module.__init__(self)  # its two sides are the members'
        # Not a list: sharding takes a list's entries for layers of one network.
        self.nets = nn.ModuleDict({str(number): member for number, member in enumerate(members)})
        self.dim = sum(member.dim for member in members)
        self.preprocessing = members[0].preprocessing
        self.learned = members[0].learned

    @property
    def members(self) -> list[DualEncoder]:
        """The K encoders."""
        return cast("list[DualEncoder]", list(self.nets.values()))

    def described(self, spec: ModelSpec) -> EnsembleSpec:
        """Return the self-contained description: `spec` is a member's."""
        member = self.members[0].described(spec)
        assert not isinstance(member, EnsembleSpec)
        return EnsembleSpec(member=member, count=len(self.nets))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit vectors `[b, K·D]` of images as at `DualEncoder.encode_images`."""
        return self._join([member.encode_images(images) for member in self.members])

    def encode_texts(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return unit vectors `[b, K·D]` of captions as at `DualEncoder.encode_texts`."""
        return self._join([member.encode_texts(tokens, lengths) for member in self.members])

    def of_each(self, vectors: Tensor) -> list[Tensor]:
        """Return the members' own unit vectors `[b, D]` of `vectors` `[b, K·D]`."""
        return list((vectors * len(self.nets) ** 0.5).chunk(len(self.nets), dim=1))

    def _join(self, vectors: list[Tensor]) -> Tensor:
        return torch.cat(vectors, dim=1) / len(vectors) ** 0.5
