//! `model.arch`: the encoders and their families. Each family is a file: [`super::resnet`], [`super::convnext`],
//! [`super::vit`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `model.arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// Basic blocks 2, 2, 2, 2.
    Resnet18,
    /// Basic blocks 3, 4, 6, 3.
    Resnet34,
    /// Bottlenecks 3, 4, 6, 3.
    Resnet50,
    /// Bottlenecks 3, 4, 23, 3.
    Resnet101,
    /// Bottlenecks 3, 8, 36, 3.
    Resnet152,
    /// Bottlenecks 3, 24, 36, 3.
    Resnet200,
    /// Bottlenecks of ResNet-50 with 32 groups of 4 channels.
    Resnext50_32x4d,
    /// Bottlenecks of ResNet-101 with 32 groups of 8 channels.
    Resnext101_32x8d,
    /// Bottlenecks of ResNet-50 with twice the inner channels.
    WideResnet50_2,
    /// Bottlenecks of ResNet-101 with twice the inner channels.
    WideResnet101_2,
    /// Blocks 3, 3, 9, 3 of 96 to 768 channels.
    ConvnextTiny,
    /// Blocks 3, 3, 27, 3 of 96 to 768 channels.
    ConvnextSmall,
    /// Blocks 3, 3, 27, 3 of 128 to 1024 channels.
    ConvnextBase,
    /// 12 blocks of 192 channels, 3 heads; named as in timm.
    VitTiny,
    /// 12 blocks of 384 channels, 6 heads; named as in timm.
    VitSmall,
    /// 12 blocks of 768 channels, 12 heads; named as in torchvision.
    VitBase,
}

/// What an encoder is built of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Residual blocks of convolutions and BatchNorm.
    Resnet,
    /// Depthwise convolutions and MLPs (arXiv 2201.03545).
    Convnext,
    /// Attention between patches (arXiv 2010.11929).
    Vit,
}

impl Arch {
    /// All architectures.
    pub const ALL: [Self; 16] = [
        Self::Resnet18,
        Self::Resnet34,
        Self::Resnet50,
        Self::Resnet101,
        Self::Resnet152,
        Self::Resnet200,
        Self::Resnext50_32x4d,
        Self::Resnext101_32x8d,
        Self::WideResnet50_2,
        Self::WideResnet101_2,
        Self::ConvnextTiny,
        Self::ConvnextSmall,
        Self::ConvnextBase,
        Self::VitTiny,
        Self::VitSmall,
        Self::VitBase,
    ];

    /// Its family.
    pub fn family(self) -> Family {
        match self {
            Self::ConvnextTiny | Self::ConvnextSmall | Self::ConvnextBase => Family::Convnext,
            Self::VitTiny | Self::VitSmall | Self::VitBase => Family::Vit,
            _ => Family::Resnet,
        }
    }

    /// Those of a family.
    pub fn of(family: Family) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |arch| arch.family() == family)
    }

    /// Residual blocks of each stage; a ViT has one stage.
    pub fn blocks(self) -> [usize; 4] {
        match self {
            Self::Resnet18 => [2, 2, 2, 2],
            Self::Resnet34 | Self::Resnet50 | Self::Resnext50_32x4d | Self::WideResnet50_2 => [3, 4, 6, 3],
            Self::Resnet101 | Self::Resnext101_32x8d | Self::WideResnet101_2 => [3, 4, 23, 3],
            Self::Resnet152 => [3, 8, 36, 3],
            Self::Resnet200 => [3, 24, 36, 3],
            Self::ConvnextTiny => [3, 3, 9, 3],
            Self::ConvnextSmall | Self::ConvnextBase => [3, 3, 27, 3],
            Self::VitTiny | Self::VitSmall | Self::VitBase => [12, 0, 0, 0],
        }
    }

    /// Side of the patches of the first convolution that torchvision gives it; a ResNet has none.
    pub fn patch_size(self) -> i64 {
        match self.family() {
            Family::Resnet => 1,
            Family::Convnext => 4,
            Family::Vit => 16,
        }
    }
}
