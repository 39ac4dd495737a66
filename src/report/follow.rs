//! How well each label-free metric follows k-NN accuracy: Spearman's rank correlation.

/// Fewer pairs say nothing.
const MIN_PAIRS: usize = 4;

/// Spearman's correlation of pairs, -1 to 1; equal values share the mean of their ranks. `None` for fewer than four pairs
/// or where all values of one side are equal.
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < MIN_PAIRS {
        return None;
    }
    let [a, b] = [ranks(pairs.iter().map(|pair| pair.0)), ranks(pairs.iter().map(|pair| pair.1))];
    let mean = (pairs.len() as f64 + 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let size = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (size > 0.0).then(|| sum(&a, &b) / size)
}

/// Ranks from 1.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let below = |value: f64| values.iter().filter(|other| **other < value).count() as f64;
    let equal = |value: f64| values.iter().filter(|other| **other == value).count() as f64;
    values.iter().map(|&value| below(value) + (equal(value) + 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_are_those_of_scipy() {
        // scipy.stats.spearmanr([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) and with a tie on both sides.
        let pairs = |a: &[f64], b: &[f64]| a.iter().copied().zip(b.iter().copied()).collect::<Vec<_>>();
        let first = spearman(&pairs(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0])).expect("enough");
        assert!((first - 0.820_782_681_668_123_3).abs() < 1e-12, "{first}");
        let rising = spearman(&pairs(&[1.0, 5.0, 9.0, 20.0], &[0.1, 0.2, 0.3, 0.9]));
        assert_eq!(rising, Some(1.0));
        assert_eq!(spearman(&pairs(&[1.0, 2.0, 3.0, 4.0], &[4.0, 3.0, 2.0, 1.0])), Some(-1.0));
        assert_eq!(spearman(&pairs(&[1.0; 4], &[1.0, 2.0, 3.0, 4.0])), None);
        assert_eq!(spearman(&[(1.0, 2.0); 3]), None);
    }
}
