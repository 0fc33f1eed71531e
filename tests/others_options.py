"""Option files of repositories that derive from BasicSR, as facts: the keys and values that differ from a plain file.

Nothing is copied: each entry states which keys a repository's published files have, and :func:`option_file` makes an
option file with these keys. The networks of these repositories are not here either; :func:`stand_in` makes a network
that has the published arguments and does nothing but enlarge.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Published:
    """What is special about a repository's option files.

    Attributes:
        repository: its name.
        mode: ``train`` or ``test``.
        network: the arguments of ``network_g``.
        arguments: the constructor's parameters and their defaults, as far as its type checks depend on them.
        top, train, val, path, train_set, other_set: keys in the sections of these names.
    """

    repository: str
    mode: str
    network: dict[str, Any]
    arguments: str
    top: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    path: dict[str, Any] = field(default_factory=dict)
    train_set: dict[str, Any] = field(default_factory=dict)
    other_set: dict[str, Any] = field(default_factory=dict)


_Y = {"crop_border": 4, "test_y_channel": True, "better": "higher"}
_HAT = {
    "type": "HAT", "upscale": 4, "in_chans": 3, "img_size": 64, "window_size": 16, "compress_ratio": 3,
    "squeeze_factor": 30, "conv_scale": 0.01, "overlap_ratio": 0.5, "img_range": 1.0, "depths": [6] * 6,
    "embed_dim": 180, "num_heads": [6] * 6, "mlp_ratio": 2, "upsampler": "pixelshuffle", "resi_connection": "1conv",
}  # fmt: skip
_HAT_ARGUMENTS = (
    "img_size=64, patch_size=1, in_chans=3, embed_dim=96, depths=(6, 6), num_heads=(6, 6), window_size=7, "
    "compress_ratio=3, squeeze_factor=30, conv_scale=0.01, overlap_ratio=0.5, mlp_ratio=4.0, upscale=2, "
    "img_range=1.0, upsampler='', resi_connection='1conv', **kwargs"
)
_DAT = {
    "type": "DAT", "upscale": 4, "in_chans": 3, "img_size": 64, "img_range": 1.0, "split_size": [8, 32],
    "depth": [6] * 6, "embed_dim": 180, "num_heads": [6] * 6, "expansion_factor": 2, "resi_connection": "1conv",
}  # fmt: skip
_DAT_ARGUMENTS = (
    "img_size=64, in_chans=3, embed_dim=180, split_size=[2, 4], depth=[2, 2], num_heads=[2, 2], "
    "expansion_factor=4.0, upscale=2, img_range=1.0, resi_connection='1conv', upsampler='pixelshuffle', **kwargs"
)
_SEEMORE = {
    "type": "SeemoRe", "scale": 4, "in_chans": 3, "num_experts": 3, "img_range": 1.0, "num_layers": 6,
    "embedding_dim": 36, "use_shuffle": True, "lr_space": "exp", "topk": 1, "recursive": 2, "global_kernel_size": 11,
}  # fmt: skip
_SEEMORE_ARGUMENTS = (
    "scale: int = 4, in_chans: int = 3, num_experts: int = 6, num_layers: int = 6, embedding_dim: int = 64, "
    "img_range: float = 1.0, use_shuffle: bool = False, global_kernel_size: int = 11, recursive: int = 2, "
    "lr_space: int = 1, topk: int = 2"
)
_NAFNET = {"width": 64, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12, "dec_blk_nums": [2] * 4}
_NAFNET_ARGUMENTS = "img_channel=3, width=16, middle_blk_num=1, enc_blk_nums=[], dec_blk_nums=[]"
_ATD = {
    "type": "ATD", "upscale": 4, "in_chans": 3, "img_size": 64, "embed_dim": 48, "depths": [6] * 4,
    "num_heads": [4] * 4, "window_size": 16, "category_size": 128, "num_tokens": 64, "reducted_dim": 8,
    "convffn_kernel_size": 7, "img_range": 1.0, "mlp_ratio": 1, "upsampler": "pixelshuffledirect",
    "resi_connection": "1conv", "use_checkpoint": False,
}  # fmt: skip
_ATD_ARGUMENTS = (
    "img_size=64, in_chans=3, embed_dim=90, depths=(6, 6), num_heads=(6, 6), window_size=8, category_size=256, "
    "num_tokens=64, reducted_dim=4, convffn_kernel_size=5, mlp_ratio=2.0, use_checkpoint=False, upscale=None, "
    "img_range=1.0, upsampler='', resi_connection='1conv', **kwargs"
)
_RESTORMER = {
    "type": "Restormer", "inp_channels": 3, "out_channels": 3, "dim": 48, "num_blocks": [4, 6, 6, 8],
    "num_refinement_blocks": 4, "heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.66, "bias": False,
    "LayerNorm_type": "BiasFree", "dual_pixel_task": False,
}  # fmt: skip
_RESTORMER_ARGUMENTS = (
    "inp_channels=3, out_channels=3, dim=48, num_blocks=[4, 6, 6, 8], num_refinement_blocks=4, heads=[1, 2, 4, 8], "
    "ffn_expansion_factor=2.66, bias=False, LayerNorm_type='WithBias', dual_pixel_task=False"
)
_RESTORMER_TRAIN = {
    "use_grad_clip": True,
    "scheduler": {
        "type": "CosineAnnealingRestartCyclicLR",
        "periods": [92000, 208000],
        "restart_weights": [1, 1],
        "eta_mins": [0.0003, 0.000001],
    },
    "optim_g": {"type": "AdamW", "lr": 3e-4, "weight_decay": 1e-4, "betas": [0.9, 0.999]},
}
_SWINIR = {
    "type": "SwinIR", "upscale": 4, "in_chans": 3, "img_size": [48, 48], "window_size": 8, "img_range": 1.0,
    "depths": [6, 6], "embed_dim": 60, "num_heads": [6, 6], "mlp_ratio": 2, "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}  # fmt: skip

_SPAN = {
    "type": "SPAN", "num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": 4, "bias": True,
    "img_range": 255.0, "rgb_mean": [0.4488, 0.4371, 0.4040],
}  # fmt: skip
_SPAN_ARGUMENTS = (
    "num_in_ch, num_out_ch, feature_channels=48, upscale=4, bias=True, img_range=255.0, "
    "rgb_mean=(0.4488, 0.4371, 0.4040)"
)

_CAT = {
    "type": "CAT", "upscale": 4, "in_chans": 3, "img_size": 64, "split_size_0": [2, 2, 2, 4, 4, 4],
    "split_size_1": [0] * 6, "img_range": 1.0, "depth": [6] * 6, "embed_dim": 180, "num_heads": [6] * 6,
    "mlp_ratio": 4, "resi_connection": "1conv", "block_name": "CATB_axial", "upsampler": "pixelshuffle",
}  # fmt: skip
_CAT_ARGUMENTS = (
    "img_size=64, in_chans=3, embed_dim=180, split_size_0=[0], split_size_1=[0], depth=[2], num_heads=[2], "
    "mlp_ratio=4.0, upscale=2, img_range=1.0, resi_connection='1conv', upsampler='', block_name='', **kwargs"
)
_BSRN = {"type": "BSRN", "num_in_ch": 3, "num_feat": 64, "num_out_ch": 3, "upscale": 4, "conv": "BSConvU"}
_BSRN_ARGUMENTS = (
    "num_in_ch=3, num_feat=64, num_block=8, num_out_ch=3, upscale=4, conv='BSConvU', "
    "upsampler='pixelshuffledirect', p=0.25"
)
_PLKSR = {
    "type": "PLKSR", "dim": 64, "n_blocks": 28, "kernel_size": 17, "split_ratio": 0.25, "ccm_type": "DCCM",
    "lk_type": "PLK", "upscaling_factor": 4,
}  # fmt: skip
_PLKSR_ARGUMENTS = (
    "dim: int, n_blocks: int, upscaling_factor: int, ccm_type: str, kernel_size: int, split_ratio: float, "
    "lk_type: str = 'PLK', use_max_kernel: bool = False, sparse_kernels=[5], sparse_dilations=[1], "
    "with_idt: bool = False, use_ea: bool = True, is_coreml: bool = False"
)
_KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
_REAL = {
    "resize_prob": [0.2, 0.7, 0.1], "resize_range": [0.15, 1.5], "gaussian_noise_prob": 0.5, "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3], "gray_noise_prob": 0.4, "jpeg_range": [30, 95], "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3], "resize_range2": [0.3, 1.2], "gaussian_noise_prob2": 0.5, "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5], "gray_noise_prob2": 0.4, "jpeg_range2": [30, 95], "queue_size": 180,
}  # fmt: skip
_REAL_SET = {
    "type": "RealESRGANDataset", "dataroot_lq": None, "filename_tmpl": None, "meta_info_file": "data/list.txt",
    "blur_kernel_size": 21, "kernel_list": _KERNELS, "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1, "blur_sigma": [0.2, 3], "betag_range": [0.5, 4], "betap_range": [1, 2],
    "blur_kernel_size2": 21, "kernel_list2": _KERNELS, "kernel_prob2": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob2": 0.1, "blur_sigma2": [0.2, 1.5], "betag_range2": [0.5, 4], "betap_range2": [1, 2],
    "final_sinc_prob": 0.8, "use_hflip": True, "use_rot": False,
}  # fmt: skip

PUBLISHED = [
    Published(
        "SMFANet", "train", {"type": "SMFANet", "dim": 36, "n_blocks": 8, "ffn_scale": 2, "upscaling_factor": 4},
        "dim=36, n_blocks=8, ffn_scale=2, upscaling_factor=4",
    ),
    Published(
        "SMFANet", "test", {"type": "SMFANet", "dim": 48, "n_blocks": 12, "ffn_scale": 2, "upscaling_factor": 4},
        "dim=36, n_blocks=8, ffn_scale=2, upscaling_factor=4", path={"param_key": None},
        val={"flip_seq": True, "center_frame_only": True},
    ),
    Published(
        "SeemoRe", "train", _SEEMORE, _SEEMORE_ARGUMENTS, train_set={"task": "SR", "pin_memory": True},
        other_set={"task": "SR"},
    ),
    Published("SeemoRe", "test", _SEEMORE, _SEEMORE_ARGUMENTS, other_set={"task": "SR"}, val={"use_chop": True}),
    Published(
        "HAT", "train", _HAT, _HAT_ARGUMENTS, top={"model_type": "HATModel"}, path={"param_key_g": "params_ema"},
        train_set={"meta_info_file": "hat/data/meta_info/meta_info_DF2Ksub_GT.txt"},
    ),
    Published(
        "HAT", "test", _HAT, _HAT_ARGUMENTS,
        top={"model_type": "HATModel", "tile": {"tile_size": 256, "tile_pad": 32}},
    ),
    Published(
        "DAT", "train", _DAT, _DAT_ARGUMENTS, top={"model_type": "DATModle"}, train_set={"task": "SR"},
        other_set={"task": "SR"},
    ),
    Published(
        "DAT", "test", {**_DAT, "upsampler": "pixelshuffledirect"}, _DAT_ARGUMENTS, top={"model_type": "DATModel"},
        other_set={"task": "SR", "filename_tmpl": "{}_LRBI_x4"}, val={"use_chop": False},
    ),
    Published(
        "NAFNet", "train", {"type": "NAFNet", **_NAFNET}, _NAFNET_ARGUMENTS,
        top={"model_type": "ImageRestorationModel", "scale": 1},
        train_set={"use_flip": False, "use_hflip": None, "io_backend": {"type": "lmdb"}},
        other_set={"io_backend": {"type": "lmdb"}},
        train={
            "scheduler": {"type": "TrueCosineAnnealingLR", "T_max": 400000, "eta_min": 1e-7},
            "pixel_opt": {"type": "PSNRLoss", "loss_weight": 1, "reduction": "mean"},
        },
        val={"use_image": False},
    ),
    Published(
        "NAFNet", "test", {"type": "NAFNetLocal", **_NAFNET}, _NAFNET_ARGUMENTS,
        top={"model_type": "ImageRestorationModel", "scale": 1}, path={"resume_state": None}, val={"grids": False},
    ),
    Published(
        "Restormer", "train", _RESTORMER, _RESTORMER_ARGUMENTS, top={"model_type": "ImageCleanModel", "scale": 1},
        train_set={
            "type": "Dataset_PairedImage", "geometric_augs": True, "use_hflip": None, "batch_size_per_gpu": 8,
            "mini_batch_sizes": [8, 5, 4, 2, 1, 1], "iters": [92000, 64000, 48000, 36000, 36000, 24000],
            "gt_size": 384, "gt_sizes": [128, 160, 192, 256, 320, 384],
        },
        other_set={"type": "Dataset_PairedImage"},
        train={**_RESTORMER_TRAIN, "mixing_augs": {"mixup": True, "mixup_beta": 1.2, "use_identity": True}},
        val={"window_size": 8, "rgb2bgr": True, "use_image": False, "max_minibatch": 8},
    ),
    Published(
        "Restormer (one patch size)", "train", _RESTORMER, _RESTORMER_ARGUMENTS,
        top={"model_type": "ImageCleanModel", "scale": 1}, train=_RESTORMER_TRAIN,
        train_set={"type": "Dataset_PairedImage", "geometric_augs": True, "use_hflip": None},
        other_set={"type": "Dataset_PairedImage"}, val={"window_size": 8, "rgb2bgr": True, "max_minibatch": 8},
    ),
    Published(
        "MambaIR", "test", {**_DAT, "type": "MambaIRv2Light"}, _DAT_ARGUMENTS,
        top={"model_type": "MambaIRv2LightModel"},
    ),
    Published(
        "MambaIR (denoising)", "train", {**_DAT, "type": "MambaIRv2", "upscale": 1}, _DAT_ARGUMENTS,
        top={"model_type": "MambaIRv2Model", "scale": 1},
        train_set={"task": "denoising_color", "noise": 25, "dataroot_lq": "data/HR"},
        other_set={"task": "denoising_color", "noise": 25, "dataroot_lq": "data/HR"},
        train={"pixel_opt": {"type": "CharbonnierLoss", "loss_weight": 1.0, "reduction": "mean", "eps": 1e-3}},
    ),
    Published(
        "ATD", "train", _ATD, _ATD_ARGUMENTS, top={"model_type": "ATDModel"},
        train_set={"prefetch_mode": "cuda", "pin_memory": True, "persistent_workers": True},
        train={"optim_g": {"type": "AdamW", "lr": 2e-4, "weight_decay": 0, "betas": [0.9, 0.9]}, "warmup_iter": 10000},
        val={"metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 4, "test_y_channel": "yes"}}},
    ),
    Published(
        "ATD", "test", _ATD, _ATD_ARGUMENTS, top={"model_type": "ATDModel"},
        path={"strict_load_g": "yes", "param_key_g": "params_ema"},
    ),
    Published(
        "SRFormer", "train", {**_HAT, "type": "SRFormer"}, _HAT_ARGUMENTS, top={"print_network": False},
    ),
    Published(
        "SRFormer", "test", {**_HAT, "type": "SRFormer"}, _HAT_ARGUMENTS,
        top={"suffix": None, "save_img": False, "print_network": False},
    ),
    Published(
        "CAMixerSR", "train", {"type": "CAMixerSR", "ratio": 0.5, "scale": 4}, "n_feats=60, scale=4, ratio=0.5",
    ),
    Published(
        "CRAFT", "train", {**_HAT, "type": "CRAFT"}, _HAT_ARGUMENTS, top={"model_type": "CRAFT_Model"},
        train={"ema_decay": 0}, train_set={"meta_info_file": None},
    ),
    Published("SPAN", "train", _SPAN, _SPAN_ARGUMENTS),
    Published("SPAN", "test", _SPAN, _SPAN_ARGUMENTS, path={"param_key_g": "params_ema"}),
    Published(
        "HAT (ImageNet)", "train", _HAT, _HAT_ARGUMENTS, top={"model_type": "HATModel"},
        train_set={
            "type": "ImageNetPairedDataset", "dataroot_lq": "data/HR", "filename_tmpl": None,
            "meta_info_file": "data/train_map.txt",
        },
    ),
    Published(
        "HAT (real)", "train", _HAT, _HAT_ARGUMENTS, train_set=_REAL_SET,
        top={
            "model_type": "RealHATGANModel", "gt_size": 256, "l1_gt_usm": True, "percep_gt_usm": True,
            "gan_gt_usm": False, **_REAL,
            "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 64, "skip_connection": True},
        },
        train={
            "optim_d": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]},
            "gan_opt": {
                "type": "GANLoss", "gan_type": "vanilla", "real_label_val": 1.0, "fake_label_val": 0.0,
                "loss_weight": 0.1,
            },
            "net_d_iters": 1, "net_d_init_iters": 0,
        },
    ),
    Published(
        "DRCT", "train", {**_HAT, "type": "DRCT"}, _HAT_ARGUMENTS, top={"model_type": "DRCTModel"},
    ),
    Published(
        "DRCT (real)", "train", {**_HAT, "type": "DRCT"}, _HAT_ARGUMENTS, train_set=_REAL_SET,
        top={"model_type": "RealDRCTMSEModel", "gt_usm": True, "gt_size": 256, **_REAL},
        train={"optim_d": {"type": "Adam", "lr": 1e-4, "weight_decay": 0, "betas": [0.9, 0.99]}},
    ),
    Published(
        "DAT (single images)", "test", _DAT, _DAT_ARGUMENTS, top={"model_type": "DATModel"},
        other_set={"type": "SingleImageDataset", "dataroot_gt": None, "filename_tmpl": None},
        val={"save_img": True, "suffix": "x4", "use_chop": False, "metrics": None},
    ),
    Published(
        "CAT", "train", _CAT, _CAT_ARGUMENTS, top={"model_type": "CATModel"},
        train_set={"task": "SR"}, other_set={"task": "SR"},
    ),
    Published(
        "CAT (self-ensemble)", "test", {**_CAT, "block_name": "CATB_regular"}, _CAT_ARGUMENTS,
        top={"model_type": "CATSEModel"}, other_set={"task": "SR"}, val={"selfensemble_testing": True},
    ),
    Published(
        "BSRN", "train", {**_BSRN, "num_block": 8}, _BSRN_ARGUMENTS, train_set={"io_backend": {"type": "lmdb"}},
        train={
            "ema_decay": None,
            "scheduler": {
                "type": "CosineAnnealingRestartLR", "periods": [1000000], "restart_weights": [1], "eta_min": 1e-7
            },
        },
        top={"logger": {"print_freq": 100, "wandb": {"project": None, "resume_id": None, "entity": None}}},
    ),
    Published(
        "BSRN", "test", {**_BSRN, "type": "BSRNB", "num_block": 5}, _BSRN_ARGUMENTS,
        top={"suffix": None, "crop_border": None}, val={"pbar": True},
    ),
    Published(
        "PLKSR", "train", {**_PLKSR, "n_blocks": 12, "kernel_size": 13}, _PLKSR_ARGUMENTS,
        top={"model_type": "ESRModel", "use_amp": True}, train_set={"io_backend": {"type": "lmdb"}},
    ),
    Published(
        "PLKSR", "test", {**_PLKSR, "use_ea": True}, _PLKSR_ARGUMENTS, top={"model_type": "ESRModel"},
    ),
    Published(
        "MambaIR (several folders)", "train", {**_DAT, "type": "MambaIRv2"}, _DAT_ARGUMENTS,
        top={"model_type": "MambaIRv2Model"},
        train_set={
            "task": "SR", "dataroot_gt": ["data/HR", "data/HR"], "dataroot_lq": ["data/LR", "data/LR"],
        },
    ),
    Published(
        "MambaIR (JPEG)", "train", {**_DAT, "type": "MambaIRv2", "upscale": 1, "in_chans": 1}, _DAT_ARGUMENTS,
        top={"model_type": "MambaIRv2Model", "scale": 1}, train_set={"task": "CAR"}, other_set={"task": "CAR"},
    ),
    Published(
        "MAN", "train", {"type": "MAN", "scale": 4, "n_resblocks": 36, "n_resgroups": 1, "n_feats": 180},
        "n_resblocks=36, n_resgroups=1, n_colors=3, n_feats=180, scale=2, res_scale=1.0",
    ),
    Published(
        "CAMixerSR (tiles)", "test", {"type": "CAMixerSR", "ratio": 0.5, "scale": 4},
        "n_feats=60, scale=4, ratio=0.5", top={"model_type": "TileModel", "tile": 64},
        path={"param_key_g": "params_ema"},
    ),
    Published("SwinIR", "test", _SWINIR, "", top={"model_type": "SwinIRModel"}),
]  # fmt: skip


def option_file(facts: Published) -> dict[str, Any]:
    """Return an option file with the keys of ``facts``, on top of what all of them have. None leaves out a key."""
    scale = facts.top.get("scale", 4)
    pair = {
        "type": "PairedImageDataset",
        "dataroot_gt": "data/HR",
        "dataroot_lq": "data/LR",
        "filename_tmpl": "{}",
        "io_backend": {"type": "disk"},
    }
    loader = {
        "gt_size": 256, "use_hflip": True, "use_rot": True, "use_shuffle": True, "num_worker_per_gpu": 0,
        "batch_size_per_gpu": 4, "dataset_enlarge_ratio": 1, "prefetch_mode": None,
    }  # fmt: skip
    train_set = _given({"name": "Train", **pair, **loader}, facts.train_set)
    other_set = _given({"name": "Set5", **pair}, facts.other_set)
    data = {
        "name": "published", "model_type": "SRModel", "scale": scale, "num_gpu": "auto", "manual_seed": 0,
        "datasets": {"train": train_set, "val": other_set} if facts.mode == "train" else {"test_1": other_set},
        "network_g": dict(facts.network),
        "path": {"pretrain_network_g": None, "strict_load_g": True, **facts.path},
        "val": _given(
            {"val_freq": 5e3, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", **_Y}}}, facts.val
        ),
        **facts.top,
    }  # fmt: skip
    if facts.mode == "train":
        data["train"] = _given(
            {
                "ema_decay": 0.999,
                "optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]},
                "scheduler": {"type": "MultiStepLR", "milestones": [250000, 400000], "gamma": 0.5},
                "total_iter": 300000,
                "warmup_iter": -1,
                "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            },
            facts.train,
        )
        logger = {
            "print_freq": 100, "save_checkpoint_freq": 5e3, "use_tb_logger": False,
            "wandb": {"project": None, "resume_id": None},
        }  # fmt: skip
        data.setdefault("logger", logger)
        data["dist_params"] = {"backend": "nccl", "port": 29500}
    return data


def _given(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a section; a key that only others have, and that the entry sets to None, is left out."""
    return {key: value for key, value in {**common, **own}.items() if value is not None or key not in common}


def stand_in(facts: Published) -> type[nn.Module]:
    """Return a network with the name and the arguments of a published one. It enlarges by pixel repetition."""

    class StandIn(nn.Module):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__()
            given = inspect.signature(_function(facts.arguments)).bind(*arguments, **keywords)
            self.window_size = given.arguments.get("window_size", 1)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.factor = facts.top.get("scale", 4)

        def forward(self, x: Tensor) -> Tensor:
            assert not x.shape[-1] % self.window_size
            return nn.functional.interpolate(self.conv(x), scale_factor=self.factor, mode="nearest")

    StandIn.__name__ = facts.network["type"]
    StandIn.__init__.__signature__ = inspect.signature(_function(f"self, {facts.arguments}"))  # type: ignore[attr-defined]
    return StandIn


def _function(arguments: str) -> Any:
    names: dict[str, Any] = {}
    exec(f"def build({arguments}): pass", names)
    return names["build"]
