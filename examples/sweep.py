"""Run a small grid from Python: two methods with two budgets each, and a table of the results.

    python examples/sweep.py results

If it is started again, it computes only the missing results.
"""

import sys

import toxloc
from toxloc.sweeps.grid import grid_of

GRID = {
    "models": ["toxloc-tiny"],
    "benchmarks": {"openings": {"prompts": "builtin", "max_prompts": 20}},
    "methods": [
        {"method": "trne", "settings": {"budget": [0.01, 0.05]}},
        {"method": "steering", "settings": {"budget": [0.01, 0.05]}},
    ],
    "samples": 2,
    "max_texts": 80,
    "max_neutral": 80,
}


def main(out: str) -> None:
    summary = toxloc.sweep(toxloc.Plan(grid_of(GRID)), out)
    print(summary.table()[["treatment", "before_any", "rate_any", "perplexity_ratio"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
