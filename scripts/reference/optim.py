"""Update rules and schedules for `model.py`, checked against values known from the papers' releases.

LARS is written out here because PyTorch has none. `lars` is the form of DeepMind's BYOL release, `lars_clip` the
one of solo-learn with `clip_lr`. Tensors with one axis (biases, batch norm) get neither decay nor trust ratio.
"""

import math

import torch


class Lars:
    def __init__(self, parameters, momentum, weight_decay, eta, form):
        self.parameters, self.momentum, self.weight_decay, self.eta, self.form = \
            parameters, momentum, weight_decay, eta, form
        self.buffers = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def __call__(self, lr):
        for w, v in zip(self.parameters, self.buffers):
            v.mul_(self.momentum).add_(w.grad if w.dim() == 1 else self.scaled(w, lr))
            w.sub_(v, alpha=lr)

    def scaled(self, w, lr):
        decayed = w.grad.add(w, alpha=self.weight_decay)
        w_norm, g_norm, u_norm = w.norm(), w.grad.norm(), decayed.norm()
        if self.form == "lars":
            return decayed * (self.eta * w_norm / u_norm) if w_norm > 0 and u_norm > 0 else decayed
        if w_norm == 0 or g_norm == 0:
            return w.grad  # solo-learn then drops the decay too
        ratio = self.eta * w_norm / (g_norm + self.weight_decay * w_norm + 1e-8)
        if self.form == "lars_clip":
            ratio = torch.clamp(ratio / lr, max=1.0)  # ratio / 0 = inf, clamped to 1
        return decayed * ratio


def optimizer(kind, parameters, momentum, weight_decay, eta):
    """A function of the learning rate that applies one update from the `.grad` fields."""
    if kind.startswith("lars"):
        return Lars(parameters, momentum, weight_decay, eta, kind)
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}]
    if kind == "adamw":
        inner = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    else:
        inner = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=kind == "sgd_nesterov")

    def step(lr):
        for group in inner.param_groups:
            group["lr"] = lr
        inner.step()
    return step


def lars_golden():
    """Two steps from w = (3, 4) with g = (1, 0), (0, 1), lr 1 and 0.5, decay 0.1, momentum 0.9."""
    def two_steps(form, eta, w, gradients):
        w = torch.tensor(w)
        step, seen = Lars([w], 0.9, 0.1, eta, form), []
        for lr, g in zip([1.0, 0.5], gradients):
            w.grad = torch.tensor(g)
            step(lr)
            seen.append(w.flatten().tolist())
        return seen

    def check(got, expected):
        assert all(abs(a - b) < 6e-10 for x, y in zip(got, expected) for a, b in zip(x, y)), (got, expected)

    vector = ([[3.0, 4.0]], [[[1.0, 0.0]], [[0.0, 1.0]]])
    check(two_steps("lars", 1e-3, *vector), [(2.995221105, 3.998529571), (2.992547948, 3.995425189)])
    check(two_steps("lars_noclip", 1e-3, *vector), [(2.995666667, 3.998666667), (2.993217633, 3.995734696)])
    check(two_steps("lars_clip", 0.02, *vector), [(2.913333334, 3.973333334), (2.855101196, 3.869089487)])
    check(two_steps("lars_noclip", 0.02, *vector), [(2.913333334, 3.973333334), (2.864717265, 3.915211410)])
    check(two_steps("lars", 1e-3, [0.5], [[0.2], [0.2]]), [(0.3,), (0.11,)])


def lr_at(k, peak, warmup, total, final=0.0):
    """Linear from 0 over `warmup` steps, then a cosine from `peak` to `final * peak` at k = total."""
    if k < warmup:
        return peak * k / warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * (k - warmup) / (total - warmup)))
    return peak * (final + (1.0 - final) * cosine)


def tau_at(k, base, total):
    return 1.0 - (1.0 - base) * (math.cos(math.pi * k / total) + 1.0) / 2.0


def schedule_tables():
    """Tables `lr.<case>` and `tau.<case>` with rows (k, value); their arguments in `<key>.args`."""
    for base, rows in {
        0.996: {0: 0.996, 1: 0.99600099, 10: 0.99609789, 25: 0.99658579, 50: 0.998, 75: 0.99941421,
                90: 0.99990211, 99: 0.99999901, 100: 1.0},
        0.99: {0: 0.99, 1: 0.99000247, 10: 0.99024472, 25: 0.99146447, 50: 0.995, 75: 0.99853553,
               90: 0.99975528, 99: 0.99999753, 100: 1.0},
    }.items():
        for k, expected in rows.items():
            assert abs(tau_at(k, base, 100) - expected) < 6e-9, (base, k)
    for k, expected in {0: 0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1, 11: 0.99969541, 55: 0.5, 99: 0.00030459}.items():
        assert abs(lr_at(k, 1.0, 10, 100) - expected) < 6e-9, k

    def steps(total, *marks):
        stride = max(1, total // 100)
        return sorted({*range(0, total, stride), *(m for m in marks if 0 <= m <= total), total})

    out = {}
    for i, (peak, warmup, total, final) in enumerate([
        (1.0, 10, 100, 0.0), (3.2, 3127, 312784, 0.0), (4.8, 3127, 93835, 0.0), (0.05, 0, 7, 0.0),
        (2.0, 369, 36988, 0.0), (0.2, 2, 10, 0.0), (1.0, 10, 100, 0.001),
    ]):
        ks = steps(total, warmup - 1, warmup, warmup + 1, total - 1)
        out[f"lr.{i}.args"] = torch.tensor([peak, warmup, total, final])
        out[f"lr.{i}"] = torch.tensor([[k, lr_at(k, peak, warmup, total, final)] for k in ks])
    for i, (base, total) in enumerate([(0.996, 100), (0.99, 100), (0.9995, 2502279), (0.9, 10), (0.97, 12511)]):
        out[f"tau.{i}.args"] = torch.tensor([base, total])
        out[f"tau.{i}"] = torch.tensor([[k, tau_at(k, base, total)] for k in steps(total, 1, total - 1)])
    return out
