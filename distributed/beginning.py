"""What a run trains: encoder, objective and the average of the weights, fresh or of a checkpoint; and on what."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from allpairs.models import DualEncoder, Ensemble, Tokens, build, load, load_tokens, recompute_activations
from allpairs.objectives import PairObjective, arguments, make
from distributed.average import Average
from distributed.cached import refuse_batch_statistics
from distributed.checkpoints import checkpoint_of, load_trained, read_progress, start_from
from distributed.compiling import compile_encoder
from distributed.config import Config
from distributed.data import TrainReader, open_split
from distributed.data.margins import margin_source
from distributed.ncr.recipe import NoisyCorrespondence
from distributed.run_directory import RunDirectory
from distributed.step import TrainStep
from distributed.world import World

if TYPE_CHECKING:
    import torch.distributed as dist


class Beginning(NamedTuple):
    """What one rank begins with, the same on every rank."""

    step: TrainStep
    vocabulary: Tokens
    average: Average | None


def begin(config: Config, run: Path, checkpoint: Path | None, group: "dist.ProcessGroup | None") -> Beginning:
    """Make the encoder, of the `checkpoint` (which needs no hub) or a fresh one with the words of `run`; the objective.

    Raises:
        UserError: an encoder or objective that is impossible, or weights that do not fit.
    """
    if checkpoint is not None:
        encoder, vocabulary = load(checkpoint)
        encoder.train()
    else:
        vocabulary = load_tokens(run, config.model)
        torch.manual_seed(config.train.seed)  # the same initial weights on every rank and for every world size
        encoder = build(config.model, len(vocabulary))
        if config.train.recipe == "ncr":
            torch.manual_seed(mixed(config.train.seed, _SECOND_NET))
            encoder = Ensemble([encoder, build(config.model, len(vocabulary))])
    if config.cluster.min_workers is not None:
        refuse_batch_statistics(encoder, f"cluster.min_workers={config.cluster.min_workers}")
    given = config.objective.arguments()
    objective = make(config.objective.name, **given)
    start_scale(objective, encoder.learned, given)
    if checkpoint is None and config.model.init_from is not None:
        start_from(checkpoint_of(config.model.init_from), encoder, objective, given)
    average = None
    if config.train.ema_decay is not None:
        average = Average(encoder, config.train.ema_decay, 0 if checkpoint is None else read_progress(checkpoint).step)
        if checkpoint is not None:
            load_trained(checkpoint, encoder)
    if config.train.activation_checkpointing:
        recompute_activations(encoder)
    step = TrainStep(encoder, objective, group, config.train.precision)
    if config.train.compile:
        compile_encoder(encoder)
        step.compiled = True
    if config.margins.source == "sam":
        step.margin_weight = config.margins.weight
    if config.train.triplet_epochs:
        step.warmup = make("triplet", **{key: given[key] for key in arguments("triplet") if given.get(key) is not None})
    return Beginning(step, vocabulary, average)


def open_reader(
    config: Config,
    world: World,
    run: RunDirectory,
    encoder: DualEncoder,
    vocabulary: Tokens,
    *,
    say: Callable[[str], None],
) -> tuple[TrainReader, NoisyCorrespondence | None]:
    """Open what this rank trains on, in the form that `encoder` takes, and what divides it where the recipe does.

    Raises:
        UserError: data that cannot be read, or margins that it does not have.
    """
    data = config.data
    dataset = open_split(data, "train", known=run.verified("train"), say=say)
    recipe = None
    if config.train.recipe == "ncr":
        recipe = NoisyCorrespondence(config, world, dataset, run.noisy_pairs)
    mask_equal = data.equal_captions == "masked"
    reader = TrainReader(
        dataset,
        data,
        global_batch=config.train.global_batch,
        seed=config.train.seed,
        rank=world.rank,
        world=world.size,
        tokenize=lambda texts: vocabulary.encode(texts, data.max_caption_tokens),
        preprocessing=encoder.preprocessing,
        margins=recipe or margin_source(config.margins, dataset, say, mask_equal=mask_equal),
    )
    return reader, recipe


@torch.no_grad()
def start_scale(objective: PairObjective[Any], learned: Mapping[str, float], given: Collection[str]) -> None:
    """Let a scale or bias that `objective` learns start from what a pretrained encoder brings, unless it is `given`.

    The objective's bounds hold: OpenAI's CLIP brings 100.003, SigLIP 117, and more than 100 is not learned.
    """
    parameters = dict(objective.named_parameters())
    if "scale" in learned and "scale" not in given and "log_scale" in parameters:
        parameters["log_scale"].fill_(math.log(learned["scale"]))
    if "bias" in learned and "bias" not in given and "bias" in parameters:
        parameters["bias"].fill_(learned["bias"])
    objective.constrain()


def mixed(*parts: int) -> int:
    """Mix whole numbers, such as seed, step and rank, into a generator's seed: randomness is a function of them."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


_SECOND_NET = 1
