"""What a step hands to the objective."""

import pytest
import torch
from torch import Tensor, nn

from allpairs.objectives import make
from distributed.data import Batch
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


def test_margins_of_the_batch_take_the_place_of_the_objectives():
    torch.manual_seed(0)
    ids, margins = torch.arange(8), torch.linspace(0, 0.7, 8)
    images = torch.randint(256, (8, 3, 2, 2), dtype=torch.uint8)
    batch = Batch(
        images=images,
        image_ids=ids,
        captions=[""] * 8,
        caption_ids=ids,
        tokens=(torch.randint(9, (8, 3)), torch.full((8,), 3)),
        keys=[""] * 8,
        seen=8,
        bad={},
        margins=margins,
    )
    pairs = Pairs.of(batch, torch.device("cpu"))
    output = TrainStep(Encoder(), make("triplet_hn"), None, "fp32")(pairs)
    scores = output.images_bD @ output.texts_cD.T
    hardest = scores.masked_fill(torch.eye(8, dtype=torch.bool), -2)
    rows = (margins + hardest.amax(1) - scores.diagonal()).clamp(min=0).mean()
    columns = (margins + hardest.amax(0) - scores.diagonal()).clamp(min=0).mean()
    torch.testing.assert_close(output.loss, rows + columns)
    assert pairs.of_rows(slice(2, 5), slice(2, 5)).margins_b.tolist() == margins[2:5].tolist()
