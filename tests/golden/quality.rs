//! Quality without labels against numpy.

use byol::eval::ViewPairs;

use crate::support::Fixture;

#[test]
fn quality_is_numpys() {
    let fixture = Fixture::open("quality.safetensors");
    for name in ["tall", "wide", "flat"] {
        let rows = |key: &str| fixture.get(&format!("{name}.{key}")).shallow_clone();
        let pairs = ViewPairs {
            representations: [rows("first"), rows("second")],
            projections: [rows("online"), rows("target")],
        };
        let quality = pairs.quality().expect("numbers");
        let expected = fixture.numbers(&format!("{name}.expected"));
        for ((key, found), expected) in quality.numbers().into_iter().zip(expected) {
            let error = (found - expected).abs() / expected.abs().max(1e-6);
            assert!(error < 1e-6, "{name}, {key}: {found}, numpy {expected}");
        }
    }
}
