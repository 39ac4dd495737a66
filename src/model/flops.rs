//! FLOPs of a training step: multiplications and additions of convolutions, linear layers and attention, as
//! `torch.utils.flop_counter` counts them. BatchNorm, ReLU and the loss are not counted, as there.

use super::Network;
use super::graph::{Layer, Op, shapes};

impl Network {
    /// FLOPs of one step of BYOL for one image of this height and width, two views: a forward pass of the target's encoder and
    /// projector, and forward and backward passes of the online network (`self`).
    /// A backward pass takes two products for each of the forward pass, except in the first layer: one, or none if its
    /// weights are frozen.
    pub fn step_flops(&self, size: [i64; 2]) -> f64 {
        let (encoder, first) = forward_flops(&self.encoder.layers, size);
        let frozen = matches!(self.encoder.layers[0].op, Op::Conv(conv) if conv.frozen);
        let saved = if frozen { 2.0 * first } else { first };
        let head = |prefix: &str| -> f64 {
            let inside = self.params.parameters.iter().filter(|p| p.name.starts_with(prefix) && p.tensor.dim() == 2);
            inside.map(|p| 2.0 * p.tensor.numel() as f64).sum()
        };
        let (projector, predictor) = (head("projector."), head("predictor."));
        2.0 * (4.0 * (encoder + projector) - saved + 3.0 * predictor)
    }
}

/// FLOPs of a forward pass on one image of this height and width, and those of its first layer.
fn forward_flops(layers: &[Layer], size: [i64; 2]) -> (f64, f64) {
    let outputs = shapes(layers, size).into_iter().skip(1);
    let flops = layers.iter().zip(outputs).map(|(layer, output)| {
        let positions = output.positions() as f64;
        match layer.op {
            // Every weight is used once for each position of the output.
            Op::Conv(_) | Op::Linear { .. } => 2.0 * layer.tensors()[0].1.iter().product::<i64>() as f64 * positions,
            // Two products of all tokens with all: queries with keys, their softmax with values.
            Op::Attention { .. } => 4.0 * positions * positions * output.channels as f64,
            _ => 0.0,
        }
    });
    let flops: Vec<f64> = flops.collect();
    (flops.iter().sum(), flops[0])
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::{Arch, ModelConfig, Stem};
    use super::*;

    /// `FlopCounterMode` of torch 2.11 over torchvision's networks without their classifier: forward, and with
    /// backward.
    #[test]
    fn a_forward_and_a_backward_pass_count_as_in_pytorch() {
        for (arch, stem, size, forward, both) in [
            (Arch::Resnet18, Stem::Imagenet, 224, 3_627_122_688.0, 10_645_340_160.0),
            (Arch::Resnet18, Stem::Cifar, 32, 1_110_835_200.0, 3_328_966_656.0),
            (Arch::Resnet18, Stem::Imagenet, 97, 880_662_912.0, 2_596_811_520.0),
            (Arch::Resnet50, Stem::Imagenet, 224, 8_174_272_512.0, 24_286_789_632.0),
            (Arch::Resnet50, Stem::Cifar, 32, 2_595_618_816.0, 7_783_317_504.0),
            (Arch::Resnet50, Stem::Imagenet, 97, 1_988_942_208.0, 5_921_649_408.0),
        ] {
            let (projector_hidden, projection_dim, predictor_hidden) = (3, 2, 5);
            let heads = ModelConfig { projector_hidden, projection_dim, predictor_hidden, ..ModelConfig::default() };
            let online = Network::online(&ModelConfig { arch, stem, ..heads }, Device::Cpu, 0);
            let (found, first) = forward_flops(&online.encoder.layers, [size; 2]);
            assert_eq!((found, 3.0 * found - first), (forward, both), "{arch} {stem} {size}");
            let projector = 2.0 * 3.0 * (online.encoder.feature_dim as f64 + 2.0);
            let predictor = 2.0 * 5.0 * (2.0 + 2.0);
            assert_eq!(online.step_flops([size; 2]), 2.0 * (both + forward + 4.0 * projector + 3.0 * predictor));
        }
    }

    /// The same for ConvNeXt and ViT; attention's two products are counted, as they are for
    /// `SDPBackend.MATH`. Of a ViT also with backward.
    #[test]
    fn convnext_and_vit_count_as_in_pytorch() {
        for (arch, patch_size, size, forward, both) in [
            (Arch::ConvnextTiny, 4, 224, 8_909_526_528.0, None),
            (Arch::ConvnextSmall, 4, 224, 17_365_888_512.0, None),
            (Arch::ConvnextBase, 4, 224, 30_707_410_944.0, None),
            (Arch::ConvnextTiny, 2, 32, 725_538_816.0, None),
            (Arch::VitTiny, 16, 224, 2_506_982_400.0, Some(7_463_144_448.0)),
            (Arch::VitSmall, 16, 224, 9_196_996_608.0, Some(27_475_384_320.0)),
            (Arch::VitBase, 16, 224, 35_126_120_448.0, Some(105_147_150_336.0)),
            (Arch::VitBase, 8, 32, 2_903_150_592.0, Some(8_704_733_184.0)),
        ] {
            let (patch_size, image_size) = (Some(patch_size), Some([size; 2]));
            let layers = ModelConfig { arch, patch_size, image_size, ..ModelConfig::default() }.encoder().layers();
            let (found, first) = forward_flops(&layers, [size; 2]);
            assert_eq!(found, forward, "{arch} {size}");
            assert_eq!(3.0 * found - first, both.unwrap_or(3.0 * found - first), "{arch} {size}");
        }
    }

    /// The same for torchvision's relatives of ResNet: forward, 224 px and 97 px, and the CIFAR stem at 32 px. (The
    /// counter counts only one group in the backward pass of a grouped convolution, so that is not compared.)
    #[test]
    fn grouped_and_wide_convolutions_count_as_in_pytorch() {
        for (arch, at_224, at_97, cifar) in [
            (Arch::Resnext50_32x4d, 8_456_863_744.0, 2_041_480_576.0, 2_687_893_504.0),
            (Arch::Resnext101_32x8d, 32_823_934_976.0, 8_067_418_496.0, 10_644_488_192.0),
            (Arch::WideResnet50_2, 22_791_946_240.0, 5_571_254_656.0, 7_368_736_768.0),
            (Arch::WideResnet101_2, 45_502_005_248.0, 11_248_769_408.0, 14_784_266_240.0),
        ] {
            let cases = [(Stem::Imagenet, 224, at_224), (Stem::Imagenet, 97, at_97), (Stem::Cifar, 32, cifar)];
            for (stem, size, expected) in cases {
                let layers = ModelConfig { arch, stem, ..ModelConfig::default() }.encoder().layers();
                assert_eq!(forward_flops(&layers, [size; 2]).0, expected, "{arch} {stem} {size}");
            }
        }
    }
}
