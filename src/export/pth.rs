//! An encoder's weights under torchvision's names as `torch.save` writes them, for what does not read safetensors.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Contents, ExportOptions, Exporter, Reader, torchvision};
use crate::checkpoint;
use crate::eval::{Encoder, Represent};
use crate::pytorch;
use crate::weights::{Choice, WeightFile, find};

pub(super) struct Pth;

impl Exporter for Pth {
    fn name(&self) -> &'static str {
        "pth"
    }

    fn help(&self) -> &'static str {
        "The same as a PyTorch file, for torch.load(..., weights_only=True)"
    }

    fn describe(&self, _: &Encoder) -> String {
        "state_dict of torch.save".into()
    }

    fn check_options(&self, options: &ExportOptions) -> Result<()> {
        torchvision::check_options(self.name(), options)
    }

    fn normalizes(&self, _: &ExportOptions) -> bool {
        false
    }

    fn serialize(&self, encoder: &Encoder, _: &ExportOptions) -> Result<Contents> {
        let tensors = encoder.params.state_dict(encoder.batches_tracked);
        let bytes = checkpoint::serialize(&tensors, Default::default())?;
        let mut views = checkpoint::views(&bytes)?;
        // In the order of the layers.
        let ordered = tensors.iter().map(|named| {
            let view = views.remove(&named.name).with_context(|| format!("no {}", named.name))?;
            Ok((named.name.as_str(), view))
        });
        Ok(Contents::File(pytorch::from_tensors(&ordered.collect::<Result<Vec<_>>>()?)?))
    }

    fn open(&self, encoder: &Encoder, path: &Path) -> Result<Reader> {
        // Such a file has no metadata: what its shapes do not tell is the encoder's.
        let (file, written) = (WeightFile::read(path)?, encoder.random(0));
        let known = Some(encoder.config);
        let choice = Choice { prefix: None, option: "--prefix", network: encoder.which.name(), known };
        let tensors = file.tensors()?;
        find(&tensors, &choice)?.load_into(&written.params.state_dict(0), encoder.config.image_size)?;
        Ok(Box::new(move |images| written.represent(images)))
    }

    fn load_in_python(&self, encoder: &Encoder, _: &ExportOptions, file: &str) -> String {
        torchvision::load_in_python(
            &encoder.config,
            "import torch",
            &format!("torch.load(\"{file}\", weights_only=True)"),
        )
    }
}
