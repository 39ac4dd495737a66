//! The operations that the paper lacks, against torchvision for 1 and 3 channels and numpy for others, byte for byte.
//! `scripts/reference/views.py` makes the fixture and says what each reference is.

use byol::augment::{Crop, Draws, Interpolation, Scratch, Size, apply};
use byol::pixels::Pixels;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn numbers(tensor: &TensorView) -> Vec<f64> {
    tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

#[test]
fn added_operations_equal_torchvision_and_numpy() {
    let bytes = std::fs::read(crate::support::golden("views.safetensors")).expect("the fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (mut scratch, mut wrong, mut cases) = (Scratch::default(), Vec::new(), 0);
    for key in tensors.names() {
        let mut parts = key.split('.');
        let (name, op) = (parts.next().expect("an image"), parts.next().expect("an operation"));
        let rest: Vec<&str> = parts.collect();
        let tensor = |part: &str| tensors.tensor(&format!("{name}.{part}")).expect("in the fixture");
        if op == "image" || ["inside", "factors", "box"].contains(rest.last().unwrap_or(&"")) {
            continue;
        }
        let image = tensor("image");
        let [height, width, channels] = image.shape()[..] else { panic!("{name}: {:?}", image.shape()) };
        let mut draws = Draws::of(Crop::whole(width, height));
        let (mut kernel, mut size, mut inside) = (Interpolation::Bicubic, Size { height, width }, None);
        match op {
            "vertical_flip" => draws.vertical_flip = true,
            "quarter_turns" => {
                draws.quarter_turns = rest[0].parse().expect("turns");
                size = if draws.quarter_turns.is_multiple_of(2) { size } else { size.turned() };
            }
            "rotation" => {
                kernel = [Interpolation::Bicubic, Interpolation::Bilinear][usize::from(rest[0] == "1")];
                draws.rotation = Some(rest[1..].join(".").parse().expect("degrees"));
                inside = Some(tensors.tensor(&format!("{key}.inside")).expect("in the fixture"));
            }
            "channel_jitter" => {
                let factors = numbers(&tensor("channel_jitter.factors"));
                draws.channels = Some(factors.as_chunks::<2>().0.to_vec());
            }
            "erase" => {
                let sides = numbers(&tensor("erase.box"));
                let [top, left, height, width] = [0, 1, 2, 3].map(|i| sides[i] as usize);
                draws.erase = Some(Crop { left, top, width, height });
            }
            other => panic!("unknown operation {other}"),
        }
        let pixels = Pixels { width, height, channels, data: image.data().to_vec() };
        let mut view = vec![0; size.pixels() * channels];
        apply(&pixels, &draws, size, kernel, &mut scratch, &mut view);
        let expected = tensors.tensor(key).expect("in the fixture");
        assert_eq!(expected.shape(), [size.height, size.width, channels], "{key}");
        let compared = |at: usize| inside.as_ref().is_none_or(|inside| inside.data()[at / channels] == 1);
        let pairs = view.iter().zip(expected.data()).enumerate().filter(|(at, _)| compared(*at));
        let (count, differing) =
            pairs.fold((0, 0), |(count, differing), (_, (a, b))| (count + 1, differing + usize::from(a != b)));
        assert!(count > view.len() / 2, "{key}: only {count} values to compare");
        if differing > 0 {
            wrong.push(format!("{key}: {differing} of {count} values differ"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(cases, 6 * 12);
}
