//! The operations of a ViT between its patches, written so that a trace does not fix the size of a batch.

use tch::{Kind, Tensor};

/// A learned token `[1, 1, C]` before the others, `[N, T, C]` to `[N, 1 + T, C]`.
pub(super) fn prepend(token: &Tensor, x: &Tensor) -> Tensor {
    let token = token + x.narrow(1, 0, 1).zeros_like();
    Tensor::cat(&[token, x.shallow_clone()], 1)
}

/// Position embeddings `[1, 1 + H W, C]`, learned for a grid of patches, for the feature map `[N, C, H', W']`.
/// Another grid gets them interpolated: `timm.layers.resample_abs_pos_embed`.
pub(super) fn positions(learned: &Tensor, grid: [i64; 2], map: &Tensor) -> Tensor {
    let [.., height, width] = map.size()[..] else { unreachable!("a feature map") };
    resample(learned, grid, [height, width])
}

/// Position embeddings `[1, 1 + H W, C]` of a grid H, W for another one, bicubic with antialiasing; the class token's
/// stays (`timm.layers.resample_abs_pos_embed`).
pub fn resample(learned: &Tensor, grid: [i64; 2], wanted: [i64; 2]) -> Tensor {
    if grid == wanted {
        return learned.shallow_clone();
    }
    let ([height, width], kind) = (grid, learned.kind());
    let channels = learned.size()[2];
    let patches = learned.narrow(1, 1, height * width).to_kind(Kind::Float);
    let patches = patches.reshape([1, height, width, channels]).permute([0, 3, 1, 2]);
    let patches = patches.internal_upsample_bicubic2d_aa(wanted, false, None, None);
    let patches = patches.permute([0, 2, 3, 1]).reshape([1, -1, channels]).to_kind(kind);
    Tensor::cat(&[learned.narrow(1, 0, 1), patches], 1)
}

/// Multi-head attention of `[N, T, 3 C]`, queries, keys and values, to `[N, T, C]`, by
/// `torch.nn.functional.scaled_dot_product_attention`.
pub(super) fn attention(x: &Tensor, heads: i64, size: i64) -> Tensor {
    // Unbound, not selected: the gradients of the three are stacked in one pass.
    let parts = x.reshape([-1, x.size()[1], 3, heads, size]).permute([2, 0, 3, 1, 4]).unbind(0);
    let [query, key, value] = &parts[..] else { unreachable!("three parts") };
    let out = Tensor::scaled_dot_product_attention(query, key, value, None::<Tensor>, 0.0, false, None, false);
    out.transpose(1, 2).flatten(2, 3)
}

/// The mean of all tokens but the first, `[N, T, C]` to `[N, C]`.
pub(super) fn mean(x: &Tensor) -> Tensor {
    x.narrow(1, 1, x.size()[1] - 1).mean_dim(1, false, None)
}
