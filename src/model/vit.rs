//! Vision transformers (arXiv 2010.11929): ViT-Base with torchvision's names and initial weights, ViT-Tiny and
//! ViT-Small, which torchvision lacks, with timm's. The width multiplies the channels of every head, not their number.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::arch::{Arch, Family};
use super::graph::{Conv, Graph, Layer, Op};
use super::params::Init;
use super::{EncoderConfig, Pool};

/// The first convolutions, by which a file's ViT is detected.
pub(super) const MARKERS: [&str; 2] = ["conv_proj.weight", "patch_embed.proj.weight"];

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
struct Library {
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

/// The ViTs with the first convolution of these tensors, those of width 1 first. Position embeddings are for a square,
/// or for images of the height and width `known`.
/// # Errors
/// Missing, or of another kind; position embeddings of neither.
pub(super) fn candidates(found: &BTreeMap<&str, Vec<i64>>, known: Option<[i64; 2]>) -> Result<Vec<EncoderConfig>> {
    let marker = MARKERS.iter().find(|marker| found.contains_key(*marker));
    let marker = *marker.with_context(|| format!("found no {}, expected a ViT", MARKERS.join(" or ")))?;
    let ((channels, input), patch_size) = match found[marker][..] {
        [output, input, height, width] if height == width => ((output, input), height),
        _ => bail!("{marker}: found shape {:?}, expected that of a square convolution", found[marker]),
    };
    let config = |arch: Arch| -> Result<EncoderConfig> {
        let positions = library(arch).positions;
        let tokens = match found.get(positions).map(Vec::as_slice) {
            Some(&[1, tokens, _]) => tokens - 1,
            found => bail!("{positions}: found shape {found:?}, expected [1, 1 + patches, channels]"),
        };
        let side = (tokens as f64).sqrt().round() as i64;
        let known = known.filter(|sides| sides.iter().map(|side| side / patch_size).product::<i64>() == tokens);
        let image_size = match known {
            _ if side * side == tokens => [side * patch_size; 2],
            Some(sides) => sides,
            None => bail!("{positions}: found {tokens} patches, expected those of a square"),
        };
        let width = channels as f64 / (64 * heads(arch)) as f64;
        Ok(EncoderConfig { arch, width, patch_size, image_size, channels: input, ..EncoderConfig::default() })
    };
    let known = Arch::of(Family::Vit).filter(|&arch| library(arch).patches == marker.trim_end_matches(".weight"));
    let mut all = known.map(config).collect::<Result<Vec<EncoderConfig>>>()?;
    all.sort_by_key(|config| config.width != 1.0);
    Ok(all)
}
