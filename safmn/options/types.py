"""The sections of an option file, typed. Components (networks, losses, optimisers, data sets) stay plain dicts.

Names and meanings are BasicSR's wherever BasicSR has the key; the docstrings say what is different or new. ``null``
(``~``) in a file means "not given" for every key with a default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from safmn.degradations.keys import PublishedKeys
from safmn.value_types import NotNegative, Positive, PositiveFloat, Seed

Component: TypeAlias = dict[str, Any]  # has `type`; the rest is checked against the constructor's signature


class PathOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where weights come from and results go. A tilde at the start of a path is the home folder.

    Attributes:
        pretrain_network_g, pretrain_network_d: Weights to start training from, or to test: a file, or a name of
            ``safmn zoo``.
        param_key_g, param_key_d: The key in the weight file. null: ``params`` in training; in testing ``params_ema`` if
            it is there, else ``params``.
        strict_load_g, strict_load_d: Refuse weights that do not fit the network exactly.
        resume_state: A checkpoint, or a ``.state`` file of BasicSR, to continue from.
        ignore_resume_networks: Only null is supported.
        experiments_root: The folder for the folders of training runs; null: ``experiments``.
        results_root: The folder for the folders of tests; null: ``results``.
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
        weights: A weight file, or a name of ``safmn zoo``; of the option file's scale.
        except_images: A pattern, such as ``drawing*``: images with such a name keep their GT. null: none.
    """

    weights: Annotated[str, Meta(min_length=1)]
    except_images: Annotated[str, Meta(min_length=1)] | None = None


class FlatAreasSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A loss on areas of one colour that are larger than the network sees; its name in the log is ``l_flat``.

    Attributes:
        colours: How many colours are drawn for each micro-batch; 64 cost about as much as one LR patch of 64x64.
        loss_weight: Factor of the loss, an L1 distance.
    """

    colours: Positive = 64
    loss_weight: PositiveFloat = 1.0


class TrainSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is trained.

    Attributes:
        total_iter: Optimiser steps of the whole run.
        optim_g: The optimiser of ``network_g``: ``type`` and its arguments.
        scheduler: The learning rate over the run: ``type`` and its arguments.
        optim_d: The optimiser of ``network_d``.
        warmup_iter: Steps over which the learning rate rises linearly from 0; -1 or 0: none.
        ema_decay: Decay of the moving average of the weights, which is validated and shipped; 0: no average.
        ema_warmup: Let the decay grow to ``ema_decay`` as (1 + i) / (10 + i), for short runs.
        precision: Arithmetic of the forward and backward pass; null: fp32.
        compile: Run the network through ``torch.compile``; null: no.
        kernels: What computes the network: ``torch``, or ``native``, our faster kernels for SAFMN.
        cuda_graph: On one NVIDIA GPU, launch each step as one recorded CUDA graph.
        channels_last: Memory format of the images; null: yes, except with the native kernels of the CPU.
        accumulate: Micro-batches per optimiser step; has the effect of a batch that many times as large.
        grad_clip: Largest norm of the gradient; null: not clipped.
        on_nonfinite: What a NaN or Inf in a loss or gradient does: ``stop`` the run, or ``skip`` the step.
        max_skips: The run stops when more steps than this were skipped.
        teacher: A network whose output takes the GT's place.
        flat_areas: A loss on areas of one colour that never end; null: none.
        losses: A list of losses: ``type``, the arguments of its constructor, and the keys of an entry (below).
        pixel_opt: BasicSR's key for the pixel loss; read as an entry of ``losses``.
        fft_opt: The published SAFMN files' key for the frequency loss; read as an entry of ``losses``.
        perceptual_opt: BasicSR's key for the perceptual loss; read as an entry of ``losses``.
        gan_opt: BasicSR's key for the adversarial loss; read as an entry of ``losses``.
        ldl_opt: BasicSR's key for the artefact loss (LDL); read as an entry of ``losses``.
        artifacts_opt: The published SAFMN files' key for the artefact loss; the same as ``ldl_opt``.
        net_d_iters: The generator is trained in every ``net_d_iters``-th step; the discriminator in all.
        net_d_init_iters: Steps before the generator is trained at all.
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
    losses: list[Component] = []
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
        val_freq: Iterations between validations; there is one at the end as well.
        save_img: Write the network's output images.
        suffix: Added to the names of saved images; null: the run's name, in training the iteration.
        pbar: Show a progress bar over the images.
        metrics: A section for each metric: a name of your choice, then ``type`` and its arguments.
    """

    val_freq: Positive = 5000
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    metrics: dict[str, Component] = {}


class WandbOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights & Biases; only null is supported.

    Attributes:
        project: The project; must be null.
        entity: The owner of the project; has no effect.
        resume_id: The run to go on with; has no effect.
    """

    project: str | None = None
    entity: str | None = None
    resume_id: str | None = None


class LoggerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged and kept, and how often (in iterations).

    Attributes:
        print_freq: Iterations between log lines.
        save_checkpoint_freq: Iterations between checkpoints.
        use_tb_logger: Write TensorBoard files.
        wandb: Weights & Biases; only null is supported.
        keep_last: How many of the newest checkpoints are kept.
        keep_every: Checkpoints at multiples of this iteration are always kept; null: none.
        keep_best: Keep the checkpoint with the best value of the first metric.
    """

    print_freq: Positive = 100
    save_checkpoint_freq: Positive = 5000
    use_tb_logger: bool = False
    wandb: WandbOptions = WandbOptions()
    keep_last: Positive = 3
    keep_every: Positive | None = None
    keep_best: bool = True


class DistParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training in several processes.

    Attributes:
        backend: What the processes communicate with; ``nccl`` becomes ``gloo`` on a machine without CUDA.
        port: The port of the first process, where torchrun does not give one.
    """

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
        name: The run's name; its folder is ``experiments/<name>`` or ``results/<name>``.
        model_type: What is trained and how; see Models.
        scale: Enlargement along each side. Must be the network's.
        datasets: A section for each data set: ``train``, ``val``, ``val_2``, ..., ``test_1``, ... A set that is null is
            left out.
        network_g: The network: ``type`` and the arguments of its constructor.
        network_d: The discriminator, for models that train one; as ``network_g``.
        num_gpu: GPUs that are used; 0 computes on the CPU; ``auto`` takes all there are.
        manual_seed: Seed of everything that is drawn. BasicSR draws one where none is given; here a run repeats.
        deterministic: Use torch's deterministic algorithms, and refuse to run where there is none.
        find_unused_parameters: As in DistributedDataParallel: some weights may take no part in a step.
        use_static_graph: Has no effect; accepted because BasicSR's files carry it.
        auto_resume: Has no effect in a file, as in BasicSR; give ``--auto_resume`` on the command line.
        degradation: Keys of the degradation that Real-ESRGAN does not have; see below.
        path: Where weights come from and results go.
        train: How the network is trained; a file without it can only test.
        val: Validation during training, and testing.
        logger: What is logged and kept.
        dist_params: Training in several processes.
        expect: Numbers that a test must reproduce; see below.
        imports: Python files (``my_arch.py``) and installed modules that register components of your own. They are run
            when the option file is read.
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


class NetworkKeys(Struct, frozen=True, kw_only=True):
    """Under which keys an option file speaks of one of a model's networks.

    Attributes:
        network: at the top level: the network itself.
        optimiser: in ``train``.
        weights, param_key, strict: in ``path``: what it starts from.
    """

    network: str
    optimiser: str
    weights: str
    param_key: str
    strict: str


NETWORK_KEYS = {
    "net_g": NetworkKeys(
        network="network_g",
        optimiser="optim_g",
        weights="pretrain_network_g",
        param_key="param_key_g",
        strict="strict_load_g",
    ),
    "net_d": NetworkKeys(
        network="network_d",
        optimiser="optim_d",
        weights="pretrain_network_d",
        param_key="param_key_d",
        strict="strict_load_d",
    ),
}
"""Name of a network in a model, in checkpoints and in file names -> its keys."""


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
