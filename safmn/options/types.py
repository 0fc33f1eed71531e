"""The sections of an option file, typed. Components (networks, losses, optimisers, data sets) stay plain dicts.

Names and meanings are BasicSR's wherever BasicSR has the key; the docstrings say what is different or new. ``null``
(``~``) in a file means "not given" for every key with a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from safmn.degradations.keys import PublishedKeys

Component: TypeAlias = dict[str, Any]  # has `type`; the rest is checked against the constructor's signature
Positive: TypeAlias = Annotated[int, Meta(ge=1)]
NotNegative: TypeAlias = Annotated[int, Meta(ge=0)]
PositiveFloat: TypeAlias = Annotated[float, Meta(gt=0)]
Probability: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # what NumPy and torch both take
Range: TypeAlias = Annotated[list[float], Meta(min_length=2, max_length=2)]


class PathOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where weights come from and results go. ``~`` at the start of a path is the home folder.

    Attributes:
        pretrain_network_g, pretrain_network_d: weights to start from (training) or to test.
        param_key_g, param_key_d: the key in the weight file; null: ``params`` in training, in
            testing ``params_ema`` if it is there, else ``params``.
        strict_load_g, strict_load_d: refuse weights that do not fit the network exactly.
        resume_state: a checkpoint (or a BasicSR ``.state`` file) to continue from.
        ignore_resume_networks: only null is supported so far.
        experiments_root, results_root: folders that hold a folder for each run; null: ``experiments``, ``results``.
    """

    pretrain_network_g: str | None = None
    param_key_g: str | None = None
    strict_load_g: bool = True
    pretrain_network_d: str | None = None
    param_key_d: str | None = None
    strict_load_d: bool = True
    resume_state: Annotated[str, Meta(min_length=1)] | None = None
    ignore_resume_networks: list[str] | str | None = None
    experiments_root: str | None = None
    results_root: str | None = None


class TeacherSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network whose output is learned instead of the GT (knowledge distillation).

    Attributes:
        weights: a weight file, or a name of ``safmn zoo``; of the option file's scale.
        except_images: a pattern (``drawing*``): GT images of such names are learned themselves; null: none.
    """

    weights: Annotated[str, Meta(min_length=1)]
    except_images: Annotated[str, Meta(min_length=1)] | None = None


class FlatAreasSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A loss on areas of one colour, so large that no border is in sight.

    Attributes:
        colours: how many are drawn for each micro-batch; 64 cost about as much as one LR patch of 64x64.
        loss_weight: of the loss, an L1 distance.
    """

    colours: Positive = 64
    loss_weight: PositiveFloat = 1.0


class TrainSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is trained.

    Attributes:
        total_iter: optimiser steps.
        warmup_iter: linear warm-up over the first steps; -1 or 0: none.
        ema_decay: decay of the running mean of the weights; 0: none is kept.
        ema_warmup: let the decay grow to ``ema_decay`` as (1 + i) / (10 + i), for short runs.
        precision: arithmetic of the forward and backward pass; null: fp32.
        compile: ``torch.compile`` the network; null: no.
        kernels: what computes the network: torch, or native, ours for SAFMN, which are faster.
        cuda_graph: on one NVIDIA GPU, launch each step as one recorded CUDA graph.
        channels_last: memory format; null: yes, but for the native kernels of the CPU.
        accumulate: micro-batches per optimiser step; equals a batch that many times as large.
        grad_clip: largest norm of the gradient; null: not clipped.
        on_nonfinite: what a NaN or Inf in loss or gradient does: stop the run, or skip the step.
        max_skips: more skipped steps than that stop the run.
        optim_g, optim_d: Adam, AdamW or SGD, with the arguments of torch's class, or Muon (safmn/optim/muon.py).
        scheduler: MultiStepLR, MultiStepRestartLR or CosineAnnealingRestartLR, with BasicSR's arguments.
        teacher: a network whose output takes the GT's place.
        flat_areas: a loss on areas of one colour; null: none.
        pixel_opt, fft_opt, perceptual_opt, gan_opt: the losses, each with its constructor's arguments.
        ldl_opt, artifacts_opt: the artefact (LDL) loss under BasicSR's name and under the published SAFMN files' name.
        net_d_iters, net_d_init_iters: the generator is trained on every net_d_iters-th step after net_d_init_iters.
    """

    total_iter: Positive
    optim_g: Component
    scheduler: Component
    optim_d: Component | None = None
    warmup_iter: Annotated[int, Meta(ge=-1)] = -1
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    ema_warmup: bool = False
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    compile: bool | None = None
    kernels: Literal["torch", "native"] = "torch"
    cuda_graph: bool = False
    channels_last: bool | None = None
    accumulate: Positive = 1
    grad_clip: PositiveFloat | None = None
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: Positive = 100
    teacher: TeacherSection | None = None
    flat_areas: FlatAreasSection | None = None
    pixel_opt: Component | None = None
    fft_opt: Component | None = None
    perceptual_opt: Component | None = None
    gan_opt: Component | None = None
    ldl_opt: Component | None = None
    artifacts_opt: Component | None = None
    net_d_iters: Positive = 1
    net_d_init_iters: NotNegative = 0


class ValSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Validation during training, and testing.

    Attributes:
        val_freq: iterations between validations; there is one at the end too.
        save_img: write the network's output images.
        suffix: of the names of saved images; null: the run's name, in training the iteration.
        pbar: show a progress bar over the images.
        metrics: name (free) -> metric function with its arguments, and ``better: higher|lower``.
    """

    val_freq: Positive = 5000
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    metrics: dict[str, Component] = {}


class WandbOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights & Biases; only null is supported so far."""

    project: str | None = None
    entity: str | None = None
    resume_id: str | None = None


class LoggerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged and kept, and how often (in iterations).

    Attributes:
        print_freq: iterations between log lines.
        save_checkpoint_freq: iterations between checkpoints.
        use_tb_logger: write TensorBoard files.
        keep_last: so many newest checkpoints are kept.
        keep_every: checkpoints at multiples of this iteration are kept for good; null: none.
        keep_best: the checkpoint with the best metric is kept.
    """

    print_freq: Positive = 100
    save_checkpoint_freq: Positive = 5000
    use_tb_logger: bool = False
    wandb: WandbOptions = WandbOptions()
    keep_last: Positive = 3
    keep_every: Positive | None = None
    keep_best: bool = True


class DistParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Distributed training. ``backend: nccl`` on a machine without CUDA becomes gloo."""

    backend: Literal["nccl", "gloo"] = "nccl"
    port: Annotated[int, Meta(ge=1, le=65535)] = 29500


class Expectation(Struct, frozen=True, kw_only=True):
    """The numbers that a test must reproduce on one set.

    Attributes:
        values: metric name -> expected mean.
        tolerance: metric name -> largest allowed absolute difference.
    """

    values: dict[str, float]
    tolerance: dict[str, float]


class OptionFile(PublishedKeys, Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that may stand at the top level of an option file.

    Attributes:
        imports: files (``my_arch.py``) and installed modules that register components of the user's own.
    """

    name: Annotated[str, Meta(min_length=1)]
    model_type: str
    scale: Positive
    datasets: dict[str, Component]
    network_g: Component
    network_d: Component | None = None
    num_gpu: NotNegative | Literal["auto"] = "auto"
    manual_seed: Seed = 0
    deterministic: bool = False
    find_unused_parameters: bool = False
    use_static_graph: bool = False
    auto_resume: bool = False
    degradation: dict[str, Any] = {}
    path: PathOptions = PathOptions()
    train: TrainSection | None = None
    val: ValSection | None = None
    logger: LoggerSection = LoggerSection()
    dist_params: DistParams = DistParams()
    expect: dict[str, dict[str, Any]] = {}
    imports: list[str] = []


class Options(Struct, frozen=True, kw_only=True):
    """A checked option file. Components and data sets are plain dicts; treat them as read-only.

    Attributes:
        source: the file.
        mode: ``train`` or ``test``.
        debug: validation and checkpoints every 8 iterations, a log line every iteration.
        name: the run's name, with ``debug_`` in front in debug mode.
        num_gpu: the number asked for; ``auto`` has become the number of GPUs here.
        manual_seed: 0 where the file gives none (BasicSR draws one; here a run repeats unless told otherwise).
        datasets: section name (``train``, ``val``, ``val_2``, ``test_1``) -> options, with ``phase`` and ``scale``
            filled in and ``~`` expanded in paths; ``RealESRGANDataset`` gets ``degradation`` as well.
        degradation: Real-ESRGAN's top-level keys that were given, and the ``degradation`` section.
        raw: the file with overrides and debug applied, without defaults: a copy of its own, for logs and resuming.
    """

    source: str
    mode: Literal["train", "test"]
    debug: bool
    name: str
    model_type: str
    scale: int
    num_gpu: int
    manual_seed: int
    deterministic: bool
    find_unused_parameters: bool
    datasets: dict[str, Component]
    network_g: Component
    network_d: Component | None
    degradation: dict[str, Any]
    path: PathOptions
    train: TrainSection | None
    val: ValSection | None
    logger: LoggerSection
    dist_params: DistParams
    expect: dict[str, Expectation]
    raw: dict[str, Any]
