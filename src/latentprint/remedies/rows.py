"""What the table of remedies says: one row for each, and for one that could not be tried the reason."""

from __future__ import annotations

from collections.abc import Sequence

from latentprint.results.value import Chance, Count, Note, Value


class NotTried(Value):
    """A remedy that cannot be tried on these images, and why."""

    name: str
    says: str
    skipped: str


class Row(Value):
    """A remedy's model, measured as those of all others are.

    Attributes:
        steps, seconds, cpu_seconds: of the training.
        epsilon: that the training guarantees (DP-SGD); ``epsilon_low``: the least that was measured.
        kept_back, filter_misses: samples that a filter kept back; the share of copies that pass it, with its
            interval.
        q, q_low, q_high: the share of samples that show one marked image, on average over those trained on.
        marked, strangers: samples that show a marked image that was trained on, or one that was not.
        copies: samples that are copies of any training image of the row "none"; ``memorised``: of how many
            of them. Copies of images that a remedy adds are not counted.
        by_criterion: the copies that each criterion counts.
        t_prime, t_prime_strangers: medians over marked images trained on and not; ``t_prime_auc``: how well
            it tells them apart, with its interval.
        fid, precision, recall: in pixels, to test images.
        bits_per_dim: of test images, with its standard error; None where the remedy leaves the model alone.
    """

    name: str
    says: str
    skipped: None = None
    steps: Count
    seconds: float
    cpu_seconds: float
    epsilon: float | None
    kept_back: Count | None
    filter_misses: tuple[Chance, Chance, Chance] | None
    q: Chance
    q_low: Chance
    q_high: Chance
    marked: Count
    marked_images: Count
    strangers: Count
    strangers_images: Count
    samples: Count
    copies: Count
    copies_low: Chance
    copies_high: Chance
    memorised: Count
    training_images: Count
    by_criterion: dict[str, Count]
    t_prime: float | None
    t_prime_strangers: float | None
    t_prime_auc: tuple[float, float, float] | None
    epsilon_low: float | None
    fid: float | None
    fid_low: float | None
    fid_high: float | None
    precision: float | None
    recall: float | None
    bits_per_dim: float | None
    bits_per_dim_se: float | None


def noted(slug: str) -> Note[Row]:
    """Under which stage of the run a row is kept."""
    return Note(slug, "row", Row)


class Table(Value):
    """All remedies on one set of images, from one seed."""

    data: str
    images: Count
    shape: tuple[int, ...]
    seed: Count
    rows: tuple[Row | NotTried, ...]

    @property
    def tried(self) -> tuple[Row, ...]:
        """The rows that were measured."""
        return tuple(one for one in self.rows if isinstance(one, Row))


def told(table: Table) -> Sequence[str]:
    """The table as lines for a terminal."""
    head = ("remedy", "q of one image", "copies", "of images", "FID", "bits/dim", "time")
    lines = [
        f"{head[0]:<16} {head[1]:>26} {head[2]:>12} {head[3]:>10} {head[4]:>7} {head[5]:>9} {head[6]:>8}"
    ]
    for row in table.rows:
        if isinstance(row, NotTried):
            lines.append(f"{row.name:<16} not tried: {row.skipped}")
            continue
        q = f"{row.q:.2g} ({row.q_low:.2g} to {row.q_high:.2g})"
        fid = "" if row.fid is None else f"{row.fid:.3f}"
        bits = "" if row.bits_per_dim is None else f"{row.bits_per_dim:.3f}"
        copies = f"{row.copies:>5}/{row.samples:<6} {row.memorised:>10}"
        lines.append(f"{row.name:<16} {q:>26} {copies} {fid:>7} {bits:>9} {row.seconds:>6.0f} s")
    return lines
