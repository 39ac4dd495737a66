"""Quality without labels as numpy computes it: writes `tests/golden/quality.safetensors`.

RankMe (arXiv 2210.02885, equation 1) by singular values, alignment and uniformity (arXiv 2005.10242, the code in its
appendix, with `pdist` written out), and retrieval, all in f64.
"""

import argparse
from pathlib import Path

import numpy
from safetensors.numpy import save_file


def rank_me(rows):
    values = numpy.linalg.svd(rows, compute_uv=False)
    p = values / values.sum() + 1e-7
    return numpy.exp(-(p * numpy.log(p)).sum())


def unit(rows):
    return rows / numpy.linalg.norm(rows, axis=1, keepdims=True)


def quality(first, second, online, target):
    x, y = unit(first), unit(second)
    i, j = numpy.triu_indices(len(x), 1)
    return [
        rank_me(first),
        rank_me(online),
        (numpy.linalg.norm(x - y, axis=1) ** 2).mean(),
        numpy.log(numpy.exp(-2 * (numpy.linalg.norm(x[i] - x[j], axis=1) ** 2)).mean()),
        (numpy.argmax(x @ y.T, axis=1) == numpy.arange(len(x))).mean(),
        (x[i] * x[j]).sum(1).mean(),
        (numpy.linalg.norm(unit(online) - unit(target), axis=1) ** 2).mean(),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--out", default="tests/golden/quality.safetensors")
    args = parser.parse_args()
    rng = numpy.random.default_rng(args.seed)
    tensors = {"seed": numpy.array(args.seed), "fp32": numpy.array(0)}
    # More images than features, fewer, and features that lie close to a plane.
    for name, images, features, rank in [("tall", 60, 24, 24), ("wide", 20, 40, 40), ("flat", 50, 32, 2)]:
        content = rng.normal(size=(images, rank)) @ rng.normal(size=(rank, features))
        noise = 4.0 if rank > 2 else 1e-3
        views = [content + noise * rng.normal(size=content.shape) for _ in range(2)]
        first, second = [numpy.maximum(view + 0.5, 0.0).astype(numpy.float32) for view in views]
        projector = rng.normal(size=(features, 12)) / features ** 0.5
        online = (views[0] @ projector).astype(numpy.float32)
        target = (online + 0.3 * rng.normal(size=online.shape)).astype(numpy.float32)
        given = [first, second, online, target]
        for key, value in zip(["first", "second", "online", "target"], given):
            tensors[f"{name}.{key}"] = value
        tensors[f"{name}.expected"] = numpy.array(quality(*[value.astype(numpy.float64) for value in given]))
    out = Path(args.out)
    save_file(tensors, out / "quality.safetensors" if out.is_dir() else out)


if __name__ == "__main__":
    main()
