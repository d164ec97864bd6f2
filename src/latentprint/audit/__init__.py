"""The recipe on one page: the paper's Figure 2, from a folder of images to a verdict.

    images → fingerprint → c_p, c_id → score model, control → t' → samples → likelihood, FID → verdict

A model that others trained takes the place of all that is trained (``audit.given``): no fingerprint, no
control, no c_p.

Every line below is a stage that reads what the run already holds and does what is missing, so the same call
continues an audit that was interrupted and ends in the same results.
"""

from __future__ import annotations

from pathlib import Path

from latentprint.adapters import Opened, as_opened, recognise
from latentprint.audit import recipe
from latentprint.audit.checkpoints import require_checkpoints
from latentprint.audit.context import Context, Where
from latentprint.audit.images import read_images
from latentprint.audit.lifecycle import begin, finish
from latentprint.audit.samples import run_samples_audit
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.denoiser import Denoiser
from latentprint.results import Results
from latentprint.store import Run

__all__ = ["Where", "run_audit"]


def run_audit(
    config: AuditConfig,
    out: Path | str,
    *,
    model: Path | str | Opened | Denoiser | None = None,
    samples: Path | str | None = None,
    target: int | str | Path | None = None,
    label: int | None = None,
    checkpoints: Path | str | None = None,
    fresh: bool = False,
    authorised_by: str | None = None,
    where: Where = Where(),  # noqa: B008 (frozen)
) -> Results:
    """Audit a recipe: train on the images with one fingerprint among them, and see whether it comes back.

    Args:
        config: everything that decides the numbers; ``resolve`` makes one from a preset.
        out: folder of the run; the same call again continues it.
        model: a model that others trained on these images: a folder (``adapters.open_model``), what
            ``adapters.from_module`` makes of a network, or a denoiser of images; None: one is trained.
        samples: images that a model generated (``adapters.samples.open_samples``), audited in its place:
            counts, nearest copies and FID.
        target: which training image to look for, its number or an image file; None: drawn by the seed among
            those without near copies.
        label: with ``model``, the class to audit of a model that is conditional on one.
        checkpoints: with ``model``, what its training left along the way (``audit.checkpoints``).
        fresh: put a run that ``out`` already holds aside and begin anew.
        authorised_by: who stated which authority for this audit; written into run.json and the report.
        where: the device, memory, files and machines that it may use.

    Returns: what ``results.json`` holds.

    Raises:
        InputError: one sentence about the input, the settings, the folder or the disk; what was finished
            is kept.
    """
    if model is not None and samples is not None:
        raise InputError("a model and samples were given; audit one of them at a time")
    # A file of arrays can only be samples; a folder of pictures given as a model may be what lies beside one.
    if isinstance(model, str | Path) and Path(model).is_file() and recognise(model) == "samples":
        model, samples = None, model
    if samples is not None:
        if label is not None:
            raise InputError("a label was given with samples; it says what of a model to audit")
        return run_samples_audit(
            config,
            out,
            samples,
            where,
            target=target,
            fresh=fresh,
            authorised_by=authorised_by,
        )
    require_checkpoints(config, checkpoints, trains=model is None, processes=where.processes)
    if model is not None and not isinstance(model, str | Path):
        model = as_opened(model, lambda: read_images(config, where.root, where.download).train.shape)
    # Images first: a source that cannot be read must not leave the folder of a run behind.
    about = recipe.subject(
        config,
        where,
        model=model,
        label=label,
        target=target,
        checkpoints=checkpoints,
    )
    with Run.open(out, about.settings, fresh=fresh) as run:
        context = Context(about.config, run, where)
        context = recipe.in_its_space(context, about)
        begin(context, about.split, about.injection, authorised_by)
        prepared = recipe.prepare(context, about)
        pictures = recipe.measure(context, about, prepared)
        run.note({"weights_sha256": run.stage("model").payload["weights_sha256"]})
        return finish(context, pictures)
