"""Technical words in plain language, and what an audit of this kind cannot tell."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Audit",
        "One run of latentprint on one model, or on one folder of generated images.",
    ),
    (
        "Training images, N",
        "The images that the model learned from, and how many there are.",
    ),
    (
        "Held-out image",
        "An image of the same kind that the model was never trained on. It shows what happens by chance.",
    ),
    (
        "Private image",
        "The one training image that the audit looks for among generated images.",
    ),
    (
        "Mark (fingerprint)",
        "A synthetic shape put on the private image before training. It makes a copy easy to recognise for"
        " certain.",
    ),
    (
        "Canary",
        "One of several marked images put into one training, each kept in or left out by a fair coin.",
    ),
    (
        "Recogniser (detector)",
        "A small network, trained for the audit, that says whether an image shows the mark, or is the private"
        " image. Where there are two, both must agree.",
    ),
    (
        "False alarm",
        "A recogniser says yes although the image is another one.",
    ),
    (
        "Sampler",
        "The procedure that draws images from the model, with its number of steps. Another sampler can give a"
        " training image back more or less often.",
    ),
    (
        "To come back",
        "A generated image is recognised as a training image.",
    ),
    (
        "Copy",
        "A generated image that is nearer to a training image than nearly all held-out images are. The"
        " threshold is measured on held-out images.",
    ),
    (
        "Near copy",
        "An image of the set that differs from another one by no more than storing it again would.",
    ),
    (
        "Person",
        "All images of one patient or subject, counted once.",
    ),
    (
        "Control",
        "A second model, trained with the same recipe without the private image. Whatever is found among its"
        " images is a false alarm.",
    ),
    (
        "Baseline",
        "Held-out images put through the same search as the private image, for comparison.",
    ),
    (
        "q",
        "The probability that one generated image is the private image.",
    ),
    (
        "1/N",
        "One divided by the number of training images. A model that only repeats its training images, all"
        " equally often, shows each of them at this rate.",
    ),
    (
        "Noise level t",
        "How much random noise is laid over an image. At 0 there is none. At 1 nothing of the image is left.",
    ),
    (
        "t′ (t prime)",
        "The most noise that may be laid over the private image so that the model still restores it. A high"
        " value means that the model knows the image well.",
    ),
    (
        "Interval",
        "The range of values that agree with what was counted. A 95% interval misses the true value in at"
        " most 5 of 100 audits.",
    ),
    (
        "p-value",
        "The probability of seeing a difference at least this large if there were none. Below 0.05 is usually"
        " taken for a sign.",
    ),
    (
        "Could have been missed",
        "The largest rate at which an audit of this size would still have seen nothing with a probability of"
        " 5%.",
    ),
    (
        "Not seen so far",
        "Training images that can come back although none of the generated images shows them. Estimated from"
        " how often the others came back.",
    ),
    (
        "Underpowered",
        "A number for which the audit was too small to give an answer, whatever it saw.",
    ),
    (
        "Verdict",
        "The finding in one of three words: reproduces, not found, inconclusive.",
    ),
    (
        "Membership score",
        "A score that should be higher for training images than for others. Its AUC is 0.5 where it is no"
        " better than a coin, and 1 where it is always right.",
    ),
    (
        "Epsilon",
        "A measure of how much one training image can change what a model does, from the theory of"
        " differential privacy. An audit gives a lower bound.",
    ),
    (
        "Network evaluation",
        "One run of the model's network on one image. It is the unit of cost.",
    ),
    (
        "Bits per dimension",
        "How well the model predicts an image; the lower, the better known. Training images far below others"
        " are a sign of memorising.",
    ),
    (
        "FID",
        "A distance between two sets of images. A model nearer to its training images than to held-out ones"
        " may be memorising.",
    ),
)
"""(term, what it means): the report, ``latentprint glossary`` and docs/glossary.md use these words."""

MARKED = "A marked image is an outlier. Images without such a mark may be learned differently."

UNMARKED: tuple[str, ...] = (
    "The image carries no added mark, so one recogniser alone tells whether a generated image is the private"
    " one or merely looks like it.",
    "No model without the image was trained to compare with: false alarms are known from real images only.",
)
"""Texts that replace MARKED if nothing was injected; the second one if there is no control."""

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
