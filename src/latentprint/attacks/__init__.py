"""What somebody could learn from a model about the images it was trained on. Each attack states its errors.

`whole`: every generated image against every training image. Does it give back any of them?
`nearest` and `aligned` find the nearest images as they stand and as they may have been changed, `planted`
makes copies to be found, `pool` takes held-out images among them, `membership` tells training images apart.
"""
