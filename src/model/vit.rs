//! Vision transformers (arXiv 2010.11929): ViT-Base with torchvision's names and initial weights, ViT-Tiny and
//! ViT-Small, which torchvision lacks, with timm's. The width multiplies the channels of every head, not their number.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::arch::{Arch, Family};
use super::graph::{Conv, Graph, Layer, Op};
use super::params::Init;
use super::{EncoderConfig, Pool};

const BLOCKS: usize = 12;
const ZERO: Init = Init::Constant(0.0);

/// Heads, of 64 channels at width 1.
pub(super) fn heads(arch: Arch) -> i64 {
    match arch {
        Arch::VitTiny => 3,
        Arch::VitSmall => 6,
        _ => 12,
    }
}

/// Names and initial values, which are those of one library.
pub(super) struct Library {
    patches: &'static str,
    class_token: &'static str,
    positions: &'static str,
    block: &'static str,
    /// Of a block: norm, queries, keys and values, output, norm, two layers of the MLP.
    parts: [&'static str; 6],
    separator: char,
    norm: &'static str,
    class_init: Init,
}

const TORCHVISION: Library = Library {
    patches: "conv_proj",
    class_token: "class_token",
    positions: "encoder.pos_embedding",
    block: "encoder.layers.encoder_layer_",
    parts: ["ln_1", "self_attention.in_proj", "self_attention.out_proj", "ln_2", "mlp.0", "mlp.3"],
    separator: '_',
    norm: "encoder.ln",
    class_init: ZERO,
};

const TIMM: Library = Library {
    patches: "patch_embed.proj",
    class_token: "cls_token",
    positions: "pos_embed",
    block: "blocks.",
    parts: ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"],
    separator: '.',
    norm: "norm",
    class_init: Init::Normal(1e-6),
};

fn library(arch: Arch) -> &'static Library {
    if arch == Arch::VitBase { &TORCHVISION } else { &TIMM }
}

impl Library {
    /// Initial weights and bias of the patches' convolution with this fan-in.
    fn patches(&self, fan_in: i64) -> (Init, Init) {
        let deviation = 1.0 / (fan_in as f64).sqrt();
        match self.separator {
            // The truncation of the first, at 2, and of timm's, at 100 deviations, is hardly ever reached.
            '_' => (Init::Normal(deviation), ZERO),
            _ => (Init::Uniform(deviation), Init::Uniform(deviation)),
        }
    }

    /// A linear layer of a block, the `part`th.
    fn linear(&self, part: usize, input: i64, output: i64) -> Op {
        let xavier = Init::Uniform((6.0 / (input + output) as f64).sqrt());
        let (init, bias) = match (self.separator, part) {
            ('_', 1) => (xavier, ZERO),
            ('_', 2) => (Init::Uniform(1.0 / (input as f64).sqrt()), ZERO),
            ('_', _) => (xavier, Init::Normal(1e-6)),
            _ => (Init::Normal(0.02), ZERO),
        };
        let separator = if part == 1 { self.separator } else { '.' };
        Op::Linear { input, output, init, bias, separator }
    }
}

pub(super) fn layers(config: &EncoderConfig) -> Vec<Layer> {
    let (mut graph, library) = (Graph::default(), library(config.arch));
    let (patch, heads) = (config.patch_size, heads(config.arch));
    let channels = heads * (64.0 * config.width).round() as i64;
    let (init, bias) = library.patches(config.channels * patch * patch);
    let frozen = config.freeze_patch_projection;
    let conv = Conv { bias: Some(bias), frozen, ..Conv::new(config.channels, channels, patch, patch, init) };
    let patches = graph.push(library.patches, Op::Conv(conv), &[0]);
    let mut x = graph.push("tokens", Op::Tokens, &[patches]);
    x = graph.push(library.class_token, Op::ClassToken { channels, init: library.class_init }, &[x]);
    let grid = config.image_size.map(|side| side / patch);
    x = graph.push(library.positions, Op::Positions { channels, grid }, &[x, patches]);
    for block in 0..BLOCKS {
        let rate = config.drop_path * block as f64 / (BLOCKS - 1) as f64;
        x = residual(&mut graph, library, block, [channels, heads], x, rate);
    }
    x = graph.push(library.norm, Op::LayerNorm { channels }, &[x]);
    let pool = match config.pool {
        Pool::Token => Op::FirstToken,
        Pool::Mean => Op::MeanToken,
    };
    graph.push("pool", pool, &[x]);
    graph.layers
}

/// Attention and MLP, each added to its input.
fn residual(graph: &mut Graph, library: &Library, block: usize, sizes: [i64; 2], x: usize, rate: f64) -> usize {
    let [channels, heads] = sizes;
    let name = |part: &str| format!("{}{block}.{part}", library.block);
    let part = |at: usize| name(library.parts[at]);
    let mut y = graph.push(part(0), Op::LayerNorm { channels }, &[x]);
    y = graph.push(part(1), library.linear(1, channels, 3 * channels), &[y]);
    y = graph.push(name("attention"), Op::Attention { heads, size: channels / heads }, &[y]);
    y = graph.push(part(2), library.linear(2, channels, channels), &[y]);
    y = graph.drop_path(&name("attention"), 2 * block, rate, y);
    let x = graph.push(name("attention.add"), Op::Add, &[y, x]);
    let mut y = graph.push(part(3), Op::LayerNorm { channels }, &[x]);
    y = graph.push(part(4), library.linear(4, channels, 4 * channels), &[y]);
    y = graph.push(name("gelu"), Op::Gelu, &[y]);
    y = graph.push(part(5), library.linear(5, 4 * channels, channels), &[y]);
    y = graph.drop_path(&name("mlp"), 2 * block + 1, rate, y);
    graph.push(name("mlp.add"), Op::Add, &[y, x])
}

/// Whose names these tensors have, if they are a ViT's.
pub(super) fn library_of(found: &BTreeMap<&str, Vec<i64>>) -> Option<&'static Library> {
    [&TORCHVISION, &TIMM].into_iter().find(|library| found.contains_key(&*format!("{}.weight", library.patches)))
}

/// The ViTs with the first convolution of these tensors, those first that have these names here. Position embeddings are
/// for images of the known height and width, or for a square.
/// # Errors
/// Another kind of convolution; position embeddings of neither.
pub(super) fn candidates(
    found: &BTreeMap<&str, Vec<i64>>,
    names: &Library,
    known: Option<&EncoderConfig>,
) -> Result<Vec<EncoderConfig>> {
    let marker = &*format!("{}.weight", names.patches);
    let ((channels, input), patch_size) = match found[marker][..] {
        [output, input, height, width] if height == width && height > 0 => ((output, input), height),
        _ => bail!("{marker}: found shape {:?}, expected that of a square convolution", found[marker]),
    };
    let tokens = match found.get(names.positions).map(Vec::as_slice) {
        Some(&[1, tokens, _]) => tokens - 1,
        Some(shape) => bail!("{}: found shape {shape:?}, expected [1, 1 + patches, channels]", names.positions),
        None => bail!("{}: found none, expected position embeddings", names.positions),
    };
    let side = (tokens as f64).sqrt().round() as i64;
    let sizes = known.map(|known| known.image_size).into_iter().chain([[side * patch_size; 2]]);
    let image_size =
        sizes.into_iter().find(|size| size.map(|side| side / patch_size).iter().product::<i64>() == tokens);
    let Some(image_size) = image_size else {
        bail!(
            "{}: found {} positions, expected a class token and the patches of a square; register tokens and a \
             distillation token are not supported",
            names.positions,
            tokens + 1
        )
    };
    let pool = known.map_or(Pool::Token, |known| known.pool);
    let config = |arch: Arch| {
        let width = channels as f64 / (64 * heads(arch)) as f64;
        EncoderConfig { arch, width, patch_size, image_size, pool, channels: input, ..EncoderConfig::default() }
    };
    let mut all: Vec<EncoderConfig> = Arch::of(Family::Vit).map(config).collect();
    all.sort_by_key(|config| library(config.arch).patches != names.patches);
    Ok(all)
}
