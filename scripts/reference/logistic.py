"""Multinomial logistic regression as scikit-learn fits it: writes `tests/golden/logistic.safetensors`.

`sklearn.linear_model.LogisticRegression(C=1 / penalty)` minimizes, over weights W and unpenalized intercepts b,

    sum over images of cross-entropy(x W + b, class) + penalty / 2 * |W|^2

which is what `linear_eval.penalties` means. Features are as after a ReLU, with one that is always 0, and the classes are
of unequal size, so that `class_weight="balanced"` differs. Small penalties are fitted by Newton-Cholesky, which is exact
where L-BFGS would stop early; both have the same minimum.
"""

import argparse

import numpy
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression

PENALTIES = [1e5, 1e2, 1.0, 1e-2, 1e-4]


def fit(x, y, penalty, weight):
    model = LogisticRegression(C=1 / penalty, class_weight=weight, solver="newton-cholesky", tol=1e-12, max_iter=10000)
    return model.fit(x, y)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="tests/golden/logistic.safetensors")
    arguments = parser.parse_args()
    rng = numpy.random.default_rng(arguments.seed)
    y = rng.choice(5, 700, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    x = rng.normal(size=(5, 16))[y] * 0.8 + rng.normal(size=(700, 16)) * 1.2
    x = (numpy.maximum(x, 0) * numpy.linspace(0.2, 3, 16)).astype(numpy.float32)
    x[:, 7] = 0
    train, test = slice(0, 400), slice(400, 700)
    tensors = {
        "x": x,
        "y": y.astype(numpy.int64),
        "penalties": numpy.array(PENALTIES),
        "seed": numpy.array(arguments.seed),
        "fp32": numpy.array(0),
    }
    for name, weight in [("none", None), ("balanced", "balanced")]:
        models = [fit(x[train].astype(numpy.float64), y[train], penalty, weight) for penalty in PENALTIES]
        tensors[f"{name}.weight"] = numpy.stack([model.coef_.T for model in models])
        tensors[f"{name}.bias"] = numpy.stack([model.intercept_ for model in models])
        tensors[f"{name}.top1"] = numpy.array([model.score(x[test], y[test]) for model in models])
    save_file(tensors, arguments.out)
