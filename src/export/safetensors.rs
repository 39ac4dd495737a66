//! An encoder's weights under torchvision's names.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;

use super::{Contents, ExportOptions, Exporter, Reader, metadata, torchvision};
use crate::checkpoint;
use crate::eval::{Encoder, EncoderOptions, Represent};
use crate::model::Named;

pub(super) struct Safetensors;

impl Exporter for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn help(&self) -> &'static str {
        "Weights under torchvision's names, for load_state_dict"
    }

    fn describe(&self, _: &Encoder) -> String {
        self.name().into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        torchvision::check_options(self.name(), options)
    }

    fn normalizes(&self, _: &ExportOptions) -> bool {
        false
    }

    fn serialize(&self, encoder: &Encoder, options: &ExportOptions) -> Result<Contents> {
        Ok(Contents::File(weights(encoder, options, &encoder.params.state_dict(encoder.batches_tracked))?))
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        open(encoder, path)
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        let load = format!("load_file(\"{file}\")");
        torchvision::load_in_python(&encoder.config, "from safetensors.torch import load_file", &load)
    }
}

/// A safetensors file of an encoder's tensors, with the metadata that [`Encoder::open`] and others read.
pub(super) fn weights(encoder: &Encoder, options: &ExportOptions, tensors: &[Named]) -> Result<Vec<u8>> {
    let metadata = metadata(encoder, Safetensors.image_size(encoder, options), false);
    let metadata: HashMap<String, String> = metadata.into_iter().chain([("format".into(), "pt".into())]).collect();
    checkpoint::serialize(tensors, metadata)
}

/// Reads a file with torchvision's names back.
pub(super) fn open(encoder: &Encoder, path: &Path) -> Result<Reader> {
    let options = EncoderOptions { augment: Some(encoder.augment.clone()), ..EncoderOptions::default() };
    let written = Encoder::open(path, &options)?;
    Ok(Box::new(move |images| written.represent(images)))
}
