#!/usr/bin/env python3
"""Writes tests/fixtures/data/parquet: files as pyarrow can write them, all with the same seven
images, and the pixels of these. Seeded; needs requirements.txt.

    python scripts/reference/parquet.py
"""

import io
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from images import encode

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "data" / "parquet"


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    pixels = [rng.integers(0, 256, (5, 4, 3), dtype=np.uint8) for _ in range(7)]
    encoded = [encode(Image.fromarray(each), "PNG") for each in pixels]
    rows = [np.asarray(Image.open(io.BytesIO(each))).flatten().tolist() for each in encoded]
    (OUT / "pixels.json").write_text(json.dumps(rows) + "\n")
    plain = pa.array(encoded, pa.binary())
    group = pa.array([{"bytes": each, "path": "x"} for each in encoded],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    label = pa.array(range(7), pa.int64())

    def write(name, columns, **options):
        pq.write_table(pa.table(columns), OUT / f"{name}.parquet", **options)

    for codec in ("none", "snappy", "zstd", "gzip", "brotli", "lz4"):
        write(codec, {"image": group, "label": label}, compression=codec)
    write("version1", {"image": plain}, data_page_version="1.0", data_page_size=100, write_batch_size=1)
    write("version2", {"image": plain}, data_page_version="2.0", data_page_size=100, write_batch_size=1)
    write("plain_pages", {"image": plain}, use_dictionary=False)
    for encoding in ("DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"):
        write(encoding.lower(), {"image": plain}, use_dictionary=False, column_encoding={"image": encoding})
    write("page_index", {"image": plain}, write_page_index=True, row_group_size=3)
    write("large_binary", {"image": plain.cast(pa.large_binary()), "label": label.cast(pa.int8())})
    write("binary_view", {"image": plain.cast(pa.binary_view())})
    nested = pa.StructArray.from_arrays([group, label.cast(pa.int32())], ["picture", "class"])
    write("nested", {"sample": nested, "thumbnail": plain})
    # A batch of no rows becomes an empty row group, also at the end.
    table = pa.table({"image": group, "label": label})
    with pq.ParquetWriter(OUT / "empty_groups.parquet", table.schema) as writer:
        for part in (table[:0], table[:3], table[:0], table[3:], table[:0]):
            writer.write_table(part)
    write("no_rows", {"image": plain[:0]})
    holes = pa.array([None if row in (0, 4) else each for row, each in enumerate(encoded)], pa.binary())
    write("nulls", {"image": holes, "label": pa.array([None, 1, 2, None, 4, 5, 6], pa.int64())})
    write("null_groups", {"image": pa.array([None if row in (0, 4) else {"bytes": each}
                                             for row, each in enumerate(encoded)])})
    write("list", {"image": pa.array([[each] for each in encoded], pa.list_(pa.binary()))})
    write("text", {"image": pa.array(["x"] * 7), "url": pa.array(["y"] * 7)})
    write("many", {"left": plain, "right": plain, "label": pa.array([str(row) for row in range(7)])})


if __name__ == "__main__":
    main()
