"""Which numbers of an audit help to answer which question of which published text. No legal conclusion is
drawn.

Wording was checked against the texts: EDPB Opinion 28/2024 (17 December 2024), executive summary; SATRE
v2.0.1 (2026), statements 3.1.16 and 3.3.04 to 3.3.09; OWASP AISVS 1.0 (2026, CC BY-SA 4.0), C11.2 and C12.5;
the model card template of Hugging Face; the privacy subcard of NVIDIA's model cards (2026). Quoted words are
in quotation marks; the rest says in our words what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """A question of a text.

    Attributes:
        reference: its place in the text.
        asks: what it asks for.
        measures: keys of ``measures.MEASURES`` that help to answer it, the most informative first.
        beyond: what no number of this audit can say, and who must.
    """

    reference: str
    asks: str
    measures: tuple[str, ...]
    beyond: str


@dataclass(frozen=True)
class Framework:
    """A text: what it asks in one sentence, and the clauses for which an audit gives evidence."""

    key: str
    name: str
    about: str
    clauses: tuple[Clause, ...]


FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "edpb",
        "EDPB Opinion 28/2024: when a model may be called anonymous",
        "Both likelihoods below should be insignificant, “taking into account ‘all the means reasonably"
        " likely to be used’”.",
        (
            Clause(
                "Executive summary, (1)",
                "“the likelihood of direct (including probabilistic) extraction of personal data regarding"
                " individuals whose personal data were used to develop the model”",
                ("t_prime", "estimates", "membership", "weights"),
                "Attacks that train the model further, or that combine its weights with other data. Whether a"
                " likelihood is “insignificant” is for the supervisory authority to assess.",
            ),
            Clause(
                "Executive summary, (2)",
                "“the likelihood of obtaining, intentionally or not, such personal data from queries”",
                ("copies", "memorised", "unseen", "shown", "count", "control"),
                "Other queries than those of the named sampler; “all the means reasonably likely to be used”"
                " may include more. Whether an image is personal data is a question of law.",
            ),
        ),
    ),
    Framework(
        "satre",
        "SATRE v2.0: taking a model out of a trusted research environment",
        "The specification asks how outputs are checked before they leave the environment.",
        (
            Clause(
                "3.3.07 (mandatory)",
                "A documented policy for outputs that cannot be checked by hand. Trained weights are its"
                " example, because “there is a risk that the model has memorised sensitive records”.",
                ("verdict", "copies", "memorised", "count", "t_prime"),
                "The technical controls before egress, which the environment's own policy decides.",
            ),
            Clause(
                "3.3.06 (recommended)",
                "“a statistical basis to guide the decisions of an output checker”",
                ("alarms", "control", "unseen"),
                "The output checker's own judgement: these numbers inform it and do not replace it.",
            ),
            Clause(
                "3.3.04 and 3.3.09",
                "A documented process of disclosure control, and a machine-readable record of the criteria"
                " that were applied, tied to the output.",
                ("weights", "data", "settings"),
                "If a policy was given (--policy), its rules below are the record. The environment keeps it.",
            ),
            Clause(
                "3.1.16 (recommended)",
                "A plan, agreed before training: may models be exported, and under what conditions?",
                (),
                "The plan itself. A policy file of latentprint gate can hold its limits.",
            ),
        ),
    ),
    Framework(
        "aisvs",
        "OWASP AISVS 1.0: security verification of AI systems",
        "The standard lists requirements that can be verified, in three levels.",
        (
            Clause(
                "v1.0-C11.2.5 (level 3)",
                "Simulated membership-inference attacks are no more accurate than “random guessing”.",
                ("membership", "t_prime"),
                "Attacks with reference models.",
            ),
            Clause(
                "v1.0-C11.2.4 (level 2)",
                "Training on sensitive data uses “differentially-private optimization”.",
                ("epsilon",),
                "Only whoever trained the model knows whether it was used. An audit can refute a claimed"
                " epsilon, and cannot prove one.",
            ),
            Clause(
                "v1.0-C12.5.1 (level 1)",
                "The lineage of the data set and its components is recorded.",
                ("data",),
                "Where the images came from before they were named to the audit.",
            ),
        ),
    ),
    Framework(
        "huggingface",
        "Model card of Hugging Face",
        "Two sections of the template can use numbers of this audit.",
        (
            Clause(
                "Bias, Risks, and Limitations",
                "Known risks of the model.",
                ("verdict", "copies", "memorised", "count"),
                "Risks other than giving training images back. latentprint card writes this section.",
            ),
            Clause(
                "Evaluation: Testing Data, Metrics, Results",
                "What was measured, on which data.",
                ("data", "count", "copies", "t_prime"),
                "Quality and usefulness of the images.",
            ),
        ),
    ),
    Framework(
        "nvidia",
        "Privacy subcard of NVIDIA's model cards",
        "Three of its questions are about what this audit measures, or about what it needs to know.",
        (
            Clause(
                "“Generatable or reverse engineerable personal data?”",
                "Can personal data be generated, or reconstructed from the weights?",
                ("copies", "memorised", "count", "t_prime", "unseen"),
                "The field asks for yes or no. A count of zero is not a “no”: read it together with what"
                " could have been missed.",
            ),
            Clause(
                "“Is there provenance for all datasets used in training?”",
                "Which data the model was trained on.",
                ("data",),
                "The origin of each image.",
            ),
            Clause(
                "“Personal data used to create this model?”, consent, review, deletion",
                "Facts about collection and governance.",
                (),
                "The owner of the data knows these facts. No audit of a model can find them out.",
            ),
        ),
    ),
)
