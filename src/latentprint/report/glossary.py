"""Words of the field, in plain words, and what an audit of this kind cannot tell."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("Private image", "The training image this audit looked for. Everything here is about this one image."),
    (
        "Mark (fingerprint)",
        "A grey shape put on the private image before training, so that a copy can be told for certain.",
    ),
    (
        "Recogniser (detector)",
        "A small program trained for this audit that says whether an image shows the mark, or is the private"
        " image. Where there are two, only what both recognise is counted.",
    ),
    ("False alarm", "A recogniser says yes although the image is another one."),
    (
        "Control",
        "A second model, trained in the same way on the same images but without the private one. What is"
        " “found” in its images must be a false alarm.",
    ),
    ("Baseline", "Images the model was never trained on, put through the same search for comparison."),
    (
        "Noise level t",
        "How much random noise is laid over an image: at 0 none, at 1 nothing of the image is left.",
    ),
    (
        "t′ (t prime)",
        "The most noise that may be laid over the private image so that the model still restores it. High"
        " values mean that the model knows the image well.",
    ),
    ("q", "The probability that one generated image is the private image."),
    (
        "1/N",
        "One divided by the number of training images: the rate at which a model that only repeats its"
        " training images would show each of them.",
    ),
    (
        "Interval",
        "The range of rates that agree with the count. A 95% interval misses the true rate in at most 5 of"
        " 100 audits.",
    ),
    (
        "Could have been missed",
        "The largest rate at which the audit would still have seen as little as it did with 5% probability.",
    ),
    ("Network evaluation", "One run of the model's network on one image: the unit of cost."),
    (
        "Bits per dimension",
        "How well the model predicts an image; lower is better known. Training images far below others are a"
        " sign of memorising.",
    ),
    ("FID", "A distance between sets of images. Closer to training than to test images hints at memorising."),
)

MARKED = "A marked image is an outlier. Images without such a mark may be learned differently."

UNMARKED: tuple[str, ...] = (
    "The image carries no added mark, so one recogniser alone tells whether a generated image is the private"
    " one or merely looks like it.",
    "No model without the image was trained to compare with: false alarms are known from real images only.",
)
"""What stands in the place of MARKED where nothing was injected; the second where there is no control."""

LIMITS: tuple[str, ...] = (
    "The rate is that of one image. Other training images may be given back more often or more rarely.",
    "It is about one way of generating images, with the number of steps named below; faster or other ways of"
    " sampling have their own rates.",
    MARKED,
    "It looks for the image as the recognisers know it. A turned, mirrored or partial copy may be missed.",
    "It does not cover attacks that use the model's weights directly, or that train it further.",
    "It promises no anonymity, and is no legal opinion: it says what was found, how often, and what could"
    " have been missed.",
)
