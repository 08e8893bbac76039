"""Losses that train fusion networks without a reference picture, and one for scenes whose truth is known."""

from ffmef.losses.gif import GIFLoss
from ffmef.losses.mef_ssim import MEFSSIMLoss
from ffmef.losses.picture import PictureLoss
from ffmef.losses.pmgi import PMGILoss
from ffmef.losses.sources import Sources
from ffmef.losses.structural import mef_ssim, ssim
from ffmef.losses.terms import TERMS
from ffmef.losses.truth import TruthLoss

__all__ = ["TERMS", "GIFLoss", "MEFSSIMLoss", "PMGILoss", "PictureLoss", "Sources", "TruthLoss", "mef_ssim", "ssim"]
