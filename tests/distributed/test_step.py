"""What a step hands to the objective."""

import pytest
import torch
from torch import Tensor, nn

from allpairs.objectives import make
from distributed.step import Pairs, TrainStep


class Encoder(nn.Module):
    """Unit vectors in float32, as the dual encoders give them under autocast too."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.texts = nn.Linear(12, 16), nn.Linear(3, 16)

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        both = self.images(images.float().flatten(1) / 255), self.texts(tokens.float())
        return tuple(nn.functional.normalize(vectors.float(), dim=1) for vectors in both)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_objective_gets_embeddings_in_the_type_of_the_run(precision, dtype):
    torch.manual_seed(0)
    objective = make("vlc")
    seen: list[torch.dtype] = []
    objective.register_forward_pre_hook(lambda _, sides: seen.extend(side.dtype for side in sides))
    step = TrainStep(Encoder(), objective, None, precision)
    images = torch.randint(256, (8, 3, 2, 2), dtype=torch.uint8)
    output = step(Pairs(images, torch.randint(9, (8, 3)), torch.full((8,), 3), torch.arange(8), torch.arange(8)))
    output.loss.backward()
    assert seen == [dtype, dtype]
    assert output.loss.dtype == output.images_bD.dtype == output.texts_cD.dtype == torch.float32
    assert all(parameter.grad.abs().sum() > 0 for parameter in step.encoder.parameters())
    torch.testing.assert_close(output.loss, make("vlc")(output.images_bD, output.texts_cD), rtol=2e-2, atol=0)
