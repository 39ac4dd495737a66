#!/usr/bin/env python3
"""Training steps on one GPU: `byol bench step` against plain PyTorch (torch_step.py) in one run.

    PYTHON scripts/compare/gpu.py --byol target/release/byol --data data/cifar10 [--json gpu.json]

PYTHON has torch 2.11.0 and torchvision, nothing else; --data names a folder of parquet shards with 32 px JPEGs. The peer
reads them where there is a pyarrow, else it draws its own of the same size. scripts/gpu-check runs this with the right
libraries. Without a GPU it says so and measures nothing. One table and (--json) one file; about 7 minutes.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SMALL = {"arch": "resnet18", "stem": "cifar", "size": 32, "batch": 512, "steps": 100}
LARGE = {"arch": "resnet50", "stem": "imagenet", "size": 224, "batch": 256, "steps": 20}
LOADER_WORKERS = 16


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list, seconds: int = 240) -> dict | None:
    """The JSON line that a command prints; none, with the reason said, where it fails."""
    words = list(map(str, command))
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        say(f"no result within {seconds} s: {' '.join(words)}")
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        say(f"exit code {done.returncode} of {' '.join(words)}\n{done.stderr[-2000:]}")
        return None
    return json.loads(lines[-1])


def keys(case: dict, data: pathlib.Path) -> list[str]:
    """A config's overrides for the case; the heads are the paper's."""
    settings = {
        "data.path": data,
        "augment.size": case["size"],
        "model.arch": case["arch"],
        "model.stem": case["stem"],
        "optimizer.name": "sgd",
        "optimizer.clip": "false",
        "optimizer.base_lr": 0.05,
        "train.batch_size": case["batch"],
        "train.precision": "bf16",
        "train.device": "cuda",
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def byol(args: argparse.Namespace, case: dict, *extra: str) -> dict | None:
    config = ROOT / "configs/cifar10_resnet18.yaml"
    command = [args.byol, "bench", "step", "--config", config, "--steps", case["steps"], *keys(case, args.data)]
    return run([*command, *extra])


def torch(case: dict, *extra) -> dict | None:
    options = [word for key, value in case.items() for word in (f"--{key}", value)]
    return run([sys.executable, HERE / "torch_step.py", "--device", "cuda", *options, *extra])


def losses(args: argparse.Namespace, graph: str) -> list[float]:
    """Of 20 deterministic steps of the small case."""
    with tempfile.TemporaryDirectory() as out:
        settings = {
            "train.cuda_graph": graph,
            "train.deterministic": "true",
            "train.max_steps": 20,
            "monitor.log_every": 1,
            "monitor.knn_every": 0,
            "output.dir": out,
        }
        extra = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        config = ROOT / "configs/cifar10_resnet18.yaml"
        done = subprocess.run(
            [args.byol, "train", "--config", config, *keys(SMALL, args.data), *extra], capture_output=True, text=True
        )
        if done.returncode:
            say(f"byol train with train.cuda_graph={graph}: {done.stderr[-2000:]}")
            return []
        lines = (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


def measure(args: argparse.Namespace) -> dict:
    peer_data = []
    try:
        import pyarrow  # noqa: F401

        peer_data = ["--data", args.data]
    except ImportError:
        say("no pyarrow: PyTorch's JPEGs are drawn")
    workers = min(LOADER_WORKERS, os.cpu_count() or 1)
    graph_off = ("--set", "train.cuda_graph=off")
    runs = {
        "small": {
            "byol": lambda: byol(args, SMALL),
            "byol, no loader": lambda: byol(args, SMALL, "--synthetic"),
            "byol, no loader, no CUDA graph": lambda: byol(args, SMALL, "--synthetic", *graph_off),
            "PyTorch, tensors on the device": lambda: torch(SMALL),
            f"PyTorch, {workers} workers with lightly's transforms": lambda: torch(
                {**SMALL, "steps": 30}, "--feed", "torchvision", "--workers", workers, *peer_data
            ),
            "PyTorch compiled, tensors on the device": lambda: torch(SMALL, "--compile"),
        },
        "large": {
            "byol": lambda: byol(args, LARGE),
            "byol, no loader": lambda: byol(args, LARGE, "--synthetic"),
            "PyTorch, tensors on the device": lambda: torch(LARGE),
            "PyTorch compiled, tensors on the device": lambda: torch(LARGE, "--compile"),
        },
    }
    results: dict = {}
    for case, contenders in runs.items():
        results[case] = {}
        for name, contender in contenders.items():
            started = time.perf_counter()
            results[case][name] = contender()
            rate = (results[case][name] or {}).get("images_per_second")
            say(f"{case}: {name}: {'failed' if rate is None else f'{rate:.0f} images/s'} ({time.perf_counter() - started:.0f} s)")
    on, off = losses(args, "on"), losses(args, "off")
    same = [abs(a - b) / abs(b) for a, b in zip(on, off, strict=False)]
    results["graph_loss_difference"] = max(same) if same and len(on) == len(off) else None
    return results


def table(results: dict, device: str) -> str:
    """Markdown."""
    lines = [device, ""]
    for case, shape in (("small", SMALL), ("large", LARGE)):
        title = f"{shape['arch']}, {shape['size']} px, batch {shape['batch']}, bf16"
        lines += [f"| {title} | images/s | byol / it | peak memory, GB |", "|---|---|---|---|"]
        own = (results[case]["byol, no loader"] or {}).get("images_per_second")
        loaded = (results[case]["byol"] or {}).get("images_per_second")
        for name, report in results[case].items():
            rate = (report or {}).get("images_per_second")
            ours = loaded if "workers" in name else own
            ratio = f"{ours / rate:.2f}" if rate and ours and not name.startswith("byol") else ""
            memory = (report or {}).get("peak_device_mb")
            rate, memory = "failed" if rate is None else f"{rate:.0f}", f"{memory / 1e3:.1f}" if memory else ""
            lines.append(f"| {name} | {rate} | {ratio} | {memory} |")
        if own and loaded:
            lines.append(f"\nWith the loader: {loaded / own:.3f} of the rate without.\n")
    difference = results["graph_loss_difference"]
    lines.append(
        "Losses of 20 steps with and without the CUDA graph: "
        + ("not compared (a run failed)" if difference is None else f"at most {difference:.1e} apart, relative")
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of parquet shards, 32 px")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    args = parser.parse_args()
    args.byol, args.data = args.byol.resolve(), args.data.resolve()
    try:
        import torch as library
    except ImportError:
        raise SystemExit("error: this Python has no torch; use one with torch 2.11.0 and torchvision") from None
    if not library.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return
    versions = re.sub(r"\s+", " ", f"torch {library.__version__}, driver's CUDA {library.version.cuda}")
    device = f"{library.cuda.get_device_name()}, {os.cpu_count()} cores, {versions}"
    results = measure(args)
    print(table(results, device))
    if args.json:
        args.json.write_text(json.dumps({"device": device, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
