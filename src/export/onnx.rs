//! An encoder as an ONNX model: libtorch cannot export, and a ResNet needs few operators, so the graph is written
//! from the network's own layers.

use anyhow::{Result, bail};
use prost::Message;
use tch::{Kind, Tensor};

use super::onnx_proto::{Attribute, Entry, FLOAT, Graph, Length, Model, Node, OperatorSet, TensorData, float_value};
use super::{GraphOptions, ImageSize};
use crate::eval::Encoder;
use crate::model::{BATCH_NORM_EPS, BatchNorm, Conv2d};

/// Operator set: BatchNormalization has its present form since 15; runtimes since 2022 have 17.
pub const OPSET: i64 = 17;
/// Of the file, that which came with opset 17.
const IR_VERSION: i64 = 8;
/// Protobuf messages end at 2 GiB.
const MAX_BYTES: u64 = i32::MAX as u64;

/// Name of the input.
pub const INPUT: &str = "images";
/// Name of the output.
pub const OUTPUT: &str = "features";

/// Refuses encoders that do not fit into one ONNX file.
/// # Errors
/// The size found and what to do.
pub(super) fn check_size(parameters: i64) -> Result<()> {
    let bytes = 4 * parameters as u64;
    // The graph around the weights is far below 1 MiB.
    if bytes + (1 << 20) > MAX_BYTES {
        bail!(
            "an ONNX file holds at most 2.1 GB, the weights take {:.1} GB; use --format torchscript or safetensors",
            bytes as f64 / 1e9
        );
    }
    Ok(())
}

/// The file's bytes.
/// # Errors
/// What libtorch says.
pub(super) fn serialize(encoder: &Encoder, options: &GraphOptions, metadata: Vec<(String, String)>) -> Result<Vec<u8>> {
    let _no_grad = tch::no_grad_guard();
    let mut builder = Builder { fold: options.fold_batchnorm, ..Builder::default() };
    builder.encoder(encoder, options.normalize)?;
    let free = |name: &str| Length::Free(name.into());
    let [height, width] = match options.image_size {
        ImageSize::Fixed(size) => [Length::Fixed(size), Length::Fixed(size)],
        ImageSize::Dynamic => [free("height"), free("width")],
    };
    let graph = Graph {
        node: builder.nodes,
        name: "encoder".into(),
        initializer: builder.tensors,
        input: vec![float_value(INPUT, vec![free("batch"), Length::Fixed(3), height, width])],
        output: vec![float_value(OUTPUT, vec![free("batch"), Length::Fixed(encoder.net.feature_dim)])],
    };
    let model = Model {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: metadata.into_iter().map(|(key, value)| Entry { key, value }).collect(),
    };
    Ok(model.encode_to_vec())
}

/// Nodes in the order of execution; a value is called as the node that makes it.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    tensors: Vec<TensorData>,
    fold: bool,
}

impl Builder {
    fn encoder(&mut self, encoder: &Encoder, normalize: bool) -> Result<()> {
        let net = &encoder.net;
        let mut x = INPUT.to_string();
        if normalize {
            for (op, name, values) in [("Sub", "mean", encoder.augment.mean), ("Div", "std", encoder.augment.std)] {
                let values = Tensor::from_slice(&values).reshape([1, 3, 1, 1]);
                let constant = self.tensor(format!("input.{name}"), &values)?;
                x = self.node(op, &format!("normalize.{name}"), vec![x, constant], vec![]);
            }
        }
        x = self.conv_bn("conv1", "bn1", x, &net.conv1, &net.bn1)?;
        x = self.node("Relu", "relu", vec![x], vec![]);
        if net.pool {
            let window = [("kernel_shape", &[3, 3][..]), ("strides", &[2, 2]), ("pads", &[1, 1, 1, 1])];
            x = self.node("MaxPool", "maxpool", vec![x], window.map(|(name, v)| Attribute::ints(name, v)).to_vec());
        }
        let stages = encoder.config.arch.blocks();
        let places = (1..).zip(stages).flat_map(|(stage, count)| (0..count).map(move |j| format!("layer{stage}.{j}")));
        for (place, block) in places.zip(&net.blocks) {
            let mut y = x.clone();
            for (i, (conv, bn)) in (1..).zip(&block.layers) {
                y = self.conv_bn(&format!("{place}.conv{i}"), &format!("{place}.bn{i}"), y, conv, bn)?;
                if i < block.layers.len() {
                    y = self.node("Relu", &format!("{place}.relu{i}"), vec![y], vec![]);
                }
            }
            if let Some((conv, bn)) = &block.downsample {
                let [conv_name, bn_name] = [0, 1].map(|i| format!("{place}.downsample.{i}"));
                x = self.conv_bn(&conv_name, &bn_name, x, conv, bn)?;
            }
            y = self.node("Add", &format!("{place}.add"), vec![y, x], vec![]);
            x = self.node("Relu", &format!("{place}.relu"), vec![y], vec![]);
        }
        x = self.node("GlobalAveragePool", "avgpool", vec![x], vec![]);
        self.node("Flatten", OUTPUT, vec![x], vec![Attribute::int("axis", 1)]);
        Ok(())
    }

    fn node(&mut self, op: &str, name: &str, input: Vec<String>, attribute: Vec<Attribute>) -> String {
        let output = vec![name.to_string()];
        self.nodes.push(Node { input, output, name: name.into(), op_type: op.into(), attribute });
        name.into()
    }

    fn tensor(&mut self, name: String, values: &Tensor) -> Result<String> {
        let values = values.f_to_kind(Kind::Float)?.f_contiguous()?;
        let mut raw_data = vec![0; values.numel() * 4];
        values.f_copy_data_u8(&mut raw_data, values.numel())?;
        self.tensors.push(TensorData { dims: values.size(), data_type: FLOAT, name: name.clone(), raw_data });
        Ok(name)
    }

    /// A convolution and its BatchNorm, the latter as a scale of the kernels and a bias where it is to be folded.
    fn conv_bn(&mut self, name: &str, norm: &str, x: String, conv: &Conv2d, bn: &BatchNorm) -> Result<String> {
        let (mut weight, mut bias) = (conv.weight.shallow_clone(), None);
        if self.fold {
            let f64s = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            let scale = f64s(&bn.weight) / (f64s(&bn.running_var) + BATCH_NORM_EPS).sqrt();
            weight = f64s(&weight) * scale.reshape([-1, 1, 1, 1]);
            bias = Some(f64s(&bn.bias) - f64s(&bn.running_mean) * scale);
        }
        let kernel = conv.weight.size()[2];
        let mut inputs = vec![x, self.tensor(format!("{name}.weight"), &weight)?];
        if let Some(bias) = bias {
            inputs.push(self.tensor(format!("{name}.bias"), &bias)?);
        }
        let attributes = vec![
            Attribute::ints("kernel_shape", &[kernel; 2]),
            Attribute::ints("strides", &[conv.stride; 2]),
            Attribute::ints("pads", &[conv.padding; 4]),
        ];
        let y = self.node("Conv", name, inputs, attributes);
        if self.fold {
            return Ok(y);
        }
        let mut inputs = vec![y];
        for (part, values) in [
            ("weight", &bn.weight),
            ("bias", &bn.bias),
            ("running_mean", &bn.running_mean),
            ("running_var", &bn.running_var),
        ] {
            inputs.push(self.tensor(format!("{norm}.{part}"), values)?);
        }
        Ok(self.node("BatchNormalization", norm, inputs, vec![Attribute::float("epsilon", BATCH_NORM_EPS as f32)]))
    }
}
