//! Runs an ONNX file of [`super::onnx`], from its bytes, with libtorch's operators: this verifies the weights, the
//! connections and the attributes in the file. That runtimes accept such files, which does not depend on the weights,
//! is tested by `scripts/exports/check.py` with onnx.checker and onnxruntime.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use tch::{Kind, Tensor};

use super::onnx_proto::{FLOAT, Model, Node, OPSET};

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
        ensure!(tensor.data_type == FLOAT, "{}: found data type {}, expected float", tensor.name, tensor.data_type);
        values.insert(tensor.name.clone(), Tensor::f_from_data_size(&tensor.raw_data, &tensor.dims, Kind::Float)?);
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
        (op, inputs) => bail!("found operator {op} of {} inputs, expected one of an encoder's", inputs.len()),
    })
}
