"""Runs the commands and the Python of src/guide/exporting.md, and compares what they give with torchvision.

    python scripts/exports/guide.py --images FOLDER [--byol target/release/byol] [--work /tmp/exports]

A ResNet-50 is trained for a few steps; the photos are 16 of the folder's, one of them named cat.jpg.
"""

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
import torch.nn as nn
from mmengine.model import BaseModule
from torchvision.models import resnet50
from torchvision.models.resnet import ResNet

from check import CONFIG, MEAN, STD, byol, distance, photos

GUIDE = Path(__file__).resolve().parents[2] / "src/guide/exporting.md"
BOUND = 1e-4


class Conv(nn.Conv2d):
    """As in detectron2: a convolution has its BatchNorm inside."""

    def __init__(self, of, norm):
        super().__init__(of.in_channels, of.out_channels, of.kernel_size, of.stride, of.padding, bias=False)
        self.norm = nn.BatchNorm2d(norm.num_features)

    def forward(self, x):
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = Conv(of.conv1, of.bn1), Conv(of.conv2, of.bn2), Conv(of.conv3, of.bn3)
        self.shortcut = Conv(*of.downsample) if of.downsample else None

    def forward(self, x):
        y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (y + (self.shortcut(x) if self.shortcut else x)).relu()


class Detectron2(nn.Module):
    """ResNet-50 with the names of detectron2's build_resnet_backbone, STRIDE_IN_1X1: False."""

    def __init__(self):
        super().__init__()
        of = resnet50()
        self.stem = nn.ModuleDict({"conv1": Conv(of.conv1, of.bn1)})
        for at in range(1, 5):
            self.add_module(f"res{at + 1}", nn.Sequential(*map(Block, getattr(of, f"layer{at}"))))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem["conv1"](x).relu(), 3, 2, 1)
        return self.res5(self.res4(self.res3(self.res2(x)))).mean((2, 3))


class Mmengine(BaseModule):
    """ResNet-50 with the names of mmdetection's, which are torchvision's, and the weights that init_cfg names."""

    def __init__(self, init_cfg):
        super().__init__(init_cfg)
        for name, module in resnet50().named_children():
            self.add_module(name, module)
        self.fc = nn.Identity()

    forward = ResNet._forward_impl


def main():
    parser = argparse.ArgumentParser(description="runs src/guide/exporting.md")
    parser.add_argument("--images", type=Path, required=True, help="a folder with 16 photos")
    parser.add_argument("--byol", default="target/release/byol")
    parser.add_argument("--work", type=Path, default=Path("/tmp/exports"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.byol, work = Path(args.byol).resolve(), args.work / "guide"
    plain, originals = photos(args.images, 64, 16)
    shutil.rmtree(work, ignore_errors=True)
    (work / "photos").mkdir(parents=True)
    for at, image in enumerate(originals):
        # PNG inside: decoders of JPEG differ by a level or two.
        image.save(work / "photos" / ("cat.jpg" if at == 5 else f"{at:02}.png"), "PNG")
    order = [*range(5), *range(6, 16), 5]
    os.chdir(work)
    Path("photos.yaml").write_text("data: {format: image_folder, path: photos}\n")
    Path("config.yaml").write_text(CONFIG.format(arch="resnet50", width=1.0, stem="imagenet", size=64, large=96,
                                                 dir="runs/resnet50", mean=MEAN, std=STD, more=""))
    byol(args, "train", "--config", "config.yaml")
    Path("runs/quickstart").symlink_to("resnet50")
    shutil.copy("runs/resnet50/encoder.safetensors", "encoder.safetensors")

    names = {}
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```$", GUIDE.read_text(), re.M | re.S):
        print(block)
        if kind == "python":
            with torch.no_grad():
                exec(block, names)
            continue
        for line in block.splitlines():
            byol(args, *line.split()[1:])

    images = (plain - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    rows = {}
    with torch.no_grad():
        model = resnet50().eval()
        missing = model.load_state_dict(names["load_file"]("runs/resnet50/encoder.safetensors"), strict=False)
        assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys, missing
        model.fc = nn.Identity()
        expected = model(images)
        rows["timm"] = distance(names["timm_features"], expected[5:6])
        # Resizes to whole levels, so its images are not quite the same: check.py compares the networks alone.
        assert distance(names["hf_features"], expected[5:6]) < 0.05
        body = names["detector"].backbone.body.eval()
        rows["torchvision's Faster R-CNN"] = distance(body(images)["3"].mean((2, 3)), expected)
        other = Detectron2().eval()
        saved = torch.load("encoder_detectron2.pth", weights_only=True)["model"]
        keys = other.load_state_dict(saved, strict=False)
        assert all(key.endswith("num_batches_tracked") for key in keys.missing_keys) and not keys.unexpected_keys, keys
        rows["detectron2's names"] = distance(other(images), expected)
        other = Mmengine(names["init_cfg"])
        other.init_weights()
        rows["mmengine's Pretrained"] = distance(other.eval()(images), expected)

        expected = expected[order].numpy()
        unit = nn.functional.normalize(torch.tensor(expected)).numpy()
    files = ["cat.jpg" if at == 5 else f"{at:02}.png" for at in order]
    table = names["table"]
    assert list(table["name"]) == names["names"] == list(names["frame"]["name"]) == files, names["names"]
    assert names["arrays"]["names"].tobytes().decode().splitlines() == files
    assert table["label"].isna().all() and table["class"].isna().all() and (names["arrays"]["labels"] == -1).all()
    assert str(names["frame"].schema["vector"]) == "Array(Float32, shape=(2048,))", names["frame"].schema
    assert names["nearest"][0][0] == "cat.jpg" and abs(names["nearest"][0][1] - 1) < 1e-6, names["nearest"]
    vector = pq.read_schema("features.parquet").field("vector").type
    assert str(vector) == "fixed_size_list<element: float not null>[2048]", vector
    comma = pd.read_csv("features.csv")
    assert list(comma.columns[:4]) == ["name", "label", "class", "f0"] and list(comma["name"]) == files
    rows["features, parquet in pandas"] = distance(np.stack(table["vector"]), expected)
    rows["features, parquet in polars"] = distance(names["frame"]["vector"].to_numpy(), expected)
    sql = names["duckdb"].sql("SELECT vector FROM 'features.parquet'").fetchall()
    rows["features, parquet in DuckDB"] = distance(np.array([row[0] for row in sql], np.float32), expected)
    rows["features, safetensors"] = distance(names["arrays"]["features"], expected)
    rows["features, npy"] = distance(names["features"].copy(), expected)
    rows["features, CSV, unit length"] = distance(comma.iloc[:, 3:].to_numpy(np.float32), unit)
    for title, value in rows.items():
        print(f"{title:30} {value:.1e}")
    assert max(rows.values()) <= BOUND, "largest relative difference over 1e-4"


if __name__ == "__main__":
    main()
