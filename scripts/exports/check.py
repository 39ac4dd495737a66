"""Loads what `byol export-encoder` writes with other software and compares features on real images.

    pip install -r scripts/exports/requirements.txt
    python scripts/exports/check.py --images FOLDER [--byol target/release/byol] [--work /tmp/exports] [--only CASE]

Every encoder is trained for a few steps on drawn images, so that BatchNorm's statistics are its own. The lines of
Python that the command prints are run as printed: the safetensors file into torchvision's or timm's network, whose features are
the reference; the PyTorch file, the folders for timm and transformers where these have the architecture, TorchScript
and ONNX, as default, with folded BatchNorm, with free image size, and without normalisation. The preprocessing that
timm and transformers read from their folders is compared with torchvision's, and the run's own encoder.safetensors
with the export. guide.py beside this script runs what src/guide/exporting.md shows. The target encoder is compared
with torch.optim.swa_utils.update_bn on the same images. Differences are the largest one over the largest feature;
over 1e-4 the script fails.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn as nn
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2

BOUND = 1e-4
# name: arch, width, stem, size, more keys of the model
CASES = {
    "resnet18": ("resnet18", 1.0, "imagenet", 64),
    "resnet34": ("resnet34", 1.0, "imagenet", 224),
    "resnet18 cifar": ("resnet18", 1.0, "cifar", 32),
    "resnet18 x0.5": ("resnet18", 0.5, "imagenet", 64),
    "resnet18 x0.5 cifar": ("resnet18", 0.5, "cifar", 32),
    "resnet18 x2": ("resnet18", 2.0, "imagenet", 64),
    "resnet50": ("resnet50", 1.0, "imagenet", 64),
    "resnet50 x2": ("resnet50", 2.0, "imagenet", 64),
    "resnext50_32x4d": ("resnext50_32x4d", 1.0, "imagenet", 64),
    "resnext101_32x8d": ("resnext101_32x8d", 1.0, "imagenet", 64),
    "wide_resnet50_2": ("wide_resnet50_2", 1.0, "imagenet", 64),
    "wide_resnet101_2": ("wide_resnet101_2", 1.0, "imagenet", 64),
    "resnext50_32x4d x0.5 cifar": ("resnext50_32x4d", 0.5, "cifar", 32),
    "resnet18 group_ws": ("resnet18", 1.0, "imagenet", 64, "norm: group_ws"),
    "resnet18 group_ws x0.5 cifar": ("resnet18", 0.5, "cifar", 32, "norm: group_ws"),
    "convnext_tiny": ("convnext_tiny", 1.0, "imagenet", 64, "drop_path: 0.1"),
    "convnext_small x0.25": ("convnext_small", 0.25, "imagenet", 32, "patch_size: 2"),
    "vit_tiny": ("vit_tiny", 1.0, "imagenet", 64, "patch_size: 16"),
    "vit_small x0.25 mean": ("vit_small", 0.25, "imagenet", 32, "patch_size: 8, pool: mean"),
    "vit_base x0.25": ("vit_base", 0.25, "imagenet", 64, "patch_size: 16"),
    "convnext_small": ("convnext_small", 1.0, "imagenet", 64),
    "convnext_base": ("convnext_base", 1.0, "imagenet", 64),
    "vit_small 8": ("vit_small", 1.0, "imagenet", 64, "patch_size: 8"),
    "vit_base": ("vit_base", 1.0, "imagenet", 64),
    "vit_base 8": ("vit_base", 1.0, "imagenet", 64, "patch_size: 8"),
}
MEAN, STD = [0.48, 0.45, 0.40], [0.23, 0.22, 0.25]
CONFIG = """
data: {{format: synthetic, workers: 1, synthetic: {{images: 64, eval_images: 2, classes: 4, size: {large}}}}}
augment:
  size: {size}
  mean: {mean}
  std: {std}
  view1: {{blur_sigma: [0.1, 0.5]}}
  view2: {{blur_sigma: [0.1, 0.5]}}
model: {{arch: {arch}, width: {width}, stem: {stem}, {more}projector_hidden: 64, projection_dim: 32, predictor_hidden: 64}}
optimizer: {{name: sgd, base_lr: 0.4}}
schedule: {{epochs: 2, warmup_epochs: 0}}
ema: {{base_tau: 0.9}}
train: {{batch_size: 8, precision: fp32, device: cpu, threads: 1, max_steps: 4}}
monitor: {{knn_every: 0}}
output: {{dir: "{dir}", keep_checkpoints: 1}}
"""


def byol(args, *command):
    done = subprocess.run([args.byol, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"byol {' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def export(args, run, output, *extra):
    """The lines of Python that the command prints after its first line."""
    form = {".pt": "torchscript", "": output.name}.get(output.suffix, output.suffix[1:])
    command = ["export-encoder", "--checkpoint", run, "--format", form, "--output", output, "--force", *extra]
    return byol(args, *command).split("\n", 1)[1]


def printed(lines, names):
    """Runs the printed lines with these names defined, and gives back all names."""
    exec(lines, names)
    return names


def shorter_side(size):
    """The length that the shorter side is resized to."""
    return size if size < 96 else round(size * 256 / 224)


def photos(folder, size, count):
    """[N, 3, size, size] in 0..1 by torchvision's evaluation transform, and the Pillow images."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg", ".png"))[:count]
    if len(paths) < count:
        sys.exit(f"--images {folder}: found {len(paths)} JPEG or PNG files, expected {count}")
    resize = v2.Resize(shorter_side(size), v2.InterpolationMode.BICUBIC)
    transform = v2.Compose([resize, v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images = [Image.open(p).convert("RGB") for p in paths]
    return torch.stack([transform(image) for image in images]), images


def folders(args, run, folder, name, originals, normalised, expected):
    """timm's and transformers' rows, as far as they have this encoder."""
    arch, width, stem, _, *more = CASES[name]
    resnet, group_norm = "res" in arch, more == ["norm: group_ws"]
    timm_has = width == 1.0 if resnet else more != ["patch_size: 2"]
    hf_has = arch.startswith("resnet") or not resnet
    rows = {}
    for form, has in [("timm", timm_has), ("hf", hf_has)]:
        if stem != "imagenet" or group_norm or not has:
            command = ["export-encoder", "--checkpoint", run, "--format", form, "--output", folder / form, "--force"]
            done = subprocess.run([args.byol, *map(str, command)], capture_output=True, text=True)
            assert done.returncode == 1 and done.stderr.startswith(f"error: --format {form}: found "), done.stderr
            continue
        lines = export(args, run, folder / form)
        names = printed(lines, {})
        if form == "timm":
            rows["timm"] = distance(names["model"](normalised), expected)
            images = torch.stack([names["transform"](image) for image in originals])
        else:
            outputs = names["model"](normalised)
            rows["transformers"] = distance(eval("outputs" + lines.strip().rpartition('"pt"))')[2]), expected)
            images = names["processor"](originals, return_tensors="pt")["pixel_values"]
        # In levels of 255: both resize in two passes that each round to whole ones, but not with the same arithmetic.
        levels = ((images - normalised).abs() * torch.tensor(STD).view(1, 3, 1, 1) * 255).amax((1, 2, 3))
        # transformers truncates half the margin beside the crop, where torchvision rounds it: images to leave out.
        size, short = normalised.shape[-1], shorter_side(normalised.shape[-1])
        margins = [short * max(image.size) // min(image.size) - size for image in originals]
        same = [form == "timm" or round(margin / 2) == margin // 2 for margin in margins]
        assert sum(same) > 8 and levels[torch.tensor(same)].max() < 2.01, levels
    return rows


def distance(found, expected):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def body(model, arch):
    """The network without its classifier."""
    if arch.startswith("convnext"):
        model.classifier = model.classifier[:2]
    elif arch == "vit_base":
        model.heads = nn.Identity()
    elif not arch.startswith("vit"):
        model.fc = nn.Identity()
    return model


def check_case(name, args):
    arch, width, stem, size, *more = CASES[name]
    batch_norm, vit = arch.startswith(("res", "wide")) and not more, arch.startswith("vit")
    folder = args.work / name.replace(" ", "_")
    run = folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(arch=arch, width=width, stem=stem, size=size, large=size * 3 // 2, dir=run,
                                    mean=MEAN, std=STD, more="".join(f"{keys}, " for keys in more)))
    if not (run / "summary.json").exists():
        byol(args, "train", "--config", config)
    plain, originals = photos(args.images, size, 16)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    normalised = (plain - mean) / std

    lines = export(args, run, folder / "encoder.safetensors")
    model = printed(lines, {})["model"]
    if batch_norm:  # standardized weights are no longer the file's
        keys = model.load_state_dict(load_file(folder / "encoder.safetensors"), strict=False)
        assert keys.missing_keys == (["fc.weight", "fc.bias"] if width == 1.0 else []) and not keys.unexpected_keys, keys
    counts = [v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(v.dtype == torch.int64 and v.item() == 8 for v in counts), counts
    assert bool(counts) == batch_norm
    model = body(model, arch).eval()
    rows = {}
    with torch.no_grad():
        expected = model(normalised)
        exact = model.double()(normalised.double())
        model.float()
        rows["torchvision fp32 (vs f64)"] = distance(expected, exact.float())

        ended_with, written = (load_file(at / "encoder.safetensors") for at in (run, folder))
        assert ended_with.keys() == written.keys() and all(torch.equal(v, written[k]) for k, v in ended_with.items())
        other = printed(export(args, run, folder / "encoder.pth"), {})["model"]
        rows["pth"] = distance(body(other, arch).eval()(normalised), expected)
        mapped = torch.load(folder / "encoder.pth", weights_only=True, mmap=True)
        assert mapped.keys() == written.keys() and all(torch.equal(v, written[k]) for k, v in mapped.items())
        rows.update(folders(args, run, folder, name, originals, normalised, expected))

        names = printed(export(args, run, folder / "encoder.pt"), {"images": plain})
        rows["torchscript"] = distance(names["features"], expected)
        rows["torchscript, one image"] = distance(names["encoder"](plain[:1]), expected[:1])
        names = printed(export(args, run, folder / "plain.pt", "--no-normalize"), {"images": normalised})
        rows["torchscript, no-normalize"] = distance(names["features"], expected)

        for title, extra, images in [
            ("onnx", [], plain),
            ("onnx, folded", ["--fold-batchnorm"], plain),
            ("onnx, no-normalize", ["--no-normalize"], normalised),
            ("onnx, folded, any size", ["--fold-batchnorm", "--image-size", "dynamic"], plain),
        ][:3 if vit else 4]:
            path = folder / f"{title.replace(', ', '_').replace(' ', '_')}.onnx"
            names = printed(export(args, run, path, *extra), {"images": images.numpy()})
            onnx.checker.check_model(str(path), full_check=True)
            rows[title] = distance(names["features"], expected)
            one, = names["session"].run(None, {"images": images[:1].numpy()})
            rows[title] = max(rows[title], distance(one, expected[:1]))
        if not vit:
            larger = photos(args.images, size + 31, 3)[0]
            found, = names["session"].run(None, {"images": larger.numpy()})
            rows["onnx, any size: another one"] = distance(found, model((larger - mean) / std))
    if not batch_norm:
        return rows

    # The target: PyTorch's update_bn on the same images. PNG, because decoders of JPEG differ by a level or two.
    pngs = folder / "pngs"
    pngs.mkdir(exist_ok=True)
    for i, image in enumerate(originals):
        image.save(pngs / f"{i:02}.png")
    data = folder / "data.yaml"
    data.write_text(f'data: {{format: image_folder, path: "{pngs}"}}\n')
    target = load_file(next((run / "checkpoints").glob("step-*")) / "model.safetensors")
    prefix = "target.encoder."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in target.items() if k.startswith(prefix)})
    with torch.no_grad():
        lagging = model(normalised)
    # Channels last, as byol's: for these PyTorch sums the statistics in fp32, which is off by up to 1e-4 at the end.
    last = normalised.to(memory_format=torch.channels_last)
    torch.optim.swa_utils.update_bn([last], model.to(memory_format=torch.channels_last).train())
    names = printed(export(args, run, folder / "target.onnx", "--network", "target", "--config", data),
                    {"images": plain.numpy()})
    with torch.no_grad():
        expected = model.eval()(normalised)
    rows["target, onnx (vs update_bn)"] = distance(names["features"], expected)
    assert distance(lagging, expected) > 0.01, "the statistics of training would have done as well"
    return rows


def main():
    parser = argparse.ArgumentParser(description="loads exports with torchvision, torch.jit and onnxruntime")
    parser.add_argument("--images", type=Path, required=True, help="a folder with 16 photos")
    parser.add_argument("--byol", default="target/release/byol")
    parser.add_argument("--work", type=Path, default=Path("/tmp/exports"))
    parser.add_argument("--only", choices=CASES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    np.set_printoptions(precision=3)
    worst = 0.0
    for name in [args.only] if args.only else CASES:
        for title, value in check_case(name, args).items():
            worst = max(worst, value) if np.isfinite(value) else float("inf")
            print(f"{name:20} {title:30} {value:.1e}", flush=True)
    print(f"largest relative difference {worst:.1e}, allowed {BOUND:.0e}")
    sys.exit(0 if worst <= BOUND else 1)


if __name__ == "__main__":
    main()
