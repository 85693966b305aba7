"""What the background does: variants of images with known product masks, and the masks of photos.

*Noise or Signal: The Role of Image Backgrounds in Object Recognition* (Xiao et al., ICLR 2021) and what *Object
Recognition With Help From Background* adds to it.
"""

# ruff: noqa: F401
from retailkit.backgrounds.masks import degrade, grabcut_of, iou, masked
from retailkit.backgrounds.splits import VariantSplit, choose_donors
from retailkit.backgrounds.variants import PAPER, VARIANTS, apply_variant, boxes, usable
