#!/usr/bin/env python3
"""byol's feature extraction against a plain PyTorch script: images/s from encoded images to features, on this CPU.

    scripts/byol --version    # builds it
    scripts/compare/features.py --cifar data/cifar10/train.parquet --byol target/release/byol

Both run the same torchvision-named ResNet-18 (3x3 stem, random weights from --seed) over the same images at 32 px, in
bf16 autocast and channels_last, in batches of 256, in turn. PyTorch's time is its loop alone, with the better of no and
one DataLoader worker; byol's is the whole process. Needs torch, torchvision, pyarrow, Pillow and safetensors.
"""

import argparse
import io
import pathlib
import statistics
import subprocess
import tempfile
import time

import pyarrow.parquet
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEAN, STD, BATCH = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256


class Images(torch.utils.data.Dataset):
    def __init__(self, path: pathlib.Path, count: int):
        table = pyarrow.parquet.read_table(path).slice(0, count)
        column = "img" if "img" in table.column_names else "image"
        self.encoded = [row["bytes"] for row in table[column].to_pylist()]
        self.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(io.BytesIO(self.encoded[index])).convert("RGB"))


def network(weights: dict | None = None) -> torch.nn.Module:
    model = torchvision.models.resnet18()
    model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    model.fc = torch.nn.Identity()
    if weights is not None:
        model.load_state_dict(weights)
    return model.eval().to(memory_format=torch.channels_last)


def extract(model: torch.nn.Module, images: Images, workers: int) -> tuple[float, torch.Tensor]:
    """Seconds, and the features."""
    start, features = time.perf_counter(), []
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in torch.utils.data.DataLoader(images, batch_size=BATCH, num_workers=workers):
            features.append(model(batch.to(memory_format=torch.channels_last)).float())
    return time.perf_counter() - start, torch.cat(features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=pathlib.Path, required=True, help="a parquet file of 32 px images")
    parser.add_argument("--byol", type=pathlib.Path, default=ROOT / "target/release/byol", help="the binary")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    images = Images(args.cifar, args.images)
    with tempfile.TemporaryDirectory() as folder:
        weights, output = f"{folder}/encoder.safetensors", f"{folder}/features.safetensors"
        save_file({k: v.contiguous() for k, v in network().state_dict().items()}, weights)
        model = network(load_file(weights))
        (pathlib.Path(folder) / "config.yaml").write_text(
            f"data: {{format: parquet, path: {args.cifar.resolve()}, limit: {args.images}}}\n"
            f"augment: {{size: 32}}\ntrain: {{batch_size: {BATCH}, precision: bf16}}\n"
        )
        command = [args.byol, "-q", "extract-features", "--checkpoint", weights, "--config", f"{folder}/config.yaml"]
        command += ["--output", output, "--force"]
        times: dict[str, list[float]] = {"PyTorch, no worker": [], "PyTorch, one worker": [], "byol": []}
        for _ in range(args.rounds):
            seconds, expected = extract(model, images, 0)
            times["PyTorch, no worker"].append(seconds)
            times["PyTorch, one worker"].append(extract(model, images, 1)[0])
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times["byol"].append(time.perf_counter() - start)
        found = load_file(output)["features"]
    rates = {name: len(images) / statistics.median(seconds) for name, seconds in times.items()}
    best = max(rate for name, rate in rates.items() if name != "byol")
    print(f"| {len(images)} images, {torch.get_num_threads()} threads | images/s | byol / it |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rates['byol'] / rate:.2f} |")
    difference = ((found - expected).norm() / expected.norm()).item()
    print(f"\nbyol over the better one: {rates['byol'] / best:.2f}; relative difference of the features {difference:.1e}")


if __name__ == "__main__":
    main()
