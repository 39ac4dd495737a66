//! Groups of equal and of similar images, by their hashes.

use std::collections::HashMap;

/// Bits in which the difference hashes of near duplicates differ, at most.
pub const NEAR_BITS: u32 = 4;

/// Parts of a hash: two hashes that differ in [`NEAR_BITS`] bits have one of these in common.
const PARTS: u32 = NEAR_BITS + 1;

/// Hashes of one part that are compared with each other, at most: parts shared by more images say nothing.
const MAX_BUCKET: usize = 2000;

/// Groups of two and more images with the same hash, in the order of their first image.
pub fn equal(hashes: &[(u32, u128)]) -> Vec<Vec<u32>> {
    let mut groups: HashMap<u128, Vec<u32>> = HashMap::new();
    hashes.iter().for_each(|(image, hash)| groups.entry(*hash).or_default().push(*image));
    in_order(groups.into_values())
}

/// Groups of images whose hashes differ in few bits from that of another of the group.
pub fn near(hashes: &[(u32, u64)]) -> Vec<Vec<u32>> {
    let mut parents: Vec<usize> = (0..hashes.len()).collect();
    for part in 0..PARTS {
        let (low, high) = (part * 64 / PARTS, (part + 1) * 64 / PARTS);
        let mut buckets: HashMap<u64, Vec<usize>> = HashMap::new();
        for (at, (_, hash)) in hashes.iter().enumerate() {
            buckets.entry(hash >> low & ((1 << (high - low)) - 1)).or_default().push(at);
        }
        for bucket in buckets.values().filter(|bucket| bucket.len() <= MAX_BUCKET) {
            for (n, &a) in bucket.iter().enumerate() {
                for &b in &bucket[n + 1..] {
                    if (hashes[a].1 ^ hashes[b].1).count_ones() <= NEAR_BITS {
                        let (a, b) = (root(&mut parents, a), root(&mut parents, b));
                        parents[a.max(b)] = a.min(b);
                    }
                }
            }
        }
    }
    let mut groups: HashMap<usize, Vec<u32>> = HashMap::new();
    for (at, (image, _)) in hashes.iter().enumerate() {
        groups.entry(root(&mut parents, at)).or_default().push(*image);
    }
    in_order(groups.into_values())
}

fn root(parents: &mut [usize], mut at: usize) -> usize {
    while parents[at] != at {
        parents[at] = parents[parents[at]];
        at = parents[at];
    }
    at
}

fn in_order(groups: impl Iterator<Item = Vec<u32>>) -> Vec<Vec<u32>> {
    let mut groups: Vec<Vec<u32>> = groups.filter(|group| group.len() > 1).collect();
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_hashes_are_found_wherever_their_bits_differ() {
        let base = 0x0123_4567_89ab_cdefu64;
        for bits in [[0, 1, 2, 3], [12, 13, 38, 63], [0, 20, 40, 60], [5, 17, 30, 51]] {
            let near_one = bits.iter().fold(base, |hash, bit| hash ^ 1 << bit);
            let far = near_one ^ 1 << 25 ^ 1 << 26;
            let groups = near(&[(7, base), (8, !base), (9, near_one), (11, far ^ 1 << 27)]);
            assert_eq!(groups, [vec![7, 9, 11]], "{bits:?}"); // the last by way of the one before
        }
        assert_eq!(near(&[(1, base), (2, base ^ 0b11111)]), Vec::<Vec<u32>>::new());
        assert_eq!(equal(&[(3, 5), (1, 4), (2, 5), (9, 4), (4, 1)]), [vec![1, 9], vec![2, 3]]);
    }
}
