"""A remedy of one's own: leave every other image out of the training, and compare it with the others."""

import numpy as np

from latentprint.remedies import Remedy
from latentprint.remedies.table import Recipe, RemedyError


# --8<-- [start:remedy]
def every_other(recipe: Recipe) -> Recipe:
    """The recipe of a model that sees every other training image only.

    Raises:
        RemedyError: fewer than 20 images would be left.
    """
    kept = recipe.train[::2]
    if len(kept) < 20:
        raise RemedyError(f"every other of {len(recipe.train)} images leaves {len(kept)}; 20 are needed")
    return Recipe(np.ascontiguousarray(kept), recipe.heldout, recipe.more, recipe.model)


ROW = Remedy("every other image", "half of the images are never trained on", every_other)
# --8<-- [end:remedy]
