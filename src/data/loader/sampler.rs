//! The order of images: every epoch a new permutation (a pure function of seed and epoch),
//! cut into whole batches; the incomplete last one is dropped, as in the paper's code and in
//! PyTorch's `DataLoader(shuffle=True, drop_last=True)`.

use anyhow::{Result, ensure};

use crate::rng::{Purpose, Stream};

/// The order of a run, in micro-batches: number `n` is part `n % (steps * parts)` of epoch
/// `n / (steps * parts)`, with `steps` optimizer steps per epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    images: usize,
    steps: usize,
    parts: usize,
    micro_batch: usize,
    seed: u64,
}

impl Sampler {
    /// `batch_size` counts the images of one optimizer step over all ranks, which come in `parts` micro-batches.
    /// Fails unless `parts` divides `batch_size` and `1 <= batch_size <= images`.
    pub fn new(images: usize, batch_size: usize, parts: usize, seed: u64) -> Result<Self> {
        ensure!(images <= u32::MAX as usize, "found {images} images, expected at most {}", u32::MAX);
        ensure!(
            (1..=images).contains(&batch_size),
            "found batch size {batch_size}, expected 1 to {images}, the number of images"
        );
        ensure!(
            parts > 0 && batch_size.is_multiple_of(parts),
            "found {parts} micro-batches, expected a divisor of the batch size {batch_size}"
        );
        Ok(Self { images, steps: images / batch_size, parts, micro_batch: batch_size / parts, seed })
    }

    /// Seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Number of images an epoch draws from.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Epoch and micro-batch in it of micro-batch `number` of the run.
    pub fn position(&self, number: u64) -> (u64, usize) {
        let batches = (self.steps * self.parts) as u64;
        (number / batches, (number % batches) as usize)
    }

    /// All image indices in the order of an epoch.
    pub fn epoch_order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.images as u32).collect();
        Stream::new(self.seed, Purpose::Shuffle, epoch, 0, 0).shuffle(&mut order);
        order
    }

    /// A micro-batch of an epoch, given the epoch's order.
    pub fn batch<'a>(&self, order: &'a [u32], batch_in_epoch: usize) -> &'a [u32] {
        &order[batch_in_epoch * self.micro_batch..][..self.micro_batch]
    }

    /// The contiguous part of a batch that `rank` of `world` processes loads. The parts cover the
    /// batch in order and differ by at most one image. Fails unless `rank < world` and every rank
    /// gets an image.
    pub fn share(batch: &[u32], rank: usize, world: usize) -> Result<&[u32]> {
        ensure!(rank < world, "found rank {rank}, expected less than the {world} processes");
        ensure!(
            batch.len() >= world,
            "found batch size {}, expected at least one image for each of {world} processes",
            batch.len()
        );
        Ok(&batch[batch.len() * rank / world..batch.len() * (rank + 1) / world])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_new_permutation() {
        let sampler = Sampler::new(103, 10, 1, 5).unwrap();
        let order = sampler.epoch_order(3);
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..103).collect::<Vec<u32>>());
        assert_eq!(order, sampler.epoch_order(3));
        assert_ne!(order, sampler.epoch_order(4));
        assert_ne!(order, Sampler::new(103, 10, 1, 6).unwrap().epoch_order(3));
        // Every image comes first about equally often.
        let sampler = Sampler::new(4, 1, 1, 0).unwrap();
        let mut first = [0; 4];
        (0..4000).for_each(|epoch| first[sampler.epoch_order(epoch)[0] as usize] += 1);
        assert!(first.iter().all(|&count| (880..1120).contains(&count)), "{first:?}");
    }

    #[test]
    fn batches_cover_the_epoch_and_drop_the_rest() {
        let sampler = Sampler::new(103, 10, 1, 5).unwrap();
        let order = sampler.epoch_order(0);
        let seen: Vec<u32> = (0..10).flat_map(|step| sampler.batch(&order, step)).copied().collect();
        assert_eq!(seen, order[..100]);
        assert_eq!((sampler.position(9), sampler.position(10)), ((0, 9), (1, 0)));
        assert_eq!(Sampler::new(8, 8, 1, 0).unwrap().position(3), (3, 0));
    }

    #[test]
    fn micro_batches_are_parts_of_the_same_steps() {
        let (whole, parts) = (Sampler::new(103, 12, 1, 5).unwrap(), Sampler::new(103, 12, 3, 5).unwrap());
        let order = whole.epoch_order(2);
        for step in 0..8 {
            let joined: Vec<u32> = (0..3).flat_map(|p| parts.batch(&order, 3 * step + p)).copied().collect();
            assert_eq!(joined, whole.batch(&order, step));
        }
        // 103 images hold 25 micro-batches of 4, but 8 whole steps: the next one opens a new epoch.
        assert_eq!((parts.position(23), parts.position(24)), ((0, 23), (1, 0)));
        assert!(Sampler::new(103, 12, 5, 5).is_err());
    }

    #[test]
    fn shares_cover_the_batch_once() {
        let batch: Vec<u32> = (0..10).collect();
        for world in 1..=10 {
            let parts: Vec<&[u32]> = (0..world).map(|rank| Sampler::share(&batch, rank, world).unwrap()).collect();
            assert_eq!(parts.concat(), batch);
            let sizes: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
        assert!(Sampler::share(&batch, 0, 11).is_err());
        assert!(Sampler::share(&batch, 2, 2).is_err());
    }

    #[test]
    fn refuses_a_batch_that_does_not_fit() {
        let message = Sampler::new(100, 101, 1, 0).unwrap_err().to_string();
        assert_eq!(message, "found batch size 101, expected 1 to 100, the number of images");
        assert!(Sampler::new(100, 0, 1, 0).is_err());
    }
}
