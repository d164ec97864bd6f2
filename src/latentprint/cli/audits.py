"""``latentprint demo``, ``audit`` and ``check``: the whole method, from images to a verdict, and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentprint.cli.options import AuditOptions, taking
from latentprint.cli.shared import Device, Fresh, Json, Out, Seed, print_json
from latentprint.contracts import InputError
from latentprint.signals import interruptible

Authority = Annotated[
    str | None, typer.Option("--authorised-by", help="Who authorised this audit; this is recorded.")
]
Spread = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="ray: spread samples over processes or machines (extra ray)."),
]
Processes = Annotated[int, typer.Option(min=1, help="Processes that train one model together (accelerate).")]


def demo(
    out: Out = Path("demo"),
    seed: Seed = 0,
    device: Device = "cpu",
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The whole method on 100 real handwritten digits: a few minutes on two CPU cores, with a report."""
    demo = AuditOptions("digits", out=out, preset="demo", seed=seed, device=device, as_json=as_json)
    _audit(demo, fresh=fresh)


@taking(AuditOptions)
def audit(
    options: AuditOptions,
    authorised_by: Authority = None,
    spread: Spread = "local",
    processes: Processes = 1,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="With --samples PATH: a first look in seconds; nothing is written."),
    ] = False,
    fresh: Fresh = False,
) -> None:
    """Train on DATA with one marked image among it, and report whether that image comes back.

    With --model nothing is trained: that model is asked for one of the images as it stands. With --samples
    PATH the images of that folder or file are searched for copies of the training images.
    """
    if options.model is not None and options.control:
        raise InputError(
            "--control trains a second model with the same recipe, which is not known of a given model; leave"
            " it out"
        )
    if processes > 1 and (options.model is not None or options.given_samples is not None):
        raise InputError(
            "--processes is for a training, and what was given (--model, --samples) has been trained already;"
            " leave it out, or take --executor ray, which spreads the images that are generated"
        )
    if quick:
        _quick(options)
        return
    _audit(options, fresh=fresh, authorised_by=authorised_by, spread=spread, processes=processes)


def _quick(options: AuditOptions) -> None:
    """Print what a first look at generated images finds."""
    if options.given_samples is None:
        raise InputError("--quick is for generated images: name their folder or file with --samples")
    from latentprint.config import resolve

    settings = resolve(options.settings(), preset=options.preset)
    from latentprint.audit import Where
    from latentprint.audit.quick import quick_look

    where = Where(options.device, root=options.root, download=options.download)
    found = quick_look(settings, options.given_samples, where)
    if options.as_json:
        print_json(found.plain())
    else:
        print("\n".join(found.sentences))


@taking(AuditOptions)
def check(options: AuditOptions) -> None:
    """What ``audit`` with these options would run and cost here; exit 1 if something deserves attention."""
    if options.given_samples is not None:
        raise InputError(
            "check measures a network, and an audit of generated images (--samples) uses none; run the audit"
            " itself, it takes minutes"
        )
    from latentprint.config import resolve

    interruptible()
    config = resolve(options.settings(), preset=options.preset)
    from latentprint.preflight import check as preflight

    found = preflight(
        config,
        options.folder,
        device=options.device,
        root=options.root,
        download=options.download,
        model=options.opened(),
        label=options.label,
        target=options.private,
    )
    if options.as_json:
        print_json(found.to_dict())
    else:
        print("\n".join(found.lines()))
    raise typer.Exit(found.exit_code)


def _audit(
    options: AuditOptions,
    *,
    fresh: bool,
    authorised_by: str | None = None,
    spread: str = "local",
    processes: int = 1,
) -> None:
    from latentprint.config import resolve

    interruptible()
    settings = resolve(options.settings(), preset=options.preset)
    from latentprint.audit import Where, run_audit  # seconds, which a bad setting need not wait for
    from latentprint.progress import Bars
    from latentprint.spread import executor

    model, out = options.opened(), options.folder
    with executor(spread, device=options.device) as over_units, Bars() as bars:
        results = run_audit(
            settings,
            out,
            model=model,
            samples=options.given_samples,
            target=options.private,
            label=options.label,
            checkpoints=options.left,
            fresh=fresh,
            authorised_by=authorised_by,
            where=Where(
                options.device,
                root=options.root,
                download=options.download,
                say=bars,
                map=over_units,
                processes=processes,
            ),
        )
    if options.as_json:
        print_json(results.plain())
        return
    print(f"\n{results.verdict.state.upper()}")
    for reason in results.verdict.reasons:
        print(f"  - {reason}")
    print(f"\nReport:       {out / 'report.html'}")
    print(f"Numbers:      {out / 'results.json'}")
    print(f"Confidential: {out / 'evidence' / 'index.html'}")
