"""DISTS as a loss: Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", TPAMI 2020."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safmn.losses.backbones import features, learned, taps
from safmn.registry import LOSS_REGISTRY
from safmn.value_types import NotNegativeFloat

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
_PLACES = (3, 8, 15, 22, 29)  # the last ReLU of each stage of VGG16
_CHANNELS = (3, 64, 128, 256, 512, 512)  # of the image and the stages
_SMALL = 1e-6  # c1 and c2 (eq. 4 and 5)


class _L2Pool(nn.Module):
    """Pooling of the L2 norm with a Hann window instead of the maximum, without aliasing (section 3.1)."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("window", taps[:, None] * taps / 4, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve (B, C, h, w)."""
        kernel = self.window.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


@LOSS_REGISTRY.register()
class DISTSLoss(nn.Module):
    """One minus the learned similarity of textures (means) and structures (covariances) of VGG16's features.

    Args:
        loss_weight: factor of the result.
        network_weights: local file with torchvision's weights of VGG16; null: torchvision's cache.
        learned_weights: local file with ``alpha`` and ``beta``; null: the file in the package ``DISTS_pytorch``.
    """

    alpha: Tensor
    beta: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        loss_weight: NotNegativeFloat = 1.0,
        network_weights: str | None = None,
        learned_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        state = learned("DISTS_pytorch", "weights.pt", learned_weights, "DISTSLoss")
        network = features("vgg16", network_weights, "DISTSLoss")
        self.network = nn.Sequential(*(_L2Pool() if isinstance(part, nn.MaxPool2d) else part for part in network))
        total = state["alpha"].sum() + state["beta"].sum()
        for name in ("alpha", "beta"):
            self.register_buffer(name, (state[name] / total).flatten().float(), persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return the loss (a scalar), the mean DISTS of two (B, 3, H, W) RGB images in [0, 1]."""
        with torch.no_grad():
            wanted = self._features(target)
        similarity = pred.new_zeros(pred.shape[0])
        alphas, betas = self.alpha.split(_CHANNELS), self.beta.split(_CHANNELS)
        for one, other, alpha, beta in zip(self._features(pred), wanted, alphas, betas, strict=True):
            means = one.mean(dim=(2, 3)), other.mean(dim=(2, 3))  # (B, C)
            variances = [
                (part - mean[:, :, None, None]).square().mean(dim=(2, 3))
                for part, mean in zip((one, other), means, strict=True)
            ]
            covariance = (one * other).mean(dim=(2, 3)) - means[0] * means[1]
            texture = (2 * means[0] * means[1] + _SMALL) / (means[0] ** 2 + means[1] ** 2 + _SMALL)
            structure = (2 * covariance + _SMALL) / (variances[0] + variances[1] + _SMALL)
            similarity = similarity + (alpha * texture + beta * structure).sum(dim=1)
        return self.loss_weight * (1 - similarity).mean()

    def _features(self, image: Tensor) -> list[Tensor]:
        return [image, *taps(self.network, (image - self.mean) / self.std, _PLACES)]
