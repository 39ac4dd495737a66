//! An encoder as an ONNX model: libtorch has no ONNX exporter, and encoders need few operators, so the graph is written
//! from the description of the layers.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use prost::Message;

use super::onnx_layers::Builder;
use super::onnx_proto::{Entry, Graph, INPUT, Length, Model, OPSET, OUTPUT, OperatorSet, float_value};
use super::{Contents, ExportOptions, Exporter, ImageSize, Reader, metadata, onnx_run, shapes_in_python};
use crate::eval::Encoder;
use crate::model::Family;

/// Of the file, that which came with opset 17.
const IR_VERSION: i64 = 8;
/// Protobuf messages end at 2 GiB.
const MAX_BYTES: u64 = i32::MAX as u64;

pub(super) struct Onnx;

impl Exporter for Onnx {
    fn name(&self) -> &'static str {
        "onnx"
    }

    fn help(&self) -> &'static str {
        "A graph for onnxruntime and others"
    }

    fn describe(&self, _: &Encoder) -> String {
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
        let grid = match size {
            ImageSize::Fixed(size) => Some(size.shape().map(|side| side / encoder.config.patch_size)),
            ImageSize::Dynamic if encoder.config.arch.family() == Family::Vit => {
                bail!("--image-size dynamic: a ViT's position embeddings are for one size; give its pixels instead")
            }
            ImageSize::Dynamic => None,
        };
        let mut builder = Builder { fold: options.fold_batchnorm, grid, ..Builder::default() };
        builder.encoder(encoder, normalizes)?;
        let free = |name: &str| Length::Free(name.into());
        let [height, width] = match size {
            ImageSize::Fixed(size) => size.shape().map(Length::Fixed),
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
