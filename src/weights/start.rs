//! `model.init`: a run's networks start from existing weights.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::Tensor;

use super::encoder::{Choice, FoundEncoder, find};
use super::file::{Tensors, WeightFile};
use super::locate::{Place, locate};
use super::values::check_values;
use crate::byol::Byol;
use crate::checkpoint::{StartedFrom, load_views};
use crate::model::{Family, InitHeads, ModelConfig, Named};

/// The weights that a run starts from, read and found to fit.
#[derive(Debug)]
pub struct Start {
    file: WeightFile,
    model: ModelConfig,
}

impl Start {
    /// Reads what `model.init` names; `None` if it names nothing. Of a run it is the latest checkpoint that is whole.
    /// # Errors
    /// Nothing there; damaged; no encoder, or several; another architecture than that of `model`.
    pub fn open(model: &ModelConfig) -> Result<Option<Self>> {
        let Some(path) = &model.init else { return Ok(None) };
        let file = match locate(path)? {
            Place::Run(checkpoints) => newest(path, &checkpoints)?,
            Place::Checkpoint(folder) => WeightFile::of_checkpoint(&folder)?,
            Place::File(file) => WeightFile::read(&file)?,
        };
        let start = Self { file, model: model.clone() };
        start.with_encoder(|encoder, _| {
            let (found, wanted) = (encoder.config.to_string(), model.encoder().to_string());
            if found != wanted {
                bail!(
                    "found {found}, the config's model is {wanted}; set model.arch, model.width and model.stem to the \
                     file's, or name another"
                );
            }
            Ok(())
        })?;
        Ok(Some(start))
    }

    /// Does something with the encoder in the file, and with all of its tensors.
    fn with_encoder<T>(&self, work: impl FnOnce(&FoundEncoder, &Tensors) -> Result<T>) -> Result<T> {
        let tensors = self.file.tensors()?;
        let (prefix, known) = (self.model.init_prefix.as_deref(), Some(self.model.encoder()));
        let choice = Choice { prefix, option: "model.init_prefix", network: "online", known };
        let found = find(&tensors, &choice).and_then(|encoder| work(&encoder, &tensors));
        found.with_context(|| self.file.path.display().to_string())
    }

    /// Copies the weights into both networks: the target is a copy of the online network, as at the start of every run.
    /// Logs what was loaded.
    /// # Errors
    /// Names or shapes other than the encoder's, all listed; values that are not finite.
    pub fn load(&self, byol: &Byol) -> Result<StartedFrom> {
        let place = self.file.path.canonicalize().unwrap_or_else(|_| self.file.path.clone());
        let sha256 = self.file.sha256();
        self.with_encoder(|encoder, tensors| {
            let image_size = self.model.encoder().image_size;
            let channels = encoder.load_into(&part(byol, "encoder."), image_size)?;
            let heads = match self.model.init_heads {
                InitHeads::Auto => load_heads(byol, &encoder.prefix, tensors)?,
                InitHeads::Fresh => Vec::new(),
            };
            check_values(&byol.online.params)?;
            copy_to_target(byol)?;
            byol.set_batches_tracked([encoder.batches_tracked; 2]);
            if let (Some(from), Some(to)) = (channels, part(byol, "encoder.").first().map(|n| n.tensor.size()[1])) {
                log::info!("model.init: the first convolution is fitted from {from} to {to} channels, as timm does");
            }
            if encoder.config.arch.family() == Family::Vit && encoder.config.image_size != image_size {
                let [from, to] =
                    [encoder.config.image_size, image_size].map(|[height, width]| format!("{height} x {width}"));
                log::info!("model.init: the position embeddings are interpolated from images of {from} px to {to} px");
            }
            log::info!("model.init: {}", described(byol, encoder, &heads, &self.file.path, &sha256));
            Ok(())
        })?;
        Ok(StartedFrom { path: place, sha256 })
    }
}

/// The latest checkpoint that is whole.
fn newest(path: &Path, checkpoints: &[std::path::PathBuf]) -> Result<WeightFile> {
    for folder in checkpoints {
        match WeightFile::of_checkpoint(folder) {
            Ok(file) => return Ok(file),
            Err(error) => log::warn!("skipping a checkpoint: {error:#}"),
        }
    }
    bail!("{}: none of its {} checkpoints can be used", path.display(), checkpoints.len())
}

/// The online network's tensors whose names begin with `prefix`, without it.
fn part(byol: &Byol, prefix: &str) -> Vec<Named> {
    let params = &byol.online.params;
    let named = |named: &Named| {
        let name = named.name.strip_prefix(prefix)?.to_string();
        Some(Named { name, tensor: named.tensor.shallow_clone() })
    };
    params.parameters.iter().chain(&params.buffers).filter_map(named).collect()
}

/// Loads each head that the file has beside the encoder in the same shape; the value is their names.
fn load_heads(byol: &Byol, prefix: &str, tensors: &Tensors) -> Result<Vec<&'static str>> {
    let Some(network) = prefix.strip_suffix("encoder.") else { return Ok(Vec::new()) };
    let mut loaded = Vec::new();
    for head in ["projector", "predictor"] {
        let prefix = format!("{network}{head}.");
        let own = part(byol, &format!("{head}."));
        let stored = tensors.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked"));
        let found: Vec<_> = stored.filter_map(|(name, stored)| Some((name.strip_prefix(&prefix)?, stored))).collect();
        if found.is_empty() {
            continue;
        }
        let views = found.iter().map(|(name, stored)| Ok((name.to_string(), stored.view()?))).collect::<Result<_>>()?;
        match load_views(views, &own, true) {
            Ok(()) => loaded.push(head),
            Err(error) => log::info!("model.init: the file's {head} is another and is not used ({error:#})"),
        }
    }
    Ok(loaded)
}

fn copy_to_target(byol: &Byol) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (online, target) = (&byol.online.params, &byol.target.params);
    // The target lacks the predictor, whose tensors are the last.
    let parameters = target.parameters.iter().zip(&online.parameters);
    for (to, from) in parameters.chain(target.buffers.iter().zip(&online.buffers)) {
        debug_assert_eq!(to.name, from.name);
        Tensor::f_copy_(&mut to.tensor.shallow_clone(), &from.tensor)?;
    }
    Ok(())
}

/// What was loaded, what is ignored and what is new.
fn described(byol: &Byol, encoder: &FoundEncoder, heads: &[&str], path: &Path, sha256: &str) -> String {
    let count = |head: &str| part(byol, &format!("{head}.")).len();
    let (fresh, loaded): (Vec<&str>, Vec<&str>) =
        ["projector", "predictor"].into_iter().partition(|head| !heads.contains(head));
    let sum = |heads: &[&str]| heads.iter().map(|head| count(head)).sum::<usize>();
    let parts = [&["encoder"], &loaded[..]].concat().join(", ");
    let prefix = if encoder.prefix.is_empty() { String::new() } else { format!(" under {}*", encoder.prefix) };
    let new = if fresh.is_empty() { "0 new".into() } else { format!("{} new ({})", sum(&fresh), fresh.join(", ")) };
    let types = encoder.other_types().map_or(String::new(), |types| format!("; {types} are converted to F32"));
    format!(
        "{} ({}{prefix}, SHA-256 {}...): {} tensors loaded ({parts}), {}, {new}{types}",
        path.display(),
        encoder.config,
        &sha256[..12],
        encoder.count() + sum(&loaded),
        encoder.ignored(&loaded).unwrap_or("0 ignored".into()),
    )
}
