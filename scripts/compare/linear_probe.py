#!/usr/bin/env python3
"""Linear evaluation beside scikit-learn, on the features that `byol extract-features` writes.

    pip install -r scripts/reference/requirements.txt
    python scripts/compare/linear_probe.py --checkpoint RUN [--labels 500 1000] [--set KEY=VALUE ...]

For every number of labels (`data.limit`) it prints the accuracy of the penalty that byol chose, and of every penalty of
`--penalties` both byol's accuracy on the test images and that of LogisticRegression(C=1 / penalty). Fails where the two
differ by more than 0.1 points, or one test image where there are fewer than 1000, or where the chosen penalty is more
than a point below the best.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--byol", default="target/release/byol")
parser.add_argument("--checkpoint", required=True)
parser.add_argument("--labels", type=int, nargs="*", default=[None])
parser.add_argument("--set", action="append", default=[])
parser.add_argument("--penalties", type=float, nargs="+", default=[1e2, 3e1, 1e1, 3e0],
                    help="below 1 scikit-learn takes minutes for each")
arguments = parser.parse_args()
failed = False


def byol(command, *extra):
    sets = [part for value in arguments.set for part in ("--set", value)]
    run = [arguments.byol, command, "--checkpoint", arguments.checkpoint, *sets, *extra]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def linear_eval(folder, limit, *extra):
    return json.loads(byol("linear-eval", *limit, "--json", "--output", f"{folder}/report.json", "--force", *extra))


for labels in arguments.labels:
    limit = [] if labels is None else ["--set", f"data.limit={labels}"]
    with tempfile.TemporaryDirectory() as folder:
        train, test = (pathlib.Path(folder) / f"{split}.safetensors" for split in ("train", "eval"))
        byol("extract-features", *limit, "--output", str(train))
        byol("extract-features", *limit, "--output", str(test), "--split", "eval")
        train, test = load_file(train), load_file(test)
        chosen = linear_eval(folder, limit)
        tolerance = 100 * max(0.001, 1.01 / len(test["labels"]))
        print(f"{len(train['labels'])} labels, {train['features'].shape[1]} features, {len(test['labels'])} test images")
        best = chosen["top1"]
        for penalty in arguments.penalties:
            ours = linear_eval(folder, limit, "--set", f"linear_eval.penalties=[{penalty}]")["top1"]
            model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=20000)
            x = train["features"].astype("float64"), test["features"].astype("float64")
            theirs = model.fit(x[0], train["labels"]).score(x[1], test["labels"])
            far = abs(100 * (ours - theirs)) > tolerance
            print(f"  penalty {penalty:<8g} byol {100 * ours:6.2f} %  scikit-learn {100 * theirs:6.2f} %{'  !' * far}")
            best, failed = max(best, ours, theirs), failed or far
        low = best - chosen["top1"] > 0.01
        failed = failed or low
        print(f"  chosen  {chosen['penalty']:<8.3g} byol {100 * chosen['top1']:6.2f} %{'  !' * low}, "
              f"{chosen['training_seconds']:.1f} s\n", flush=True)
sys.exit(failed)
