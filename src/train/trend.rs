//! What the trend of a run's label-free metrics says, in plain sentences.

use crate::logging::Quality;

/// A rank below this share of the largest so far, and still falling, is a collapse of dimensions.
const COLLAPSED: f64 = 0.5;
/// If only the first encoder had a rank twice as large, a collapse must also be below this share of the rank before: the
/// features of random weights may vary in many directions without meaning. Those of `quickstart_convnext` have a rank of
/// 52 before training, then of 13 and 11 while k-NN accuracy rises.
const FAST: f64 = 0.75;
/// Epochs without progress that are worth a sentence.
const FLAT_EPOCHS: f64 = 20.0;
/// Change of view retrieval that counts as progress.
const PROGRESS: f64 = 0.005;
/// From here on retrieval cannot show progress.
const FOUND: f64 = 0.99;

/// The evaluations of a run so far, each after so many epochs.
pub type History = [(f64, Quality)];

/// One of the ranks of an evaluation.
type Rank = fn(&Quality) -> f64;

/// Sentences about the latest evaluation, none if all is well.
pub fn warnings(history: &History) -> Vec<String> {
    [collapse(history), flat(history)].into_iter().flatten().collect()
}

/// The encoder, or the projector, uses ever fewer dimensions.
fn collapse(history: &History) -> Option<String> {
    let trained = history.get(1..)?;
    let [.., (_, before), (_, now)] = trained else { return None };
    let ranks: [(&str, Rank, i64); 2] = [
        ("effective rank", |quality| quality.effective_rank, now.max_rank()),
        ("effective rank of the projections", |quality| quality.projection_rank, now.max_rank()),
    ];
    let falling = ranks.into_iter().find(|(_, rank, _)| {
        let best = |history: &History| history.iter().map(|(_, quality)| rank(quality)).fold(0.0, f64::max);
        let small = |history| rank(now) < COLLAPSED * best(history);
        rank(now) < rank(before) && (small(trained) || small(history) && rank(now) < FAST * rank(before))
    });
    let (name, rank, most) = falling?;
    let of = if name == "effective rank" { format!(" of {most}") } else { String::new() };
    Some(format!(
        "{name} {:.1}{of} and falling: the encoder is collapsing to few dimensions. What helps: a lower \
         optimizer.base_lr or optimizer.weight_decay, ema.base_tau closer to 1, a larger batch, augmentation as in the \
         paper",
        rank(now)
    ))
}

/// View retrieval has not grown for many epochs.
fn flat(history: &History) -> Option<String> {
    let (now, latest) = history.last()?;
    let (earlier, later): (Vec<_>, Vec<_>) = history.iter().partition(|(epoch, _)| *epoch <= now - FLAT_EPOCHS);
    let best = |of: &[&(f64, Quality)]| of.iter().map(|(_, quality)| quality.view_retrieval).fold(0.0, f64::max);
    let (before, since) = (best(&earlier), best(&later));
    let flat = earlier.len() >= 2 && later.len() >= 3 && since < before + PROGRESS && before < FOUND;
    // Falling is not flat.
    let flat = flat && latest.view_retrieval > before - 4.0 * PROGRESS;
    flat.then(|| {
        format!(
            "view retrieval flat for {FLAT_EPOCHS} epochs (best {:.1} %, before {:.1} %): more epochs will change little",
            100.0 * since,
            100.0 * before
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(ranks: &[f64], retrieval: impl Fn(usize) -> f64) -> Vec<(f64, Quality)> {
        let quality = |(at, &effective_rank): (usize, &f64)| {
            let view_retrieval = retrieval(at);
            let quality = Quality {
                effective_rank,
                projection_rank: 20.0,
                view_retrieval,
                features: 128,
                images: 256,
                ..Default::default()
            };
            (2.0 * at as f64, quality)
        };
        ranks.iter().enumerate().map(quality).collect()
    }

    #[test]
    fn a_rank_that_falls_below_half_of_its_best_is_a_collapse() {
        let said = |ranks: &[f64]| warnings(&history(ranks, |at| at as f64 / 10.0)).join("; ");
        assert!(
            said(&[9.0, 30.0, 14.0]).starts_with("effective rank 14.0 of 128 and falling: the encoder is collapsing")
        );
        for healthy in [&[9.0, 30.0, 31.0][..], &[9.0, 30.0, 16.0], &[9.0, 30.0, 12.0, 13.0], &[30.0, 3.0], &[30.0]] {
            assert_eq!(said(healthy), "", "{healthy:?}");
        }
        // Only the first encoder had more: falling slowly, and fast.
        assert_eq!(said(&[52.0, 12.7, 11.2]), "");
        assert!(said(&[33.9, 1.2, 9.6, 4.9]).starts_with("effective rank 4.9"));
    }

    #[test]
    fn retrieval_that_stands_still_is_said() {
        let said = |retrieval: fn(usize) -> f64| warnings(&history(&[20.0; 21], retrieval)).join("; ");
        let flat = said(|at| 0.6 + 0.02 * (at.min(9) as f64) + 0.001 * (at % 2) as f64);
        assert!(flat.starts_with("view retrieval flat for 20 epochs (best 78.1 %"), "{flat}");
        assert_eq!(said(|at| 0.3 + 0.01 * at as f64), "");
        assert_eq!(said(|_| 1.0), "");
        assert_eq!(warnings(&history(&[20.0; 9], |_| 0.5)), [""; 0]);
    }
}
