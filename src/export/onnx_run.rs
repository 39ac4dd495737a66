//! Runs an ONNX file of [`super::onnx`], from its bytes, with libtorch's operators: this verifies the weights, the
//! connections and the attributes in the file. That runtimes accept such files, which does not depend on the weights,
//! is tested by `scripts/exports/check.py` with onnx.checker and onnxruntime.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use tch::{Kind, Tensor};

use super::onnx_proto::{FLOAT, INT64, Model, Node, OPSET};

/// The model's only output for its only input.
/// # Errors
/// Not a file of [`super::onnx`].
pub(super) fn run(bytes: &[u8], images: &Tensor) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let model = Model::decode(bytes).context("not an ONNX file")?;
    let opset = model.opset_import.iter().find(|set| set.domain.is_empty()).map_or(0, |set| set.version);
    ensure!(opset == OPSET, "found opset {opset}, expected {OPSET}");
    let graph = model.graph.context("found no graph")?;
    let ([input], [output]) = (&graph.input[..], &graph.output[..]) else {
        bail!("found {} inputs and {} outputs, expected one each", graph.input.len(), graph.output.len());
    };
    let mut values = HashMap::from([(input.name.clone(), images.shallow_clone())]);
    for tensor in &graph.initializer {
        let kind = match tensor.data_type {
            FLOAT => Kind::Float,
            INT64 => Kind::Int64,
            other => bail!("{}: found data type {other}, expected float or int64", tensor.name),
        };
        values.insert(tensor.name.clone(), Tensor::f_from_data_size(&tensor.raw_data, &tensor.dims, kind)?);
    }
    for node in &graph.node {
        let inputs = node.input.iter().map(|name| values.get(name).with_context(|| format!("no value {name}")));
        let inputs: Vec<&Tensor> = inputs.collect::<Result<_>>()?;
        let value = evaluate(node, &inputs).with_context(|| format!("node {}", node.name))?;
        let [name] = &node.output[..] else { bail!("node {}: expected one output", node.name) };
        values.insert(name.clone(), value);
    }
    values.remove(&output.name).with_context(|| format!("no node makes the output {}", output.name))
}

fn evaluate(node: &Node, inputs: &[&Tensor]) -> Result<Tensor> {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name).with_context(|| format!("no {name}"));
    let ints = |name: &str, length: usize| {
        let ints = &attribute(name)?.ints;
        ensure!(ints.len() == length, "{name}: found {ints:?}, expected {length} numbers");
        Ok(&ints[..])
    };
    let pads = || {
        let pads = ints("pads", 4)?; // top, left, bottom, right
        ensure!(pads[..2] == pads[2..], "pads: found {pads:?}, expected them symmetric");
        Ok(&pads[..2])
    };
    Ok(match (node.op_type.as_str(), inputs) {
        ("Conv", [x, weight, bias @ ..]) => {
            let groups = attribute("group").map_or(1, |group| group.i);
            x.f_conv2d(weight, bias.first().copied(), ints("strides", 2)?, pads()?, [1, 1], groups)?
        }
        ("BatchNormalization", &[x, weight, bias, mean, var]) => {
            let epsilon = attribute("epsilon")?.f.into();
            x.f_batch_norm(Some(weight), Some(bias), Some(mean), Some(var), false, 0.0, epsilon, false)?
        }
        ("MaxPool", [x]) => x.f_max_pool2d(ints("kernel_shape", 2)?, ints("strides", 2)?, pads()?, [1, 1], false)?,
        ("Relu", [x]) => x.f_relu()?,
        ("Add", [a, b]) => a.f_add(b)?,
        ("Sub", [a, b]) => a.f_sub(b)?,
        ("Div", [a, b]) => a.f_div(b)?,
        ("GlobalAveragePool", [x]) => x.f_mean_dim(&[2i64, 3][..], true, Kind::Float)?,
        ("Flatten", [x]) => x.f_flatten(attribute("axis")?.i, -1)?,
        _ => without_images(node, inputs)?,
    })
}

/// The operators of the encoders that are not convolutional all through.
fn without_images(node: &Node, inputs: &[&Tensor]) -> Result<Tensor> {
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name == name).with_context(|| format!("no {name}"));
    let epsilon = || attribute("epsilon").map(|epsilon| f64::from(epsilon.f));
    let axis = || attribute("axis").map(|axis| axis.i);
    let whole = |tensor: &Tensor| Vec::<i64>::try_from(tensor).context("expected whole numbers");
    Ok(match (node.op_type.as_str(), inputs) {
        ("LayerNormalization", &[x, weight, bias]) => {
            ensure!(axis()? == -1, "axis: found {}, expected -1", axis()?);
            x.f_layer_norm(weight.size(), Some(weight), Some(bias), epsilon()?, false)?
        }
        ("InstanceNormalization", &[x, weight, bias]) => {
            let none = None::<&Tensor>;
            x.f_instance_norm(Some(weight), Some(bias), none, none, true, 0.0, epsilon()?, false)?
        }
        ("MatMul", [a, b]) => a.f_matmul(b)?,
        ("Mul", [a, b]) => a.f_mul(b)?,
        ("Erf", [x]) => x.f_erf()?,
        ("Softmax", [x]) => x.f_softmax(axis()?, Kind::Float)?,
        ("Transpose", [x]) => x.f_permute(&attribute("perm")?.ints)?,
        ("Shape", [x]) => Tensor::from_slice(&x.size()),
        ("Reshape", [x, shape]) => {
            let size = x.size();
            let shape = whole(shape)?.into_iter().enumerate();
            let kept = |(at, length)| if length == 0 { size.get(at).copied().unwrap_or(0) } else { length };
            x.f_reshape(shape.map(kept).collect::<Vec<i64>>())?
        }
        ("Expand", [x, shape]) => x.f_expand(whole(shape)?, false)?,
        ("Concat", parts) => Tensor::f_cat(parts, axis()?)?,
        ("Gather", [x, index]) if index.dim() == 0 => x.f_select(axis()?, index.int64_value(&[]))?,
        ("Gather", [x, index]) => x.f_index_select(axis()?, index)?,
        ("Slice", [x, starts, ends, axes]) => {
            let [start, end, axis] = [starts, ends, axes].map(|tensor| tensor.int64_value(&[0]));
            x.f_slice(axis, start, end, 1)?
        }
        ("ReduceMean", [x]) => {
            x.f_mean_dim(&attribute("axes")?.ints[..], attribute("keepdims")?.i != 0, Kind::Float)?
        }
        (op, inputs) => bail!("found operator {op} of {} inputs, expected one of an encoder's", inputs.len()),
    })
}
