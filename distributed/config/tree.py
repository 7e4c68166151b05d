"""The configuration tree. The docstrings below the fields are the documentation of the knobs.

Two sections are declared where they are used: `model` is `allpairs.models.ModelSpec`, `objective` the arguments of
`allpairs.objectives.make`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from allpairs.models import CnnSpec, DualSpec, GruSpec, ModelSpec
from distributed.config.deepspeed import check_settings, read_settings
from distributed.config.objective import (
    check_objective,
    objectives_over_sets,
    objectives_with_margins,
    refuse_for_ncr,
)
from retrieval_eval.evaluate import Engine

OF_THE_HARDEST = ("triplet_hn", "nt_xent_hn", "goal")
"""Objectives that see one negative of an anchor, the hardest, and may collapse from scratch."""

ROWS_FOR_ANY_WORLD = 16
"""So many rows a worker give the same global batches whatever the number of workers (`distributed.data.order`)."""


class Section(BaseModel):
    """A group of knobs: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def _on_a_mount(value: Any) -> Any:
    scheme, colon, rest = str(value).partition(":/")
    if colon and scheme.isidentifier():
        path = f"/{rest.lstrip('/')}" if scheme == "file" else f"/mnt/{rest.lstrip('/')}"
        raise ValueError(f"{scheme}:// is not read or written; accepted is a path that every node mounts, e.g. {path}")
    return value


Folder = Annotated[Path, BeforeValidator(_on_a_mount)]
"""A path on storage that is mounted; never a URL."""


class Run(Section):
    """Where the run lives."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Folder of the run below `dir`, and its name in Weights & Biases: a restart under the same name continues it."""
    dir: Folder = Path("runs")
    """Folder that holds all runs. On a cluster: storage that every node sees under the same path."""


class Data(Section):
    """The pairs and how they are read."""

    root: Folder = Path()
    """Joined in front of `train`, `val` and `test` unless they are absolute."""
    train: Folder = Path("train")
    """Dataset folder (shards and manifest.json) as `python -m distributed.data build` writes it."""
    val: Folder = Path("val")
    """Dataset folder evaluated every `eval.every` epochs; chooses the best checkpoint."""
    test: Folder | None = Path("test")
    """Dataset folder evaluated once, at the end, with the best checkpoint. null: none."""
    image_size: int = Field(64, ge=8, le=1024)
    """Side in pixels to which images are resized. A pretrained whole model brings its own preprocessing instead."""
    augment: Literal["none", "crop", "crop_flip"] = "none"
    """Training images: as they are, a seeded random crop, or crop and mirror ("left" in a caption becomes untrue)."""
    epoch_unit: Literal["images", "captions"] = "images"
    """What an epoch passes over: every image once, with a caption drawn for it, or every caption once, with its image
    (the papers' epochs)."""
    captions_per_image: int = Field(1, ge=1, le=64)
    """Captions of each image in a training batch, distinct where it has as many. More than one needs an objective over
    sets: circle, binomial_deviance, lifted, multi_similarity, siglip or smooth_ap."""
    equal_captions: Literal["negatives", "masked"] = "negatives"
    """In training, a caption of another image that says what the image's own says (but for white space and Unicode's
    spelling): a negative, as published results have it, or neither negative nor positive. Evaluation goes by images."""
    max_caption_tokens: int = Field(32, ge=4, le=512)
    """Longer captions are cut; at most the positions of a transformers text model."""
    vocabulary_min_count: int = Field(1, ge=1)
    """A word must occur this often in the training captions to get its own embedding; a pretrained tokenizer has its
    own words."""
    vocabulary_max_size: int = Field(30_000, ge=16)
    """At most this many words, the most frequent ones."""
    shuffle_window: int = Field(16_384, ge=1)
    """Samples shuffled together; larger mixes better, smaller reads more locally."""
    cache_mb: int = Field(256, ge=0)
    """Memory per worker for decoded training images, so that small sets are decoded once."""
    threads: int = Field(1, ge=1, le=64)
    """Decoding threads per worker."""
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Training stops when more than this share of the samples seen was unusable."""
    verify: Literal["once", "always", "never"] = "once"
    """Shards are compared with the manifest's hashes once, and again when their size or time changes; at every start;
    or never. The driver does it, before workers start. The index is compared whenever it is opened."""
    max_image_pixels: int = Field(50_000_000, ge=1)
    """Images that declare more pixels are refused before decoding."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits this run has: train, val and, unless it is null, test."""
        return ("train", "val") if self.test is None else ("train", "val", "test")

    def folder(self, split: str) -> Path:
        """Return the absolute folder of one of `splits`."""
        path: Path = getattr(self, split)
        return (self.root / path).expanduser().resolve()


class Objective(BaseModel):
    """`name` and the arguments of `allpairs.objectives.make(name, ...)`, checked against that objective's signature."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: str = "unified"
    """One of `allpairs.objectives.names()`."""

    @model_validator(mode="before")
    @classmethod
    def _check_arguments(cls, values: Any) -> Any:
        return check_objective(values) if isinstance(values, dict) else values

    def arguments(self) -> dict[str, Any]:
        """Return what to pass to `make` beside the name."""
        return dict(self.model_extra or {})


class Margins(Section):
    """Where each pair's margin comes from (Unified Eq. 26); for an objective that takes one margin per pair."""

    source: Literal["objective", "column", "sam"] = "objective"
    """objective: its own `margin` for all pairs; column: a number that comes with each pair, in its place; sam: what
    sets the pair's caption apart from the others of the batch by CIDEr-D (Biten et al. 2022)."""
    column: str | None = None
    """For `source: column`: which, of those that `data.train` was built with (`--margin-column`)."""
    temperature: float = Field(10.0, gt=0)
    """For `source: sam`: differences of CIDEr-D, which reaches 10, are divided by this; the margin is at most 1."""
    weight: float = Field(5.0, gt=0)
    """For `source: sam`: the loss is the objective with its own margin plus this times the objective with these."""

    @model_validator(mode="after")
    def _a_column_has_a_name(self) -> Self:
        if (self.source == "column") != (self.column is not None):
            other = "a name that data.train was built with" if self.column is None else "null, or margins.source=column"
            raise ValueError(f"margins.column={self.column!r} with margins.source={self.source}: accepted is {other}")
        return self


class TowerFactors(Section):
    """One factor for each side of a dual encoder."""

    image: float = Field(1.0, ge=0)
    """The image side's."""
    text: float = Field(1.0, ge=0)
    """The caption side's."""


def _both_towers(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"image": value, "text": value}
    if not isinstance(value, dict | TowerFactors):
        raise ValueError("accepted is a number, or {image: number, text: number}")
    return value


class Optimizer(Section):
    """AdamW, its learning-rate schedule and gradient clipping."""

    lr: float = Field(1e-3, gt=0, le=10)
    """Peak learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decoupled weight decay; biases, norms and learned scales are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    backbone_lr_factor: Annotated[TowerFactors, BeforeValidator(_both_towers)] = TowerFactors()
    """Learning rate of a transformers network relative to `lr`: a number, or one for each tower (VSE∞: `{text: 0.1}`).
    What is added to the network (embedding layer, head, pooling) learns at `lr`."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Each layer (or stage) of a transformers network learns at this share of the rate of the one above it."""
    clip_norm: float | None = Field(2.0, gt=0)
    """Global gradient norm is clipped to this; null: never."""
    schedule: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    """After the warm-up: cosine to zero, `decay_factor` at `decay_epochs` or after every epoch, or nothing."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Epochs of linear warm-up from zero."""
    decay_epochs: tuple[int, ...] = (15,)
    """For `schedule: step`: epochs (counted from 1) after which the rate is multiplied by `decay_factor`."""
    decay_factor: float = Field(0.1, gt=0, lt=1)
    """For `schedule: step` and `exponential` (MMT: 0.95)."""

    @field_validator("betas")
    @classmethod
    def _betas_are_rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas


class Ncr(Section):
    """The recipe `ncr` (`distributed.ncr`): which pairs do not match, and what becomes of them."""

    warmup_epochs: int = Field(5, ge=1)
    """First epochs, with `triplet` on all pairs (published: 5 on Flickr30K, 10 on COCO and CC152K)."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """A pair is clean above this posterior of the mixture's component with the lower losses."""
    noisy_after: float = Field(0.5, ge=0, le=1)
    """Part of the epochs after the warm-up in which noisy pairs do not train at all; afterwards they do, at the margins
    of their labels. 1: never."""


class Train(Section):
    """The training loop."""

    epochs: int = Field(30, ge=1)
    """Passes over the training images (or captions: `data.epoch_unit`)."""
    samples: int | None = Field(None, ge=1)
    """Training images (or captions) to see, in place of `epochs`; the learning-rate schedule ends there too."""
    global_batch: int = Field(256, ge=2)
    """Pairs per step over all workers together: every pair meets all others of the batch as negatives."""
    micro_batch: int | None = Field(None, ge=2)
    """Encode each worker's images so many at a time, twice (GradCache): the whole batch's gradients, with the encoders'
    memory of a micro-batch, for one more forward; null: the worker's share at once."""
    seed: int = Field(0, ge=0)
    """Decides initial weights, order of samples, drawn captions, augmentation and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: encoders run under autocast; weights, statistics and the loss stay float32."""
    strategy: Literal["ddp", "deepspeed", "fsdp2"] = "ddp"
    """What workers share: gradients (ddp), the optimiser's state (deepspeed, `zero_stage`), or weights as well (fsdp2).
    A run may be resumed with another one."""
    zero_stage: Literal[1, 2, 3] = 1
    """For `strategy: deepspeed`: shard optimiser state (1), gradients as well (2), weights as well (3)."""
    deepspeed: Annotated[dict[str, Any] | None, BeforeValidator(read_settings)] = None
    """For `strategy: deepspeed`: DeepSpeed's own settings, or a JSON file that holds them, merged into ours: bucket
    sizes, offloading. What a key here decides (batch, precision, optimiser, clipping, stage) they cannot change."""
    activation_checkpointing: bool = False
    """Layers of transformers networks keep their input alone and are computed again backwards: less memory, about a
    third more time, the same gradients."""
    compile: bool = False
    """Run the encoder through torch.compile in training: fused kernels, for seconds to minutes at the first steps. It
    needs a C++ compiler on every node. Recurrent text encoders stay as they are."""
    log_every: int = Field(10, ge=1)
    """Steps between progress lines."""
    checkpoint_every_minutes: float | None = Field(10, gt=0)
    """Checkpoint inside epochs once the last one is this old: what a crash costs at most; null: by steps only."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Checkpoint inside epochs after every so many steps too; null: at their ends and by the clock only."""
    compare_every_steps: int | None = Field(200, ge=1)
    """Compare the weights that all workers should hold alike, by a checksum, after every so many steps and before every
    checkpoint; a difference ends the run, and no checkpoint is written of it. null: never."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Evaluate and save a moving average of the weights with this decay per step, e.g. 0.999; null: the weights."""
    triplet_warmup_epochs: int = Field(0, ge=0)
    """Epochs of `triplet`, all negatives at the same margin, before `triplet_hn`, `nt_xent_hn` or `goal`, which see the
    hardest alone and may collapse from scratch; VSE∞ takes 1."""
    recipe: Literal["plain", "ncr"] = "plain"
    """ncr (Huang et al. 2021): two nets find the pairs that do not match and lower their margins (U-Eq. 27); needs an
    objective with a margin. Twice the model, and each epoch one more pass over the training data."""
    ncr: Ncr = Ncr()
    """For `recipe: ncr`."""
    stop_after_epochs: float | None = Field(None, gt=0)
    """Stop early, with a checkpoint, after this many epochs (1.5: in the middle of the second); `--resume` goes on."""

    @property
    def triplet_epochs(self) -> int:
        """First epochs that train with `triplet` in place of the objective."""
        return self.ncr.warmup_epochs if self.recipe == "ncr" else self.triplet_warmup_epochs

    def samples_of(self, epoch: int) -> int:
        """Return the budget in samples, where an epoch has `epoch` of them."""
        return self.epochs * epoch if self.samples is None else self.samples

    @property
    def length(self) -> str:
        """The budget in words."""
        return f"{self.epochs} epochs" if self.samples is None else f"{self.samples:,} samples"


class Eval(Section):
    """Retrieval evaluation during training."""

    every: int = Field(1, ge=1)
    """Epochs between evaluations on `data.val`."""
    every_steps: int | None = Field(None, ge=1)
    """Steps between evaluations, in place of `every`: for epochs that take hours. null: at the ends of epochs."""
    batch: int = Field(256, ge=1)
    """Images encoded at a time per worker."""
    engine: Engine = "exact"
    """exact: every rank is counted. faiss: recalls and mAP@5 from a FAISS search for the best 100 of each query, on the
    GPU where FAISS can; the rows say how many ranks are the counted ones, and lack what needs every rank."""


class Tracking(Section):
    """What is recorded while a run goes on: Weights & Biases, written by rank 0, and where the time goes."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """offline: files in the run directory, for a later `python -m distributed.tracking sync RUN --upload`."""
    on_failure: Literal["stop", "offline"] = "stop"
    """When `wandb: online` cannot reach its server or the key is refused: end before anything starts, or go on offline.
    A server that is lost later never stops a run."""
    project: str = "allpairs"
    """W&B project."""
    entity: str | None = None
    """W&B user or team."""
    group: str | None = None
    """Runs shown together: a search, a comparison."""
    job_type: str = "train"
    """W&B job type."""
    tags: tuple[str, ...] = ()
    """W&B tags."""
    examples: int = Field(8, ge=0, le=100)
    """Retrievals with thumbnails in the table of examples, per direction."""
    step_times: bool = False
    """Progress lines say where the time of a step went, too; rows of metrics and the report always do."""
    profile: Literal["off", "rank0", "all"] = "off"
    """Trace a few steps with torch's profiler, after some to warm up: on rank 0, or on every rank. The command's
    `--profile` is rank0."""


class Cluster(Section):
    """What Ray gives the run."""

    workers: int = Field(1, ge=1)
    """Data-parallel workers; `train.global_batch` is split over them."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with as few workers, where some are lost and not replaced, and with up to `workers` again: the same global
    batches, in larger shares, encoded in chunks as large as the usual share. null: with `workers`, or not at all."""
    replace_minutes: float = Field(1, gt=0)
    """With `min_workers`: how long to wait for room for all `workers`, at the start and after a loss, before going on
    with fewer; and how often to look for room for more."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: one GPU per worker when the cluster has that many."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs, and torch threads, per worker."""
    max_failures: int = Field(2, ge=0)
    """Restarts from the last checkpoint after a worker or node is lost or stands still."""
    wait_minutes: float | None = Field(60, gt=0)
    """How long to wait for room on the cluster, at the start and after a loss, before the run ends (`--resume` goes
    on); null: as long as it takes."""
    stuck_after: float = Field(5, gt=0)
    """Minutes without a sign of life from a rank, or without a step, after which the workers are restarted; after half
    of them a line says which rank stands still and where in the code every rank is (`stacks.txt`)."""


class Config(Section):
    """Everything that decides a run."""

    run: Run
    data: Data = Data()
    model: ModelSpec = DualSpec(image=CnnSpec(), text=GruSpec(kind="bigru"), dim=256)
    objective: Objective = Objective()
    margins: Margins = Margins()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    eval: Eval = Eval()
    tracking: Tracking = Tracking()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _a_caption_is_one_place(self) -> Self:
        if self.data.epoch_unit == "captions" and self.data.captions_per_image > 1:
            raise ValueError(
                f"data.captions_per_image={self.data.captions_per_image}: with data.epoch_unit=captions each place of "
                "an epoch is one caption; accepted is 1, or data.epoch_unit=images"
            )
        return self

    @model_validator(mode="after")
    def _batch_feeds_every_worker(self) -> Self:
        if self.train.global_batch < 2 * self.cluster.workers:
            raise ValueError(
                f"train.global_batch={self.train.global_batch} is too small for "
                f"cluster.workers={self.cluster.workers}: accepted are at least 2 pairs per worker"
            )
        return self

    @model_validator(mode="after")
    def _fewer_workers_have_the_same_batches(self) -> Self:
        cluster, batch = self.cluster, self.train.global_batch
        if cluster.min_workers is not None and cluster.min_workers > cluster.workers:
            raise ValueError(
                f"cluster.min_workers={cluster.min_workers} is more than cluster.workers={cluster.workers}; accepted: "
                f"1 to {cluster.workers}, or null"
            )
        if cluster.min_workers is not None and batch < ROWS_FOR_ANY_WORLD * cluster.workers:
            raise ValueError(
                f"train.global_batch={batch} is too small for cluster.min_workers with cluster.workers="
                f"{cluster.workers}: the last batch of an epoch would depend on how many there are; accepted is at "
                f"least {ROWS_FOR_ANY_WORLD * cluster.workers}"
            )
        return self

    @model_validator(mode="after")
    def _deepspeed_s_settings_fit(self) -> Self:
        check_settings(self)
        return self

    @model_validator(mode="after")
    def _compiles_whole_weights(self) -> Self:
        train = self.train
        way = "train.zero_stage=3" if train.strategy == "deepspeed" and train.zero_stage == 3 else train.strategy
        if train.compile and way in ("train.zero_stage=3", "fsdp2"):
            raise ValueError(
                f"train.compile: {way} gathers weights inside the encoder; accepted are false, or train.strategy=ddp"
            )
        return self

    @model_validator(mode="after")
    def _warm_up_fits_the_objective(self) -> Self:
        epochs = self.train.triplet_warmup_epochs
        if epochs and self.objective.name not in OF_THE_HARDEST:
            raise ValueError(
                f"train.triplet_warmup_epochs={epochs}: {self.objective.name} needs no such warm-up; accepted is 0, or "
                f"an objective of the hardest negative: {', '.join(OF_THE_HARDEST)}"
            )
        return self

    @model_validator(mode="after")
    def _recipe_fits(self) -> Self:
        if self.train.recipe == "ncr":
            refuse_for_ncr(self.objective.name, self.objective.arguments())
            if self.train.triplet_warmup_epochs:
                raise ValueError(
                    f"train.triplet_warmup_epochs={self.train.triplet_warmup_epochs}: train.recipe=ncr has its own "
                    f"warm-up; accepted is 0, and train.ncr.warmup_epochs={self.train.triplet_warmup_epochs}"
                )
            if self.train.samples is None and self.train.ncr.warmup_epochs >= self.train.epochs:
                raise ValueError(
                    f"train.ncr.warmup_epochs={self.train.ncr.warmup_epochs}: of train.epochs={self.train.epochs} none "
                    f"would be left to divide pairs in; accepted: up to {self.train.epochs - 1}"
                )
            if self.margins.source != "objective":
                raise ValueError(
                    f"margins.source={self.margins.source}: train.recipe=ncr makes each pair's margin itself; accepted "
                    "is objective"
                )
            if self.model.init_from is not None:
                raise ValueError(
                    f"model.init_from={self.model.init_from!r}: the two nets of train.recipe=ncr begin with different "
                    "weights; accepted is null"
                )
        return self

    @model_validator(mode="after")
    def _objective_takes_the_captions(self) -> Self:
        captions, name = self.data.captions_per_image, self.objective.name
        if captions > 1 and name not in objectives_over_sets():
            raise ValueError(
                f"data.captions_per_image={captions}: {name} matches one caption with one image; accepted is 1, or an "
                f"objective over sets: {', '.join(objectives_over_sets())}"
            )
        return self

    @model_validator(mode="after")
    def _objective_takes_the_margins(self) -> Self:
        source, name = self.margins.source, self.objective.name
        if source != "objective" and name not in objectives_with_margins():
            raise ValueError(
                f"margins.source={source}: {name} has no margin that one per pair could replace; accepted is "
                f"objective, or objective.name={'|'.join(objectives_with_margins())}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """The run directory, absolute."""
        return (self.run.dir / self.run.name).expanduser().resolve()
