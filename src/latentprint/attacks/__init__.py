"""What somebody can learn from a model about its training images. Each attack states its errors.

`whole`: every generated image against every training image. Does it give back any of them? `nearest` finds
the nearest images as they are, and `aligned` those that may have been changed. `planted` makes copies that
must be found, `pool` adds held-out images to the training images, and `membership` tells training images from
others.
"""
