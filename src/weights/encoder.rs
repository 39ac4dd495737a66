//! Finding the encoder in a file of tensors: where it is, what it is, and its tensors by this program's names.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;
use tch::{Kind, Tensor};

use super::file::Tensors;
use super::input::adapt_input;
use super::layout::{Layout, Shapes};
use super::names::{Library, names, own_names};
use super::{named, resnet};
use crate::checkpoint::load_views;
use crate::model::{Arch, EncoderConfig, Layer, Named, resample};
use crate::pytorch::Stored;

/// What finds the encoders of each family.
const FAMILIES: [fn(&Shapes) -> Vec<Layout>; 2] = [resnet::layouts, named::layouts];

/// Which of several encoders in a file.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// What its names begin with, or a part of that between dots.
    pub prefix: Option<&'a str>,
    /// How the user sets the prefix, for messages.
    pub option: &'a str,
    /// `online` or `target`: which of the two in a file of this program, without a prefix.
    pub network: &'a str,
    /// What it should be: what shapes do not tell is taken from it, see [`EncoderConfig::recognize`].
    pub known: Option<EncoderConfig>,
}

/// An encoder in a file.
#[derive(Debug)]
pub struct FoundEncoder<'a> {
    /// What it is.
    pub config: EncoderConfig,
    /// What its names begin with in the file.
    pub prefix: String,
    /// Train-mode forward passes that its BatchNorm has counted, 0 if the file does not say.
    pub batches_tracked: i64,
    tensors: BTreeMap<String, Stored<'a>>,
    /// The names of everything else in the file.
    pub beside: Vec<&'a str>,
}

/// The encoder in these tensors.
/// # Errors
/// None, or several and no choice, with a list of them; an unsupported one, with what it holds.
pub fn find<'a>(tensors: &'a Tensors<'a>, choice: &Choice) -> Result<FoundEncoder<'a>> {
    let shapes: Shapes = tensors.iter().map(|(name, stored)| (name.as_str(), &stored.shape[..])).collect();
    let mut layouts: Vec<Layout> = FAMILIES.iter().flat_map(|layouts| layouts(&shapes)).collect();
    let places = matching(&layouts, choice);
    if places.is_empty() && !layouts.is_empty() {
        let (option, prefix) = (choice.option, choice.prefix.unwrap_or_default());
        let all = list(&layouts, &(0..layouts.len()).collect::<Vec<_>>(), choice, &shapes);
        bail!("{option} {prefix}: found no encoder there, but {all}");
    }
    // A network that another one holds is in a state_dict under both names.
    let equal = |a: &Layout, b: &Layout| {
        let values = |layout: &Layout| layout.names.values().flatten().map(|name| &tensors[name]).collect::<Vec<_>>();
        a.names.keys().eq(b.names.keys()) && values(a) == values(b)
    };
    let mut distinct: Vec<usize> = Vec::new();
    for at in places {
        if !distinct.iter().any(|&earlier| equal(&layouts[earlier], &layouts[at])) {
            distinct.push(at);
        }
    }
    let layout = match distinct[..] {
        [one] => layouts.swap_remove(one),
        [] => bail!("{}", none_found(tensors)),
        _ => {
            let all = list(&layouts, &distinct, choice, &shapes);
            bail!("found {} encoders, expected one; choose with {all}", distinct.len())
        }
    };
    let config = recognized(&layout, &shapes, choice.known)?;
    let used: BTreeSet<&str> = layout.names.values().flatten().map(String::as_str).collect();
    let beside = tensors.keys().map(String::as_str).filter(|name| !used.contains(name)).collect();
    let mut found = own_tensors(&layout, &config, tensors)?;
    let counts = found.iter().find(|(name, stored)| is_count(name) && stored.dtype == Dtype::I64);
    let batches_tracked = counts.and_then(|(_, stored)| Some(i64::from_le_bytes(stored.data[..].try_into().ok()?)));
    found.retain(|name, _| !is_count(name));
    Ok(FoundEncoder {
        config,
        prefix: layout.prefix,
        batches_tracked: batches_tracked.unwrap_or(0),
        tensors: found,
        beside,
    })
}

/// The tensors of a layout by the names and in the shapes that they have in this program.
fn own_tensors<'a>(
    layout: &Layout,
    config: &EncoderConfig,
    tensors: &'a Tensors,
) -> Result<BTreeMap<String, Stored<'a>>> {
    let libraries = [Library::Torchvision, Library::Timm].into_iter();
    let own: BTreeMap<String, String> =
        libraries.flat_map(|library| names(config, library).concat().into_iter().zip(own_names(config))).collect();
    let shapes: BTreeMap<String, Vec<i64>> = config.layers().iter().flat_map(Layer::tensors).collect();
    // Without lengths of 1 at the end, which some libraries leave out.
    let trimmed = |shape: &[usize]| shape[..shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1)].to_vec();
    let mut found = BTreeMap::new();
    for (name, parts) in &layout.names {
        let mut stored = joined(parts, tensors)?;
        let name = own.get(name).unwrap_or(name);
        let shape = shapes.get(name).map(|shape| shape.iter().map(|&n| n as usize).collect::<Vec<_>>());
        stored.shape = shape.filter(|shape| trimmed(shape) == trimmed(&stored.shape)).unwrap_or(stored.shape);
        ensure!(found.insert(name.clone(), stored).is_none(), "found two tensors for {name}, expected one");
    }
    Ok(found)
}

/// One tensor of the rows of all of these.
fn joined<'a>(names: &[String], tensors: &'a Tensors) -> Result<Stored<'a>> {
    let parts: Vec<&Stored> = names.iter().map(|name| &tensors[name]).collect();
    let of_row = |stored: &Stored| (stored.dtype, stored.shape.get(1..).map(<[usize]>::to_vec));
    let alike = parts.iter().all(|part| of_row(part) == of_row(parts[0]));
    ensure!(alike, "found {} of different types or lengths, expected rows of one tensor", names.join(", "));
    let data = match parts[..] {
        [one] => Cow::Borrowed(&one.data[..]),
        _ => parts.iter().map(|part| &part.data[..]).collect::<Vec<_>>().concat().into(),
    };
    let shape = joined_shape(parts.iter().map(|part| &part.shape[..]));
    Ok(Stored { dtype: parts[0].dtype, shape, data })
}

/// The shape of all rows of tensors of these shapes.
fn joined_shape<'a>(mut parts: impl Iterator<Item = &'a [usize]>) -> Vec<usize> {
    let mut shape = parts.next().unwrap_or_default().to_vec();
    let more: usize = parts.filter_map(|part| part.first()).sum();
    shape.iter_mut().take(1).for_each(|rows| *rows += more);
    shape
}

fn is_count(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// The places of the layouts that may be meant.
fn matching(layouts: &[Layout], choice: &Choice) -> Vec<usize> {
    let prefix = |at: &usize| layouts[*at].prefix.trim_end_matches('.');
    let all: Vec<usize> = (0..layouts.len()).collect();
    let Some(wanted) = choice.prefix.map(|prefix| prefix.trim_end_matches('.')) else {
        if all.iter().map(prefix).eq(["online.encoder", "target.encoder"]) {
            return all.into_iter().filter(|at| prefix(at).starts_with(choice.network)).collect();
        }
        return all;
    };
    if let Some(exact) = all.iter().copied().find(|at| prefix(at) == wanted) {
        return vec![exact];
    }
    let dotted = |text: &str| format!(".{text}.");
    all.into_iter().filter(|at| !wanted.is_empty() && dotted(prefix(at)).contains(&dotted(wanted))).collect()
}

/// The encoders at these places, as the user chooses them.
fn list(layouts: &[Layout], places: &[usize], choice: &Choice, shapes: &Shapes) -> String {
    let shown = |&at: &usize| {
        let prefix = layouts[at].prefix.trim_end_matches('.');
        let prefix = if prefix.is_empty() { "\"\"".into() } else { short(prefix) };
        let what =
            recognized(&layouts[at], shapes, choice.known).map_or("not supported".into(), |config| config.to_string());
        format!("{} {prefix} ({what})", choice.option)
    };
    let more = if places.len() > 8 { format!(", and {} more", places.len() - 8) } else { String::new() };
    places.iter().take(8).map(shown).collect::<Vec<_>>().join(", ") + &more
}

fn none_found(tensors: &Tensors) -> String {
    let some: Vec<String> = tensors.keys().take(3).map(|name| short(name)).collect();
    format!(
        "found no encoder among its {} tensors ({}, ...), expected one of {} with the names of torchvision, timm, Hugging \
         Face or an nn.Sequential",
        tensors.len(),
        some.join(", "),
        Arch::ALL.map(|arch| arch.to_string()).join(", ")
    )
}

/// A name of a length fit for a message.
fn short(name: &str) -> String {
    let start: String = name.chars().take(200).collect();
    if start.len() < name.len() { start + "..." } else { start }
}

/// What a layout's shapes make it.
fn recognized(layout: &Layout, shapes: &Shapes, known: Option<EncoderConfig>) -> Result<EncoderConfig> {
    let shape = |parts: &[String]| {
        let whole = joined_shape(parts.iter().filter_map(|name| shapes.get(name.as_str()).copied()));
        whole.into_iter().map(|n| n as i64).collect()
    };
    let named = layout.names.iter().filter(|(ours, _)| !is_count(ours));
    let found: BTreeMap<&str, Vec<i64>> = named.map(|(ours, parts)| (ours.as_str(), shape(parts))).collect();
    EncoderConfig::recognize(&found, known.as_ref()).with_context(|| {
        let first = found.iter().filter(|(name, shape)| !name.starts_with("layer") && shape.len() > 1);
        let first: Vec<String> = first.take(4).map(|(name, shape)| format!("{name} {shape:?}")).collect();
        let place = if layout.prefix.is_empty() { String::new() } else { format!("under {}* ", short(&layout.prefix)) };
        let first = if first.is_empty() { "nothing".into() } else { first.join(", ") };
        format!("beside its numbered layers the encoder {place}holds {first}")
    })
}

impl FoundEncoder<'_> {
    /// Number of tensors that [`Self::load_into`] loads.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// Types other than F32 among its tensors, which are converted.
    pub fn other_types(&self) -> Option<String> {
        let kinds: BTreeSet<String> = self.tensors.values().map(|stored| format!("{:?}", stored.dtype)).collect();
        kinds.iter().any(|kind| kind != "F32").then(|| Vec::from_iter(kinds).join(" and "))
    }

    /// Copies the tensors into those of an encoder of this config. Its first convolution may take another number of
    /// channels than the file's three, see [`adapt_input`]; the value is then the file's number. A ViT's position
    /// embeddings may be for images of another size, `image_size`, see [`resample`].
    /// # Errors
    /// Other names or shapes, all listed.
    pub fn load_into(&self, tensors: &[Named], image_size: [i64; 2]) -> Result<Option<i64>> {
        let views = self.tensors.iter().map(|(name, stored)| Ok((name.clone(), stored.view()?)));
        let views: BTreeMap<_, _> = views.collect::<Result<_>>()?;
        let mut targets: Vec<Named> = Vec::with_capacity(tensors.len());
        let first = self.config.layers().first().map(|layer| format!("{}.weight", layer.name)).unwrap_or_default();
        let positions = self.config.positions().unwrap_or_default();
        let wanted = EncoderConfig { image_size, ..self.config }.positions().unwrap_or_default();
        let (mut input, mut grid) = (None, None);
        for Named { name, tensor } in tensors.iter().filter(|named| !is_count(&named.name)) {
            let (found, size) = (self.tensors.get(name).map(|stored| &stored.shape[..]), tensor.size());
            let adapted = match found {
                Some(&[_, channels, _, _]) if *name == first && channels as i64 != size[1] => Some(&mut input),
                Some(_) if *name == positions.0 && positions != wanted => Some(&mut grid),
                _ => None,
            };
            let mut target = tensor.shallow_clone();
            if let (Some(adapted), Some(shape)) = (adapted, found) {
                let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
                target = Tensor::f_zeros(shape, (Kind::Float, tensor.device()))?;
                *adapted = Some((tensor.shallow_clone(), target.shallow_clone()));
            }
            targets.push(Named { name: name.clone(), tensor: target });
        }
        load_views(views, &targets, true).with_context(|| format!("as {}", self.config))?;
        let _no_grad = tch::no_grad_guard();
        if let Some((mut tensor, whole)) = grid {
            tensor.f_copy_(&resample(&whole, positions.1, wanted.1))?;
        }
        let Some((mut tensor, whole)) = input else { return Ok(None) };
        tensor.f_copy_(&adapt_input(&whole, tensor.size()[1])?)?;
        Ok(Some(whole.size()[1]))
    }

    /// The other tensors in the file in words: how many, and what begins their names. Those of `heads` beside the
    /// encoder are used.
    pub fn ignored(&self, heads: &[&str]) -> Option<String> {
        let network = self.prefix.strip_suffix("encoder.");
        let used = |name: &str| {
            let rest = network.and_then(|network| name.strip_prefix(network)).and_then(|name| name.split('.').next());
            rest.is_some_and(|head| heads.contains(&head))
        };
        let names: Vec<&str> = self.beside.iter().copied().filter(|name| !is_count(name) && !used(name)).collect();
        let groups: BTreeSet<&str> = names.iter().map(|name| beside(&self.prefix, name)).collect();
        let more = if groups.len() > 6 { ", ..." } else { "" };
        let groups = groups.into_iter().take(6).collect::<Vec<_>>().join(", ");
        (!names.is_empty()).then(|| format!("{} ignored ({groups}{more})", names.len()))
    }
}

/// The first part in which a name differs from `prefix`.
fn beside<'a>(prefix: &str, name: &'a str) -> &'a str {
    let mut prefix = prefix.split('.');
    name.split('.').find(|part| prefix.next() != Some(part)).unwrap_or(name)
}
