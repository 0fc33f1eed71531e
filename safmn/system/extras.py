"""The optional packages: what each is for and which version it needs. ``setup.py`` makes its extras from this table.

Standard library only, because ``setup.py`` runs this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Extra(NamedTuple):
    """An optional feature and the packages that it needs.

    Attributes:
        adds: the feature, in words.
        packages: name of the module to import -> requirement for pip.
    """

    adds: str
    packages: dict[str, str]


# What training needs besides BasicSR. Its own needs are listed without tb-nightly, which collides with
# tensorboard. BasicSR itself cannot be listed: pip alone cannot build it (safmn.system.basicsr_install).
TRAIN = Extra(
    "training",
    {
        "torchvision": "torchvision>=0.25",
        "tensorboard": "tensorboard>=2.14",
        "addict": "addict",
        "future": "future",
        "skimage": "scikit-image>=0.22",
        "yapf": "yapf",
    },
)
EXTRAS = {
    "train": TRAIN,
    "onnx": Extra(
        "export to ONNX, upscaling by ONNX Runtime", {"onnx": "onnx>=1.16", "onnxruntime": "onnxruntime>=1.18"}
    ),
    "openvino": Extra("export to OpenVINO, upscaling by it", {"openvino": "openvino>=2024.4", "onnx": "onnx>=1.16"}),
    "ncnn": Extra("export to ncnn", {"ncnn": "ncnn>=1.0.20261020", "pnnx": "pnnx>=20240819"}),
    "litert": Extra(
        "export to LiteRT", {"litert_torch": "litert-torch>=0.10", "ai_edge_litert": "ai-edge-litert>=2.3"}
    ),
    "coreml": Extra("export to Core ML", {"coremltools": "coremltools>=9"}),
    "video": Extra("films", {"av": "av>=17"}),
    "heif": Extra("HEIC photographs", {"pillow_heif": "pillow-heif>=0.18"}),
    "app": Extra("the page of safmn app", {"gradio": "gradio>=6"}),
    "hub": Extra("weights of the Hugging Face hub", {"huggingface_hub": "huggingface-hub>=0.30"}),
    "metrics": Extra("LPIPS, DISTS, TOPIQ, MUSIQ, CLIP-IQA, FID (no commercial use)", {"pyiqa": "pyiqa>=0.1.13"}),
    "torchmetrics": Extra(
        "LPIPS, DISTS, FID and KID",
        {
            "torchmetrics": "torchmetrics>=1.8",
            "torch_fidelity": "torch-fidelity>=0.3",
            "torchvision": "torchvision>=0.25",
        },
    ),
    "plots": Extra("safmn bench plot", {"matplotlib": "matplotlib>=3.8"}),
    "wandb": Extra("curves of training on Weights & Biases", {"wandb": "wandb>=0.18"}),
    "mlflow": Extra("curves of training on MLflow", {"mlflow": "mlflow>=3"}),
    "losses": Extra("the losses LPIPS and DISTS", {"lpips": "lpips>=0.1.4", "DISTS_pytorch": "DISTS-pytorch>=0.1"}),
    "docs": Extra(
        "the documents as a site",
        {"mkdocs": "mkdocs>=1.6", "material": "mkdocs-material>=9.5", "mkdocstrings": "mkdocstrings-python>=1.10"},
    ),
    "optimizers": Extra("more optimisers", {"pytorch_optimizer": "pytorch-optimizer>=3.5"}),
    "spandrel": Extra("weights of other networks", {"spandrel": "spandrel>=0.4"}),
}


def pip_install(requirements: Iterable[str]) -> str:
    """Return the command that installs these. It needs no clone, and no name of a wheel."""
    return "pip install " + " ".join(f"'{line}'" if ">" in line else line for line in requirements)
