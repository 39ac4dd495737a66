"""PyTorch / torchvision / timm reference numbers for the encoders beyond ResNet with BatchNorm.

    python scripts/reference/families.py --seed 1 [--out tests/golden] [--only norm_ws|convnext|vit]

By the two rules of model.py, in f64: a forward pass and every gradient, ten BYOL steps, for ViT position embeddings of
other sizes; parameter counts. AdamW gets two groups: biases, normalizations, LayerScale, class token and position
embeddings without decay. With --flops the script prints FlopCounterMode's numbers instead (attention as two products).
"""

import argparse
import functools
import math
from pathlib import Path

import timm
import torch
import torch.nn as nn
import torchvision
from safetensors.torch import save_file
from timm.layers import StdConv2d, resample_abs_pos_embed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from model import (WideResNet, cosine_loss, fill, fill_module, float_state, mlp, network_case, put, stored,
                   with_sensitivity)
from optim import lr_at, tau_at

EMBEDDINGS = ("layer_scale", "class_token", "pos_embedding", "cls_token", "pos_embed")


# ---- encoders

def group_ws(module):
    """Every BatchNorm replaced by GroupNorm of 16 groups, every convolution and the linear layer before one by one with
    standardized weights."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm1d)):
            setattr(module, name, nn.GroupNorm(16, child.num_features))
        elif isinstance(child, nn.Conv2d):
            args = child.in_channels, child.out_channels, child.kernel_size[0], child.stride, child.padding
            setattr(module, name, StdConv2d(*args, bias=False, eps=1e-6))
        else:
            group_ws(child)
    return module


class StdLinear(nn.Linear):
    def forward(self, x):
        weight = torch.nn.functional.batch_norm(self.weight[None], None, None, training=True, momentum=0.0, eps=1e-6)
        return torch.nn.functional.linear(x, weight[0], self.bias)


def mlp_ws(inputs, hidden, outputs):
    return nn.Sequential(StdLinear(inputs, hidden), nn.GroupNorm(16, hidden), nn.ReLU(),
                         nn.Linear(hidden, outputs, bias=False))


class Normalized(ConvNeXt):
    """torchvision's ConvNeXt up to its classifier's LayerNorm."""

    def __init__(self, base, blocks, patch=4, drop_path=0.0):
        sizes = [base << stage for stage in range(4)]
        settings = [CNBlockConfig(c, n, d) for c, n, d in zip(sizes, sizes[1:] + [None], blocks)]
        super().__init__(settings, stochastic_depth_prob=drop_path)
        if patch != 4:
            self.features[0][0] = nn.Conv2d(3, base, patch, patch)
        self.classifier = self.classifier[:1]

    def forward(self, x):
        return super().forward(x).flatten(1)


def vit_base(width, size, patch):
    """torchvision's."""
    hidden = round(768 * width)
    model = torchvision.models.VisionTransformer(size, patch, 12, 12, hidden, 4 * hidden)
    model.heads = nn.Identity()
    return model


def vit(name, width, size, patch, **more):
    """timm's."""
    base = timm.create_model(f"{name}_patch16_224", num_classes=0)
    heads = base.blocks[0].attn.num_heads
    return timm.create_model(f"{name}_patch16_224", num_classes=0, img_size=size, patch_size=patch,
                             embed_dim=round(base.embed_dim * width), num_heads=heads, **more)


def pooled_before_norm(model):
    """model.pool: mean: the mean of the patches after the last LayerNorm."""
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.vit = model

        def forward(self, x):
            return self.vit.forward_features(x)[:, 1:].mean(1)
    return Mean()


# ---- ten steps

def decays(name, parameter):
    return parameter.dim() > 1 and name.split(".")[-1] not in EMBEDDINGS


STEPS, WARMUP, BATCH, SIZE, BASE_TAU, PEAK, DECAY = 10, 2, 16, 16, 0.9, 2e-3, 0.05


def trajectory(encoder, features, head, frozen, seed, perturb=0.0):
    def network():
        return nn.ModuleDict({"encoder": encoder(), "projector": head(features, 64, 32)})

    online, target = network(), network()
    online["predictor"] = head(32, 64, 32)
    fill_module(online, seed, "online.")
    target.load_state_dict({k: v for k, v in online.state_dict().items() if not k.startswith("predictor")})
    named = [(n, p) for n, p in online.named_parameters() if not (frozen and frozen in n)]
    for n, p in online.named_parameters():
        p.requires_grad_(not (frozen and frozen in n))
    groups = [{"params": [p for n, p in named if decays(n, p)], "weight_decay": DECAY},
              {"params": [p for n, p in named if not decays(n, p)], "weight_decay": 0.0}]
    step = torch.optim.AdamW(groups, lr=PEAK)
    losses, history = [], {}
    for k in range(STEPS):
        views = [fill(f"step{k}.view{v}", (BATCH, 3, SIZE, SIZE), seed) for v in (1, 2)]
        views = [x * (1.0 + perturb * fill(f"perturb{k}", x.shape, seed)) for x in views]
        for group in step.param_groups:
            group["lr"] = lr_at(k, PEAK, WARMUP, STEPS)
        step.zero_grad()
        p1, p2 = (online["predictor"](online["projector"](online["encoder"](v))) for v in views)
        with torch.no_grad():
            t1, t2 = (target["projector"](target["encoder"](v)) for v in views)
        loss = cosine_loss(p1, t2) + cosine_loss(p2, t1)
        loss.backward()
        step.step()
        with torch.no_grad():
            theta, tau = dict(online.named_parameters()), tau_at(k, BASE_TAU, STEPS)
            for name, xi in target.named_parameters():
                xi.add_(theta[name] - xi, alpha=1.0 - tau)
        losses.append(loss.item())
        now = {}
        for side, net in {"online": online, "target": target}.items():
            for name, tensor in float_state(net).items():
                put(now, f"{side}.{name}", tensor, 2)
        for key, value in now.items():
            history.setdefault(key, []).append(value)
    out = {"loss": torch.tensor(losses, dtype=torch.float64)}
    out.update({key: torch.stack(values) for key, values in history.items()})
    return out


# ---- files

def cases(out, runs):
    for case, run in runs.items():
        out.update({f"{case}.{k}": v for k, v in with_sensitivity(case, run).items()})
    return out


def forward(make, size, seed, perturb=0.0):
    return network_case(make(), size, seed, perturb, 8)


def norm_ws(seed):
    cifar = lambda: group_ws(WideResNet(18, "cifar", 0.25))
    runs = {
        "resnet18": functools.partial(forward, cifar, 32, seed),
        "resnet50": functools.partial(forward, lambda: group_ws(WideResNet(50, "imagenet", 0.25)), 64, seed),
        "trajectory": functools.partial(trajectory, cifar, 128, mlp_ws, None, seed),
    }
    return cases({}, runs)


def convnext(seed):
    theirs = torchvision.models.convnext_tiny()
    ours = Normalized(96, [3, 3, 9, 3])
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier.2")})
    small = lambda: Normalized(24, [3, 3, 9, 3], 2)
    runs = {
        "tiny": functools.partial(forward, lambda: Normalized(96, [3, 3, 9, 3]), 64, seed),
        "small_w0.25": functools.partial(forward, lambda: Normalized(24, [3, 3, 27, 3], 2), 32, seed),
        "trajectory": functools.partial(trajectory, small, 192, mlp, None, seed),
    }
    out = cases({}, runs)
    with torch.device("meta"):
        nets = [Normalized(96, [3, 3, 9, 3]), Normalized(96, [3, 3, 27, 3]), Normalized(128, [3, 3, 27, 3])]
    out["parameter_counts"] = torch.tensor([sum(p.numel() for p in net.parameters()) for net in nets])
    return out


def other_size(seed, perturb=0.0):
    """Features of images of another size than that of the position embeddings."""
    model = vit("vit_tiny", 0.25, 32, 8, dynamic_img_size=True)
    fill_module(model, seed)
    x = fill("input.view1", (4, 3, 48, 40), seed)
    out = {}
    with torch.no_grad():
        put(out, "features_eval", model.eval()(x * (1.0 + perturb * fill("perturb", x.shape, seed))), 512)
    return out


def positions(seed):
    embeddings = fill("input.positions", (1, 1 + 14 * 14, 48), seed).float()
    out = {}
    for height, width in [(6, 6), (24, 24), (7, 9), (14, 14)]:
        put(out, f"positions.{height}x{width}", resample_abs_pos_embed(embeddings, [height, width]), 512)
    return out


def vits(seed):
    small = lambda: vit("vit_tiny", 0.25, SIZE, 4)
    runs = {
        "base_w0.25": functools.partial(forward, lambda: vit_base(0.25, 64, 16), 64, seed),
        "tiny": functools.partial(forward, lambda: vit("vit_tiny", 1.0, 32, 8), 32, seed),
        "trajectory": functools.partial(trajectory, small, 48, mlp, "patch_embed", seed),
        "other_size": functools.partial(other_size, seed),
    }
    out = cases({}, runs)
    with torch.no_grad():
        model = small()
        fill_module(model, seed)
        put(out, "mean.features_eval", pooled_before_norm(model).eval()(fill("input.view1", (4, 3, 16, 16), seed)), 512)
    out.update(positions(seed))
    with torch.device("meta"):
        nets = [vit("vit_tiny", 1, 224, 16), vit("vit_small", 1, 224, 16), vit_base(1, 224, 16), vit_base(1, 32, 8)]
    out["parameter_counts"] = torch.tensor([sum(p.numel() for p in net.parameters()) for net in nets])
    return out


def flops():
    for name, make, size in [
        ("convnext_tiny", lambda: Normalized(96, [3, 3, 9, 3]), 224),
        ("convnext_small", lambda: Normalized(96, [3, 3, 27, 3]), 224),
        ("convnext_base", lambda: Normalized(128, [3, 3, 27, 3]), 224),
        ("convnext_tiny, patches of 2", lambda: Normalized(96, [3, 3, 9, 3], 2), 32),
        ("vit_tiny", lambda: vit("vit_tiny", 1, 224, 16), 224),
        ("vit_small", lambda: vit("vit_small", 1, 224, 16), 224),
        ("vit_base", lambda: vit_base(1, 224, 16), 224),
        ("vit_base, patches of 8", lambda: vit_base(1, 32, 8), 32),
    ]:
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH):
            model, x = make().train(), torch.empty(1, 3, size, size)
            with FlopCounterMode(display=False) as one:
                y = model(x)
            with FlopCounterMode(display=False) as both:
                model(x).sum().backward()
        print(f"{name}, {size} px: forward {one.get_total_flops()}, with backward {both.get_total_flops()}")


def main():
    parser = argparse.ArgumentParser(description="reference numbers for GroupNorm with weight standardization, ConvNeXt, ViT")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("tests/golden"))
    parser.add_argument("--only", choices=["norm_ws", "convnext", "vit"])
    parser.add_argument("--flops", action="store_true")
    args = parser.parse_args()
    if args.flops:
        return flops()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name, make in {"norm_ws": norm_ws, "convnext": convnext, "vit": vits}.items():
        if args.only in (None, name):
            tensors = {k: stored(k, v, name) for k, v in make(args.seed).items()}
            tensors |= {"seed": torch.tensor(args.seed), "fp32": torch.tensor(0)}
            path = args.out / f"{name}.safetensors"
            save_file(tensors, path, {"seed": str(args.seed)})
            print(f"{path}: {len(tensors)} tensors, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
