"""Trains on images of other channels and depths than 8-bit RGB, and compares features with numpy and onnxruntime.

    pip install -r scripts/exports/requirements.txt tifffile
    python scripts/exports/channels.py [--byol target/release/byol] [--work /tmp/channels]

Two sets of two classes: TIFFs of four 16-bit channels, and 12-bit gray PNGs. Each is trained on for a few steps,
evaluated linearly, exported to ONNX; onnxruntime gets the bytes that numpy makes of the images with the range in the
file's metadata. Then the features of twins, 8-bit images that numpy made with the same range, are compared with those
of the images themselves: the least cosine must be over 0.9999.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tifffile
from PIL import Image

SIZE = 32
CONFIG = """
data: {{format: image_folder, path: "{folder}/deep/train", eval_path: "{folder}/deep/test", workers: 1}}
augment:
  size: 32
  view1: {{blur_sigma: [0.1, 0.5]{colors}}}
  view2: {{blur_sigma: [0.1, 0.5]{colors}}}
model: {{arch: resnet18, width: 0.5, stem: cifar, projector_hidden: 64, projection_dim: 32, predictor_hidden: 64}}
optimizer: {{name: sgd, base_lr: 0.2}}
schedule: {{epochs: 4, warmup_epochs: 0}}
train: {{batch_size: 16, precision: fp32, device: cpu, threads: 1}}
monitor: {{knn_every: 0}}
output: {{dir: "{folder}/run", keep_checkpoints: 1}}
"""


def byol(args, *command):
    done = subprocess.run([args.byol, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"byol {' '.join(map(str, command))}: {done.stderr}")
    return done.stdout


def picture(rng, channels, label):
    """Waves in the direction of the class, of another strength and place in each channel, in 12 bits."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    along = x + 0.3 * y if label else y - 0.2 * x
    waves = [np.sin(2 * np.pi * (rng.uniform(2, 4) * along + rng.uniform())) for _ in range(channels)]
    values = 2000 + 300 * np.arange(channels) + 1500 * np.stack(waves, -1) + rng.normal(0, 60, (SIZE, SIZE, channels))
    return np.clip(values, 0, 4095).astype(np.uint16)


def write_deep(path, array):
    if array.shape[-1] == 1:
        Image.fromarray(array[..., 0]).save(path.with_suffix(".png"))
    else:
        tifffile.imwrite(path.with_suffix(".tif"), array, photometric="minisblack", planarconfig="contig")


def features(args, folder, checkpoint, name, *extra):
    output = folder / name
    byol(args, "extract-features", "--checkpoint", checkpoint, "--output", output, "--force", *extra)
    return np.load(output / "features.npy")


def check(args, channels):
    folder, rng = args.work / f"channels{channels}", np.random.default_rng(channels)
    sets = {}
    for part, count in [("train", 32), ("test", 8)]:
        for label, name in enumerate("ab"):
            for number in range(count):
                array = picture(rng, channels, label)
                path = folder / "deep" / part / name / f"{number:03}"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_deep(path, array)
                sets.setdefault(part, []).append((Path(part) / name / f"{number:03}.npy", array))
    colors = "" if channels == 1 else ", saturation: 0, hue: 0, grayscale_prob: 0"
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(folder=folder, colors=colors))
    if not (folder / "run/summary.json").exists():
        byol(args, "train", "--config", config)
    report = json.loads(byol(args, "linear-eval", "--checkpoint", folder / "run", "--json"))

    file = folder / "encoder.onnx"
    byol(args, "export-encoder", "--checkpoint", folder / "run", "--format", "onnx", "--output", file, "--force")
    session = onnxruntime.InferenceSession(str(file))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["channels"] == str(channels) and session.get_inputs()[0].shape[1:] == [channels, SIZE, SIZE]
    ranges = np.array(json.loads(metadata["value_range"]), np.float64).reshape(-1, 2)
    assert len(ranges) == channels, ranges
    low, high = ranges.T
    images = []
    for path, array in sets["test"]:
        scaled = np.floor((array.astype(np.float64) - low) * (255 / (high - low)) + 0.5)
        twin = np.clip(scaled, 0, 255).astype(np.uint8)
        (folder / "twins" / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / "twins" / path, twin)
        images.append(np.moveaxis(twin, -1, 0).astype(np.float32) / 255)
    expected, = session.run(None, {"images": np.stack(images)})
    deep = features(args, folder, folder / "run", "deep_features", "--split", "test")
    twins = features(args, folder, folder / "run", "twin_features", "--set", f"data.path={folder}/twins/test",
                     "--set", "data.eval_path=null", "--set", "data.value_range=full", "--split", "train")
    scale = np.abs(expected).max()
    cosine = (deep * twins).sum(1) / np.linalg.norm(deep, axis=1) / np.linalg.norm(twins, axis=1)
    print(f"{channels} channels: range {ranges.tolist()}, linear top-1 {report['top1']:.3f}, onnxruntime to byol "
          f"{np.abs(deep - expected).max() / scale:.1e} of the largest feature, cosine to the 8-bit twins at least "
          f"{cosine.min():.7f}")
    return np.abs(deep - expected).max() <= 1e-4 * scale and cosine.min() > 0.9999


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--byol", default="target/release/byol")
    parser.add_argument("--work", type=Path, default=Path("/tmp/channels"))
    args = parser.parse_args()
    sys.exit(0 if all([check(args, channels) for channels in (4, 1)]) else 1)


if __name__ == "__main__":
    main()
