"""Audit generated images where the model itself cannot be had."""

from pathlib import Path

from latentprint.adapters.samples import CANNOT, open_samples
from latentprint.attacks.whole_set import Copies
from latentprint.data import load
from latentprint.report.copies import told
from latentprint.results.whole_set import WholeSet


def audit_folder(samples: Path, images: str, seed: int = 0) -> WholeSet:
    """Are there copies of training images among ``samples``?

    Args:
        samples: a folder of PNG, JPEG or TIFF files, an .npz or an .npy file.
        images: what the model was trained on, with held-out images beside it: they say how near to a
            training image an image comes that no model can have copied.
        seed: draws the held-out images where ``images`` does not come split.
    """
    split = load(images, seed=seed)
    copies = Copies(split.train.pixels, split.heldout.pixels, seed=seed)
    copies.update(open_samples(samples).pixels)
    found = copies.compute()
    print(*told(found), sep="\n")
    for one in found.exposed[:3]:
        print(f"training image {one.training} came back {one.k} times")
    for sentence in CANNOT:
        print("not known:", sentence)
    return found
