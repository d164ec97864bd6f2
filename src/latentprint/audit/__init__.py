"""The recipe on one page: the paper's Figure 2, from a folder of images to a verdict.

    images → fingerprint → c_p, c_id → score model, control → t' → samples → likelihood, FID → verdict

An audit of a model that somebody else trained (``audit.given``) trains no score model: it has no fingerprint,
no control and no c_p.

Every stage below reads what the run already holds and computes the rest. The same call therefore continues an
interrupted audit, and ends in the same results.
"""

from __future__ import annotations

from pathlib import Path

from latentprint.adapters import Opened, as_opened, recognise
from latentprint.audit import recipe
from latentprint.audit.checkpoints import require_checkpoints
from latentprint.audit.context import Context, Where
from latentprint.audit.growing import grown
from latentprint.audit.images import read_images
from latentprint.audit.lifecycle import begin, finish
from latentprint.audit.samples import run_samples_audit
from latentprint.config import AuditConfig
from latentprint.contracts import InputError
from latentprint.denoiser import Denoiser
from latentprint.results import Results
from latentprint.results.model import MODEL
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
    """Audit a recipe: train on the images, one of them marked, and see whether that image comes back.

    Args:
        config: all settings that decide the numbers; ``resolve`` makes them from a preset.
        out: folder of the run. The same call with the same folder continues it. A later call may ask for more
            samples, and for estimators that were off (``rare``): they are added to what is there.
        model: a model that was trained on these images: a folder (``adapters.open_model``), the result of
            ``adapters.from_module``, or a denoiser of images. None: the audit trains a model itself.
        samples: images that a model generated (``adapters.samples.open_samples``). They are audited in place
            of the model: counts, nearest copies and FID.
        target: the training image to look for, by number or as an image file. None: the seed draws one of the
            images that have no near copy.
        label: with ``model``, the class to audit if the model is class-conditional.
        checkpoints: with ``model``, the checkpoints of its training (``audit.checkpoints``).
        fresh: move a run that ``out`` already holds aside, and start over.
        authorised_by: who authorised this audit, in the user's words; written into run.json and the report.
        where: the device, memory, files and machines that the audit may use.

    Returns: what ``results.json`` holds.

    Raises:
        InputError: one sentence about the input, the settings, the folder or the disk. Finished work is kept.
    """
    if model is not None and samples is not None:
        raise InputError("a model and samples were given; audit one of them at a time")
    # A file of arrays can only hold samples. A folder of pictures given as a model may lie beside one.
    if isinstance(model, str | Path) and Path(model).is_file() and recognise(model) == "samples":
        model, samples = None, model
    if samples is not None:
        if label is not None:
            raise InputError("--label names the class that a model is asked for; leave it out with samples")
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
    with Run.open(out, about.settings, fresh=fresh, grows=grown) as run:
        context = Context(about.config, run, where)
        context = recipe.in_its_space(context, about)
        begin(context, about.split, about.injection, authorised_by)
        prepared = recipe.prepare(context, about)
        pictures = recipe.measure(context, about, prepared)
        run.note({"weights_sha256": run.stage(MODEL.name).payload["weights_sha256"]})
        return finish(context, pictures)
