"""PyTorch / torchvision reference numbers for the networks, the loss, the optimisers and whole BYOL steps.

    python scripts/reference/model.py --seed 1 [--out tests/golden] [--fp32]

Everything is computed in f64 on the CPU with one thread, from values that fp32 holds exactly, and rounded to fp32
when stored. In fp32 a deep ReLU network is not comparable: one pre-activation within rounding of 0 that falls on the
other side moves gradients by 1e-3 to 1e-2 and training amplifies it. The script prints how far fp32 strays, and that
in f64 a relative change of 1e-14 of the inputs stays far below any tolerance. With --fp32 everything is computed in
fp32 instead: the same kernels on the same machine round alike, so there the tests compare fp32 with fp32.

Nothing large is stored, because both sides can make it:

Fill rule. Element i (flat, row-major) of the tensor called `name` comes from
    u_i = (splitmix64(fnv1a64(name) + seed * 0x9E3779B97F4A7C15 + i) >> 40) / 2^24        (all mod 2^64)
    splitmix64(x): x += 0x9E3779B97F4A7C15; z = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
                   z = (z ^ z >> 27) * 0x94D049BB133111EB; z ^ z >> 31
and is offset + scale * (2 u_i - 1), computed in f64 and rounded once to f32:
    weight with 2 or more axes   0 and sqrt(6 / product of all axes but the first)
    `*.weight` with 1 axis       1 and 0.2    (batch norm)
    `*.bias`                     0 and 0.1
    `*.running_mean`             0 and 0.1
    `*.running_var`              1 and 0.5
    inputs, output gradients     0 and 1
Names are the state-dict keys, so widths and stems of one network share values where shapes agree.

Sample rule. A tensor X of n elements is kept as `X.norm`, its L2 norm, and `X.sample`, its m elements at
floor(j * (n - 1) / max(m - 1, 1)), j < m. A reader takes m from the stored length; m <= n always. (The n - 1 keeps the
stride off powers of two, which would always hit the same input channel.)

Every file holds the seed as an int64 scalar `seed` and in its metadata, and `fp32`, 1 with --fp32.
"""

import argparse
import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from optim import lars_golden, optimizer, schedule_tables, lr_at, tau_at

MASK = (1 << 64) - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15
BLOCKS = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
    200: (Bottleneck, [3, 24, 36, 3]),
}


# ---- the two rules

def fill(name, shape, seed, offset=0.0, scale=1.0):
    """The tensor `name` by the fill rule."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = (start ^ byte) * 0x100000001B3 & MASK
    start = (start + seed * GOLDEN_RATIO) & MASK
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(start) + np.uint64(GOLDEN_RATIO)
    z = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    u = ((z ^ z >> np.uint64(31)) >> np.uint64(40)).astype(np.float64) / 2.0**24
    values = (offset + scale * (2.0 * u - 1.0)).astype(np.float32).reshape(shape)
    return torch.from_numpy(values).to(torch.get_default_dtype())


def fill_state(name, shape, seed):
    """A parameter or running buffer by the fill rule."""
    if name.endswith("running_var"):
        return fill(name, shape, seed, 1.0, 0.5)
    if len(shape) >= 2:
        return fill(name, shape, seed, 0.0, math.sqrt(6.0 / math.prod(shape[1:])))
    if name.endswith(".weight"):
        return fill(name, shape, seed, 1.0, 0.2)
    return fill(name, shape, seed, 0.0, 0.1)


def fill_module(module, seed, prefix=""):
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(fill_state(prefix + name, tuple(tensor.shape), seed))


def put(out, name, tensor, m=64):
    """Adds `name` to `out` by the sample rule."""
    flat = tensor.detach().reshape(-1)
    n = flat.numel()
    m = min(m, n)
    out[name + ".sample"] = flat[torch.arange(m) * (n - 1) // max(m - 1, 1)].clone()
    out[name + ".norm"] = flat.double().norm()


def float_state(module):
    return {k: v for k, v in module.state_dict().items() if v.is_floating_point()}


def with_sensitivity(title, run):
    """The numbers of `run(perturb=0.0)`, in f64 after printing how firm they are."""
    if torch.get_default_dtype() == torch.float32:
        return run()
    exact, moved = run(), run(perturb=1e-14)
    torch.set_default_dtype(torch.float32)
    single = run()
    torch.set_default_dtype(torch.float64)

    def worst(other, skip="none"):
        return max(((exact[k] - other[k]).norm() / exact[k].norm()).item()
                   for k in exact if k.endswith(".sample") and not k.endswith(skip))
    print(f"{title}: relative deviation for inputs moved by 1e-14: {worst(moved):.0e}; "
          f"in fp32: {worst(single):.0e} (without gradients: {worst(single, '.grad.sample'):.0e})")
    assert worst(moved) < 1e-7, worst(moved)
    return exact


# ---- encoders

class WideResNet(ResNet):
    """torchvision's ResNet with every channel count, the stem's too, multiplied by `width`; no classifier."""

    def __init__(self, depth, stem="imagenet", width=1.0):
        block, layers = BLOCKS[depth]
        super().__init__(block, [1, 1, 1, 1])
        planes = [round(64 * width * 2**stage) for stage in range(4)]
        self.inplanes = planes[0]
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, planes[0], 3, 1, 1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, planes[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        for stage in range(4):
            layer = self._make_layer(block, planes[stage], layers[stage], stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
        self.fc = nn.Identity()


def check_against_torchvision():
    for depth in [18, 34, 50, 101, 152]:
        theirs = getattr(torchvision.models, f"resnet{depth}")()
        theirs.fc = nn.Identity()
        ours = WideResNet(depth)
        assert [(k, v.shape) for k, v in ours.state_dict().items()] == \
               [(k, v.shape) for k, v in theirs.state_dict().items()], depth
        ours.load_state_dict(theirs.state_dict())
        x = torch.ones(1, 3, 64, 64)
        assert torch.equal(ours.eval()(x), theirs.eval()(x)), depth


def resnet_case(depth, stem, width, size, seed, perturb=0.0):
    return network_case(WideResNet(depth, stem, width), size, seed, perturb)


def network_case(model, size, seed, perturb=0.0, samples=64):
    out = {}
    fill_module(model, seed)
    x = fill("input.view1", (4, 3, size, size), seed)
    x = x * (1.0 + perturb * fill("perturb", x.shape, seed))
    features = model.train()(x)
    put(out, "features_train", features, 512)
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            put(out, name, buffer, samples)
    (features * fill("grad.features", tuple(features.shape), seed)).sum().backward()
    for name, parameter in model.named_parameters():
        put(out, name + ".grad", parameter.grad, samples)
    with torch.no_grad():
        put(out, "features_eval", model.eval()(x), 512)
    return out


def resnets(seed):
    check_against_torchvision()
    out = {}
    for case, args in {
        "resnet18": (18, "imagenet", 1.0, 64),
        "resnet18_cifar": (18, "cifar", 1.0, 32),
        "resnet18_w0.5": (18, "imagenet", 0.5, 64),
        "resnet50": (50, "imagenet", 1.0, 64),
        "resnet50_w2": (50, "imagenet", 2.0, 64),
    }.items():
        numbers = with_sensitivity(case, functools.partial(resnet_case, *args, seed))
        out.update({f"{case}.{k}": v for k, v in numbers.items()})
    rows = []
    for depth in BLOCKS:
        for stem in ["imagenet", "cifar"]:
            for percent in [25, 50, 100, 200, 300, 400]:
                with torch.device("meta"):
                    model = WideResNet(depth, stem, percent / 100)
                count = sum(p.numel() for p in model.parameters())
                rows.append([depth, int(stem == "cifar"), percent, count])
    paper = {18: 11176512, 34: 21284672, 50: 23508032, 101: 42500160, 152: 58143808, 200: 62624832}
    for depth, cifar, percent, count in rows:
        if percent == 100:
            assert count == paper[depth] - 7680 * cifar, (depth, cifar, count)
    out["parameter_counts"] = torch.tensor(rows)
    return out


# ---- relatives: grouped and wide bottlenecks

RELATIVES = {  # depth, groups, width per group, as torchvision builds them
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "wide_resnet50_2": (50, 1, 128),
    "wide_resnet101_2": (101, 1, 128),
}


def relative(name, stem="imagenet", width=1.0):
    """WideResNet's rule for the planes, torchvision's for the inner channels of a block."""
    depth, groups, per_group = RELATIVES[name]
    model = WideResNet(depth, stem, width)
    model.groups, model.base_width = groups, per_group
    model.inplanes = round(64 * width)
    for stage in range(4):
        layer = model._make_layer(Bottleneck, round(64 * width * 2**stage), BLOCKS[depth][1][stage],
                                  stride=1 if stage == 0 else 2)
        setattr(model, f"layer{stage + 1}", layer)
    return model


def relatives(seed):
    out = {}
    for name in RELATIVES:
        theirs = getattr(torchvision.models, name)()
        for key, p in theirs.named_parameters():  # torchvision's initial weights: by fan-out, groups or not
            if key == "layer1.0.conv2.weight":
                std = math.sqrt(2.0 / (p.shape[0] * p.shape[2] * p.shape[3]))
                assert abs(p.std().item() / std - 1) < 6 / math.sqrt(2 * p.numel())
                out[f"{name}.conv_std"] = torch.tensor(std)
        theirs.fc = nn.Identity()
        ours = relative(name)
        ours.load_state_dict(theirs.state_dict())
        x = torch.ones(1, 3, 64, 64)
        assert torch.equal(ours.eval()(x), theirs.eval()(x)), name
        numbers = with_sensitivity(name, lambda perturb=0.0: network_case(relative(name), 64, seed, perturb, 8))
        out.update({f"{name}.{k}": v for k, v in numbers.items()})
    odd = functools.partial(relative, "resnext50_32x4d", "cifar", 0.375)  # 1.5 channels a group: 1
    numbers = with_sensitivity("odd width", lambda perturb=0.0: network_case(odd(), 32, seed, perturb, 8))
    out.update({f"resnext50_32x4d_w0.375.{k}": v for k, v in numbers.items()})
    rows = []
    for at, name in enumerate(RELATIVES):
        for stem in ["imagenet", "cifar"]:
            for percent in [25, 50, 100, 200]:
                with torch.device("meta"):
                    model = relative(name, stem, percent / 100)
                rows.append([at, int(stem == "cifar"), percent, sum(p.numel() for p in model.parameters())])
    out["parameter_counts"] = torch.tensor(rows)
    return out


# ---- trained encoders

def encoder_case(depth, seed, perturb=0.0):
    """torchvision's own network with running statistics, as in a file that someone else made."""
    model = getattr(torchvision.models, f"resnet{depth}")()
    fill_module(model, seed)
    model.fc = nn.Identity()
    x = fill("input.view1", (4, 3, 64, 64), seed)
    x = x * (1.0 + perturb * fill("perturb", x.shape, seed))
    out = {}
    with torch.no_grad():
        put(out, "features_eval", model.eval()(x), 512)
    return out


def update_bn_case(seed, perturb=0.0):
    """torch.optim.swa_utils.update_bn over batches of unequal size, which weigh alike."""
    model = WideResNet(18, "cifar")
    fill_module(model, seed)
    batches = [fill(f"input.batch{i}", (size, 3, 32, 32), seed) for i, size in enumerate([4, 4, 3])]
    batches[0] = batches[0] * (1.0 + perturb * fill("perturb", batches[0].shape, seed))
    torch.optim.swa_utils.update_bn(batches, model.train())
    out = {}
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            put(out, name, buffer)
    with torch.no_grad():
        put(out, "features_eval", model.eval()(fill("input.view1", (4, 3, 32, 32), seed)), 512)
    return out


def encoders(seed):
    out = {}
    for case, run in {
        "resnet18": functools.partial(encoder_case, 18, seed),
        "resnet50": functools.partial(encoder_case, 50, seed),
        "update_bn": functools.partial(update_bn_case, seed),
    }.items():
        out.update({f"{case}.{k}": v for k, v in with_sensitivity(f"encoder {case}", run).items()})
    return out


# ---- heads and loss

def mlp(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, outputs, bias=False))


def cosine_loss(prediction, projection):
    p, t = F.normalize(prediction, dim=1), F.normalize(projection, dim=1)
    return (2 - 2 * (p * t).sum(dim=1)).mean()


def heads_loss(seed):
    out = {}
    for head, (inputs, hidden, outputs) in {"projector": (24, 32, 12), "predictor": (12, 32, 12)}.items():
        module = mlp(inputs, hidden, outputs)
        fill_module(module, seed, head + ".")
        x = fill(f"input.{head}", (16, inputs), seed).requires_grad_()
        y = module.train()(x)
        (y * fill(f"grad.{head}", (16, outputs), seed)).sum().backward()
        out[f"{head}.output"] = y.detach()
        out[f"{head}.input.grad"] = x.grad
        out.update({f"{head}.{name}.grad": p.grad for name, p in module.named_parameters()})
        out.update({f"{head}.{name}": b for name, b in module.named_buffers() if b.is_floating_point()})
        with torch.no_grad():
            out[f"{head}.output_eval"] = module.eval()(x)
    out["z_std"] = F.normalize(out["projector.output"], dim=1).std(dim=0).mean()

    p1, p2, t1, t2 = (fill(f"loss.{name}", (8, 12), seed) for name in ["p1", "p2", "t1", "t2"])
    p1[3] *= 1e-6  # the gradient of a short vector is long: compare it row by row
    t1[5] = 0.0  # contributes exactly 2
    p1.requires_grad_()
    p2.requires_grad_()
    loss = cosine_loss(p1, t2) + cosine_loss(p2, t1)
    loss.backward()
    out.update({"loss.p1": p1.detach(), "loss.p2": p2.detach(), "loss.t1": t1, "loss.t2": t2,
                "loss.value": loss.detach(), "loss.p1.grad": p1.grad, "loss.p2.grad": p2.grad})
    assert abs(cosine_loss(t2, t2).item()) < 1e-6 and abs(cosine_loss(t2, -t2).item() - 4) < 1e-6
    return out


# ---- optimisers

OPTIMIZERS = {  # momentum, weight decay, eta; AdamW: betas 0.9 / 0.999, eps 1e-8
    "sgd": (0.9, 0.05, 0.0),
    "sgd_plain": (0.0, 0.05, 0.0),
    "sgd_nesterov": (0.9, 0.05, 0.0),
    "adamw": (0.0, 0.05, 0.0),
    "lars": (0.9, 0.05, 0.01),
    "lars_clip": (0.9, 0.05, 0.02),
    "sgd_clipped": (0.9, 0.05, 0.0),  # to the mean of the six steps' norms: some are longer
}


def optimizers(seed):
    # "zero" starts with norm 0; the gradient of "still" is 0 in every step.
    shapes = {"conv.weight": (4, 3, 3, 3), "fc.weight": (5, 7), "bn.weight": (6,), "fc.bias": (5,),
              "zero.weight": (3, 4), "still.weight": (2, 5)}
    lrs = [0.0, 0.1, 0.2, 0.15, 0.08, 0.01]
    init = {n: torch.zeros(s) if n == "zero.weight" else fill_state(n, s, seed) for n, s in shapes.items()}
    grads = {n: torch.stack([fill(f"step{k}.{n}", s, seed) for k in range(6)]) for n, s in shapes.items()}
    grads["still.weight"].zero_()
    max_norm = torch.cat([g.flatten(1) for g in grads.values()], 1).norm(dim=1).mean().item()
    out = {"lr": torch.tensor(lrs, dtype=torch.float64)}
    out.update({f"init.{n}": t for n, t in init.items()} | {f"grad.{n}": t for n, t in grads.items()})
    for kind, hyper in OPTIMIZERS.items():
        parameters = {n: t.clone().requires_grad_() for n, t in init.items()}
        step = optimizer(kind, list(parameters.values()), *hyper)
        history, seen = {n: [] for n in shapes}, []
        for k, lr in enumerate(lrs):
            for n, p in parameters.items():
                p.grad = grads[n][k].clone()
            if kind.endswith("_clipped"):
                seen.append(torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_norm))
            step(lr)
            for n, p in parameters.items():
                history[n].append(p.detach().clone())
        out[f"{kind}.hyper"] = torch.tensor(hyper, dtype=torch.float64)
        out.update({f"{kind}.{n}": torch.stack(h) for n, h in history.items()})
        if seen:
            out[f"{kind}.norms"], out[f"{kind}.max_norm.hyper"] = torch.stack(seen), torch.tensor([max_norm])
    return out


# ---- whole steps

TRAJECTORIES = {  # optimiser, peak lr, momentum, weight decay, eta, micro-batches per step
    "lars": ("lars", 0.2, 0.9, 1e-2, 0.02, 1),
    "sgd": ("sgd", 0.05, 0.9, 5e-4, 0.0, 1),
    "lars_accumulate": ("lars", 0.2, 0.9, 1e-2, 0.02, 2),
}
STEPS, WARMUP, BATCH, SIZE, BASE_TAU = 10, 2, 16, 16, 0.9


def trajectory(kind, peak, momentum, weight_decay, eta, micro_batches, seed, perturb=0.0):
    def network():
        return nn.ModuleDict({"encoder": WideResNet(18, "cifar", 0.25), "projector": mlp(128, 64, 32)})

    online, target = network(), network()
    online["predictor"] = mlp(32, 64, 32)
    fill_module(online, seed, "online.")
    target.load_state_dict({k: v for k, v in online.state_dict().items() if not k.startswith("predictor")})
    step = optimizer(kind, list(online.parameters()), momentum, weight_decay, eta)
    scalars = {"loss": [], "lr": [], "tau": []}
    history = {}
    for k in range(STEPS):
        views = [fill(f"step{k}.view{v}", (BATCH, 3, SIZE, SIZE), seed) for v in (1, 2)]
        views = [x * (1.0 + perturb * fill(f"perturb{k}", x.shape, seed)) for x in views]
        lr, tau = lr_at(k, peak, WARMUP, STEPS), tau_at(k, BASE_TAU, STEPS)
        online.zero_grad()
        total = 0.0
        for v1, v2 in zip(*(x.chunk(micro_batches) for x in views)):
            p1, p2 = (online["predictor"](online["projector"](online["encoder"](v))) for v in (v1, v2))
            with torch.no_grad():
                t1, t2 = (target["projector"](target["encoder"](v)) for v in (v1, v2))
            loss = (cosine_loss(p1, t2) + cosine_loss(p2, t1)) / micro_batches
            loss.backward()
            total += loss.item()
        step(lr)
        with torch.no_grad():
            theta = dict(online.named_parameters())
            for name, xi in target.named_parameters():
                xi.add_(theta[name] - xi, alpha=1.0 - tau)
        for key, value in {"loss": total, "lr": lr, "tau": tau}.items():
            scalars[key].append(value)
        now = {}
        for side, net in {"online": online, "target": target}.items():
            for name, tensor in float_state(net).items():
                put(now, f"{side}.{name}", tensor, 16)
        for key, value in now.items():
            history.setdefault(key, []).append(value)
    out = {key: torch.tensor(values, dtype=torch.float64) for key, values in scalars.items()}
    out["hyper"] = torch.tensor([peak, momentum, weight_decay, eta, micro_batches], dtype=torch.float64)
    out.update({key: torch.stack(values) for key, values in history.items()})
    return out


def trajectories(seed):
    out = {}
    for name, args in TRAJECTORIES.items():
        numbers = with_sensitivity(f"trajectory {name}", functools.partial(trajectory, *args, seed))
        print("    loss " + " ".join(f"{x:.3f}" for x in numbers["loss"]))
        out.update({f"{name}.{k}": v for k, v in numbers.items()})
    return out


# ---- initialisation

def init(_seed):
    """Standard deviations and bounds by formula, after a check that PyTorch's own draws obey them."""
    out = {}
    torch.manual_seed(0)
    for name, p in torchvision.models.resnet18().named_parameters():
        if p.dim() == 4:
            std = math.sqrt(2.0 / (p.shape[0] * p.shape[2] * p.shape[3]))
            assert abs(p.std().item() / std - 1) < 6 / math.sqrt(2 * p.numel())
            assert abs(p.mean().item()) < 6 * std / math.sqrt(p.numel())
            out[f"conv_std.{name}"] = torch.tensor(std)
    for inputs in [32, 256, 512, 2048, 4096]:
        linear, bound = nn.Linear(inputs, 256), 1.0 / math.sqrt(inputs)
        for p in (linear.weight, linear.bias):
            assert 0.9 * bound < p.abs().max().item() <= bound * (1 + 1e-6)
        out[f"linear_bound.{inputs}"] = torch.tensor(bound)
    return out


def stored(key, tensor, file):
    """fp32, except for the scalars of a run and whatever follows from a formula alone."""
    double = file in ("schedules", "init") or key.split(".")[-1] in ("lr", "tau", "loss", "hyper")
    return tensor.contiguous() if double or not tensor.is_floating_point() else tensor.float().contiguous()


def main():
    parser = argparse.ArgumentParser(description="reference numbers for the golden tests of model, loss and optimisers")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--fp32", action="store_true", help="compute in fp32: only for tests on this very machine")
    parser.add_argument("--only", choices=["resnet", "resnext", "encoder", "heads_loss", "optim", "schedules", "trajectory", "init"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    lars_golden()
    makers = {"resnet": resnets, "resnext": relatives, "encoder": encoders, "heads_loss": heads_loss, "optim": optimizers,
              "schedules": lambda _: schedule_tables(), "trajectory": trajectories, "init": init}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        if args.only in (None, name):
            formulas = name in ("schedules", "init")
            torch.set_default_dtype(torch.float32 if args.fp32 and not formulas else torch.float64)
            tensors = {k: stored(k, v, name) for k, v in make(args.seed).items()}
            tensors |= {"seed": torch.tensor(args.seed), "fp32": torch.tensor(int(args.fp32))}
            path = args.out / f"{name}.safetensors"
            save_file(tensors, path, {"seed": str(args.seed)})  # a second entry would make the byte order random
            print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
