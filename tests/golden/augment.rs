//! Views against torchvision on Pillow images, byte for byte. `scripts/reference/augment.py` makes the fixture;
//! the layout of its parameters is described there.

use byol::augment::{AugmentConfig, ColorOp, Crop, Draws, Interpolation, Scratch, apply, eval_view};
use byol::pixels::Pixels;
use safetensors::SafeTensors;
use std::collections::BTreeMap;

fn image(tensors: &SafeTensors, index: f64) -> Pixels {
    let tensor = tensors.tensor(&format!("image.{index}")).unwrap();
    let (height, width) = (tensor.shape()[0], tensor.shape()[1]);
    Pixels { width, height, channels: 3, data: tensor.data().to_vec() }
}

fn draws(params: &[f64]) -> Draws {
    let [left, top, width, height] = [0, 1, 2, 3].map(|i| params[i] as usize);
    let op = |i: usize| match (params[5 + 2 * i], params[6 + 2 * i]) {
        (0.0, _) => None,
        (1.0, factor) => Some(ColorOp::Brightness(factor)),
        (2.0, factor) => Some(ColorOp::Contrast(factor)),
        (3.0, factor) => Some(ColorOp::Saturation(factor)),
        (4.0, turn) => Some(ColorOp::Hue(turn)),
        (kind, _) => panic!("unknown operation {kind}"),
    };
    let given = |v: f64| (v >= 0.0).then_some(v);
    Draws {
        flip: params[4] == 1.0,
        color: [op(0), op(1), op(2), op(3)],
        grayscale: params[13] == 1.0,
        blur: given(params[14]),
        solarize: given(params[15]).map(|v| v as u8),
        ..Draws::of(Crop { left, top, width, height })
    }
}

#[test]
fn every_operation_and_whole_pipelines_equal_torchvision() {
    let bytes = std::fs::read(crate::support::golden("augment.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut scratch = Scratch::default();
    let mut failed = Vec::new();
    let mut cases = BTreeMap::<String, usize>::new();
    for key in tensors.names() {
        let Some(case) = key.strip_suffix(".params") else { continue };
        let tensor = tensors.tensor(key).unwrap();
        let params: Vec<f64> = tensor.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        let expected = tensors.tensor(&format!("{case}.expected")).unwrap();
        let image = image(&tensors, params[0]);
        let size = params[1] as usize;
        let mut view = vec![0; size * size * 3];
        let op = case.split_once('.').unwrap().1;
        if op == "eval" {
            let eval_resize = Some(params[2] as usize);
            let config = AugmentConfig { size: size.into(), eval_resize, ..Default::default() };
            eval_view(&config, &image, &mut scratch, &mut view);
        } else {
            let kernel = [Interpolation::Bicubic, Interpolation::Bilinear][params[2] as usize];
            apply(&image, &draws(&params[3..]), size.into(), kernel, &mut scratch, &mut view);
        }
        let wrong = view.iter().zip(expected.data()).filter(|(ours, theirs)| ours != theirs).count();
        assert_eq!(expected.shape(), [size, size, 3], "{case}");
        if wrong > 0 {
            failed.push(format!("{case}: {wrong} of {} bytes differ; parameters {params:?}", view.len()));
        }
        *cases.entry(op.to_owned()).or_default() += 1;
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let counts: Vec<(&str, usize)> = cases.iter().map(|(op, n)| (op.as_str(), *n)).collect();
    let expected = [
        ("blur", 24),
        ("brightness", 20),
        ("contrast", 20),
        ("eval", 48),
        ("flip", 4),
        ("grayscale", 4),
        ("hue", 32),
        ("pipeline", 40),
        ("resize_bicubic", 41),
        ("resize_bilinear", 41),
        ("saturation", 20),
        ("solarize", 8),
    ];
    assert_eq!(counts, expected);
}
