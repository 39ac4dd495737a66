//! Adapts an encoder's first convolution to another number of input channels.

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

/// The first convolution's weights `[out, 3, k, k]` for images of `channels` channels, by the rule of timm's
/// `adapt_input_conv`: summed for one channel, otherwise repeated, cut to the number, and multiplied by
/// `3 / channels`, so that equal channels give what they gave in RGB.
/// # Errors
/// The weights are for another number of channels than 3; not four axes.
pub fn adapt_input(weight: &Tensor, channels: i64) -> Result<Tensor> {
    let &[_, found, _, _] = &weight.size()[..] else {
        bail!("found shape {:?}, expected that of a convolution", weight.size())
    };
    if found == channels {
        return Ok(weight.shallow_clone());
    }
    if found != 3 {
        bail!(
            "its first convolution takes {found} channels, expected {channels}, or 3, which can be fitted to {channels}"
        );
    }
    let weight = weight.f_to_kind(Kind::Float)?;
    if channels == 1 {
        return Ok(weight.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float)?);
    }
    let repeated = weight.f_repeat([1, (channels + 2) / 3, 1, 1])?.f_narrow(1, 0, channels)?;
    Ok(repeated.f_mul_scalar(3.0 / channels as f64)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    // w = torch.arange(6, dtype=torch.float32).reshape(2, 3, 1, 1) ** 2 + 1
    // [timm.models.adapt_input_conv(n, w).flatten().tolist() for n in (1, 2, 3, 4, 7)]
    #[test]
    fn weights_are_those_of_timm() {
        let weight = (Tensor::arange(6, (Kind::Float, Device::Cpu)).square() + 1.0).reshape([2, 3, 1, 1]);
        for (channels, expected) in [
            (1, vec![8.0, 53.0]),
            (2, vec![1.5, 3.0, 15.0, 25.5]),
            (3, vec![1.0, 2.0, 5.0, 10.0, 17.0, 26.0]),
            (4, vec![0.75, 1.5, 3.75, 0.75, 7.5, 12.75, 19.5, 7.5]),
            (7, TIMM_7.to_vec()),
        ] {
            let found = adapt_input(&weight, channels).expect("fitted");
            assert_eq!(found.size(), [2, channels, 1, 1]);
            assert_eq!(Vec::<f32>::try_from(found.flatten(0, -1)).expect("values"), expected, "{channels}");
        }
        let four = adapt_input(&weight, 4).expect("fitted");
        let error = adapt_input(&four, 5).expect_err("only RGB is fitted").to_string();
        assert_eq!(error, "its first convolution takes 4 channels, expected 5, or 3, which can be fitted to 5");
        assert!(adapt_input(&weight.flatten(0, -1), 1).is_err());
    }

    const TIMM_7: [f32; 14] = [
        0.428_571_43,
        0.857_142_87,
        2.142_857,
        0.428_571_43,
        0.857_142_87,
        2.142_857,
        0.428_571_43,
        4.285_714,
        7.285_714,
        11.142_858,
        4.285_714,
        7.285_714,
        11.142_858,
        4.285_714,
    ];
}
