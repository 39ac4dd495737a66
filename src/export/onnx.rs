//! An encoder as an ONNX model: libtorch has no ONNX exporter, and encoders need few operators, so the graph is written
//! from the description of the layers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use prost::Message;
use tch::{Kind, Tensor};

use super::onnx_proto::{
    Attribute, Entry, FLOAT, Graph, Length, Model, Node, OPSET, OperatorSet, TensorData, float_value,
};
use super::{Contents, ExportOptions, Exporter, ImageSize, Reader, metadata, onnx_run, shapes_in_python};
use crate::eval::Encoder;
use crate::model::{BATCH_NORM_EPS, Layer, Op};

/// Of the file, that which came with opset 17.
const IR_VERSION: i64 = 8;
/// Protobuf messages end at 2 GiB.
const MAX_BYTES: u64 = i32::MAX as u64;

/// Name of the input.
pub const INPUT: &str = "images";
/// Name of the output.
pub const OUTPUT: &str = "features";

pub(super) struct Onnx;

impl Exporter for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn help(&self) -> &'static str {
        "A graph for onnxruntime and others"
    }

    fn describe(&self) -> String {
        format!("onnx opset {OPSET}, batch size free")
    }

    fn check_options(&self, _: &ExportOptions) -> Result<()> {
        Ok(())
    }

    fn check_size(&self, parameters: i64) -> Result<()> {
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

    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Contents> {
        let _no_grad = tch::no_grad_guard();
        let (size, normalizes) = (self.image_size(encoder, options), self.normalizes(options));
        let mut builder = Builder { fold: options.fold_batchnorm, ..Builder::default() };
        builder.encoder(encoder, normalizes)?;
        let free = |name: &str| Length::Free(name.into());
        let [height, width] = match size {
            ImageSize::Fixed(size) => [Length::Fixed(size), Length::Fixed(size)],
            ImageSize::Dynamic => [free("height"), free("width")],
        };
        let graph = Graph {
            node: builder.nodes,
            name: "encoder".into(),
            initializer: builder.tensors,
            input: vec![float_value(INPUT, vec![free("batch"), Length::Fixed(encoder.config.channels), height, width])],
            output: vec![float_value(OUTPUT, vec![free("batch"), Length::Fixed(encoder.net.feature_dim)])],
        };
        let metadata = metadata(encoder, size, normalizes).into_iter();
        let model = Model {
            ir_version: IR_VERSION,
            producer_name: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
            metadata_props: metadata.map(|(key, value)| Entry { key, value }).collect(),
        };
        Ok(Contents::File(model.encode_to_vec()))
    }

    fn open(&self, _: &Encoder, path: &Path) -> Result<Reader> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Box::new(move |images| onnx_run::run(&bytes, images)))
    }

    fn load_in_python(&self, encoder: &Encoder, options: &ExportOptions, file: &str) -> String {
        format!(
            "import onnxruntime\n\
             session = onnxruntime.InferenceSession(\"{file}\")\n\
             features, = session.run(None, {{\"{INPUT}\": images}})  {}",
            shapes_in_python(encoder, self.image_size(encoder, options), self.normalizes(options))
        )
    }
}

/// Nodes in the order of execution; a value has the name of the node that computes it.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    tensors: Vec<TensorData>,
    fold: bool,
}

impl Builder {
    fn encoder(&mut self, encoder: &Encoder, normalize: bool) -> Result<()> {
        let mut x = INPUT.to_string();
        if normalize {
            for (op, name, values) in [("Sub", "mean", &encoder.augment.mean), ("Div", "std", &encoder.augment.std)] {
                let values = Tensor::from_slice(values.values()).reshape([1, -1, 1, 1]);
                let constant = self.tensor(format!("input.{name}"), &values)?;
                x = self.node(op, &format!("normalize.{name}"), vec![x, constant], vec![]);
            }
        }
        let tensors = encoder.params.parameters.iter().chain(&encoder.params.buffers);
        let tensors: Tensors = tensors.map(|named| (named.name.as_str(), &named.tensor)).collect();
        let layers = &encoder.net.layers;
        let mut values = vec![x];
        for (i, layer) in layers.iter().enumerate() {
            let inputs: Vec<String> = layer.inputs.iter().map(|&value| values[value].clone()).collect();
            let folds = |i: usize| self.fold && follows_convolution(layers, i);
            values.push(match folds(i) {
                true => inputs[0].clone(),
                false => self.layer(layer, inputs, &tensors, layers.get(i + 1).filter(|_| folds(i + 1)))?,
            });
        }
        Ok(())
    }

    /// The nodes of a layer; `folded` is the BatchNorm that is folded into a convolution.
    fn layer(&mut self, layer: &Layer, x: Vec<String>, tensors: &Tensors, folded: Option<&Layer>) -> Result<String> {
        let name = &layer.name;
        Ok(match layer.op {
            Op::Conv { kernel, stride, padding, groups, .. } => {
                let weights = match folded {
                    Some(norm) => fold(tensors, name, &norm.name)?,
                    None => vec![("weight", tensor(tensors, name, "weight")?.shallow_clone())],
                };
                let mut inputs = x;
                for (part, values) in weights {
                    inputs.push(self.tensor(format!("{name}.{part}"), &values)?);
                }
                let mut attributes = vec![
                    Attribute::ints("kernel_shape", &[kernel; 2]),
                    Attribute::ints("strides", &[stride; 2]),
                    Attribute::ints("pads", &[padding; 4]),
                ];
                if groups != 1 {
                    attributes.push(Attribute::int("group", groups));
                }
                self.node("Conv", name, inputs, attributes)
            }
            Op::BatchNorm { .. } => {
                let mut inputs = x;
                for part in ["weight", "bias", "running_mean", "running_var"] {
                    inputs.push(self.tensor(format!("{name}.{part}"), tensor(tensors, name, part)?)?);
                }
                let epsilon = Attribute::float("epsilon", BATCH_NORM_EPS as f32);
                self.node("BatchNormalization", name, inputs, vec![epsilon])
            }
            Op::Relu => self.node("Relu", name, x, vec![]),
            Op::MaxPool { kernel, stride, padding } => {
                let window = [("kernel_shape", &[kernel; 2][..]), ("strides", &[stride; 2]), ("pads", &[padding; 4])];
                self.node("MaxPool", name, x, window.map(|(name, values)| Attribute::ints(name, values)).to_vec())
            }
            Op::Add => self.node("Add", name, x, vec![]),
            Op::GlobalAvgPool => {
                let pooled = self.node("GlobalAveragePool", name, x, vec![]);
                self.node("Flatten", OUTPUT, vec![pooled], vec![Attribute::int("axis", 1)])
            }
        })
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
}

/// Whether layer `i` is the BatchNorm of the convolution before it.
fn follows_convolution(layers: &[Layer], i: usize) -> bool {
    let [.., conv, norm] = &layers[..layers.len().min(i + 1)] else { return false };
    matches!((conv.op, norm.op), (Op::Conv { .. }, Op::BatchNorm { .. })) && norm.inputs == [i]
}

/// An encoder's tensors by name.
type Tensors<'a> = HashMap<&'a str, &'a Tensor>;

fn tensor<'a>(tensors: &Tensors<'a>, layer: &str, part: &str) -> Result<&'a Tensor> {
    let name = format!("{layer}.{part}");
    tensors.get(name.as_str()).copied().with_context(|| format!("found no {name}"))
}

/// Weight and bias of a convolution with its BatchNorm folded in.
fn fold(tensors: &Tensors, conv: &str, norm: &str) -> Result<Vec<(&'static str, Tensor)>> {
    let f64s = |layer: &str, part: &str| tensor(tensors, layer, part).map(|tensor| tensor.to_kind(Kind::Double));
    let scale = f64s(norm, "weight")? / (f64s(norm, "running_var")? + BATCH_NORM_EPS).sqrt();
    let bias = f64s(norm, "bias")? - f64s(norm, "running_mean")? * &scale;
    Ok(vec![("weight", f64s(conv, "weight")? * scale.reshape([-1, 1, 1, 1])), ("bias", bias)])
}
