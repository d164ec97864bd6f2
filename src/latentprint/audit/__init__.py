"""The recipe on one page: the paper's Figure 2, from a folder of images to a verdict.

    images → fingerprint → c_p, c_id → score model, control → t' → samples → likelihood, FID → verdict

A model that others trained takes the place of all that is trained (``audit.given``): no fingerprint, no
control, no c_p.

Every line below is a stage that reads what the run already holds and does what is missing, so the same call
continues an audit that was interrupted and ends in the same results.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from latentprint.adapters import Opened, as_opened, recognise
from latentprint.adapters.function import Predicts, Time
from latentprint.audit import recipe
from latentprint.audit.checkpoints import require_checkpoints
from latentprint.audit.context import Context, open_device
from latentprint.audit.images import read_images
from latentprint.audit.lifecycle import begin, finish
from latentprint.audit.samples import run_samples_audit
from latentprint.config import AuditConfig
from latentprint.contracts import InputError, Map
from latentprint.denoiser import Denoiser
from latentprint.progress import Report, silent
from latentprint.results import Results
from latentprint.schedule import Schedule
from latentprint.store import Run

__all__ = ["run_audit"]

BATCH = 256


def run_audit(
    config: AuditConfig,
    out: Path | str,
    *,
    device: str = "cpu",
    batch: int = BATCH,
    root: Path | str | None = None,
    download: bool = False,
    fresh: bool = False,
    authorised_by: str | None = None,
    model: Path | str | Opened | Denoiser | nn.Module | None = None,
    schedule: Schedule | None = None,
    predicts: Predicts | None = None,
    shape: tuple[int, ...] | None = None,
    time: Time | None = None,
    samples: Path | str | None = None,
    target: int | str | Path | None = None,
    label: int | None = None,
    checkpoints: Path | str | None = None,
    progress: Report = silent,
    map: Map = map,  # noqa: A002 (it is one)
    processes: int = 1,
) -> Results:
    """Audit a recipe: train on the images with one fingerprint among them, and see whether it comes back.

    Args:
        config: everything that decides the numbers; ``resolve`` makes one from a preset.
        out: folder of the run; the same call again continues it.
        device: where networks run.
        batch: trajectories that share a network call; memory only, no result depends on it.
        root: where the MedMNIST files are.
        download: whether a missing one may be fetched.
        fresh: put a run that ``out`` already holds aside and begin anew.
        authorised_by: who stated which authority for this audit; written into run.json and the report.
        model: a model that others trained on these images: a folder (``adapters.open_model``), what
            ``adapters.from_module`` gave, a denoiser, or a network with the next four; None: one is trained.
        schedule: the noise that a network was trained with, e.g. ``adapters.ddpm_schedule()``.
        predicts: what it predicts, "epsilon" where not said (``adapters.from_module``).
        shape: (C, H, W) of what a network or denoiser works on; None: that of the images.
        time: from t to what the network is given as time (``adapters.from_module``).
        samples: images that a model generated (``adapters.samples.open_samples``), audited in its place:
            counts, nearest copies and FID.
        target: which training image to look for, its number or an image file; None: drawn by the seed among
            those without near copies.
        label: with ``model``, the class to audit of a model that is conditional on one.
        checkpoints: with ``model``, what its training left along the way (``audit.checkpoints``).
        progress: told how far each stage is.
        map: works through units of trajectories, here or on many machines (``spread.executor``).
        processes: how many train one model together; results differ from one's by rounding.

    Returns: what ``results.json`` holds.

    Raises:
        InputError: one sentence about the input, the settings, the folder or the disk; what was finished
            is kept.
    """
    place = open_device(device)
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
            device=device,
            root=root,
            download=download,
            fresh=fresh,
            authorised_by=authorised_by,
            target=target,
            progress=progress,
        )
    require_checkpoints(config, checkpoints, trains=model is None, processes=processes)
    if model is not None and not isinstance(model, str | Path):
        size = shape or read_images(config, root, download).train.shape
        model = as_opened(model, schedule, predicts, size, time)
    elif any(said is not None for said in (schedule, predicts, shape, time)):
        raise InputError("schedule, predicts, shape and time describe a network, and none was given as model")
    # Images first: a source that cannot be read must not leave the folder of a run behind.
    about = recipe.subject(
        config,
        place,
        root=root,
        download=download,
        model=model,
        label=label,
        target=target,
        checkpoints=checkpoints,
    )
    with Run.open(out, about.settings, fresh=fresh) as run:
        context = Context(about.config, run, place, batch, progress, map=map, processes=processes)
        context = recipe.in_its_space(context, about)
        begin(context, about.split, about.injection, authorised_by)
        prepared = recipe.prepare(context, about)
        pictures = recipe.measure(context, about, prepared)
        run.note({"weights_sha256": run.stage("model").payload["weights_sha256"]})
        return finish(context, pictures)
