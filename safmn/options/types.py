"""The sections of an option file as types. Components (networks, losses, optimisers, data sets) stay plain dicts.

Keys that BasicSR has as well keep its names and meanings; the docstrings mention differences. For every key with a
default, ``null`` (``~``) in a file means "not given".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from safmn.degradations.keys import PublishedKeys
from safmn.value_types import NotNegative, Positive, PositiveFloat, Seed

Mode: TypeAlias = Literal["train", "test", "network"]
"""What an option file is loaded for: training, testing, or only for its network."""
Component: TypeAlias = dict[str, Any]  # `type` and arguments, which are checked against the constructor's signature


class PathOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Paths of weights and results. A leading tilde in a path stands for the home folder.

    Attributes:
        pretrain_network_g, pretrain_network_d: Weights to start training from, or to test: a file, or a name from
            ``safmn zoo``.
        param_key_g, param_key_d: The key in the weight file. null: in training ``params``; in testing ``params_ema`` if
            present, otherwise ``params``.
        strict_load_g, strict_load_d: Reject weights that do not fit the network exactly.
        resume_state: The checkpoint, or BasicSR's ``.state`` file, to resume from.
        ignore_resume_networks: Only null is supported.
        experiments_root: The folder in which every training run has its folder; null: ``experiments``.
        results_root: The folder in which every test has its folder; null: ``results``.
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
    """A network whose output is the training target instead of the GT (knowledge distillation).

    Attributes:
        weights: A weight file, or a name from ``safmn zoo``, for the option file's scale.
        except_images: A pattern such as ``drawing*``. Images with matching names keep their GT as target. null: none.
    """

    weights: Annotated[str, Meta(min_length=1)]
    except_images: Annotated[str, Meta(min_length=1)] | None = None


class FlatAreasSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A loss on areas of one colour that are larger than the network's receptive field, ``l_flat`` in the log.

    Attributes:
        colours: Number of colours drawn for each micro-batch; 64 cost about as much as one LR patch of 64x64.
        loss_weight: Factor of the loss, an L1 distance.
    """

    colours: Positive = 64
    loss_weight: PositiveFloat = 1.0


class TrainSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training.

    Attributes:
        total_iter: Number of optimiser steps of the whole run.
        optim_g: The optimiser of ``network_g``: ``type`` and its arguments.
        scheduler: The learning-rate schedule: ``type`` and its arguments.
        optim_d: The optimiser of ``network_d``.
        warmup_iter: Number of steps in which the learning rate rises linearly from 0; -1 or 0: no warm-up.
        ema_decay: Decay of the EMA of the weights, which is used for validation and inference; 0: no EMA.
        ema_warmup: Let the decay grow to ``ema_decay`` as (1 + i) / (10 + i), for short runs.
        precision: Precision of the forward and backward pass; null: fp32.
        compile: Use ``torch.compile``; null: no.
        kernels: Implementation of the network: ``native``, our faster kernels for SAFMN; ``torch``; or ``auto``: on a
            CPU ``native`` where they apply and agree with torch, else ``torch``.
        cuda_graph: On one NVIDIA GPU, launch each step as one recorded CUDA graph.
        channels_last: Use the memory format channels_last for images; null: yes, except with the native CPU kernels.
        accumulate: Micro-batches per optimiser step. The effect is that of a batch that many times as large.
        weights_by_name: Learning rates and freezing of weights of ``network_g`` by their names: a list of ``names``
            (patterns), ``lr_factor`` (0: frozen) and ``frozen_until`` (an iteration). The first match counts.
        grad_clip: Maximum norm of the gradient; null: no clipping.
        on_nonfinite: Reaction to NaN or Inf in a loss or gradient: ``stop`` the run, or ``skip`` the step.
        max_skips: The run stops if more steps than this are skipped.
        teacher: A network whose output replaces the GT as training target; null: none.
        flat_areas: A loss on unlimited areas of one colour; null: none.
        losses: A list of losses: ``type``, the arguments of the constructor, and the keys of an entry (below).
        pixel_opt: BasicSR's key for the pixel loss; read as an entry of ``losses``.
        fft_opt: The published SAFMN files' key for the frequency loss; read as an entry of ``losses``.
        perceptual_opt: BasicSR's key for the perceptual loss; read as an entry of ``losses``.
        gan_opt: BasicSR's key for the adversarial loss; read as an entry of ``losses``.
        ldl_opt: BasicSR's key for the artefact loss (LDL); read as an entry of ``losses``.
        artifacts_opt: The published SAFMN files' key for the artefact loss; the same as ``ldl_opt``.
        net_d_iters: The generator is trained only in every ``net_d_iters``-th step, the discriminator in every step.
        net_d_init_iters: Number of steps at the start in which only the discriminator is trained.
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
    kernels: Literal["auto", "torch", "native"] = "auto"
    cuda_graph: bool = False
    channels_last: bool | None = None
    accumulate: Positive = 1
    weights_by_name: list[Component] = []
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
        val_freq: Iterations between validations. The last iteration is also validated.
        save_img: Save the network's output images.
        suffix: Suffix of the names of saved images; null: in training the iteration, in testing the run's name.
        pbar: Show a progress bar over the images.
        tile: Compute images in tiles of this many LQ pixels, for large images; null: whole. If the network
            states its halo, or a trial finds it, the result is that of the whole image, padded to a multiple of the
            network's window. Otherwise tiles have ``tile_overlap`` pixels of context, and the result may differ.
        tile_overlap: LQ pixels of context around each tile, for networks without a known halo.
        window: Pad images to multiples of this; null: of the network's own windows.
        self_ensemble: Average over the eight flips and rotations, in eight times the time. A test measures with and
            without it.
        kernels: ``auto``: run the network on the native CPU kernels if they give its result; ``native``: the same, but
            stop if there are none for it; ``torch``: torch's operations.
        metrics: The metrics. Each has a name of your choice and a section with ``type`` and its arguments.
    """

    val_freq: Positive = 5000
    save_img: bool = False
    suffix: str | None = None
    pbar: bool = True
    tile: Positive | None = None
    tile_overlap: NotNegative = 32
    window: Positive | None = None
    self_ensemble: bool = False
    kernels: Literal["auto", "native", "torch"] = "auto"
    metrics: dict[str, Component] = {}


class WandbOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Weights & Biases, the extra ``wandb``.

    Attributes:
        project: The project; null: the run is not sent.
        entity: The owner of the project; null: the account's default.
        resume_id: The run to go on with; null: this run's own, after a resume.
    """

    project: Annotated[str, Meta(min_length=1)] | None = None
    entity: str | None = None
    resume_id: str | None = None


class MlflowOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """MLflow, the extra ``mlflow``.

    Attributes:
        experiment: The experiment; null: the run is not sent.
        tracking_uri: Address of the server or database; null: ``MLFLOW_TRACKING_URI``, or MLflow's own default.
    """

    experiment: Annotated[str, Meta(min_length=1)] | None = None
    tracking_uri: Annotated[str, Meta(min_length=1)] | None = None


class LoggerSection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logs and checkpoints.

    Attributes:
        print_freq: Iterations between log lines.
        save_checkpoint_freq: Iterations between checkpoints.
        use_tb_logger: Write TensorBoard files.
        wandb: Weights & Biases.
        mlflow: MLflow.
        keep_last: Number of newest checkpoints to keep.
        keep_every: Keep all checkpoints at multiples of this iteration; null: none.
        keep_best: Keep the checkpoint with the best value of the first metric.
    """

    print_freq: Positive = 100
    save_checkpoint_freq: Positive = 5000
    use_tb_logger: bool = False
    wandb: WandbOptions = WandbOptions()
    mlflow: MlflowOptions = MlflowOptions()
    keep_last: Positive = 3
    keep_every: Positive | None = None
    keep_best: bool = True


class DistParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training in several processes.

    Attributes:
        backend: The communication library; without CUDA, ``gloo`` is used instead of ``nccl``.
        port: The port of the first process, if torchrun does not set one.
    """

    backend: Literal["nccl", "gloo"] = "nccl"
    port: Annotated[int, Meta(ge=1, le=65535)] = 29500


class Expectation(Struct, frozen=True, kw_only=True):
    """The numbers that a test must reproduce on one set.

    Attributes:
        values: metric name -> expected mean.
        tolerance: metric name -> maximum absolute difference.
    """

    values: dict[str, float]
    tolerance: dict[str, float]


class OptionFile(PublishedKeys, Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys at the top level of an option file.

    Attributes:
        name: The run's name; its folder is ``experiments/<name>`` or ``results/<name>``.
        model_type: The model, which defines the training step; see Models.
        model: Arguments of the constructor of a model of your own.
        scale: Upscaling factor. Must equal the network's.
        datasets: A section for each data set: ``train``, ``val``, ``val_2``, ..., ``test_1``, ... Data sets that are
            null are left out.
        network_g: The network: ``type`` and the arguments of its constructor.
        network_d: The discriminator, for models that train one; like ``network_g``.
        num_gpu: 0: use the CPU; 1 or more: use one GPU per process; ``auto``: the number of GPUs on this machine.
        manual_seed: Seed of all random numbers. Without this key BasicSR draws a random seed; here runs are repeatable.
        sanity: Before training begins, train one batch on a copy, and validate and measure one image of each set.
        deterministic: Use only torch's deterministic algorithms; an operation without one is an error.
        find_unused_parameters: As in DistributedDataParallel: allow weights that are not used in every step.
        use_static_graph: Has no effect; accepted because it is in BasicSR's files.
        auto_resume: Has no effect in a file, as in BasicSR; give ``--auto_resume`` on the command line.
        degradation: Keys of the degradation that Real-ESRGAN does not have; see below.
        path: Paths of weights and results.
        train: Training. A file without this section can only be used for testing.
        val: Validation during training, and testing.
        logger: Logs and checkpoints.
        dist_params: Training in several processes.
        expect: Numbers that a test must reproduce; see below.
        imports: Python files (``my_arch.py``), folders of packages and installed modules that register your own
            components. Loading the option file imports them.
        base: The option file that this one changes: a path from this file's folder or the working directory, or a name
            that ``safmn options`` lists. Sections are merged key by key, lists and components of another ``type`` are
            replaced, null removes a key.
        tolerant: Warn about unknown keys and leave them out, instead of refusing the file; like ``--tolerant``.
    """

    name: Annotated[str, Meta(min_length=1)]
    model_type: str
    model: dict[str, Any] = {}
    scale: Positive
    datasets: dict[str, Component]
    network_g: Component
    network_d: Component | None = None
    num_gpu: NotNegative | Literal["auto"] = "auto"
    manual_seed: Seed = 0
    sanity: bool = True
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
    base: str | None = None
    tolerant: bool = False


class NetworkKeys(Struct, frozen=True, kw_only=True):
    """The option keys that belong to one of a model's networks.

    Attributes:
        network: key at the top level: the network's section.
        optimiser: key in ``train``.
        weights, param_key, strict: keys in ``path``: the weights to start from.
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
"""The option keys of each network, by its name in models, checkpoints and file names."""


class Options(Struct, frozen=True, kw_only=True):
    """The checked options of a file. Components and data sets are plain dicts; treat them as read-only.

    Attributes:
        source: the option file's path.
        mode: ``train``, ``test`` or ``network``.
        debug: whether this is a debug run: validation and checkpoints every 8 iterations, a log line every iteration.
        name: the run's name, prefixed with ``debug_`` in debug mode.
        num_gpu: the number of GPUs; ``auto`` is replaced with the number on this machine.
        manual_seed: the seed; 0 if the file gives none.
        datasets: section name (``train``, ``val``, ``val_2``, ``test_1``) -> options, with ``phase`` and ``scale``
            filled in and ``~`` expanded in paths. Data sets that degrade images also have ``degradation``.
        degradation: the given top-level keys of Real-ESRGAN, the ``degradation`` section, and the model's implied keys.
        raw: a copy of the file's data after overrides and debug, without defaults, for logs and resuming.
    """

    source: str
    mode: Mode
    debug: bool
    name: str
    model_type: str
    model: dict[str, Any]
    scale: int
    num_gpu: int
    manual_seed: int
    sanity: bool
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
    imports: list[str]
    raw: dict[str, Any]
