#!/usr/bin/env python3
"""`byol train` against PyTorch with lightly on the same machine: images/s of whole training runs on the CPU.

    scripts/byol --version    # builds it
    scripts/compare/step.py --cifar data/cifar10 --byol target/release/byol

ResNet-18 of width 0.25 with a 3x3 stem on 32 px views of CIFAR-10's JPEGs, batch 256, heads 1024/128, SGD, bf16 autocast
(or --precision fp32), channels last. The peer (torch_step.py) is plain PyTorch with multi-tensor SGD and moving average; its images come
through lightly's BYOLTransform in 2 DataLoader workers. Both count from asking for the first batch to the end of the
last step. A second pair has no loader: views of noise, byol's still bytes to be normalised. All run in turn, in the
reverse order every other round; the table, on stdout, has medians. lightly, torch and pyarrow are those of
requirements.txt, installed into --venv as loader.py does it.

--busy N keeps N other processes busy meanwhile, as on a machine that someone also uses.

--arch convnext_tiny and --arch vit_tiny compare these at width 0.5 with patches of 4 px, on noise alone; the peer's ViT
is timm's, which --venv must have.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from loader import HERE, ROOT, fail, prepare

WIDTH, HIDDEN, DIM, BATCH, PATCH = 0.25, 1024, 128, 256, 4


def settings(args: argparse.Namespace, out: str) -> list[str]:
    width = WIDTH if args.arch == "resnet18" else 2 * WIDTH
    patches = {} if args.arch == "resnet18" else {"model.stem": "imagenet", "model.patch_size": PATCH}
    keys = patches | {
        "model.arch": args.arch,
        "data.path": args.cifar,
        "data.limit": "null",
        "model.width": width,
        "model.projector_hidden": HIDDEN,
        "model.predictor_hidden": HIDDEN,
        "model.projection_dim": DIM,
        "train.batch_size": args.batch,
        "train.precision": args.precision,
        "train.device": "cpu",
        "train.max_steps": args.steps,
        "monitor.knn_every": 0,
        "output.dir": out,
        "output.checkpoint_every_epochs": 0,
    }
    return [word for key, value in keys.items() for word in ("--set", f"{key}={value}")]


def run(command: list) -> str:
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        fail(f"exit code {done.returncode} of {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def measure(args: argparse.Namespace, python: pathlib.Path) -> dict:
    config = ROOT / "configs/cifar10_cpu.yaml"
    peer = [python, HERE / "torch_step.py", "--hidden", HIDDEN, "--dim", DIM, "--batch", args.batch]
    peer += ["--arch", args.arch, "--width", WIDTH if args.arch == "resnet18" else 2 * WIDTH, "--patch", PATCH]
    peer += ["--steps", args.steps, "--device", "cpu", "--precision", args.precision]

    def byol() -> float:
        with tempfile.TemporaryDirectory() as out:
            run([args.byol, "-q", "train", "--config", config, *settings(args, out)])
            return json.loads((pathlib.Path(out) / "summary.json").read_text())["images_per_second"]

    def byol_noise() -> float:
        command = [args.byol, "-q", "bench", "step", "--synthetic", "--steps", args.steps, "--config", config]
        return json.loads(run([*command, *settings(args, "unused")]))["images_per_second"]

    def lightly() -> float:
        report = json.loads(run([*peer, "--feed", "lightly", "--data", args.cifar, "--workers", 2]))
        return report["whole_run_images_per_second"]

    def tensors() -> float:
        return json.loads(run([*peer, "--feed", "tensors"]))["images_per_second"]

    contenders = {
        "byol train": byol,
        "PyTorch with lightly": lightly,
        "byol bench step --synthetic": byol_noise,
        "PyTorch on tensors": tensors,
    }
    if args.arch != "resnet18":
        contenders = {name: run for name, run in contenders.items() if run in (byol_noise, tensors)}
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            rate = contenders[name]()
            print(f"round {number + 1} of {args.rounds}: {name}: {rate:.0f} images/s", file=sys.stderr)
            results[name].append(rate)
    return results


def table(results: dict) -> str:
    """Markdown."""
    median = {name: statistics.median(rates) for name, rates in results.items()}
    rows = {
        "whole run, CIFAR-10 JPEGs (PyTorch: lightly, 2 workers)": ("byol train", "PyTorch with lightly"),
        "steps without a loader": ("byol bench step --synthetic", "PyTorch on tensors"),
    }
    lines = ["| images/s | byol | PyTorch | ratio |", "|---|---|---|---|"]
    for title, (ours, theirs) in rows.items():
        if ours in median:
            lines.append(f"| {title} | {median[ours]:.0f} | {median[theirs]:.0f} | {median[ours] / median[theirs]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=["resnet18", "convnext_tiny", "vit_tiny"], default="resnet18")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="bf16 is slow without AVX-512")
    parser.add_argument("--cifar", type=pathlib.Path, required=True, help="folder with train*.parquet, 32 px")
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--venv", type=pathlib.Path, default=ROOT / "target/compare", help="the peers' environment")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that compute beside it")
    parser.add_argument("--json", type=pathlib.Path, help="also write all rounds here")
    args = parser.parse_args()
    if args.steps < 1 or args.rounds < 1:
        fail("found --steps or --rounds below 1, expected something to measure")
    python = prepare(args.venv)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        results = measure(args, python)
    finally:
        for process in busy:
            process.kill()
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
