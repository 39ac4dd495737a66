//! What libraries call the tensors of a ConvNeXt or a ViT: one table for each family, used for reading and for writing.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::model::{Arch, EncoderConfig, Family, Layer, Named};

/// Who names the tensors: a column of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// torchvision.
    Torchvision,
    /// timm, and the many ViTs that follow it.
    Timm,
    /// Hugging Face's transformers, in its files.
    Transformers,
    /// ConvNeXt: its authors' code. ViT: transformers 5 in memory.
    Other,
}

impl Library {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Torchvision, Self::Timm, Self::Transformers, Self::Other];
}

/// Parts of names, for torchvision and for the others.
type Row = [&'static str; 4];

const CONVNEXT: [Row; 15] = [
    ["features.0.0", "stem.0", "embeddings.patch_embeddings", "downsample_layers.0.0"],
    ["features.0.1", "stem.1", "embeddings.layernorm", "downsample_layers.0.1"],
    ["features.1.", "stages.0.blocks.", "encoder.stages.0.layers.", "stages.0."],
    ["features.2.", "stages.1.downsample.", "encoder.stages.1.downsampling_layer.", "downsample_layers.1."],
    ["features.3.", "stages.1.blocks.", "encoder.stages.1.layers.", "stages.1."],
    ["features.4.", "stages.2.downsample.", "encoder.stages.2.downsampling_layer.", "downsample_layers.2."],
    ["features.5.", "stages.2.blocks.", "encoder.stages.2.layers.", "stages.2."],
    ["features.6.", "stages.3.downsample.", "encoder.stages.3.downsampling_layer.", "downsample_layers.3."],
    ["features.7.", "stages.3.blocks.", "encoder.stages.3.layers.", "stages.3."],
    [".block.0.", ".conv_dw.", ".dwconv.", ".dwconv."],
    [".block.2.", ".norm.", ".layernorm.", ".norm."],
    [".block.3.", ".mlp.fc1.", ".pwconv1.", ".pwconv1."],
    [".block.5.", ".mlp.fc2.", ".pwconv2.", ".pwconv2."],
    [".layer_scale", ".gamma", ".layer_scale_parameter", ".gamma"],
    ["classifier.0.", "head.norm.", "layernorm.", "norm."],
];

/// Between braces are the names of parts, of which the first has the first rows.
const VIT: [Row; 11] = [
    [
        "conv_proj.",
        "patch_embed.proj.",
        "embeddings.patch_embeddings.projection.",
        "embeddings.patch_embeddings.projection.",
    ],
    ["class_token", "cls_token", "embeddings.cls_token", "embeddings.cls_token"],
    ["encoder.pos_embedding", "pos_embed", "embeddings.position_embeddings", "embeddings.position_embeddings"],
    ["encoder.layers.encoder_layer_", "blocks.", "encoder.layer.", "layers."],
    [".ln_1.", ".norm1.", ".layernorm_before.", ".layernorm_before."],
    [
        ".self_attention.in_proj_",
        ".attn.qkv.",
        ".attention.attention.{query,key,value}.",
        ".attention.{q_proj,k_proj,v_proj}.",
    ],
    [".self_attention.out_proj.", ".attn.proj.", ".attention.output.dense.", ".attention.o_proj."],
    [".ln_2.", ".norm2.", ".layernorm_after.", ".layernorm_after."],
    [".mlp.0.", ".mlp.fc1.", ".intermediate.dense.", ".mlp.fc1."],
    [".mlp.3.", ".mlp.fc2.", ".output.dense.", ".mlp.fc2."],
    ["encoder.ln.", "norm.", "layernorm.", "layernorm."],
];

/// What a library calls the tensors of an encoder, in the order of its layers. Where the library has several tensors in
/// place of one, each with some of its rows, the names of all of them. A ResNet's are torchvision's.
pub fn names(config: &EncoderConfig, library: Library) -> Vec<Vec<String>> {
    let (arch, table): (Arch, &[Row]) = match config.arch.family() {
        Family::Resnet => (config.arch, &[]),
        Family::Convnext => (config.arch, &CONVNEXT),
        Family::Vit => (Arch::VitBase, &VIT), // the one that has torchvision's names here
    };
    let layers = EncoderConfig { arch, ..*config }.layers();
    let torchvision = layers.iter().flat_map(Layer::tensors).map(|(name, _)| name);
    let renamed =
        torchvision.map(|name| table.iter().fold(name, |name, row| name.replace(row[0], row[library as usize])));
    renamed.map(|name| parts(&name)).collect()
}

fn parts(name: &str) -> Vec<String> {
    let braces = name.split_once('{').and_then(|(start, rest)| Some((start, rest.split_once('}')?)));
    let Some((start, (list, end))) = braces else { return vec![name.to_string()] };
    list.split(',').map(|part| format!("{start}{part}{end}")).collect()
}

/// What this program calls the tensors of an encoder, in the order of its layers.
pub fn own_names(config: &EncoderConfig) -> impl Iterator<Item = String> {
    config.layers().into_iter().flat_map(|layer| layer.tensors()).map(|(name, _)| name)
}

/// An encoder's tensors as a library has them.
/// # Errors
/// Out of memory.
pub fn renamed(config: &EncoderConfig, tensors: Vec<Named>, library: Library) -> Result<Vec<Named>> {
    let theirs: BTreeMap<_, _> = own_names(config).zip(names(config, library)).collect();
    let mut renamed = Vec::with_capacity(tensors.len());
    for Named { name, tensor } in tensors {
        let names = theirs.get(&name).cloned().unwrap_or(vec![name]);
        // LayerScale's numbers are one axis everywhere but in torchvision.
        let tensor = if matches!(tensor.size()[..], [_, 1, 1]) && library != Library::Torchvision {
            tensor.f_flatten(0, -1)?
        } else {
            tensor
        };
        let tensors = if names.len() > 1 { tensor.f_chunk(names.len() as i64, 0)? } else { vec![tensor] };
        renamed.extend(names.into_iter().zip(tensors).map(|(name, tensor)| Named { name, tensor }));
    }
    Ok(renamed)
}
