//! The size of networks and their activations, computed without building them, from the description of the encoder's
//! layers and the dimensions of [`super::heads`].

use super::ModelConfig;
use super::graph::{Conv, Op, shapes};

/// Sizes as numbers of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Parameters of the online network.
    pub online: u64,
    /// Parameters of the target network.
    pub target: u64,
    /// Activations that the online network saves for the backward pass, per image.
    pub activations: u64,
    /// The largest output of a layer, per image.
    pub largest: u64,
    /// The largest matrix of patches that a convolution makes of its input, per image, where it is computed as a product
    /// of matrices.
    pub columns: u64,
}

impl ModelConfig {
    /// The sizes for images of this height and width.
    pub fn size(&self, sides: [i64; 2]) -> Size {
        let mut size = Size::default();
        let layers = self.encoder().layers();
        let outputs = shapes(&layers, sides).into_iter().skip(1);
        let mut features = 0;
        for (layer, output) in layers.iter().zip(outputs) {
            size.online += layer.parameters();
            size.activations += output.values()
                * match layer.op {
                    Op::MaxPool { .. } => 5, // the output, and an int64 index for each value
                    // A convolution's output is kept by its BatchNorm, whose own output, changed in place by a sum or
                    // a ReLU, is the next layer's input.
                    Op::Conv(_) | Op::BatchNorm { .. } | Op::GroupNorm { .. } => 1,
                    Op::LayerNorm { .. } | Op::Linear { .. } | Op::Gelu | Op::Attention { .. } => 1,
                    Op::LayerScale { .. } | Op::Positions { .. } => 1,
                    // Changed in place, a view, or not needed again.
                    _ => 0,
                };
            size.largest = size.largest.max(output.values());
            if let Op::Conv(Conv { input, kernel, groups, .. }) = layer.op {
                let patch = (input / groups * kernel * kernel) as u64;
                size.columns = size.columns.max(patch * (output.height * output.width) as u64);
            }
            features = output.channels as u64;
        }
        let (hidden, dim) = (self.projector_hidden as u64, self.projection_dim as u64);
        size.head(features, hidden, dim, self.output_bias);
        size.target = size.online;
        size.head(dim, self.predictor_hidden as u64, dim, self.output_bias);
        size
    }
}

impl Size {
    fn head(&mut self, input: u64, hidden: u64, output: u64, bias: bool) {
        self.online += input * hidden + 3 * hidden + hidden * output + if bias { output } else { 0 };
        self.activations += 2 * hidden + output;
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::{Arch, Network, Stem};
    use super::*;

    #[test]
    fn parameters_are_those_of_the_networks() {
        for (arch, width, stem, output_bias) in [
            (Arch::Resnet18, 0.25, Stem::Cifar, false),
            (Arch::Resnet34, 0.5, Stem::Imagenet, true),
            (Arch::Resnet50, 0.25, Stem::Imagenet, false),
            (Arch::Resnext50_32x4d, 0.25, Stem::Cifar, false),
            (Arch::WideResnet50_2, 0.25, Stem::Imagenet, false),
            (Arch::ConvnextTiny, 0.25, Stem::Imagenet, false),
            (Arch::VitTiny, 0.25, Stem::Imagenet, true),
            (Arch::VitBase, 0.25, Stem::Imagenet, false),
        ] {
            let (projector_hidden, projection_dim, predictor_hidden) = (40, 24, 56);
            let config = ModelConfig {
                arch,
                width,
                stem,
                output_bias,
                projector_hidden,
                projection_dim,
                predictor_hidden,
                ..ModelConfig::default()
            };
            let config = match arch {
                Arch::VitBase => ModelConfig { patch_size: Some(8), image_size: Some([64; 2]), ..config },
                _ => config,
            };
            let online = Network::online(&config, Device::Cpu, 0);
            let target = Network::target_of(&online, &config, Device::Cpu);
            let size = config.size([64, 64]);
            let counts = [online.params.count() as u64, target.params.count() as u64];
            assert_eq!([size.online, size.target], counts, "{arch}");
        }
    }

    /// Two layers of each head, and in the encoder twice every convolution's output; with the first pooling's.
    #[test]
    fn activations_are_what_the_backward_pass_needs() {
        for (arch, width, stem, side, activations, largest, columns) in [
            (Arch::Resnet18, 1.0, Stem::Cifar, 32, 1_245_696, 65_536, 64 * 9 * 1024),
            (Arch::Resnet18, 0.25, Stem::Cifar, 97, 2_906_976, 150_544, 16 * 9 * 97 * 97),
            (Arch::Resnet50, 1.0, Stem::Imagenet, 224, 23_248_384, 802_816, 3 * 49 * 112 * 112),
            (Arch::Resnet50, 0.5, Stem::Imagenet, 97, 2_544_224, 80_000, 3 * 49 * 49 * 49),
        ] {
            let size = ModelConfig { arch, width, stem, ..ModelConfig::default() }.size([side; 2]);
            let found = (size.activations, size.largest, size.columns);
            assert_eq!(found, (activations, largest, columns), "{arch} {width} {stem} {side}");
        }
    }
}
