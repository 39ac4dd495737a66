#!/usr/bin/env python3
"""Writes tests/fixtures/data: odd images with the pixels Pillow reads from them, and parquet files
in the layout of Hugging Face datasets.

    pip install -r scripts/reference/requirements.txt
    python scripts/reference/data.py [--seed 0] [--cifar path/to/cifar10/train.parquet]
"""

import argparse
import hashlib
import io
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import images
from images import encode

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "data"


def hugging_face(names):
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def parquet_files(rng):
    """Two training shards and a test shard; the second has a null image and a broken one."""
    folder = OUT / "shards"
    folder.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = []

    def write(name, count, compression, broken=()):
        encoded, labels = [], []
        for row in range(count):
            data = encode(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)), "PNG")
            data = {0: None, 1: b"broken"}[broken.index(row)] if row in broken else data
            encoded.append({"bytes": data, "path": f"{row}.png"})
            labels.append(None if name.startswith("train-00001") and row == 0 else row % 3)
            rows.append({"file": name, "row": row, "label": labels[-1]})
            if data is not None and row not in broken:
                rows[-1]["pixels"] = np.asarray(Image.open(io.BytesIO(data))).flatten().tolist()
        table = pa.table({"image": pa.array(encoded, kind), "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata(hugging_face(["ant", "bee", "cat"]))
        pq.write_table(table, folder / name, compression=compression, row_group_size=3)
        return table

    table = write("train-00000-of-00002.parquet", 7, "zstd")
    write("train-00001-of-00002.parquet", 5, "snappy", broken=(2, 4))
    write("test-00000-of-00001.parquet", 4, "none")
    flat = {
        "title": pa.array(["a"] * 7),
        "picture": pa.array([image["bytes"].as_py() for image in table["image"]], pa.binary()),
        "kind": table["label"].cast(pa.int32()),
    }
    # A dictionary and small pages of the second version, which readers skip differently.
    pq.write_table(pa.table(flat), OUT / "flat.parquet", use_dictionary=True, data_page_size=300,
                   data_page_version="2.0", write_batch_size=1, compression="snappy")
    return rows


def cifar(path):
    """First labels and digests of the encoded images of a few rows of CIFAR-10."""
    table = pq.read_table(path)
    rows = [0, 1, 2, 1999, 2000, 31234, 49999]
    sha = lambda row: hashlib.sha256(table["img"][row]["bytes"].as_py()).hexdigest()
    decoded = lambda row: np.asarray(Image.open(io.BytesIO(table["img"][row]["bytes"].as_py())))
    return {
        "rows": rows,
        "labels": table["label"].to_pylist()[:20],
        "sha256": [sha(row) for row in rows],
        "pixels": [decoded(row).flatten().tolist() for row in rows[:1]],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar", help="also write what CIFAR-10's training file holds")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    images.write(rng, OUT)
    (OUT / "shards.json").write_text(json.dumps(parquet_files(rng)) + "\n")
    if arguments.cifar:
        (OUT / "cifar.json").write_text(json.dumps(cifar(arguments.cifar)) + "\n")


if __name__ == "__main__":
    main()
