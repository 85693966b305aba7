"""What the background does (Xiao et al., ICLR 2021): variants of images with known product masks, masks of photos."""

# ruff: noqa: F401
from retailkit.backgrounds.masks import degrade, iou, masked
from retailkit.backgrounds.splits import VariantSplit, choose_donors
from retailkit.backgrounds.variants import PAPER, VARIANTS, apply_variant, boxes, usable
