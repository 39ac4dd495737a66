//! The description of an encoder's layers, from which everything else is derived: the network itself, its size,
//! its FLOPs, the names and shapes of its tensors, its ONNX graph.

/// One layer. An encoder's layers are in the order of execution, which is that of their parameters too.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// torchvision's name, such as `layer1.0.conv1`; unique also for layers without tensors.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Its inputs: 0 is the images, `i + 1` the output of layer `i`.
    pub inputs: Vec<usize>,
}

/// The operations of an encoder, with the arguments that `torch.nn` gives them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `Conv2d` without bias, square kernel.
    Conv {
        /// Input channels.
        input: i64,
        /// Output channels.
        output: i64,
        /// Height and width of the kernel.
        kernel: i64,
        /// Stride, both ways.
        stride: i64,
        /// Zero padding.
        padding: i64,
        /// Groups, as in `Conv2d`.
        groups: i64,
    },
    /// `BatchNorm2d`.
    BatchNorm {
        /// Channels.
        channels: i64,
        /// Initial weight of every channel.
        weight: f64,
    },
    /// `ReLU`.
    Relu,
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
}

/// A square image or feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub channels: i64,
    /// Height and width.
    pub side: i64,
}

impl Shape {
    /// Values for one image.
    pub fn values(self) -> u64 {
        (self.channels * self.side * self.side) as u64
    }
}

impl Op {
    /// Shape of the output.
    fn output(&self, input: Shape) -> Shape {
        let side = |kernel, stride, padding| (input.side + 2 * padding - kernel) / stride + 1;
        match *self {
            Self::Conv { output, kernel, stride, padding, .. } => {
                Shape { channels: output, side: side(kernel, stride, padding) }
            }
            Self::MaxPool { kernel, stride, padding } => Shape { side: side(kernel, stride, padding), ..input },
            Self::GlobalAvgPool => Shape { side: 1, ..input },
            Self::BatchNorm { .. } | Self::Relu | Self::Add => input,
        }
    }
}

impl Layer {
    /// Names and shapes of its tensors, parameters first; without `num_batches_tracked`.
    pub fn tensors(&self) -> Vec<(String, Vec<i64>)> {
        let named = |part: &str, shape: Vec<i64>| (format!("{}.{part}", self.name), shape);
        match self.op {
            Op::Conv { input, output, kernel, groups, .. } => {
                vec![named("weight", vec![output, input / groups, kernel, kernel])]
            }
            Op::BatchNorm { channels, .. } => {
                ["weight", "bias", "running_mean", "running_var"].map(|part| named(part, vec![channels])).to_vec()
            }
            Op::Relu | Op::MaxPool { .. } | Op::Add | Op::GlobalAvgPool => Vec::new(),
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        match self.op {
            Op::Conv { input, output, kernel, groups, .. } => (output * (input / groups) * kernel * kernel) as u64,
            Op::BatchNorm { channels, .. } => 2 * channels as u64,
            Op::Relu | Op::MaxPool { .. } | Op::Add | Op::GlobalAvgPool => 0,
        }
    }
}

/// Shapes of all values for images of `side` pixels: the images', then each layer's output.
pub fn shapes(layers: &[Layer], side: i64) -> Vec<Shape> {
    let channels = layers.iter().find_map(|layer| match layer.op {
        Op::Conv { input, .. } => Some(input),
        _ => None,
    });
    let mut shapes = vec![Shape { channels: channels.unwrap_or(3), side }];
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
}
