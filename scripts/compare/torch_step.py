#!/usr/bin/env python3
"""BYOL training steps in plain PyTorch, as a user would write them; step.py and gpu.py run this as byol's peer.

    PYTHON scripts/compare/torch_step.py --feed lightly --workers 2 --data data/cifar10 --batch 256 --steps 40

One JSON line on stdout: images a second (an image has two views), the time of a step, the largest memory. The weights
are in fp32, the forward passes in bf16 autocast, memory is channels last, SGD and the moving average use PyTorch's
multi-tensor (foreach) operators, the host looks at the loss only at the end.

--feed tensors     normalised views that are on the device already; nothing is loaded
--feed lightly     JPEGs through lightly's BYOLTransform in --workers DataLoader processes
--feed torchvision the same transforms, put together from torchvision
Without --data the JPEGs are drawn (no pyarrow needed); their sizes are about those of CIFAR-10, or of photos.
"""

import argparse
import io
import json
import pathlib
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BLOCKS = {"resnet18": (BasicBlock, [2, 2, 2, 2]), "resnet50": (Bottleneck, [3, 4, 6, 3])}
WARM_UP = 3


class WideResNet(ResNet):
    """torchvision's ResNet with every channel count times `width`, without its classifier."""

    def __init__(self, arch: str, width: float, stem: str):
        self.factor = width
        block, layers = BLOCKS[arch]
        super().__init__(block, layers)
        base = self.conv1.out_channels if width == 1 else round(64 * width)
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = nn.Conv2d(3, base, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        if stem == "cifar":
            self.maxpool = nn.Identity()
        self.features = round(512 * width) * block.expansion
        self.fc = nn.Identity()

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = round(64 * self.factor)
        return super()._make_layer(block, round(planes * self.factor), *args, **kwargs)


def encoder(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """The network without classifier, and the length of its features."""
    if args.arch in BLOCKS:
        resnet = WideResNet(args.arch, args.width, args.stem)
        return resnet, resnet.features
    patch = args.patch or (4 if args.arch.startswith("convnext") else 16)
    if args.arch == "convnext_tiny":
        from torchvision.models.convnext import CNBlockConfig, ConvNeXt

        base = round(96 * args.width)
        sizes = [base << stage for stage in range(4)]
        model = ConvNeXt([CNBlockConfig(c, n, d) for c, n, d in zip(sizes, sizes[1:] + [None], [3, 3, 9, 3])])
        model.features[0][0] = nn.Conv2d(3, base, patch, patch)
        model.classifier = model.classifier[:2]
        return model, sizes[-1]
    import timm

    features = round({"vit_tiny": 192, "vit_small": 384}[args.arch] * args.width)
    sizes = {"img_size": args.size, "patch_size": patch, "embed_dim": features}
    return timm.create_model(f"{args.arch}_patch16_224", num_classes=0, **sizes), features


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs, bias=False)
    )


class Byol(nn.Module):
    """Both networks; the loss of a batch."""

    def __init__(self, args: argparse.Namespace):
        super().__init__()

        def network() -> nn.Sequential:
            net, features = encoder(args)
            return nn.Sequential(net, mlp(features, args.hidden, args.dim))

        self.online, self.target = network(), network()
        self.predictor = mlp(args.dim, args.hidden, args.dim)
        self.target.load_state_dict(self.online.state_dict())
        self.target.requires_grad_(False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        p1, p2 = (self.predictor(self.online(view)) for view in (first, second))
        with torch.no_grad():
            t1, t2 = self.target(first), self.target(second)

        def distance(prediction, projection):
            return 2 - 2 * F.cosine_similarity(prediction.float(), projection.float(), dim=1).mean()

        return distance(p1, t2) + distance(p2, t1)


def transforms(feed: str, size: int):
    """View 1 and view 2, by the paper's table 6, without blur at 32 px; from a Pillow image to a normalised tensor."""
    blur = 0.0 if size < 96 else 1.0
    if feed == "lightly":
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

        return (
            BYOLView1Transform(input_size=size, gaussian_blur=blur, solarization_prob=0.0),
            BYOLView2Transform(input_size=size, gaussian_blur=0.1 * blur, solarization_prob=0.2),
        )
    from torchvision import transforms as T

    def view(blurred: float, solarised: float):
        jitter = T.ColorJitter(0.4, 0.4, 0.2, 0.1)
        steps = [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.RandomApply([jitter], 0.8), T.RandomGrayscale(0.2)]
        if blurred:
            steps.append(T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], blurred))
        if solarised:
            steps.append(T.RandomSolarize(128, solarised))
        return T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)])

    return view(blur, 0.0), view(0.1 * blur, 0.2)


def jpegs(data: pathlib.Path | None, size: int) -> list[bytes]:
    if data:
        import pyarrow.parquet as pq

        files = sorted(data.glob("train*.parquet")) or sorted(data.glob("*.parquet"))
        table = pq.read_table(files[0])
        column = next(name for name in ("img", "image") if name in table.schema.names)
        return [row["bytes"] for row in table.column(column).to_pylist()]
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    width, height, count = (32, 32, 2000) if size < 96 else (500, 375, 200)
    images = []
    for _ in range(count):
        coarse = torch.rand((1, 3, height // 6, width // 6), generator=generator)
        pixels = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255).byte()[0].permute(1, 2, 0)
        file = io.BytesIO()
        Image.fromarray(pixels.contiguous().numpy()).save(file, "JPEG", quality=90)
        images.append(file.getvalue())
    return images


class Views(torch.utils.data.Dataset):
    def __init__(self, args: argparse.Namespace):
        self.images = jpegs(args.data, args.size)
        self.transforms = transforms(args.feed, args.size)
        self.length = args.batch * (args.steps + WARM_UP)

    def __len__(self):
        return self.length

    def __getitem__(self, at):
        from PIL import Image

        image = Image.open(io.BytesIO(self.images[at % len(self.images)])).convert("RGB")
        return tuple(transform(image) for transform in self.transforms)


def batches(args: argparse.Namespace, device: torch.device):
    layout = {"memory_format": torch.channels_last}
    if args.feed == "tensors":
        shape = (args.batch, 3, args.size, args.size)
        views = [torch.randn(shape, device=device).contiguous(**layout) for _ in range(2)]
        for _ in range(args.steps + WARM_UP):
            yield views
        return
    cuda = device.type == "cuda"
    loader = torch.utils.data.DataLoader(
        Views(args), args.batch, shuffle=True, drop_last=True, num_workers=args.workers, pin_memory=cuda
    )
    for views in loader:
        yield [view.to(device, non_blocking=cuda, **layout) for view in views]


def run(args: argparse.Namespace) -> dict:
    device = torch.device(args.device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    byol = Byol(args).to(device, memory_format=torch.channels_last)
    trained = [p for p in byol.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=5e-4, foreach=True)
    online, target = list(byol.online.parameters()), list(byol.target.parameters())
    if args.compile:
        # Each network by itself, as a user would; all of the step as one graph takes minutes to compile.
        for network in (byol.online, byol.target, byol.predictor):
            network.compile(mode=args.compile)

    def step(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = byol(first, second)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(target, online, 0.004)
        return loss.detach()

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times = []
    whole = time.perf_counter()
    for number, views in enumerate(batches(args, device)):
        if number == WARM_UP:
            started = wait()
        before = time.perf_counter()
        loss = step(*views)
        if device.type == "cpu":
            times.append(time.perf_counter() - before)
    ended = wait()
    if not torch.isfinite(loss):
        raise SystemExit(f"error: the loss is {loss.item()}")
    return {
        "images_per_second": args.batch * args.steps / (ended - started),
        "whole_run_images_per_second": args.batch * (args.steps + WARM_UP) / (ended - whole),
        "step_ms": statistics.median(times[WARM_UP:]) * 1e3 if times else (ended - started) * 1e3 / args.steps,
        "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "peak_device_mb": torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else None,
        "reserved_device_mb": torch.cuda.max_memory_reserved() / 1e6 if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feed", choices=["tensors", "lightly", "torchvision"], default="tensors")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader processes")
    parser.add_argument("--data", type=pathlib.Path, help="folder with train*.parquet; without it JPEGs are drawn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arch", choices=[*BLOCKS, "convnext_tiny", "vit_tiny", "vit_small"], default="resnet18")
    parser.add_argument("--patch", type=int, help="side of a patch of ConvNeXt or ViT")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--compile", nargs="?", const="default", help="torch.compile, with this mode")
    parser.add_argument("--threads", type=int, help="of PyTorch's CPU operators")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(json.dumps(run(args)))


if __name__ == "__main__":
    main()
