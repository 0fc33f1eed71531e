"""Option files with the exact keys of SAFMN's, BasicSR's and Real-ESRGAN's published files load unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from safmn.degradations import parse_options
from safmn.errors import OptionError
from safmn.options import Options, load_options

HEAD = """\
# general settings
name: {name}
model_type: {model}
scale: {scale}
num_gpu: {num_gpu}  # set num_gpu: 0 for cpu mode
manual_seed: 10
"""

PAIRED_TRAIN = """
datasets:
  train:
    name: DF2K
    type: PairedImageDataset
    dataroot_gt: datasets/train/HR_sub
    dataroot_lq: datasets/train/LR_sub
{extra}    filename_tmpl: '{{}}'
    io_backend:
      type: {backend}

    gt_size: {gt_size}
    use_hflip: true
    use_rot: true

    # data loader
    use_shuffle: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~

  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/HR
    dataroot_lq: datasets/Set5/LR
    io_backend:
      type: disk

  val_2:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/HR
    dataroot_lq: datasets/Set14/LR
    filename_tmpl: '{{}}x4'
    io_backend:
      type: disk
"""

PATHS = """
path:
  pretrain_network_g: ~
  param_key_g: params
  strict_load_g: true
  resume_state: ~
"""

PIXEL = """
  pixel_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean
"""

FFT = """
  fft_opt:
    type: FFTLoss
    loss_weight: 0.05
    reduction: mean
"""

ADAM = """
  optim_{letter}:
    type: Adam
    lr: !!float 2e-4
    weight_decay: 0
    betas: [0.9, 0.99]
"""

COSINE = """
  scheduler:
    type: CosineAnnealingRestartLR
    periods: [250000, 250000, 250000, 250000]
    restart_weights: [1, 1, 1, 1]
    eta_min: !!float 1e-7

  total_iter: 1000000
  warmup_iter: -1  # no warm up
"""

STEPS = """
  scheduler:
    type: MultiStepLR
    milestones: [250000, 400000]
    gamma: 0.5

  total_iter: 500000
  warmup_iter: -1  # no warm up
"""

TAIL = """
# validation settings
val:
  val_freq: !!float 5e3
  save_img: False
  pbar: False

  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: False
      better: higher  # the higher, the better. Default: higher
    niqe:
      type: calculate_niqe
      crop_border: 4
      better: lower
"""

LOG = """
# logging settings
logger:
  print_freq: 100
  save_checkpoint_freq: !!float 5e3
  use_tb_logger: true
  wandb:
    project: ~
    resume_id: ~

# dist training settings
dist_params:
  backend: nccl
  port: 29500
"""

NETWORKS = {
    "SAFMN": "  dim: 36\n  n_blocks: 8\n  ffn_scale: 2.0\n  upscaling_factor: 4\n",
    "MSRResNet": "  num_in_ch: 3\n  num_out_ch: 3\n  num_feat: 64\n  num_block: 16\n  upscale: 4\n",
    "EDSR": "  num_in_ch: 3\n  num_out_ch: 3\n  num_feat: 256\n  num_block: 32\n  upscale: 4\n  res_scale: 0.1\n"
    "  img_range: 255.\n  rgb_mean: [0.4488, 0.4371, 0.4040]\n",
    "RCAN": "  num_in_ch: 3\n  num_out_ch: 3\n  num_feat: 64\n  num_group: 10\n  num_block: 20\n  squeeze_factor: 16\n"
    "  upscale: 4\n  res_scale: 1\n  img_range: 255.\n  rgb_mean: [0.4488, 0.4371, 0.4040]\n",
    "SwinIR": "  upscale: 4\n  in_chans: 3\n  img_size: 48\n  window_size: 8\n  img_range: 1.\n  depths: [6, 6, 6, 6]\n"
    "  embed_dim: 180\n  num_heads: [6, 6, 6, 6]\n  mlp_ratio: 2\n  upsampler: 'pixelshuffle'\n"
    "  resi_connection: '1conv'\n",
    "RRDBNet": "  num_in_ch: 3\n  num_out_ch: 3\n  num_feat: 64\n  num_block: 23\n  num_grow_ch: 32\n",
    "ECBSR": "  num_in_ch: 1\n  num_out_ch: 1\n  num_block: 4\n  num_channel: 16\n  with_idt: False\n"
    "  act_type: prelu\n  scale: 4\n",
    "SRVGGNetCompact": "  num_in_ch: 3\n  num_out_ch: 3\n  num_feat: 64\n  num_conv: 16\n  upscale: 4\n",
}


def load(tmp_path: Path, text: str, mode: str = "train") -> Options:
    path = tmp_path / "published.yml"
    path.write_text(text, encoding="utf-8")
    return load_options(path, mode=mode)  # type: ignore[arg-type]


def paired(network: str, *, model: str = "SRModel", backend: str = "disk", extra: str = "", train: str = "") -> str:
    head = HEAD.format(name=f"001_{network}_x4", model=model, scale=4, num_gpu=1)
    data = PAIRED_TRAIN.format(extra=extra, backend=backend, gt_size=192)
    body = train or "  ema_decay: 0.999" + ADAM.format(letter="g") + COSINE + PIXEL + FFT
    return f"{head}{data}\nnetwork_g:\n  type: {network}\n{NETWORKS[network]}{PATHS}\ntrain:\n{body}{TAIL}{LOG}"


@pytest.mark.parametrize("network", NETWORKS)
def test_paired_training_loads(tmp_path: Path, network: str) -> None:
    options = load(tmp_path, paired(network))
    train, val = options.train, options.val
    assert train is not None
    assert val is not None
    assert (train.total_iter, train.optim_g["lr"], train.scheduler["eta_min"]) == (1_000_000, 2e-4, 1e-7)
    assert (val.val_freq, options.logger.save_checkpoint_freq, val.pbar) == (5000, 5000, False)
    assert [section["name"] for section in options.datasets.values()] == ["DF2K", "Set5", "Set14"]
    assert options.datasets["val_2"]["filename_tmpl"] == "{}x4"
    assert options.name == f"001_{network}_x4"


def test_lmdb_and_meta_info_load(tmp_path: Path) -> None:
    options = load(tmp_path, paired("EDSR", backend="lmdb", extra="    meta_info_file: datasets/meta_info.txt\n"))
    assert options.datasets["train"]["io_backend"] == {"type": "lmdb"}
    assert options.datasets["train"]["meta_info_file"] == "datasets/meta_info.txt"


def test_multi_step_training_without_ema_loads(tmp_path: Path) -> None:
    options = load(tmp_path, paired("RCAN", train=ADAM.format(letter="g") + STEPS + PIXEL))
    assert options.train is not None
    assert (options.train.ema_decay, options.train.scheduler["milestones"]) == (0, [250000, 400000])


TEST_SET = """\
  test_{number}:  # a test dataset
    name: {name}
    type: PairedImageDataset
    dataroot_gt: datasets/{name}/HR
    dataroot_lq: datasets/{name}/LR_bicubic/X4
    filename_tmpl: '{{}}x4'
    io_backend:
      type: disk
"""

TEST_TAIL = """
path:
  pretrain_network_g: experiments/pretrained_models/net.pth
  strict_load_g: true

val:
  save_img: true
  suffix: ~  # add suffix to saved images, if None, use exp name
"""

Y_METRICS = """
  metrics:
    psnr: # metric name, can be arbitrary
      type: calculate_psnr
      crop_border: 4
      test_y_channel: true
    ssim:
      type: calculate_ssim
      crop_border: 4
      test_y_channel: true
"""


@pytest.mark.parametrize("network", ["SAFMN", "EDSR", "SwinIR"])
def test_benchmarks_load(tmp_path: Path, network: str) -> None:
    sets = "".join(TEST_SET.format(number=i + 1, name=name) for i, name in enumerate(["Set5", "Set14", "B100"]))
    head = HEAD.format(name=f"{network}_x4", model="SRModel", scale=4, num_gpu=1)
    text = f"{head}\ndatasets:\n{sets}\nnetwork_g:\n  type: {network}\n{NETWORKS[network]}{TEST_TAIL}{Y_METRICS}"
    options = load(tmp_path, text, "test")
    assert [section["phase"] for section in options.datasets.values()] == ["test"] * 3
    assert options.val is not None
    assert (options.val.suffix, options.val.save_img, list(options.val.metrics)) == (None, True, ["psnr", "ssim"])


SINGLE_SET = """
datasets:
  test_1:  # the 1st test dataset
    name: RealTest
    type: SingleImageDataset
    dataroot_lq: datasets/real_test
    filename_tmpl: '{}'
    io_backend:
      type: disk
"""


def test_a_folder_without_gt_loads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = HEAD.format(name="SAFMN_Real_x4", model="RealSRModel", scale=4, num_gpu=1)
    options = load(tmp_path, f"{head}{SINGLE_SET}\nnetwork_g:\n  type: SAFMN\n{NETWORKS['SAFMN']}{TEST_TAIL}", "test")
    assert options.val is not None
    assert options.val.metrics == {}
    assert "datasets.test_1.filename_tmpl: has no effect" in caplog.text


DEGRADATION = """
# the first degradation process
resize_prob: [0.2, 0.7, 0.1]  # up, down, keep
resize_range: [0.15, 1.5]
gaussian_noise_prob: 0.5
noise_range: [1, 30]
poisson_scale_range: [0.05, 3]
gray_noise_prob: 0.4
jpeg_range: [30, 95]

# the second degradation process
second_blur_prob: 0.8
resize_prob2: [0.3, 0.4, 0.3]  # up, down, keep
resize_range2: [0.3, 1.2]
gaussian_noise_prob2: 0.5
noise_range2: [1, 25]
poisson_scale_range2: [0.05, 2.5]
gray_noise_prob2: 0.4
jpeg_range2: [10, 95]

gt_size: {gt_size}
queue_size: 192
"""

REAL_TRAIN = """
datasets:
  train:
    name: LSDIR{blank}
    type: RealESRGANDataset
    dataroot_gt: /media/somebody/LSDIR/HR
    meta_info: datasets/meta_info/meta_info_LSDIR.txt
    io_backend:
      type: disk

    blur_kernel_size: 21
    kernel_list: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob: 0.1
    blur_sigma: [0.2, 3]
    betag_range: [0.5, 4]
    betap_range: [1, 2]

    blur_kernel_size2: 21
    kernel_list2: ['iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso']
    kernel_prob2: [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    sinc_prob2: 0.1
    blur_sigma2: [0.2, 1.5]
    betag_range2: [0.5, 4]
    betap_range2: [1, 2]

    final_sinc_prob: 0.8

    gt_size: {gt_size}
    use_hflip: True
    use_rot: False

    # data loader
    use_shuffle: true
    num_worker_per_gpu: 5
    batch_size_per_gpu: {batch}
    dataset_enlarge_ratio: 1
    prefetch_mode: ~
"""

GAN_PATHS = """
path:
  pretrain_network_g: experiments/stage1/models/net_g_latest.pth
  strict_load_g: true
  resume_state: ~

  pretrain_network_d: ~
  strict_load_d: true
  resume_state: ~
"""

DISCRIMINATOR = """
network_d:
  type: UNetDiscriminatorSN
  num_in_ch: 3
  num_feat: 64
  skip_connection: True
"""

GAN_LOSSES = """
  artifacts_opt:
    type: L1Loss
    loss_weight: 1.0
    reduction: mean

  # perceptual loss (content and style losses)
  perceptual_opt:
    type: PerceptualLoss
    layer_weights:
      # before relu
      'conv1_2': 0.1
      'conv2_2': 0.1
      'conv3_4': 1
      'conv4_4': 1
      'conv5_4': 1
    vgg_type: vgg19
    use_input_norm: true
    perceptual_weight: !!float 1.0
    style_weight: 0
    range_norm: false
    criterion: l1

  # gan loss
  gan_opt:
    type: GANLoss
    gan_type: vanilla
    real_label_val: 1.0
    fake_label_val: 0.0
    loss_weight: !!float 1e-1

  net_d_iters: 1
  net_d_init_iters: 0
"""


def real(model: str, network: str, *, usm: str, gan: bool, gt_size: int, batch: int, num_gpu: str = "1") -> str:
    head = HEAD.format(name=f"{model}_x4", model=model, scale=4, num_gpu=num_gpu)
    data = DEGRADATION.format(gt_size=gt_size) + REAL_TRAIN.format(blank=" ", gt_size=gt_size, batch=batch)
    nets = f"\nnetwork_g:\n  type: {network}\n{NETWORKS[network]}{DISCRIMINATOR if gan else ''}"
    optimisers = ADAM.format(letter="g") + (ADAM.format(letter="d") if gan else "")
    losses = PIXEL + (GAN_LOSSES if gan else FFT)
    train = f"\ntrain:\n  ema_decay: 0.999{optimisers}{STEPS}{losses}"
    return f"{head}\n{usm}\n{data}{nets}{GAN_PATHS if gan else PATHS}{train}{LOG}"


def test_safmn_real_world_stage_1_loads(tmp_path: Path) -> None:
    text = real("RealSRModel", "SAFMN", usm="gt_usm: True", gan=False, gt_size=180, batch=16)
    options = load(tmp_path, text)
    assert options.val is None
    assert options.datasets["train"]["name"] == "LSDIR"
    assert options.degradation["gt_usm"] is True
    assert options.degradation["resize_prob2"] == (0.3, 0.4, 0.3)
    assert (options.degradation["queue_size"], options.degradation["gt_size"]) == (192, 180)
    assert options.datasets["train"]["degradation"] == options.degradation


USM = "l1_gt_usm: True\npercep_gt_usm: True\ngan_gt_usm: False"


def test_safmn_real_world_gan_stages_load(tmp_path: Path) -> None:
    """These files give `resume_state: ~` twice in `path`, and call the LDL loss `artifacts_opt`."""
    options = load(tmp_path, real("RealGANModel", "SAFMN", usm=USM, gan=True, gt_size=128, batch=8))
    assert options.train is not None
    assert options.train.artifacts_opt == {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}
    assert options.train.gan_opt is not None
    assert options.network_d is not None
    assert options.degradation["gan_gt_usm"] is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (DISCRIMINATOR, "", r"'network_d' is missing; RealGANModel"),
        (ADAM.format(letter="d"), "", r"train: the key 'optim_d' is missing"),
        ("gan_opt:", "fft_opt:", r"train: the key 'gan_opt' is missing"),
        ("ema_decay: 0.999", "ema_decay: 0", r"train\.ema_decay: is 0, but the artefact loss"),
        (
            "type: UNetDisc",
            "type: UnetDisc",
            r"network_d\.type: no network named .* Did you mean 'UNetDiscriminatorSN'",
        ),
        ("'conv1_2': 0.1", "'conv1_2': 0.1\n      'conv1_2': 0.2", r"layer_weights\.conv1_2: is a duplicate key"),
    ],
)
def test_mistakes_in_gan_training_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = real("RealGANModel", "SAFMN", usm=USM, gan=True, gt_size=128, batch=8)
    assert old in text
    with pytest.raises(OptionError, match=message):
        load(tmp_path, text.replace(old, new))


def test_the_artefact_loss_must_not_be_given_twice(tmp_path: Path) -> None:
    text = real("RealGANModel", "SAFMN", usm=USM, gan=True, gt_size=128, batch=8)
    both = text.replace("  artifacts_opt:", "  ldl_opt: {type: L1Loss}\n  artifacts_opt:")
    with pytest.raises(OptionError, match=r"train\.artifacts_opt: .*same loss as ldl_opt"):
        load(tmp_path, both)


@pytest.mark.parametrize(
    ("model", "as_in_real_esrgan"),
    [("RealSRModel", True), ("RealESRNetModel", True), ("RealGANModel", False), ("RealESRGANModel", True)],
)
def test_real_esrgans_models_keep_its_degradation(tmp_path: Path, model: str, as_in_real_esrgan: bool) -> None:
    """Its GAN stage degrades the sharpened GT, blurs before resizing and never draws ``nearest``, unlike SAFMN's."""
    gan = "GAN" in model
    usm = USM if gan else "gt_usm: True"
    text = real(model, "RRDBNet", usm=usm, gan=gan, gt_size=256, batch=12, num_gpu="auto")
    options = load(tmp_path, text.replace("artifacts_opt", "ldl_opt"))
    assert options.train is not None
    assert (options.train.ldl_opt is not None) == gan
    drawn_from = parse_options(options.degradation, options.datasets["train"], scale=options.scale)
    assert drawn_from.degrade_sharpened == as_in_real_esrgan
    assert drawn_from.resize_first != as_in_real_esrgan
    assert ("nearest" not in drawn_from.resize_modes) == as_in_real_esrgan


def test_keys_in_the_file_override_the_models_implied_keys(tmp_path: Path) -> None:
    text = real("RealESRGANModel", "RRDBNet", usm=USM, gan=True, gt_size=256, batch=12)
    options = load(tmp_path, f"{text}\ndegradation: {{resize_first: true}}\n")
    assert options.degradation["resize_first"] is True
    assert options.degradation["degrade_sharpened"] is True


ADDED = "gt_usm: True\ndegradation: "


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kernel_prob: [0.45,", "kernel_prob: [0.55,", r"datasets\.train\.kernel_prob: .*sums to 1\.1"),
        ("blur_kernel_size2: 21", "blur_kernel_size2: 20", r"datasets\.train\.blur_kernel_size2: 20 must be odd"),
        ("jpeg_range2: [10, 95]", "jpeg_range2: [95, 10]", r"line \d+: jpeg_range2: \[95, 10\] is not a range"),
        ("gray_noise_prob: 0.4", "gray_noise_prob: 1.4", r"gray_noise_prob: 1\.4 is not a probability"),
        ("resize_range: [0.15, 1.5]", "resize_range: [0.15]", r"resize_range: expected a list of 2 items"),
        ("gt_size: 180\n", "gt_size: 182\n", r"gt_size: 182 .*multiple of the scale, 4"),
        (
            "gt_size: 180\nqueue",
            "gt_size: 176\nqueue",
            r"datasets\.train\.gt_size: is 180, but the top-level gt_",
        ),
        ("queue_size: 192", "queue_siz: 192", r"queue_siz: unknown key\. Did you mean 'queue_size'"),
        ("blur_sigma: ", "blur_sgma: ", r"datasets\.train\.blur_sgma: RealESRGANDataset .*'blur_sgma'"),
        (
            "gt_usm: True",
            "gt_usm: True\ndegradation: {mood: x}",
            r"degradation\.mood: unknown key\. Did you mean 'mode'",
        ),
        ("gt_usm: True", ADDED + "{mode: all}", r"degradation\.mode: expected one of 'batch_pool'"),
        (
            "gt_usm: True",
            "gt_usm: True\ndegradation: {gt_usm: true}",
            r"degradation\.gt_usm: .*top level",
        ),
        (
            "gt_usm: True",
            "gt_usm: True\ndegradation: {webp_range: [0, 9]}",
            r"degradation\.webp_range: \[0, 9\]: values",
        ),
    ],
)
def test_mistakes_in_the_degradation_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = real("RealSRModel", "SAFMN", usm="gt_usm: True", gan=False, gt_size=180, batch=16)
    assert old in text
    with pytest.raises(OptionError, match=message):
        load(tmp_path, text.replace(old, new))


@pytest.mark.parametrize("name", ["no", "on", "yes", "off", "1e", "2024-01-02"])
def test_names_that_look_like_other_types_stay_text(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, paired("SAFMN").replace("name: 001_SAFMN_x4", f"name: {name}")).name == name


@pytest.mark.parametrize(
    ("key", "renamed"), [("pretrain_network_g", "pretrain_model_g"), ("strict_load_g", "strict_load")]
)
def test_keys_of_old_basicsr_versions_suggest_the_current_ones(tmp_path: Path, key: str, renamed: str) -> None:
    with pytest.raises(OptionError, match=rf"{renamed}.*Did you mean {key!r}"):
        load(tmp_path, paired("EDSR").replace(f"{key}:", f"{renamed}:"))
