"""Linear probes and nearest neighbours as PyTorch, scikit-learn and numpy compute them.

Without paths it writes `tests/golden/probe.safetensors`: features of made-up classes, the weights of classifiers that
`torch.optim.SGD` trains one by one, and scikit-learn's accuracy. With paths it judges real features:

    byol extract-features --checkpoint RUN --output train.safetensors
    byol extract-features --checkpoint RUN --output test.safetensors --split eval
    byol linear-eval --checkpoint RUN --json > linear.json
    byol knn-eval --checkpoint RUN --k 1,20,200 --json > knn.json
    python scripts/reference/probe.py --real train.safetensors test.safetensors linear.json knn.json

and fails unless the probes agree within one point and the neighbours exactly.
"""

import argparse
import json

import numpy
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

STEPS, BATCH, RATES = 30, 32, [1.6, 0.4, 0.05]


def sklearn_top1(train_x, train_y, test_x, test_y):
    """Unregularised multinomial regression: what SGD without weight decay heads for."""
    model = LogisticRegression(C=1e6, max_iter=2000).fit(train_x, train_y)
    return float((model.predict(test_x) == test_y).mean())


def knn_top1(train_x, train_y, test_x, test_y, k, temperature):
    """Weighted votes, written out, in f64."""
    def rows(x):
        x = x.astype(numpy.float64)
        return x / numpy.linalg.norm(x, axis=1, keepdims=True)
    bank, classes, correct = rows(train_x), int(train_y.max()) + 1, 0
    for start in range(0, len(test_x), 500):
        cosine = rows(test_x[start:start + 500]) @ bank.T
        near = numpy.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weight = numpy.exp(numpy.take_along_axis(cosine, near, 1) / temperature)
        votes = numpy.zeros((len(cosine), classes))
        for c in range(classes):
            votes[:, c] = (weight * (train_y[near] == c)).sum(1)
        correct += int((votes.argmax(1) == test_y[start:start + 500]).sum())
    return correct / len(test_x)


def real(train, test, linear, knn):
    train, test = load_file(train), load_file(test)
    data = (train["features"], train["labels"], test["features"], test["labels"])
    ours, theirs = json.load(open(linear))["top1"], sklearn_top1(*data)
    print(f"linear probe: byol {100 * ours:.2f} %, scikit-learn {100 * theirs:.2f} %")
    assert abs(ours - theirs) < 0.01
    report = json.load(open(knn))
    for result in report["results"]:
        theirs = knn_top1(*data, result["k"], report["temperature"])
        print(f"k-NN, k = {result['k']}: byol {100 * result['top1']:.2f} %, numpy {100 * theirs:.2f} %")
        assert result["top1"] == theirs


def golden(seed, out):
    import torch
    from safetensors.torch import save_file

    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 16, generator=g)
    y = torch.randint(5, (1500,), generator=g)
    x = (centres[y] + 1.2 * torch.randn(1500, 16, generator=g)).clamp(min=0)  # as after a ReLU
    batches = torch.randint(1000, (STEPS, BATCH), generator=g)
    tensors = {"x": x, "y": y, "batches": batches, "rates": torch.tensor(RATES, dtype=torch.float64)}
    for i, rate in enumerate(RATES):
        model = torch.nn.Linear(16, 5).double()
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for rows in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows].double()), y[rows]).backward()
            optimizer.step()
            schedule.step()
        tensors[f"weight.{i}"] = model.weight.detach().T.contiguous()
        tensors[f"bias.{i}"] = model.bias.detach()
    data = (x[:1000].numpy(), y[:1000].numpy(), x[1000:].numpy(), y[1000:].numpy())
    tensors["sklearn_top1"] = torch.tensor(sklearn_top1(*data), dtype=torch.float64)
    tensors["knn_top1"] = torch.tensor([knn_top1(*data, k, 0.1) for k in (1, 20, 200)], dtype=torch.float64)
    tensors["seed"], tensors["fp32"] = torch.tensor(seed), torch.tensor(0)
    save_file(tensors, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="tests/golden/probe.safetensors")
    parser.add_argument("--real", nargs=4, metavar=("TRAIN", "TEST", "LINEAR", "KNN"))
    arguments = parser.parse_args()
    if arguments.real:
        real(*arguments.real)
    else:
        golden(arguments.seed, arguments.out)
