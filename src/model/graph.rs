//! The description of an encoder's layers, from which everything else is derived: the network itself, its size,
//! its FLOPs, the names and shapes of its tensors, its ONNX graph.

use super::params::Init;

/// One layer. An encoder's layers are in the order of execution, which is that of their parameters too.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// torchvision's or timm's name, such as `layer1.0.conv1`; unique also for layers without tensors.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Its inputs: 0 is the images, `i + 1` the output of layer `i`.
    pub inputs: Vec<usize>,
}

/// `Conv2d`, square kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Height and width of the kernel.
    pub kernel: i64,
    /// Stride, both ways.
    pub stride: i64,
    /// Zero padding.
    pub padding: i64,
    /// Groups, as in `Conv2d`.
    pub groups: i64,
    /// Initial weights.
    pub init: Init,
    /// Initial bias; none without one.
    pub bias: Option<Init>,
    /// Whether its weights are standardized before use, see [`super::layers::standardized`].
    pub standardized: bool,
    /// Whether it keeps its initial weights.
    pub frozen: bool,
}

impl Conv {
    /// Without padding, groups, bias.
    pub fn new(input: i64, output: i64, kernel: i64, stride: i64, init: Init) -> Self {
        let (padding, groups, bias, standardized, frozen) = (0, 1, None, false, false);
        Self { input, output, kernel, stride, padding, groups, init, bias, standardized, frozen }
    }
}

/// The operations of an encoder, with the arguments that `torch.nn` gives them. An image or feature map is
/// `[N, C, H, W]`, or `[N, H, W, C]` between `ChannelsLast` and `ChannelsFirst`; tokens are `[N, T, C]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `Conv2d`.
    Conv(Conv),
    /// `BatchNorm2d`.
    BatchNorm {
        /// Channels.
        channels: i64,
        /// Initial weight of every channel.
        weight: f64,
    },
    /// `GroupNorm` of [`super::GROUPS`] groups.
    GroupNorm {
        /// Channels.
        channels: i64,
        /// Initial weight of every channel.
        weight: f64,
    },
    /// `LayerNorm` over the last axis, eps 1e-6.
    LayerNorm {
        /// Length of the axis.
        channels: i64,
    },
    /// `Linear` on the last axis, with bias.
    Linear {
        /// Length of the input's.
        input: i64,
        /// Length of the output's.
        output: i64,
        /// Initial weights.
        init: Init,
        /// Initial bias.
        bias: Init,
        /// Between the layer's name and its tensors': `.`, but `_` in `MultiheadAttention`'s `in_proj_weight`.
        separator: char,
    },
    /// `ReLU`.
    Relu,
    /// `GELU`, the exact one.
    Gelu,
    /// `MaxPool2d`.
    MaxPool {
        /// Height and width of the window.
        kernel: i64,
        /// Stride, both ways.
        stride: i64,
        /// Padding.
        padding: i64,
    },
    /// The sum of two values: a residual connection.
    Add,
    /// `AdaptiveAvgPool2d(1)`, then `flatten(1)`: `[N, C, H, W]` to `[N, C]`.
    GlobalAvgPool,
    /// `[N, C, H, W]` to `[N, H, W, C]`, and back.
    ChannelsLast,
    /// The reverse.
    ChannelsFirst,
    /// A factor for each channel of `[N, C, H, W]`, 1e-6 at first; a tensor `[C, 1, 1]` under the layer's own name.
    LayerScale {
        /// Channels.
        channels: i64,
    },
    /// Stochastic depth (`torchvision.ops.StochasticDepth`, mode row): 0 for some images of a training batch.
    DropPath {
        /// Which of the network's.
        index: usize,
        /// Probability of 0.
        rate: f64,
    },
    /// `[N, C, H, W]` to `[N, H W, C]`.
    Tokens,
    /// A learned token before the others; a tensor `[1, 1, C]` under the layer's own name.
    ClassToken {
        /// C.
        channels: i64,
        /// Initial values.
        init: Init,
    },
    /// A learned vector added to each token, the class token's first; a tensor `[1, 1 + H W, C]` under the layer's
    /// own name. The second input is the feature map `[N, C, H, W]` that the tokens are of.
    Positions {
        /// C.
        channels: i64,
        /// H and W.
        grid: [i64; 2],
    },
    /// Attention of `[N, T, 3 C]`, queries, keys and values, to `[N, T, C]`.
    Attention {
        /// Heads.
        heads: i64,
        /// Channels of each.
        size: i64,
    },
    /// `[N, T, C]` to the first token `[N, C]`.
    FirstToken,
    /// `[N, T, C]` to the mean of all tokens but the first, `[N, C]`.
    MeanToken,
}

/// An image or feature map. Of tokens the height is their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: i64,
    /// Height.
    pub height: i64,
    /// Width.
    pub width: i64,
}

impl Shape {
    /// Positions of an image.
    pub fn positions(self) -> i64 {
        self.height * self.width
    }

    /// Values for one image.
    pub fn values(self) -> u64 {
        (self.channels * self.positions()) as u64
    }
}

impl Op {
    /// Shape of the output.
    fn output(&self, input: Shape) -> Shape {
        let window = |channels, kernel, stride, padding| {
            let [height, width] = [input.height, input.width].map(|side| (side + 2 * padding - kernel) / stride + 1);
            Shape { channels, height, width }
        };
        match *self {
            Self::Conv(Conv { output, kernel, stride, padding, .. }) => window(output, kernel, stride, padding),
            Self::MaxPool { kernel, stride, padding } => window(input.channels, kernel, stride, padding),
            Self::Linear { output, .. } => Shape { channels: output, ..input },
            Self::GlobalAvgPool | Self::FirstToken | Self::MeanToken => Shape { height: 1, width: 1, ..input },
            Self::Tokens => Shape { height: input.positions(), width: 1, ..input },
            Self::ClassToken { .. } => Shape { height: input.height + 1, ..input },
            Self::Attention { .. } => Shape { channels: input.channels / 3, ..input },
            Self::BatchNorm { .. }
            | Self::GroupNorm { .. }
            | Self::LayerNorm { .. }
            | Self::Relu
            | Self::Gelu
            | Self::Add
            | Self::ChannelsLast
            | Self::ChannelsFirst
            | Self::LayerScale { .. }
            | Self::DropPath { .. }
            | Self::Positions { .. } => input,
        }
    }
}

impl Layer {
    /// Names and shapes of its tensors, parameters first; without `num_batches_tracked`.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let own = |shape: Vec<i64>| vec![(self.name.clone(), shape)];
        let named = |part: &str, shape: Vec<i64>| (self.tensor(part), shape);
        match self.op {
            Op::Conv(Conv { input, output, kernel, groups, bias, .. }) => {
                let weight = named("weight", vec![output, input / groups, kernel, kernel]);
                [weight].into_iter().chain(bias.map(|_| named("bias", vec![output]))).collect()
            }
            Op::BatchNorm { channels, .. } => {
                ["weight", "bias", "running_mean", "running_var"].map(|part| named(part, vec![channels])).to_vec()
            }
            Op::GroupNorm { channels, .. } | Op::LayerNorm { channels } => {
                ["weight", "bias"].map(|part| named(part, vec![channels])).to_vec()
            }
            Op::Linear { input, output, .. } => {
                vec![named("weight", vec![output, input]), named("bias", vec![output])]
            }
            Op::LayerScale { channels } => own(vec![channels, 1, 1]),
            Op::ClassToken { channels, .. } => own(vec![1, 1, channels]),
            Op::Positions { channels, grid: [height, width] } => own(vec![1, 1 + height * width, channels]),
            _ => Vec::new(),
        }
    }

    /// The name of its weight, bias and so on.
    pub fn tensor(&self, part: &str) -> String {
        let separator = if let Op::Linear { separator, .. } = self.op { separator } else { '.' };
        format!("{}{separator}{part}", self.name)
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        let tensors = self.tensors().into_iter().filter(|(name, _)| !name.contains(".running_"));
        tensors.map(|(_, shape)| shape.iter().product::<i64>() as u64).sum()
    }
}

/// Shapes of all values for images of this height and width: the images', then each layer's output.
pub fn shapes(layers: &[Layer], [height, width]: [i64; 2]) -> Vec<Shape> {
    let first = layers.iter().find_map(|layer| if let Op::Conv(conv) = layer.op { Some(conv.input) } else { None });
    let mut shapes = vec![Shape { channels: first.unwrap_or(3), height, width }];
    for layer in layers {
        shapes.push(layer.op.output(shapes[layer.inputs[0]]));
    }
    shapes
}

/// Layers as they are added.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub layers: Vec<Layer>,
}

impl Graph {
    /// Adds a layer and returns the number of its output.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: &[usize]) -> usize {
        self.layers.push(Layer { name: name.into(), op, inputs: inputs.to_vec() });
        self.layers.len()
    }

    /// Adds stochastic depth to a residual branch, unless it never drops.
    pub fn drop_path(&mut self, branch: &str, index: usize, rate: f64, x: usize) -> usize {
        if rate == 0.0 { x } else { self.push(format!("{branch}.drop_path"), Op::DropPath { index, rate }, &[x]) }
    }
}
