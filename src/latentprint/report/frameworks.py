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
    """A text, with the clauses for which an audit of memorisation is evidence."""

    key: str
    name: str
    clauses: tuple[Clause, ...]


FRAMEWORKS: tuple[Framework, ...] = (
    Framework(
        "edpb",
        "EDPB Opinion 28/2024: when a model may be called anonymous",
        (
            Clause(
                "Executive summary, (1)",
                "“the likelihood of direct (including probabilistic) extraction of personal data regarding"
                " individuals whose personal data were used to develop the model”",
                ("t_prime", "estimates", "membership", "weights"),
                "Attacks that train the model further, or that combine its weights with other data, were not"
                " tried. Whether a likelihood is “insignificant” is for the supervisory authority to assess.",
            ),
            Clause(
                "Executive summary, (2)",
                "“the likelihood of obtaining, intentionally or not, such personal data from queries”",
                ("copies", "memorised", "unseen", "shown", "count", "control"),
                "Queries were those of the sampler that is named; “all the means reasonably likely to be"
                " used” may include others. Whether an image is personal data is a question of law.",
            ),
        ),
    ),
    Framework(
        "satre",
        "SATRE v2.0: taking a model out of a trusted research environment",
        (
            Clause(
                "3.3.07 (mandatory)",
                "A documented policy for outputs that cannot be checked by hand. Trained weights are its"
                " example, because “there is a risk that the model has memorised sensitive records”.",
                ("verdict", "copies", "memorised", "count", "t_prime"),
                "Which technical controls are required before egress is the environment's own policy.",
            ),
            Clause(
                "3.3.06 (recommended)",
                "“a statistical basis to guide the decisions of an output checker”",
                ("alarms", "control", "unseen"),
                "The person who checks decides; these numbers inform the decision.",
            ),
            Clause(
                "3.3.04 and 3.3.09",
                "A documented process of disclosure control, and a machine-readable record of the criteria"
                " that were applied, tied to the very output.",
                ("weights", "data", "settings"),
                "The rules below are the record if a policy was given (--policy). Retention is the"
                " environment's.",
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
        (
            Clause(
                "v1.0-C11.2.5 (level 3)",
                "Simulated membership-inference attacks are no more accurate than “random guessing”.",
                ("membership", "t_prime"),
                "Attacks with reference models were not run.",
            ),
            Clause(
                "v1.0-C11.2.4 (level 2)",
                "Training on sensitive data uses “differentially-private optimization”.",
                ("epsilon",),
                "Whether it was used is known to whoever trained. An audit can refute a claimed epsilon, and"
                " cannot prove one.",
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
        (
            Clause(
                "Bias, Risks, and Limitations",
                "Known risks of the model.",
                ("verdict", "copies", "memorised", "count"),
                "Other risks than giving training images back. latentprint card writes this section.",
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
        (
            Clause(
                "“Generatable or reverse engineerable personal data?”",
                "Can personal data be generated, or be had from the weights?",
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
                "Known to the owner of the data; no audit of a model can tell.",
            ),
        ),
    ),
)
