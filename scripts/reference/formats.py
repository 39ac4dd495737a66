#!/usr/bin/env python3
"""Writes tests/fixtures/data/{cifar,stl10,webdataset}: small sets as the usual tools write them, and formats.json:
what torchvision, the webdataset package and Pillow read from them.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/formats.py [--seed 0]

torchvision reads CIFAR's Python version only. It gets one in a temporary folder; the binary version is written from
the same arrays, as https://www.cs.toronto.edu/~kriz/cifar.html describes it.
"""

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from unittest import mock

import numpy as np
import torchvision.datasets
import webdataset
from PIL import Image

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "data"
LONG = "a/very/long/folder/name/" * 5


def pictures(rng, count, side):
    """[count, 3, side, side] without symmetries, that a packer makes small."""
    y, x = np.mgrid[0:side, 0:side]
    a, b, c = rng.integers(1, 256, (3, count, 3, 1, 1))
    return (a * x + b * y + c).astype(np.uint8)


def pack(path, folder, files):
    """A .tar.gz with the same bytes in every run."""
    with path.open("wb") as out, gzip.GzipFile("", "wb", fileobj=out, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def listing(dataset, split):
    """What a torchvision data set gives: class names, labels and SHA-256 of the RGB pixels."""
    rows = [dataset[index] for index in range(len(dataset))]
    return {
        "split": split,
        "classes": dataset.classes,
        "labels": [int(label) for _, label in rows],
        "sha256": [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image, _ in rows],
    }


def cifar(rng, kind):
    """Five (one) training files and a test file."""
    ten = kind == 10
    dataset = torchvision.datasets.CIFAR10 if ten else torchvision.datasets.CIFAR100
    batches = [name for name, _ in dataset.train_list + dataset.test_list]
    names = [f"name {number}" for number in range(kind)]
    binary = {"batches.meta.txt" if ten else "fine_label_names.txt": "\n".join(names + [""]).encode()}
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root) / dataset.base_folder
        folder.mkdir()
        for name in batches:
            images = pictures(rng, 2, 32)
            labels = rng.integers(0, kind, 2)
            coarse = rng.integers(0, 20, 2)
            entry = {"data": images.reshape(2, -1), "labels" if ten else "fine_labels": labels.tolist()}
            (folder / name).write_bytes(pickle.dumps(entry))
            heads = [labels] if ten else [coarse, labels]
            records = np.concatenate([np.stack(heads, 1).astype(np.uint8), images.reshape(2, -1)], 1)
            binary[f"{name}.bin"] = records.tobytes()
        meta = {dataset.meta["key"]: names}
        (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(meta))
        with mock.patch("torchvision.datasets.cifar.check_integrity", return_value=True):
            sets = [listing(dataset(root, train), split) for train, split in [(True, "train"), (False, "test")]]
    folder = "cifar-10-batches-bin" if ten else "cifar-100-binary"
    pack(OUT / "cifar" / f"cifar-{kind}-binary.tar.gz", folder, binary)
    return sets


def stl10(rng):
    """Three labeled, two unlabeled and two test images."""
    files = {"class_names.txt": b"\n".join(b"name %d" % number for number in range(10)) + b"\n"}
    for name, count in [("train", 3), ("unlabeled", 2), ("test", 2)]:
        files[f"{name}_X.bin"] = pictures(rng, count, 96).tobytes()
        if name != "unlabeled":
            files[f"{name}_y.bin"] = rng.integers(1, 11, count).astype(np.uint8).tobytes()
    dataset = torchvision.datasets.STL10
    pack(OUT / "stl10" / "stl10_binary.tar.gz", dataset.base_folder, files)
    with tempfile.TemporaryDirectory() as root:
        with tarfile.open(OUT / "stl10" / "stl10_binary.tar.gz") as archive:
            archive.extractall(root, filter="data")
        with mock.patch.object(dataset, "_check_integrity", return_value=True):
            return [listing(dataset(root, split), split) for split in dataset.splits]


def encode(rng, kind):
    buffer = io.BytesIO()
    smooth = Image.fromarray(pictures(rng, 1, 3)[0].transpose(1, 2, 0)).resize((8, 8), Image.Resampling.BICUBIC)
    # Full chroma: JPEG decoders may interpolate halved chroma as they like.
    smooth.save(buffer, kind, **{"webp": {"lossless": True}, "jpeg": {"subsampling": 0}}.get(kind, {}))
    return buffer.getvalue()


def shards(rng):
    """Two training shards and one held out by ShardWriter, and odd ones by tarfile and GNU tar."""
    folder = OUT / "webdataset"
    options = {"maxcount": 3, "mtime": 0, "verbose": 0}
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), **options) as writer:
        writer.write({"__key__": "000000", "png": encode(rng, "png"), "cls": 7})
        writer.write({"__key__": "000001", "jpg": encode(rng, "jpeg"), "cls": 0})
        writer.write({"__key__": "000002", "jpeg": encode(rng, "jpeg"), "json": {"label": 3, "caption": "a"}})
        writer.write({"__key__": "000003", "webp": encode(rng, "webp"), "json": {"cls": 4}})
        writer.write({"__key__": f"{LONG}000004", "png": encode(rng, "png"), "cls": 5})
    with webdataset.ShardWriter(str(folder / "val-%06d.tar"), **options) as writer:
        writer.write({"__key__": "000000", "png": encode(rng, "png"), "cls": 2})
    members = {
        "__info__/made.png": b"of no sample",
        "folder/a.txt": b"a caption",
        "folder/a.PNG": encode(rng, "png"),
        "folder/a.seg.png": b"another image of the sample",
        "other/a.png": encode(rng, "png"),
        "other/a.cls": b" 12\n",
        "only/text.txt": b"no image",
        "b.2020.01.png": encode(rng, "png"),
        f"{LONG}c.cls": b"1",
        f"{LONG}c.png": encode(rng, "png"),
        "unknown/d.cls": b"-1",
        "unknown/d.png": encode(rng, "png"),
    }
    formats = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    for name, layout in formats.items():
        with tarfile.open(folder / f"odd-{name}.tar", "w", format=layout) as archive:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                if name == "pax":
                    info.pax_headers = {"comment": "x" * 600}
                archive.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "b.2020.01.png"
            archive.addfile(link)
    with tempfile.TemporaryDirectory() as root:
        del members["__info__/made.png"]  # with ./ before it, the webdataset package takes it for a sample
        for member, data in members.items():
            (pathlib.Path(root) / member).parent.mkdir(parents=True, exist_ok=True)
            (pathlib.Path(root) / member).write_bytes(data)
        command = ["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=644"]
        command += ["--format=gnu", "-C", root, "-cf", str(folder / "odd-tar.tar"), "."]
        subprocess.run(command, check=True)
    return {path.name: samples(path) for path in sorted(folder.glob("*.tar"))}


def samples(path):
    """Key, class and pixels of the samples that have an image, as the webdataset package sees them."""
    found = []
    for sample in webdataset.WebDataset([str(path)], shardshuffle=False):
        kinds = [name for name in sample if name.split(".")[-1] in ("png", "jpg", "jpeg", "webp")]
        if not kinds:
            continue
        kind = min(kinds, key=lambda name: "." in name)
        described = json.loads(sample.get("json", b"{}"))
        label = int(sample.get("cls", described.get("label", described.get("cls", -1))))
        pixels = np.asarray(Image.open(io.BytesIO(sample[kind])).convert("RGB"))
        found.append({
            "member": f"{sample['__key__']}.{kind}",
            "label": label if label >= 0 else None,
            "pixels": pixels.tobytes().hex(),
        })
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    for name in ["cifar", "stl10", "webdataset"]:
        shutil.rmtree(OUT / name, ignore_errors=True)
        (OUT / name).mkdir(parents=True)
    found = {"cifar10": cifar(rng, 10), "cifar100": cifar(rng, 100), "stl10": stl10(rng), "webdataset": shards(rng)}
    (OUT / "formats.json").write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
