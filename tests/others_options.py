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
        tolerant: whether the file needs ``--tolerant``, because a key has an effect that SAFMN does not have.
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
    tolerant: bool = False


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
            "type": "Dataset_PairedImage", "geometric_augs": True, "mini_batch_sizes": [8, 5, 4], "iters": [9, 6, 4],
            "gt_sizes": [128, 160, 192], "use_hflip": None,
        },
        other_set={"type": "Dataset_PairedImage"}, train=_RESTORMER_TRAIN,
        val={"window_size": 8, "rgb2bgr": True, "use_image": False, "max_minibatch": 8}, tolerant=True,
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
    Published("SwinIR", "test", _SWINIR, "", top={"model_type": "SwinIRModel"}),
]  # fmt: skip


def option_file(facts: Published) -> dict[str, Any]:
    """Return an option file with the keys of ``facts``, on top of what all of them have."""
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
    train_set = {"name": "Train", **pair, **loader, **facts.train_set}
    other_set = {"name": "Set5", **pair, **facts.other_set}
    data = {
        "name": "published", "model_type": "SRModel", "scale": scale, "num_gpu": "auto", "manual_seed": 0,
        "datasets": {"train": train_set, "val": other_set} if facts.mode == "train" else {"test_1": other_set},
        "network_g": dict(facts.network),
        "path": {"pretrain_network_g": None, "strict_load_g": True, **facts.path},
        "val": {"val_freq": 5e3, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr", **_Y}}, **facts.val},
        **facts.top,
    }  # fmt: skip
    if facts.mode == "train":
        data["train"] = {
            "ema_decay": 0.999,
            "optim_g": {"type": "Adam", "lr": 1e-3, "weight_decay": 0, "betas": [0.9, 0.99]},
            "scheduler": {"type": "MultiStepLR", "milestones": [250000, 400000], "gamma": 0.5},
            "total_iter": 300000,
            "warmup_iter": -1,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
            **facts.train,
        }
        data["logger"] = {
            "print_freq": 100, "save_checkpoint_freq": 5e3, "use_tb_logger": False,
            "wandb": {"project": None, "resume_id": None},
        }  # fmt: skip
        data["dist_params"] = {"backend": "nccl", "port": 29500}
    return data


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
