//! How large networks and their activations will be, without making them: the layers of [`super::resnet`] and
//! [`super::heads`] once more, as numbers.

use super::{ModelConfig, Stem};

/// Counts of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Parameters of the online network.
    pub online: u64,
    /// Parameters of the target network.
    pub target: u64,
    /// What a forward pass of the online network keeps for the backward pass, for one image.
    pub activations: u64,
    /// The largest output of a layer, for one image.
    pub largest: u64,
}

impl ModelConfig {
    /// The sizes for images of `side` pixels.
    pub fn size(&self, side: usize) -> Size {
        let mut size = Size::default();
        let base = (64.0 * self.width).round() as u64;
        let (kernel, stride) = if self.stem == Stem::Imagenet { (7, 2) } else { (3, 1) };
        let mut side = size.convolution(3, base, kernel, stride, side as u64);
        if self.stem == Stem::Imagenet {
            side = side.div_ceil(2);
            size.activations += base * side * side * 5; // max-pooling: the output, and an int64 index for each value
        }
        let (mut channels, bottleneck) = (base, self.arch.bottleneck());
        for (stage, count) in self.arch.blocks().into_iter().enumerate() {
            let inner = base << stage;
            let output = if bottleneck { 4 * inner } else { inner };
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                if stride != 1 || channels != output {
                    size.convolution(channels, output, 1, stride, side);
                }
                if bottleneck {
                    size.convolution(channels, inner, 1, 1, side);
                    side = size.convolution(inner, inner, 3, stride, side);
                    size.convolution(inner, output, 1, 1, side);
                } else {
                    side = size.convolution(channels, inner, 3, stride, side);
                    size.convolution(inner, inner, 3, 1, side);
                }
                channels = output;
            }
        }
        let (hidden, dim) = (self.projector_hidden as u64, self.projection_dim as u64);
        size.head(channels, hidden, dim, self.output_bias);
        size.target = size.online;
        size.head(dim, self.predictor_hidden as u64, dim, self.output_bias);
        size
    }
}

impl Size {
    /// Convolution, BatchNorm, ReLU: BatchNorm keeps its input; the output, changed in place, is the next layer's
    /// input. The value is the side of the output.
    fn convolution(&mut self, input: u64, output: u64, kernel: u64, stride: u64, side: u64) -> u64 {
        let side = (side + 2 * (kernel / 2) - kernel) / stride + 1;
        self.online += input * output * kernel * kernel + 2 * output;
        self.activations += 2 * output * side * side;
        self.largest = self.largest.max(output * side * side);
        side
    }

    fn head(&mut self, input: u64, hidden: u64, output: u64, bias: bool) {
        self.online += input * hidden + 3 * hidden + hidden * output + if bias { output } else { 0 };
        self.activations += 2 * hidden + output;
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::{Arch, Network};
    use super::*;

    #[test]
    fn parameters_are_those_of_the_networks() {
        for (arch, width, stem, output_bias) in [
            (Arch::Resnet18, 0.25, Stem::Cifar, false),
            (Arch::Resnet34, 0.5, Stem::Imagenet, true),
            (Arch::Resnet50, 0.25, Stem::Imagenet, false),
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
            let online = Network::online(&config, Device::Cpu, 0);
            let target = Network::target_of(&online, &config, Device::Cpu);
            let size = config.size(64);
            let counts = [online.params.count() as u64, target.params.count() as u64];
            assert_eq!([size.online, size.target], counts, "{arch:?}");
        }
    }
}
