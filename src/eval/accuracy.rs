//! Accuracy of classifiers.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Hits of L classifiers over C classes, summed over batches on the device.
pub struct Tally {
    top1: Tensor,   // [C, L]
    top5: Tensor,   // [C, L]
    images: Tensor, // [C]
    loss: Tensor,   // [L]
}

/// The accuracy of one classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Share of images whose class has the largest score, 0 to 1.
    pub top1: f64,
    /// Share of images whose class is among the five largest scores.
    pub top5: f64,
    /// Mean cross-entropy.
    pub loss: f64,
    /// Of each class: images, and those of them that `top1` counts.
    pub per_class: Vec<(i64, i64)>,
}

impl Accuracy {
    /// Mean recall: the mean accuracy over the classes that have images.
    pub fn balanced_top1(&self) -> f64 {
        let shares: Vec<f64> =
            self.per_class.iter().filter(|(images, _)| *images > 0).map(|&(n, hits)| hits as f64 / n as f64).collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }
}

impl Tally {
    /// Counters at 0.
    pub fn new(classes: i64, classifiers: i64, device: Device) -> Self {
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device));
        Self {
            top1: zeros(&[classes, classifiers], Kind::Int64),
            top5: zeros(&[classes, classifiers], Kind::Int64),
            images: zeros(&[classes], Kind::Int64),
            loss: zeros(&[classifiers], Kind::Double),
        }
    }

    /// Counts a batch: scores `[B, L, C]` of images of classes `[B]` (int64).
    pub fn add(&mut self, scores: &Tensor, classes: &Tensor) -> Result<()> {
        let (_, best) = scores.f_topk(scores.size()[2].min(5), 2, true, true)?;
        let hits = best.f_eq_tensor(&classes.view([-1, 1, 1]))?; // [B, L, 5]
        let first = hits.select(2, 0).to_kind(Kind::Int64);
        let any = hits.any_dim(2, false).to_kind(Kind::Int64);
        let _ = self.top1.f_index_add_(0, classes, &first)?;
        let _ = self.top5.f_index_add_(0, classes, &any)?;
        let _ = self.images.f_index_add_(0, classes, &classes.ones_like())?;
        let own = classes.view([-1, 1, 1]).expand([-1, scores.size()[1], 1], false);
        let losses = -scores.log_softmax(2, Kind::Double).f_gather(2, &own, false)?;
        let _ = self.loss.f_add_(&losses.sum_dim_intlist([0, 2].as_slice(), false, Kind::Double))?;
        Ok(())
    }

    /// The result of each classifier, in their order.
    pub fn accuracies(&self) -> Result<Vec<Accuracy>> {
        let images = Vec::<i64>::try_from(&self.images)?;
        let total = images.iter().sum::<i64>().max(1) as f64;
        let share = |hits: &Tensor, l: i64| hits.select(1, l).sum(Kind::Int64).int64_value(&[]) as f64 / total;
        let classifier = |l: i64| {
            let correct = Vec::<i64>::try_from(self.top1.select(1, l))?;
            Ok(Accuracy {
                top1: share(&self.top1, l),
                top5: share(&self.top5, l),
                loss: self.loss.double_value(&[l]) / total,
                per_class: images.iter().copied().zip(correct).collect(),
            })
        };
        (0..self.top1.size()[1]).map(classifier).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_to_the_definitions() -> Result<()> {
        // Two classifiers, seven classes; the second one's scores are the first one's negated.
        let scores: Vec<f32> = (0..40 * 7).map(|i| ((i * 37 + i / 7 * 11) % 101) as f32 / 10.0).collect();
        let classes: Vec<i64> = (0..40).map(|i| i * i % 6).collect(); // class 6 never occurs
        let first = Tensor::from_slice(&scores).reshape([40, 1, 7]);
        let both = Tensor::cat(&[&first, &-&first], 1);
        let labels = Tensor::from_slice(&classes);
        let mut tally = Tally::new(7, 2, Device::Cpu);
        for (start, length) in [(0, 13), (13, 27)] {
            tally.add(&both.narrow(0, start, length), &labels.narrow(0, start, length))?;
        }
        for (sign, found) in [1.0, -1.0].into_iter().zip(tally.accuracies()?) {
            let (mut top1, mut top5, mut loss, mut per_class) = (0, 0, 0.0, vec![(0, 0); 7]);
            for (row, &class) in scores.chunks(7).zip(&classes) {
                let row: Vec<f64> = row.iter().map(|&v| sign * v as f64).collect();
                let own = row[class as usize];
                let above = row.iter().filter(|&&v| v > own).count();
                top1 += i64::from(above == 0);
                top5 += i64::from(above < 5);
                loss += row.iter().map(|v| v.exp()).sum::<f64>().ln() - own;
                per_class[class as usize].0 += 1;
                per_class[class as usize].1 += i64::from(above == 0);
            }
            assert_eq!((found.top1, found.top5), (top1 as f64 / 40.0, top5 as f64 / 40.0));
            assert!((found.loss - loss / 40.0).abs() < 1e-9, "{} {}", found.loss, loss / 40.0);
            let recall =
                per_class.iter().filter(|c| c.0 > 0).map(|&(images, hits)| hits as f64 / images as f64).sum::<f64>()
                    / 4.0;
            assert!((found.balanced_top1() - recall).abs() < 1e-12, "squares modulo 6 are 0, 1, 3 and 4");
            assert_eq!(found.per_class, per_class);
        }
        Ok(())
    }

    #[test]
    fn equal_scores_do_not_count_as_hits() -> Result<()> {
        let mut tally = Tally::new(10, 1, Device::Cpu);
        let classes = Tensor::arange(100, (Kind::Int64, Device::Cpu)).remainder(10);
        tally.add(&Tensor::zeros([100, 1, 10], (Kind::Float, Device::Cpu)), &classes)?;
        let found = &tally.accuracies()?[0];
        assert_eq!((found.top1, found.top5), (0.1, 0.5));
        Ok(())
    }
}
