"""c_p with the small backbone of the preset `small`, beside c_p with the paper's ResNet-50, on one set.

Both are fitted on the same images of the set, marked and unmarked, and tested on the same images that neither
fit has seen (results `detectors.presence`).

    accuracy   right answers k of n: marks that were seen (tpr), and unmarked images less false alarms (fpr)
    seconds    of the processor, for the whole fit

    python benchmarks/backbones.py [--set breastmnist] [--epochs 60] [--draws N]
                                   [--root DIR] [--json] [--out FILE]
    python benchmarks/backbones.py --quick      # two epochs each, on digits

The small one sees 1,024 freshly marked images an epoch, the ResNet-50 each image once, as in its preset; with
--draws 1024 both see as many, and the ResNet-50 is given all of its epochs.

With BreastMNIST, the small one takes a minute of one core and the ResNet-50 up to half an hour.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from record import add_output, record, tell

from latentprint.audit import stages
from latentprint.audit.recognisers import last_of
from latentprint.config import AuditConfig, resolve
from latentprint.data.images import Selection
from latentprint.detector import DetectorConfig, DetectorError, FitState, NetworkDetector, fit_presence
from latentprint.detector.draws import units_of
from latentprint.streams import Streams

sys.path.append(str(Path(__file__).parents[1]))  # tools/ stands beside benchmarks/

from tools.reproduce.summary import accuracy


def fitted(config: AuditConfig, how: DetectorConfig, root: Path | None) -> dict[str, Any]:
    """How c_p does with that backbone, and what it took."""
    split, injection = stages.images(config, root, False)
    unmarked, kind = injection.control, config.fingerprint.drawn(split.heldout.pixels)
    states = fit_presence(
        Selection.of(unmarked.pixels, split.heldout.pixels),
        kind,
        how,
        Streams(config.seed),
        "cpu",
        None,
        *units_of(unmarked, split.heldout),
    )
    begun = time.process_time()

    def see(state: FitState[NetworkDetector]) -> None:
        said = f"{how.backbone}: epoch {state.epoch}, validation loss {state.validation_loss:.3g}"
        print(said, file=sys.stderr, flush=True)

    try:
        last = last_of(states, see)
    except DetectorError as error:
        return {"refused": str(error), "seconds": time.process_time() - begun, "settings": asdict(how)}
    assert last.detector is not None  # the last state of a fit holds it
    return {
        "accuracy": accuracy(stages.detector_value(last.detector)),
        "epochs": last.epoch,
        "best_epoch": last.best_epoch,
        "seconds": time.process_time() - begun,
        "settings": asdict(how),
    }


def main() -> None:
    """Fit both and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", default="breastmnist", help="a set of MedMNIST, or digits")
    parser.add_argument("--epochs", type=int, default=60, help="of the ResNet-50, at most")
    parser.add_argument("--draws", type=int, help="images an epoch of the ResNet-50; left out: each once")
    parser.add_argument("--quick", action="store_true", help="two epochs each, on digits")
    parser.add_argument("--root", type=Path, help="folder of the MedMNIST files")
    add_output(parser)
    asked = parser.parse_args()
    name = "digits" if asked.quick else asked.set
    source = name if name == "digits" else f"medmnist:{name}"
    config = resolve({"data": {"source": source}}, preset="small")
    small, paper = config.presence, replace(resolve(preset="paper").presence, epochs=asked.epochs)
    if asked.draws is not None:
        paper = replace(paper, draws=asked.draws, patience=asked.epochs)
    if asked.quick:
        small, paper = replace(small, epochs=2, draws=128), replace(paper, epochs=2, draws=128)
    found = {how.backbone: fitted(config, how, asked.root) for how in (small, paper)}
    tell({"set": name, **found, **record()}, asked)


if __name__ == "__main__":
    main()
