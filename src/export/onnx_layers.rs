//! The nodes of each layer of an encoder, see [`super::onnx`].

use std::collections::HashMap;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::onnx_proto::{Attribute, FLOAT, INPUT, INT64, Node, OUTPUT, TensorData};
use crate::eval::Encoder;
use crate::model::{self, BATCH_NORM_EPS, Conv, GROUP_NORM_EPS, GROUPS, LAYER_NORM_EPS, Layer, Op};

/// Nodes in the order of execution; a value has the name of the node that computes it.
#[derive(Default)]
pub(super) struct Builder {
    pub nodes: Vec<Node>,
    pub tensors: Vec<TensorData>,
    /// Whether to fold BatchNorm into convolutions.
    pub fold: bool,
    /// Height and width in patches of a ViT's input.
    pub grid: Option<[i64; 2]>,
}

/// An encoder's tensors by name.
type Tensors<'a> = HashMap<&'a str, &'a Tensor>;

impl Builder {
    /// All nodes of an encoder.
    pub fn encoder(&mut self, encoder: &Encoder, normalize: bool) -> Result<()> {
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
            let name = if i + 1 == layers.len() { OUTPUT } else { &layer.name };
            values.push(match folds(i) {
                true => inputs[0].clone(),
                false => {
                    let folded = layers.get(i + 1).filter(|_| folds(i + 1));
                    self.layer(layer, name, inputs, &tensors, folded)?
                }
            });
        }
        Ok(())
    }

    /// The nodes of a layer, the last of them called `name`; `folded` is the BatchNorm that is folded into a
    /// convolution.
    fn layer(
        &mut self,
        layer: &Layer,
        name: &str,
        x: Vec<String>,
        tensors: &Tensors,
        folded: Option<&Layer>,
    ) -> Result<String> {
        let own = |part: &str| tensor(tensors, &layer.tensor(part));
        Ok(match layer.op {
            Op::Conv(conv) => {
                let mut weights = match folded {
                    Some(norm) => fold(tensors, layer, norm)?,
                    None => vec![("weight", own("weight")?.shallow_clone())],
                };
                if conv.standardized {
                    weights[0].1 = model::standardized(&weights[0].1);
                }
                if conv.bias.is_some() {
                    weights.push(("bias", own("bias")?.shallow_clone()));
                }
                self.conv(name, x, conv, weights)?
            }
            Op::BatchNorm { .. } => {
                let inputs = self.with(x, layer, &["weight", "bias", "running_mean", "running_var"], tensors)?;
                let epsilon = Attribute::float("epsilon", BATCH_NORM_EPS as f32);
                self.node("BatchNormalization", name, inputs, vec![epsilon])
            }
            Op::GroupNorm { .. } => self.group_norm(name, x, own("weight")?, own("bias")?)?,
            Op::LayerNorm { .. } => {
                let inputs = self.with(x, layer, &["weight", "bias"], tensors)?;
                let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", LAYER_NORM_EPS as f32)];
                self.node("LayerNormalization", name, inputs, attributes)
            }
            Op::Linear { .. } => {
                let weight = self.tensor(layer.tensor("weight"), &own("weight")?.tr())?;
                let product = self.node("MatMul", &format!("{name}.product"), [x, vec![weight]].concat(), vec![]);
                let bias = self.tensor(layer.tensor("bias"), own("bias")?)?;
                self.node("Add", name, vec![product, bias], vec![])
            }
            Op::LayerScale { .. } => {
                let scale = self.tensor(format!("{}.values", layer.name), tensor(tensors, &layer.name)?)?;
                self.node("Mul", name, [x, vec![scale]].concat(), vec![])
            }
            Op::ClassToken { channels, .. } => {
                self.class_token(name, &x[0], tensor(tensors, &layer.name)?, channels)?
            }
            Op::Positions { grid, .. } => {
                let wanted = self.grid.unwrap_or(grid);
                let values = model::resample(tensor(tensors, &layer.name)?, grid, wanted);
                let values = self.tensor(format!("{}.values", layer.name), &values)?;
                self.node("Add", name, vec![x[0].clone(), values], vec![])
            }
            _ => self.plain(layer, name, x)?,
        })
    }

    /// `inputs`, and then these tensors of a layer.
    fn with(
        &mut self,
        mut inputs: Vec<String>,
        layer: &Layer,
        parts: &[&str],
        tensors: &Tensors,
    ) -> Result<Vec<String>> {
        for part in parts {
            let name = layer.tensor(part);
            inputs.push(self.tensor(name.clone(), tensor(tensors, &name)?)?);
        }
        Ok(inputs)
    }

    /// The nodes of a layer without weights.
    fn plain(&mut self, layer: &Layer, name: &str, x: Vec<String>) -> Result<String> {
        let part = |part: &str| format!("{name}.{part}");
        Ok(match layer.op {
            Op::Relu => self.node("Relu", name, x, vec![]),
            Op::Gelu => self.gelu(name, &x[0])?,
            Op::MaxPool { kernel, stride, padding } => {
                let window = [("kernel_shape", &[kernel; 2][..]), ("strides", &[stride; 2]), ("pads", &[padding; 4])];
                self.node("MaxPool", name, x, window.map(|(name, values)| Attribute::ints(name, values)).to_vec())
            }
            Op::Add => self.node("Add", name, x, vec![]),
            Op::GlobalAvgPool => {
                let pooled = self.node("GlobalAveragePool", &layer.name, x, vec![]);
                let name = if name == OUTPUT { OUTPUT } else { &part("flatten") };
                self.node("Flatten", name, vec![pooled], vec![Attribute::int("axis", 1)])
            }
            Op::ChannelsLast => self.transpose(name, x, &[0, 2, 3, 1]),
            Op::ChannelsFirst => self.transpose(name, x, &[0, 3, 1, 2]),
            Op::Tokens => {
                let shape = self.ints(part("shape"), &[0, 0, -1]);
                let flat = self.node("Reshape", &part("flat"), [x, vec![shape]].concat(), vec![]);
                self.transpose(name, vec![flat], &[0, 2, 1])
            }
            Op::Attention { heads, size } => self.attention(name, x, heads, size)?,
            Op::FirstToken => self.pick(name, &x[0], 1, 0),
            Op::MeanToken => {
                let bounds = [("starts", 1), ("ends", i64::MAX), ("axes", 1)];
                let bounds = bounds.map(|(name, value)| self.ints(part(name), &[value]));
                let patches = self.node("Slice", &part("patches"), [&x[..], &bounds[..]].concat(), vec![]);
                let attributes = vec![Attribute::ints("axes", &[1]), Attribute::int("keepdims", 0)];
                self.node("ReduceMean", name, vec![patches], attributes)
            }
            // Only in training.
            Op::DropPath { .. } => x[0].clone(),
            op => unreachable!("{op:?} has weights"),
        })
    }

    fn conv(&mut self, name: &str, x: Vec<String>, conv: Conv, weights: Vec<(&str, Tensor)>) -> Result<String> {
        let mut inputs = x;
        for (part, values) in weights {
            inputs.push(self.tensor(format!("{name}.{part}"), &values)?);
        }
        let Conv { kernel, stride, padding, groups, .. } = conv;
        let mut attributes = vec![
            Attribute::ints("kernel_shape", &[kernel; 2]),
            Attribute::ints("strides", &[stride; 2]),
            Attribute::ints("pads", &[padding; 4]),
        ];
        if groups != 1 {
            attributes.push(Attribute::int("group", groups));
        }
        Ok(self.node("Conv", name, inputs, attributes))
    }

    /// Until opset 21 there is no GroupNormalization with a weight for each channel: the groups are normalized as
    /// instances of one channel each.
    fn group_norm(&mut self, name: &str, x: Vec<String>, weight: &Tensor, bias: &Tensor) -> Result<String> {
        let part = |part: &str| format!("{name}.{part}");
        let shape = self.node("Shape", &part("shape"), x.clone(), vec![]);
        let groups = self.ints(part("groups"), &[0, GROUPS, -1]);
        let grouped = self.node("Reshape", &part("grouped"), [x, vec![groups]].concat(), vec![]);
        let ones = self.tensor(part("ones"), &Tensor::ones([GROUPS], (Kind::Float, tch::Device::Cpu)))?;
        let zeros = self.tensor(part("zeros"), &Tensor::zeros([GROUPS], (Kind::Float, tch::Device::Cpu)))?;
        let epsilon = vec![Attribute::float("epsilon", GROUP_NORM_EPS as f32)];
        let normal = self.node("InstanceNormalization", &part("normal"), vec![grouped, ones, zeros], epsilon);
        let normal = self.node("Reshape", &part("channels"), vec![normal, shape], vec![]);
        let weight = self.tensor(part("weight"), &weight.reshape([-1, 1, 1]))?;
        let scaled = self.node("Mul", &part("scaled"), vec![normal, weight], vec![]);
        let bias = self.tensor(part("bias"), &bias.reshape([-1, 1, 1]))?;
        Ok(self.node("Add", name, vec![scaled, bias], vec![]))
    }

    /// `x / 2 (1 + erf(x / sqrt(2)))`; opset 20 is the first to have Gelu.
    fn gelu(&mut self, name: &str, x: &str) -> Result<String> {
        let part = |part: &str| format!("{name}.{part}");
        let constants = [("root", 2f64.sqrt()), ("one", 1.0), ("half", 0.5)];
        let [root, one, half] = constants.map(|(name, value)| (part(name), Tensor::from(value)));
        let [root, one, half] =
            [self.tensor(root.0, &root.1)?, self.tensor(one.0, &one.1)?, self.tensor(half.0, &half.1)?];
        let erf = self.node("Div", &part("scaled"), vec![x.into(), root], vec![]);
        let erf = self.node("Erf", &part("erf"), vec![erf], vec![]);
        let erf = self.node("Add", &part("shifted"), vec![erf, one], vec![]);
        let product = self.node("Mul", &part("product"), vec![x.into(), erf], vec![]);
        Ok(self.node("Mul", name, vec![product, half], vec![]))
    }

    /// The class token, once for each image, before the others.
    fn class_token(&mut self, name: &str, x: &str, token: &Tensor, channels: i64) -> Result<String> {
        let part = |part: &str| format!("{name}.{part}");
        let shape = self.node("Shape", &part("shape"), vec![x.into()], vec![]);
        let first = self.ints(part("first"), &[0]);
        let batch = self.node("Gather", &part("batch"), vec![shape, first], vec![Attribute::int("axis", 0)]);
        let one = self.ints(part("one"), &[1, channels]);
        let shape = self.node("Concat", &part("one_each"), vec![batch, one], vec![Attribute::int("axis", 0)]);
        let token = self.tensor(part("token"), token)?;
        let tokens = self.node("Expand", &part("tokens"), vec![token, shape], vec![]);
        Ok(self.node("Concat", name, vec![tokens, x.into()], vec![Attribute::int("axis", 1)]))
    }

    fn attention(&mut self, name: &str, x: Vec<String>, heads: i64, size: i64) -> Result<String> {
        let part = |part: &str| format!("{name}.{part}");
        let split = self.ints(part("split"), &[0, 0, 3, heads, size]);
        let parts = self.node("Reshape", &part("heads"), [x, vec![split]].concat(), vec![]);
        let parts = self.transpose(&part("parts"), vec![parts], &[2, 0, 3, 1, 4]);
        let [query, key, value] =
            [("query", 0), ("key", 1), ("value", 2)].map(|(name, at)| self.pick(&part(name), &parts, 0, at));
        let key = self.transpose(&part("key.T"), vec![key], &[0, 1, 3, 2]);
        let scores = self.node("MatMul", &part("scores"), vec![query, key], vec![]);
        let scale = self.tensor(part("scale"), &Tensor::from(1.0 / (size as f64).sqrt()))?;
        let scores = self.node("Mul", &part("scaled"), vec![scores, scale], vec![]);
        let softmax = self.node("Softmax", &part("softmax"), vec![scores], vec![Attribute::int("axis", -1)]);
        let mixed = self.node("MatMul", &part("mixed"), vec![softmax, value], vec![]);
        let mixed = self.transpose(&part("tokens"), vec![mixed], &[0, 2, 1, 3]);
        let joined = self.ints(part("joined"), &[0, 0, -1]);
        Ok(self.node("Reshape", name, vec![mixed, joined], vec![]))
    }

    /// One index of an axis, which is removed.
    fn pick(&mut self, name: &str, x: &str, axis: i64, at: i64) -> String {
        let index = self.whole(format!("{name}.index"), vec![], &[at]);
        self.node("Gather", name, vec![x.into(), index], vec![Attribute::int("axis", axis)])
    }

    fn transpose(&mut self, name: &str, x: Vec<String>, order: &[i64]) -> String {
        self.node("Transpose", name, x, vec![Attribute::ints("perm", order)])
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

    /// A list of whole numbers.
    fn ints(&mut self, name: String, values: &[i64]) -> String {
        self.whole(name, vec![values.len() as i64], values)
    }

    fn whole(&mut self, name: String, dims: Vec<i64>, values: &[i64]) -> String {
        let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(TensorData { dims, data_type: INT64, name: name.clone(), raw_data });
        name
    }
}

/// Whether layer `i` is the BatchNorm of the convolution before it.
fn follows_convolution(layers: &[Layer], i: usize) -> bool {
    let [.., conv, norm] = &layers[..layers.len().min(i + 1)] else { return false };
    matches!((conv.op, norm.op), (Op::Conv(_), Op::BatchNorm { .. })) && norm.inputs == [i]
}

fn tensor<'a>(tensors: &Tensors<'a>, name: &str) -> Result<&'a Tensor> {
    tensors.get(name).copied().with_context(|| format!("found no {name}"))
}

/// Weight and bias of a convolution with its BatchNorm folded in.
fn fold(tensors: &Tensors, conv: &Layer, norm: &Layer) -> Result<Vec<(&'static str, Tensor)>> {
    let f64s =
        |layer: &Layer, part: &str| tensor(tensors, &layer.tensor(part)).map(|tensor| tensor.to_kind(Kind::Double));
    let scale = f64s(norm, "weight")? / (f64s(norm, "running_var")? + BATCH_NORM_EPS).sqrt();
    let bias = f64s(norm, "bias")? - f64s(norm, "running_mean")? * &scale;
    Ok(vec![("weight", f64s(conv, "weight")? * scale.reshape([-1, 1, 1, 1])), ("bias", bias)])
}
