//! The numbers that judge an encoder without labels, as they are logged.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Numbers of the encoder on N images, two augmented views of each; BatchNorm with its running statistics.
/// Representations and projections are normalized to length 1 for all but the ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quality {
    /// RankMe of the representations, 1 to the smaller of N and `features`: how many dimensions the encoder uses.
    pub effective_rank: f64,
    /// RankMe of the projections.
    pub projection_rank: f64,
    /// Mean squared distance of the representations of two views of an image, 0 to 4; small is good.
    pub alignment: f64,
    /// Logarithm of the mean of exp(-2 distance^2) over pairs of images, -8 to 0; small is good.
    pub uniformity: f64,
    /// Share of images whose view 1 has its own view 2 as the nearest of all N, 0 to 1.
    pub view_retrieval: f64,
    /// Mean cosine of the representations of different images; near 1 the encoder tells them badly apart.
    pub random_cosine: f64,
    /// Mean squared distance of the online and the target projection of the same view, 0 to 4.
    pub target_distance: f64,
    /// Length of a representation.
    pub features: i64,
    /// N.
    pub images: i64,
}

impl Quality {
    /// Those among the records of `metrics.jsonl`, each with the epochs done.
    pub fn history(records: &[Value]) -> Vec<(f64, Self)> {
        let records = records.iter().filter(|record| record["effective_rank"].is_number());
        let quality = |record: &Value| Some((record["epoch"].as_f64()?, Self::deserialize(record).ok()?));
        records.filter_map(quality).collect()
    }

    /// The numbers that change during a run, by key.
    pub fn numbers(&self) -> [(&'static str, f64); 7] {
        [
            ("effective_rank", self.effective_rank),
            ("projection_rank", self.projection_rank),
            ("alignment", self.alignment),
            ("uniformity", self.uniformity),
            ("view_retrieval", self.view_retrieval),
            ("random_cosine", self.random_cosine),
            ("target_distance", self.target_distance),
        ]
    }

    /// The largest rank that these images can show.
    pub fn max_rank(&self) -> i64 {
        self.features.min(self.images)
    }

    /// For humans, in two lines that a terminal of 80 columns holds.
    pub fn lines(&self) -> [String; 2] {
        [
            format!(
                "effective rank {:.1} of {} (projections {:.1}), view retrieval {:.1} %",
                self.effective_rank,
                self.max_rank(),
                self.projection_rank,
                100.0 * self.view_retrieval,
            ),
            format!(
                "alignment {:.3}, uniformity {:.2}, random cosine {:.2}, target distance {:.3}",
                self.alignment, self.uniformity, self.random_cosine, self.target_distance
            ),
        ]
    }
}
