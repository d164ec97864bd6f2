"""Audit generated images where the model itself cannot be had."""

from pathlib import Path

from latentprint.adapters.samples import SamplesAudit, audit_samples, open_samples
from latentprint.data import load


def audit_folder(samples: Path, images: str, seed: int = 0) -> SamplesAudit:
    """Are there copies of training images among ``samples``?

    Args:
        samples: a folder of PNG, JPEG or TIFF files, an .npz or an .npy file.
        images: what the model was trained on, with held-out images beside it: they say how near to a
            training image an image comes that no model can have copied.
        seed: draws the held-out images where ``images`` does not come split.
    """
    split = load(images, seed=seed)
    found = audit_samples(open_samples(samples), split.train, split.heldout)
    print(
        f"{found.copies.k} of {found.copies.n} samples count as copies, of {found.distinct} training images;"
    )
    print(f"of images held out it would be {found.expected.k} of {found.expected.n}; p = {found.p_value:.2g}")
    for pair in found.pairs[:3]:
        print(f"sample {pair.sample} is {pair.score:.2f} times as near to image {pair.training} as its like")
    for sentence in found.cannot:
        print("not known:", sentence)
    return found
