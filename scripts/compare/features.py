#!/usr/bin/env python3
"""`byol extract-features` against PyTorch doing the same: images/s, from reading the first to the last feature written.

    cargo build --release
    PYTHON scripts/compare/features.py --cifar data/cifar10 --photos data/photos --byol target/release/byol

PYTHON has scripts/reference/requirements.txt installed. --cifar names a folder with train*.parquet (32 px; ResNet-18
with a 3x3 stem), --photos one of JPEGs (224 px; ResNet-50); one may be left out. Both sides get the same weights file
with torchvision's names, images, batch, cores, precision and channels last; PyTorch normalises in the batch, not
image by image, and runs with each number of DataLoader workers of --workers, of which the fastest is what byol is to be
compared with. All run in turn, in the reverse order every other round; the table, on stdout, has medians. The features
are compared, too.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# size, mean, std, arch, stem, images
CASES = {
    "cifar": (32, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], "resnet18", "cifar", 3072),
    "photos": (224, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "resnet50", "imagenet", 320),
}
MOST_DIFFERENCE = 0.2  # over what tells the images apart, by norm: bf16 has 8 bits, JPEG decoders differ


def fail(message: str) -> None:
    raise SystemExit(f"error: {message}")


def network(case: str):
    import torch
    import torchvision

    torch.manual_seed(0)
    _, _, _, arch, stem, _ = CASES[case]
    model = getattr(torchvision.models, arch)()
    if stem == "cifar":
        model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = torch.nn.Identity()
    return model


def torch_side(args: argparse.Namespace) -> None:
    """One PyTorch run; the JSON line of its rate."""
    import io

    import numpy as np
    import pyarrow.parquet
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    size, mean, std, *_ = CASES[args.case]
    side = size if size < 96 else size * 256 // 224
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    class Images(Dataset):
        def __init__(self):
            if args.case == "cifar":
                table = pyarrow.parquet.read_table(sorted(args.data.glob("train*.parquet"))[0]).slice(0, args.images)
                column = next(name for name in table.column_names if name in ("img", "image"))
                self.bytes = [entry["bytes"] for entry in table.column(column).to_pylist()]
            else:
                self.paths = args.data.read_text().splitlines()
            shape = [v2.Resize(side, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
            self.transform = v2.Compose(shape) if args.case == "photos" else v2.Identity()

        def __len__(self):
            return args.images

        def __getitem__(self, at):
            file = io.BytesIO(self.bytes[at]) if args.case == "cifar" else self.paths[at]
            with Image.open(file) as image:
                return torch.from_numpy(np.array(self.transform(image.convert("RGB"))))  # [H, W, 3], bytes

    model = network(args.case)
    model.load_state_dict(load_file(args.weights))
    model.fc = torch.nn.Identity()
    model = model.eval().to(device, memory_format=torch.channels_last)
    torch.backends.cudnn.benchmark = True
    scale = 1 / (255 * torch.tensor(std, device=device))
    shift = -torch.tensor(mean, device=device) / torch.tensor(std, device=device)
    images = Images()
    pinned = {"pin_memory": True} if device.type == "cuda" else {}
    started = time.perf_counter()
    features = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
        for batch in DataLoader(images, args.batch, num_workers=args.workers[0], **pinned):
            batch = batch.to(device, non_blocking=True).float().mul_(scale).add_(shift).permute(0, 3, 1, 2)
            features.append(model(batch).float().cpu())
    save_file({"features": torch.cat(features)}, args.output)
    seconds = time.perf_counter() - started
    print(json.dumps({"images_per_second": args.images / seconds, "device": str(device)}))


def byol_side(
    args: argparse.Namespace, case: str, data: pathlib.Path, weights: pathlib.Path, out: pathlib.Path
) -> dict:
    size, mean, std, *_, images = CASES[case]
    settings = {
        "data.format": "parquet" if case == "cifar" else "image_folder",
        "data.path": data,
        "data.limit": images if case == "cifar" else "null",
        "augment.size": size,
        "augment.mean": mean,
        "augment.std": std,
        "train.batch_size": args.batch,
        "train.precision": args.precision,
    }
    command = [args.byol, "extract-features", "--checkpoint", weights, "--output", out, "--force"]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    line = run(command)
    found = re.search(r"(\d+) x \d+ features.*; ([\d.]+) s, ", line)
    if not found or int(found[1]) != images:
        fail(f"byol said {line!r}, expected {images} features")
    return {"images_per_second": images / float(found[2])}


def run(command: list) -> str:
    """The last line that a command prints."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        fail(f"exit code {done.returncode} of {' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def difference(ours: pathlib.Path, theirs: pathlib.Path) -> float:
    from safetensors.torch import load_file

    ours, theirs = (load_file(path)["features"] for path in (ours, theirs))
    if ours.shape != theirs.shape:
        fail(f"found features {list(ours.shape)} of byol, {list(theirs.shape)} of PyTorch")
    return ((ours - theirs).norm() / (theirs - theirs.mean(0)).norm()).item()


def measure(args: argparse.Namespace, case: str, folder: pathlib.Path, work: pathlib.Path) -> dict:
    from safetensors.torch import save_file

    images, weights, data = CASES[case][-1], work / f"{case}.safetensors", folder
    save_file(network(case).state_dict(), weights)
    if case == "photos":
        found = sorted(p.resolve() for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            fail(f"--photos {folder}: found no JPEG files")
        data = work / "photos.txt"
        data.write_text("".join(f"{found[at % len(found)]}\n" for at in range(images)))
    outputs = {side: work / f"{case}-{side}.safetensors" for side in ("byol", "torch")}

    def torch_run(workers: int) -> dict:
        command = [sys.executable, __file__, "--torch-side", case, "--data", data, "--weights", weights]
        command += ["--images", images, "--batch", args.batch, "--precision", args.precision]
        command += ["--workers", workers, "--output", outputs["torch"]]
        return json.loads(run(command))

    contenders = {"byol": lambda: byol_side(args, case, data, weights, outputs["byol"])}
    for workers in args.workers:
        contenders[f"PyTorch, {workers} workers"] = lambda workers=workers: torch_run(workers)
    results: dict = {name: [] for name in contenders}
    for number in range(args.rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            rate = contenders[name]()["images_per_second"]
            print(f"{case}, round {number + 1} of {args.rounds}: {name}: {rate:.1f} images/s", file=sys.stderr)
            results[name].append(rate)
    apart = difference(*outputs.values())
    if not apart <= MOST_DIFFERENCE:
        fail(f"{case}: features of byol and PyTorch differ by {apart:.2g} of their spread")
    medians = {name: statistics.median(rates) for name, rates in results.items()}
    return {"rounds": results, "medians": medians, "difference": apart}


def table(case: str, report: dict) -> str:
    """Markdown."""
    size, *_, arch, stem, images = CASES[case]
    medians = report["medians"]
    lines = [f"| {arch}, {stem} stem, {size} px, {images} images | images/s | byol / PyTorch |", "|---|---|---|"]
    for name, rate in medians.items():
        lines.append(f"| {name} | {rate:.1f} | {'' if name == 'byol' else format(medians['byol'] / rate, '.2f')} |")
    return "\n".join(lines) + f"\n\nDifference of the features over their spread: {report['difference']:.1e}.\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=pathlib.Path, help="folder with train*.parquet, 32 px")
    parser.add_argument("--photos", type=pathlib.Path, help="folder of JPEGs at any depth")
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--batch", type=int, default=64, help="64 to 512")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="bf16 is slow without AVX-512")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of PyTorch's DataLoader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="also write all rounds here")
    parser.add_argument("--torch-side", dest="case", choices=CASES, help=argparse.SUPPRESS)
    for name in ("--data", "--weights", "--output"):
        parser.add_argument(name, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        return args
    if not args.cifar and not args.photos:
        fail("found neither --cifar nor --photos, expected a data set to measure on")
    if not os.access(args.byol, os.X_OK):
        fail(f"--byol: found no program {args.byol}; build it with cargo build --release")
    args.byol = args.byol.resolve()
    if not 64 <= args.batch <= 512:
        fail(f"--batch: found {args.batch}, expected 64 to 512, byol's limits")
    if args.rounds < 1:
        fail("found --rounds below 1, expected something to measure")
    return args


def main() -> None:
    args = arguments()
    if args.case:
        return torch_side(args)
    report = {}
    with tempfile.TemporaryDirectory() as work:
        for case in CASES:
            if folder := getattr(args, case):
                report[case] = measure(args, case, folder, pathlib.Path(work))
                print(table(case, report[case]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
