"""What the background does: variants of pictures with known product masks, and the masks of photos.

*Noise or Signal: The Role of Image Backgrounds in Object Recognition* (Xiao et al., ICLR 2021) and what *Object
Recognition With Help From Background* adds to it.
"""

from retailkit.backgrounds.factors import contrast_colours
from retailkit.backgrounds.masks import acceptance, degrade, grabcut_of, iou, masked
from retailkit.backgrounds.paper import boxes, choose_donors
from retailkit.backgrounds.splits import Scenes, VariantSplit
from retailkit.backgrounds.variants import PAPER, VARIANTS, PaperVariants, apply_variant, usable

__all__ = [
    "PAPER",
    "VARIANTS",
    "PaperVariants",
    "Scenes",
    "VariantSplit",
    "acceptance",
    "apply_variant",
    "boxes",
    "choose_donors",
    "contrast_colours",
    "degrade",
    "grabcut_of",
    "iou",
    "masked",
    "usable",
]
