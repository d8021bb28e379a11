"""What ``tools/torture`` runs: the campaigns, and the table of their figures."""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from tests.faults import table
from tests.faults.figures import Asked
from tests.faults.table import CAMPAIGNS, Row

WIDTHS = (58, 40, 9, 8)


def command(row: Row, asked: Asked) -> str:
    """What does these very trials again."""
    first = f" --first {asked.first}" if asked.first else ""
    return f"tools/torture --only {row.campaign.name} --seed {asked.seed}{first} --trials {asked.trials}"


def line(*cells: str) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=False)) + "  " + cells[-1]


def as_dict(row: Row, asked: Asked) -> dict[str, Any]:
    return {
        "fault": row.campaign.fault,
        "required": row.campaign.required,
        "trials": row.figures.trials,
        "outcome": dict(row.figures.counts),
        "kept": bool(row.figures) or bool(row.figures.skipped),
        "skipped": row.figures.skipped,
        "misses": row.figures.misses,
        "notes": row.figures.notes,
        "command": command(row, asked),
        "seconds": round(row.seconds, 1),
    }


def say(*lines: str) -> None:
    """At once, since the next row may take an hour."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/torture", description=__doc__)
    parser.add_argument("--long", action="store_true", help="as many trials as the promise speaks of; hours in all")
    parser.add_argument("--only", action="append", choices=list(CAMPAIGNS), metavar="ROW", help=", ".join(CAMPAIGNS))
    parser.add_argument("--trials", type=int, help="another number of trials of each row")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="of the trials: those from N on")
    parser.add_argument("--seed", type=int, default=0, help="of the trials: the same seed does the same ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    return parser.parse_args()


def main() -> int:
    warnings.simplefilter("ignore")
    given = arguments()
    say(line("fault", "required", "trials", "seconds", "outcome"))
    done, kept = [], True
    for name in given.only or CAMPAIGNS:
        campaign = CAMPAIGNS[name]
        trials = given.trials or (campaign.long if given.long else campaign.short)
        asked = Asked(trials, given.seed, given.first)
        row = table.run(name, asked)
        done.append(as_dict(row, asked))
        kept &= done[-1]["kept"]
        cells = campaign.fault, campaign.required, f"{row.figures.trials:,}", f"{row.seconds:,.1f}"
        say(line(*cells, str(row.figures) if done[-1]["kept"] else f"MISSED: {row.figures}"))
        say(*(f"    {text}" for text in [done[-1]["command"], *row.figures.notes, *row.figures.misses]))
        if given.json:
            given.json.write_text(json.dumps(done, indent=1))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
