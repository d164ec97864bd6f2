"""May this model leave the building? A run, your policy, and an exit code for the pipeline."""

import sys
from pathlib import Path

from latentprint.gate import Decision, judge_file
from latentprint.results.read import read_results


def release(run: Path, policy: Path) -> Decision:
    """Judge a finished run by a policy file.

    Every limit stands in the file: there is none in the code. ``latentprint gate --starter`` writes one to
    begin with, and ``latentprint gate RUN --policy FILE`` does what this function does.
    """
    decision = judge_file(read_results(run), policy)
    for outcome in decision.outcomes:
        print(f"{outcome.answer:>7}  {outcome.rule}: {outcome.reason}")
    print(decision.sentence)
    return decision


if __name__ == "__main__":
    sys.exit(release(Path(sys.argv[1]), Path(sys.argv[2])).exit_code)
