#!/usr/bin/env python3
"""How long `byol` takes to start, beside what a Python trainer waits for first: `import torch`.

    scripts/byol --version    # builds it
    scripts/compare/startup.py --byol target/release/byol --python .libtorch/venv/bin/python

In turn, several rounds: `byol --help`, `python -c "import torch"`, and both until the first step of a full ResNet-18 at
32 px (batch 4, byol with its checkpoint written). Prints medians and ratios; only ratios within one run mean anything.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEP = """
import torch, torchvision
model = torchvision.models.resnet18()
loss = model(torch.randn(4, 3, 32, 32)).square().mean()
loss.backward()
torch.optim.SGD(model.parameters(), 0.1).step()
"""


def seconds(command: list) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: exit code {done.returncode} of {' '.join(map(str, command))}: {done.stderr.strip()[-300:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--byol", type=pathlib.Path, required=True)
    parser.add_argument("--python", default="python3", help="one with torch (the first step needs torchvision, too)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    vision = subprocess.run([args.python, "-c", "import torchvision"], capture_output=True).returncode == 0
    train = [args.byol, "train", "--config", ROOT / "configs/cifar10_resnet18.yaml"]
    for setting in [
        "data.format=cifar10",
        f"data.path={ROOT}/tests/fixtures/data/cifar",
        "train.device=cpu",
        "train.batch_size=4",
        "train.max_steps=1",
        "train.threads=1",
        "monitor.knn_every=0",
    ]:
        train += ["--set", setting]
    times: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                "byol --help": [args.byol, "--help"],
                "import torch": [args.python, "-c", "import torch"],
                "byol, first step": [*train, "--set", f"output.dir={folder}/run"],
            }
            if vision:
                commands["PyTorch, first step"] = [args.python, "-c", STEP]
            for name, command in commands.items():
                times.setdefault(name, []).append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"{name:20} {value:6.2f} s")
    print(f"import torch / byol --help: {medians['import torch'] / medians['byol --help']:.1f}")
    if vision:
        print(f"first step, PyTorch / byol: {medians['PyTorch, first step'] / medians['byol, first step']:.2f}")


if __name__ == "__main__":
    main()
