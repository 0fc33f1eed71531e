"""Names of other repositories' models that train like ours and differ only in how they validate.

HAT pads images to windows and cuts them into tiles, DAT cuts them into parts, and so on. Here every model validates and
tests that way where the option file asks for it (``val.tile``, ``val.window``), and networks with windows are padded
without being asked. So these names stand for SRModel, or for the models of Real-ESRGAN.
"""

from __future__ import annotations

from safmn.registry import MODEL_REGISTRY, OURS
from safmn.training.models.base_model import Model
from safmn.training.models.real_gan_model import RealESRGANModel
from safmn.training.models.real_sr_model import RealESRNetModel
from safmn.training.models.sr_model import SRModel

_SAME_AS: dict[str, type[Model]] = {
    "ATDModel": SRModel,
    "CATModel": SRModel,
    "CATSEModel": SRModel,  # with self-ensemble
    "CRAFT_Model": SRModel,
    "DATModel": SRModel,
    "DATModle": SRModel,  # as DAT's first option files spell it
    "DRCTModel": SRModel,
    "ESRModel": SRModel,  # PLKSR
    "HATModel": SRModel,
    "ImageCleanModel": SRModel,  # Restormer
    "ImageRestorationModel": SRModel,  # NAFNet
    "MambaIRModel": SRModel,
    "MambaIRv2LightModel": SRModel,
    "MambaIRv2Model": SRModel,
    "RGTModel": SRModel,
    "SRFormerModel": SRModel,
    "TileModel": SRModel,  # CAMixerSR
    "RealDRCTGANModel": RealESRGANModel,
    "RealDRCTMSEModel": RealESRNetModel,
    "RealHATMSEModel": RealESRNetModel,
    "RealHATGANModel": RealESRGANModel,
}


def _named(name: str, base: type[Model]) -> type[Model]:
    text = f"The same as {base.__name__}, under another repository's name."
    return type(name, (base,), {"__doc__": text, "__module__": __name__})


for _name, _base in _SAME_AS.items():
    globals()[_name] = _named(_name, _base)
    MODEL_REGISTRY.register(globals()[_name], suffix=OURS)
