"""How the quickstart's learning rates were chosen: one grid for all methods, on a validation split carved from train.

    python benchmarks/quickstart_settings.py OUTPUT        writes OUTPUT/tuning.yaml, runs it, prints the choice

The rule: 20 % of train held out, the same epochs for all, learning rates 5e-4, 1e-3, 2e-3, 4e-3, two seeds that the
quickstart does not use, and for each method the rate with the best mean validation accuracy over both datasets. The
test split takes no part.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import yaml

from harness.suite import shipped_suites

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SEEDS = [100, 101]


def tuning_suite() -> dict:
    """The quickstart with every method at every rate, on a validation split."""
    suite = yaml.safe_load(shipped_suites()["quickstart"].read_text())
    methods = suite["methods"]
    suite |= {"name": "tuning", "seeds": SEEDS, "references": {}}
    suite["methods"] = {
        f"{name}.{rate:g}": {"method": name, **settings} for name, settings in methods.items() for rate in RATES
    }
    suite["protocol"]["validation_fraction"] = 0.2
    scan = [override for override in suite["overrides"] if "dataset" in override["when"]]
    suite["overrides"] = scan + [
        {"when": {"method": [f"{name}.{rate:g}" for name in methods]}, "set": {"train.learning_rate": rate}}
        for rate in RATES
    ]
    return suite


def main() -> None:
    """Write, run, print."""
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    path = output / "tuning.yaml"
    path.write_text(yaml.safe_dump(tuning_suite(), sort_keys=False))
    command = [sys.executable, "-c", "from harness.cli import main; main()"]
    subprocess.run([*command, "run", str(path), "--output", str(output), "--no-mlflow"], check=True)
    scores: dict[tuple[str, str, str], list[float]] = {}
    for entry in json.loads((output / "tuning" / "suite.json").read_text())["trials"]:
        result = json.loads((output / "trials" / entry["id"] / "result.json").read_text())
        name, _, rate = entry["method"].partition(".")
        scores.setdefault((name, rate, entry["dataset"]), []).append(result["metrics"]["validation_accuracy"])
    datasets = sorted({key[2] for key in scores})
    print("| method | rate |", " | ".join(datasets), "| mean |")
    print("|---|---|" + "---|" * (len(datasets) + 1))
    for name in dict.fromkeys(key[0] for key in scores):
        rows = {f"{rate:g}": [mean(scores[name, f"{rate:g}", dataset]) for dataset in datasets] for rate in RATES}
        best = max(rows, key=lambda rate: mean(rows[rate]))
        for rate, values in rows.items():
            cells = " | ".join(f"{100 * value:.1f}" for value in [*values, mean(values)])
            print(f"| {name} | {rate}{' (chosen)' if rate == best else ''} | {cells} |")


if __name__ == "__main__":
    main()
